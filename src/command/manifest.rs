//! Services in files → Services as the API server would have them.
//!
//! A file says neither UID nor, most often, NodePorts. Where the cluster has a Service of the same name, both are that
//! Service's, by the rules of `kubectl apply` and the API server. Elsewhere they are made up, and shown as what they
//! are: not known before the Service exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::Value;

use crate::model::id::ServiceKey;
use crate::model::service::CLASS;

/// Shown in place of a port that the API server has not chosen yet.
const ALLOCATED: &str = "<allocated at creation>";
/// Shown in place of a hash that depends on something not known yet.
const HASH: &str = "<hash>";
/// Label with which a Service or a namespace is kept from the admission policy (`manifests`).
const CLASS_LABEL: (&str, &str) = ("weir.dev/class", "none");
/// Where an object has it.
const CLASS_LABEL_POINTER: &str = "/metadata/labels/weir.dev~1class";

/// A Service of a file.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Where it is from.
    pub source: String,
    /// As written, with a namespace.
    pub service: Service,
    /// Whether the files have its namespace, with the label that keeps its Services from the admission policy.
    pub namespace_opts_out: bool,
    /// Fields that no Service has, so far as is known here.
    pub unknown: Vec<String>,
}

impl Manifest {
    /// Namespace and name.
    pub fn key(&self) -> ServiceKey {
        ServiceKey::new(self.service.namespace().unwrap_or_default(), self.service.name_any())
    }
}

/// Reads the Services in files and directories; everything else in them is passed over.
///
/// # Errors
/// A file cannot be read or is no YAML or JSON, a Service in it is none, or one is there twice.
pub fn read(paths: &[PathBuf], namespace: &str) -> anyhow::Result<Vec<Manifest>> {
    let mut texts = vec![];
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("--filename: cannot read standard input")?;
            texts.push(("standard input".to_owned(), text));
            continue;
        }
        for file in files_of(path).with_context(|| format!("--filename: cannot read {}", path.display()))? {
            let name = file.display().to_string();
            let text = fs::read_to_string(&file).with_context(|| format!("--filename: cannot read {name}"))?;
            texts.push((name, text));
        }
    }
    let manifests = parse(&texts, namespace)?;
    let mut seen: BTreeMap<ServiceKey, &str> = BTreeMap::new();
    for manifest in &manifests {
        if let Some(other) = seen.insert(manifest.key(), &manifest.source) {
            bail!("--filename: Service {} is in {other} and again in {}", manifest.key(), manifest.source);
        }
    }
    Ok(manifests)
}

/// The file itself, or those in a directory that kubectl would take.
fn files_of(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = vec![];
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let is_manifest = file.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known));
        if is_manifest && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// The Services in texts, each with its source, of any number of YAML or JSON documents, and in Lists among them.
///
/// # Errors
/// A text is neither, or a Service in it is none.
pub fn parse(texts: &[(String, String)], namespace: &str) -> anyhow::Result<Vec<Manifest>> {
    let mut services = vec![];
    let mut opted_out = BTreeSet::new();
    for (source, text) in texts {
        for document in documents(text, source)? {
            let text = |pointer| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            match (text("/kind"), text("/apiVersion")) {
                ("Service", "v1") => services.push(read_service(&document, source, namespace)?),
                ("Namespace", "v1") if text(CLASS_LABEL_POINTER) == CLASS_LABEL.1 => {
                    opted_out.insert(text("/metadata/name").to_owned());
                }
                _ => {}
            }
        }
    }
    for manifest in &mut services {
        manifest.namespace_opts_out = manifest.service.namespace().is_some_and(|name| opted_out.contains(&name));
    }
    Ok(services)
}

/// The documents of a text, those in Lists in their place.
fn documents(text: &str, source: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|error| anyhow!("--filename: {source} is no YAML or JSON: {error}"))?;
    let mut flat = vec![];
    let mut open: Vec<Value> = documents.into_iter().rev().collect();
    while let Some(mut document) = open.pop() {
        let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        if kind.ends_with("List")
            && let Some(Value::Array(items)) = document.get_mut("items").map(Value::take)
        {
            // Items of a ServiceList need not say what they are.
            let is_of_services = kind == "ServiceList";
            open.extend(items.into_iter().rev().map(|item| if is_of_services { as_service(item) } else { item }));
        } else {
            flat.push(document);
        }
    }
    Ok(flat)
}

fn as_service(mut item: Value) -> Value {
    if let Value::Object(fields) = &mut item {
        fields.entry("kind").or_insert_with(|| "Service".into());
        fields.entry("apiVersion").or_insert_with(|| "v1".into());
    }
    item
}

fn read_service(document: &Value, source: &str, namespace: &str) -> anyhow::Result<Manifest> {
    let name = document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if name.is_empty() {
        bail!("--filename: {source} has a Service without metadata.name");
    }
    let mut service: Service = serde_json::from_value(document.clone())
        .with_context(|| format!("--filename: {source}: Service {name} is not as the API server takes it"))?;
    let mut unknown = vec![];
    note_unknown(document, &serde_json::to_value(&service)?, "", &mut unknown);
    service.metadata.namespace.get_or_insert_with(|| namespace.to_owned());
    Ok(Manifest { source: source.to_owned(), service, unknown, namespace_opts_out: false })
}

/// Names the fields that are written and were not understood.
fn note_unknown(written: &Value, understood: &Value, path: &str, unknown: &mut Vec<String>) {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            for (key, value) in written.iter().filter(|(_, value)| !value.is_null()) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match understood.get(key) {
                    Some(understood) => note_unknown(value, understood, &path, unknown),
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(understood)) => {
            for (index, (value, understood)) in written.iter().zip(understood).enumerate() {
                note_unknown(value, understood, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// A Service as the API server would have it.
#[derive(Clone, Debug, Default)]
pub struct Admitted {
    /// The Service.
    pub service: Service,
    /// What was assumed, in sentences.
    pub assumed: Vec<String>,
    /// Whether it has a UID of its own.
    pub exists: bool,
    /// Numbers that stand for ports which are not allocated yet.
    pub made_up: BTreeSet<u16>,
}

impl Admitted {
    /// A Service of the cluster: everything is known.
    pub fn known(service: Service) -> Self {
        Self { service, exists: true, ..Self::default() }
    }

    /// A text about it without what is made up. `names` are those that depend on it.
    pub fn unveil(&self, text: &str, names: &BTreeSet<String>) -> String {
        let mut text = text.to_owned();
        for name in names {
            let readable = name.rsplit_once('-').map_or("", |(readable, _)| readable);
            text = text.replace(name, &format!("{readable}-{HASH}"));
        }
        for number in &self.made_up {
            text = replace_word(&text, &number.to_string(), ALLOCATED);
        }
        text
    }
}

/// Replaces a word where it stands for itself.
fn replace_word(text: &str, word: &str, with: &str) -> String {
    let mut parts = text.split(word).peekable();
    let mut replaced = String::new();
    while let Some(part) = parts.next() {
        replaced.push_str(part);
        let Some(next) = parts.peek() else { break };
        let is_joined = |letter: Option<char>| letter.is_some_and(char::is_alphanumeric);
        let inside = is_joined(replaced.chars().next_back()) || is_joined(next.chars().next());
        replaced.push_str(if inside { word } else { with });
    }
    replaced
}

/// What admission depends on beside the Service itself.
#[derive(Clone, Debug)]
pub struct Admission<'a> {
    /// The Service of the same name in the cluster.
    pub existing: Option<&'a Service>,
    /// The cluster's first IP family, if it is known.
    pub family: Option<&'a str>,
    /// Whether the admission policy gives weir's class to Services without one.
    pub sets_class: bool,
    /// The time.
    pub now: Timestamp,
}

/// Makes of a Service in a file what the API server would make of it.
pub fn admit(manifest: &Manifest, admission: &Admission<'_>) -> Admitted {
    let mut service = manifest.service.clone();
    let mut assumed = vec![];
    if !manifest.unknown.is_empty() {
        let fields = manifest.unknown.join(", ");
        assumed.push(format!("the API server drops what it does not know, unless kubectl refuses it first: {fields}"));
    }
    let existing = admission.existing;
    let spec = service.spec.get_or_insert_default();
    let before = existing.and_then(|existing| existing.spec.as_ref());
    let labels = service.metadata.labels.as_ref();
    let opts_out = labels.is_some_and(|labels| labels.get(CLASS_LABEL.0).is_some_and(|value| value == CLASS_LABEL.1));
    let sets_class = admission.sets_class && !opts_out && !manifest.namespace_opts_out;
    admit_class(spec, before, sets_class, &mut assumed);
    if spec.ip_families.is_none() {
        let families = before.and_then(|before| before.ip_families.clone());
        spec.ip_families = families.or_else(|| Some(vec![admission.family?.to_owned()]));
    }
    let text = service.metadata.annotations.iter().flatten().map(|(_, value)| value.as_str()).collect::<Vec<_>>();
    let made_up = admit_ports(spec, before, &text.join(" "), &mut assumed);
    let meta = &mut service.metadata;
    if let Some(existing) = existing {
        meta.uid.clone_from(&existing.metadata.uid);
        meta.creation_timestamp.clone_from(&existing.metadata.creation_timestamp);
        meta.deletion_timestamp.clone_from(&existing.metadata.deletion_timestamp);
        meta.finalizers.clone_from(&existing.metadata.finalizers);
    } else {
        meta.uid = Some(format!("not yet: {}", manifest.key()));
        meta.creation_timestamp = Some(Time(admission.now));
        assumed.push(format!("it does not exist yet: names end in {HASH}, which depends on its UID"));
    }
    Admitted { service, assumed, exists: existing.is_some(), made_up }
}

/// The class of a load balancer cannot change while it is one. Of a Service that becomes one without a class it is the
/// admission policy's.
fn admit_class(spec: &mut ServiceSpec, before: Option<&ServiceSpec>, sets_class: bool, assumed: &mut Vec<String>) {
    if !is_balancer(spec) || spec.load_balancer_class.is_some() {
        return;
    }
    match before.filter(|before| is_balancer(before)) {
        Some(before) => spec.load_balancer_class.clone_from(&before.load_balancer_class),
        None if !sets_class => {}
        None => {
            spec.load_balancer_class = Some(CLASS.to_owned());
            assumed.push(format!("spec.loadBalancerClass is {CLASS}, which the admission policy sets"));
        }
    }
}

fn is_balancer(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer")
}

/// Whether the API server allocates NodePorts.
fn allocates(spec: &ServiceSpec) -> bool {
    match spec.type_.as_deref() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    }
}

/// Ports that are not given: those of the existing Service, else numbers that stand for them.
fn admit_ports(
    spec: &mut ServiceSpec,
    before: Option<&ServiceSpec>,
    text: &str,
    assumed: &mut Vec<String>,
) -> BTreeSet<u16> {
    let mut taken = numbers(spec);
    let mut made_up = BTreeSet::new();
    let mut make_up = || {
        // Any number will do that means nothing else in what is said of this Service.
        let free = |number: &u16| !taken.contains(number) && !text.contains(&number.to_string());
        let number = (1..=u16::MAX).rev().find(free).unwrap_or(u16::MAX);
        taken.insert(number);
        made_up.insert(number);
        i32::from(number)
    };
    if allocates(spec) {
        let before = before.filter(|before| allocates(before)).and_then(|before| before.ports.as_ref());
        let ports = spec.ports.get_or_insert_default();
        keep_node_ports(ports, before.map_or(&[], Vec::as_slice));
        share_node_ports(ports);
        let mut lacking = vec![];
        while let Some(port) = ports.iter_mut().find(|port| node_port(port).is_none()) {
            port.node_port = Some(make_up());
            lacking.push(port.port.to_string());
            // TCP and UDP on one port get one NodePort.
            share_node_ports(ports);
        }
        if !lacking.is_empty() {
            assumed.push(format!("the API server allocates the NodePort of port {}", lacking.join(", ")));
        }
    }
    let is_local = is_balancer(spec) && spec.external_traffic_policy.as_deref() == Some("Local");
    if is_local && spec.health_check_node_port.unwrap_or_default() == 0 {
        let known = before.and_then(|before| before.health_check_node_port).filter(|port| *port != 0);
        spec.health_check_node_port = Some(known.unwrap_or_else(|| {
            assumed.push("the API server allocates spec.healthCheckNodePort".to_owned());
            make_up()
        }));
    }
    made_up
}

/// Every number that a Service's ports have.
fn numbers(spec: &ServiceSpec) -> BTreeSet<u16> {
    let ports = spec.ports.iter().flatten().flat_map(|port| [Some(port.port), port.node_port]);
    let numbers = ports.chain([spec.health_check_node_port]).flatten();
    numbers.filter_map(|number| u16::try_from(number).ok()).collect()
}

fn node_port(port: &ServicePort) -> Option<i32> {
    port.node_port.filter(|number| *number != 0)
}

/// `kubectl apply` leaves the NodePort of a port that stays; the API server gives one back to a port whose name stays
/// (Kubernetes, `patchAllocatedValues`).
fn keep_node_ports(ports: &mut [ServicePort], before: &[ServicePort]) {
    let protocol = |port: &ServicePort| port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let same_port = |new: &ServicePort, old: &ServicePort| new.port == old.port && protocol(new) == protocol(old);
    let same_name = |new: &ServicePort, old: &ServicePort| new.name == old.name;
    keep_where(ports, before, same_port);
    keep_where(ports, before, same_name);
}

fn keep_where(ports: &mut [ServicePort], before: &[ServicePort], is_same: impl Fn(&ServicePort, &ServicePort) -> bool) {
    let used: BTreeSet<_> = ports.iter().filter_map(node_port).collect();
    for port in ports.iter_mut().filter(|port| node_port(port).is_none()) {
        let old = before.iter().find(|old| is_same(port, old)).and_then(node_port);
        port.node_port = old.filter(|number| !used.contains(number));
    }
}

/// Ports of one number share the NodePort that one of them has (Kubernetes, `initNodePorts`).
fn share_node_ports(ports: &mut [ServicePort]) {
    let known: BTreeMap<_, _> = ports.iter().filter_map(|port| Some((port.port, node_port(port)?))).collect();
    for port in ports.iter_mut().filter(|port| node_port(port).is_none()) {
        port.node_port = known.get(&port.port).copied();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TWO: &str = "
apiVersion: v1
kind: Service
metadata: {name: order, namespace: shop, annotations: {a: 'yes'}}
spec:
  type: LoadBalancer
  ports: [{name: web, port: 80}, {name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
---
# nothing
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: order}
---
{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"cart\"}}]}
";

    fn one(spec: Value) -> Manifest {
        let service = json!({"metadata": {"name": "order", "namespace": "shop"}, "spec": spec});
        let service = serde_json::from_value(service).unwrap();
        Manifest { source: "file".into(), service, namespace_opts_out: false, unknown: vec![] }
    }

    fn parsed(text: &str) -> anyhow::Result<Vec<Manifest>> {
        parse(&[("file".to_owned(), text.to_owned())], "ns")
    }

    fn admitted(manifest: &Manifest, existing: Option<&Service>) -> Admitted {
        admit(manifest, &Admission { existing, family: Some("IPv4"), sets_class: true, now: Timestamp::UNIX_EPOCH })
    }

    fn node_ports(service: &Service) -> Vec<i32> {
        let ports = service.spec.as_ref().unwrap().ports.as_ref().unwrap();
        ports.iter().map(|port| port.node_port.unwrap_or_default()).collect()
    }

    #[test]
    fn services_are_found_among_other_documents_and_in_lists() {
        let keys: Vec<_> = parsed(TWO).unwrap().iter().map(|manifest| manifest.key().to_string()).collect();
        assert_eq!(keys, ["shop/order", "ns/cart"]);
        let list = json!({"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "a"}}]});
        assert_eq!(parsed(&list.to_string()).unwrap()[0].key().to_string(), "ns/a");
        assert!(parsed("").unwrap().is_empty());
    }

    #[test]
    fn fields_that_no_service_has_are_named() {
        let text = "
apiVersion: v1
kind: Service
metadata: {name: order, creationTimestamp: null, annotation: {a: b}}
spec:
  type: LoadBalancer
  loadBalancerClas: weir.dev/nlb
  ports: [{port: 80, targetPort: web}, {port: 81, nodeport: 30081}]
status: {loadBalancer: {}}
";
        let [manifest] = &parsed(text).unwrap()[..] else { panic!() };
        assert_eq!(manifest.unknown, ["metadata.annotation", "spec.loadBalancerClas", "spec.ports[1].nodeport"]);
        assert!(
            admitted(manifest, None).assumed[0]
                .ends_with("metadata.annotation, spec.loadBalancerClas, spec.ports[1].nodeport")
        );
        for manifest in parsed(TWO).unwrap() {
            assert_eq!(manifest.unknown, [""; 0]);
        }
    }

    #[test]
    fn what_is_no_service_is_told_with_its_place() {
        for (text, words) in [
            ("a: [", "file is no YAML or JSON"),
            ("{apiVersion: v1, kind: Service, metadata: {}}", "has a Service without metadata.name"),
            (
                "{apiVersion: v1, kind: Service, metadata: {name: order}, spec: {ports: [{port: x}]}}",
                "Service order is not as the API server takes it",
            ),
            (
                "{apiVersion: v1, kind: Service, metadata: {name: order, annotations: {a: true}}}",
                "Service order is not as the API server takes it",
            ),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_label_of_the_namespace_in_the_files_keeps_the_policy_away() {
        let namespace = |class: &str| {
            let labels = json!({"weir.dev/class": class});
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}}).to_string()
        };
        let class = |namespace: String| {
            let texts = [("a".to_owned(), TWO.to_owned()), ("b".to_owned(), namespace)];
            let [order, cart] = &parse(&texts, "ns").unwrap()[..] else { panic!() };
            let classes =
                [order, cart].map(|manifest| admitted(manifest, None).service.spec.unwrap().load_balancer_class);
            assert_eq!(cart.key().to_string(), "ns/cart");
            classes[0].clone()
        };
        assert_eq!(class(namespace("none")), None);
        assert_eq!(class(namespace("other")).as_deref(), Some(CLASS));
    }

    #[test]
    fn a_new_service_gets_what_is_shown_as_not_known_yet() {
        let manifest = parsed(TWO).unwrap().remove(0);
        let admitted = admitted(&manifest, None);
        let spec = admitted.service.spec.as_ref().unwrap();
        assert_eq!(spec.load_balancer_class.as_deref(), Some(CLASS));
        assert_eq!(spec.ip_families, Some(vec!["IPv4".to_owned()]));
        let [web, dns, dns_tcp] = node_ports(&admitted.service)[..] else { panic!() };
        assert!(web != dns && dns == dns_tcp, "TCP and UDP on one port share theirs");
        assert_eq!(admitted.made_up.len(), 2);
        let name = "weir-012345-order-89abcdef".to_owned();
        let text = admitted.unveil(&format!("create {name} for TCP {web}, not 1{web} or {web}x"), &[name].into());
        let expected = format!("create weir-012345-order-<hash> for TCP <allocated at creation>, not 1{web} or {web}x");
        assert_eq!(text, expected);
        let sentences = admitted.assumed.join("\n");
        for words in ["which the admission policy sets", "NodePort of port 80, 53", "does not exist yet"] {
            assert!(sentences.contains(words), "{words} in {sentences}");
        }
    }

    #[test]
    fn made_up_ports_mean_nothing_else() {
        let ports = json!([{"name": "a", "port": 65535}, {"name": "b", "port": 80, "nodePort": 65534}]);
        let admitted = admitted(&one(json!({"type": "LoadBalancer", "ports": ports})), None);
        assert_eq!(node_ports(&admitted.service), [65533, 65534]);
    }

    #[test]
    fn an_existing_service_lends_what_was_allocated() {
        let ports = json!([
            {"name": "web", "port": 80, "nodePort": 30080},
            {"name": "tls", "port": 443, "nodePort": 30443},
            {"name": "old", "port": 81, "nodePort": 30081},
        ]);
        let mut existing = one(json!({
            "type": "LoadBalancer", "loadBalancerClass": "theirs", "ipFamilies": ["IPv6"], "ports": ports,
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
        }))
        .service;
        existing.metadata.uid = Some("u-1".into());
        // One keeps number and protocol, one its name, one is new.
        let ports = json!([{"name": "x", "port": 80}, {"name": "tls", "port": 8443}, {"name": "y", "port": 82}]);
        let manifest = one(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports}));
        let admitted = admitted(&manifest, Some(&existing));
        let spec = admitted.service.spec.as_ref().unwrap();
        assert_eq!(node_ports(&admitted.service)[..2], [30080, 30443]);
        assert_eq!(admitted.made_up.len(), 1);
        assert_eq!(spec.load_balancer_class.as_deref(), Some("theirs"));
        assert_eq!(spec.ip_families, Some(vec!["IPv6".to_owned()]));
        assert_eq!(spec.health_check_node_port, Some(31000));
        assert_eq!(admitted.service.metadata.uid.as_deref(), Some("u-1"));
        assert_eq!(admitted.assumed, ["the API server allocates the NodePort of port 82"]);
    }

    #[test]
    fn nothing_is_made_up_that_the_service_does_without() {
        let ports = json!([{"port": 80}]);
        let spec = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": ports});
        assert_eq!(node_ports(&admitted(&one(spec), None).service), [0]);
        let internal = admitted(&one(json!({"ports": [{"port": 80}]})), None);
        assert_eq!(internal.service.spec.unwrap().load_balancer_class, None);
        let mut kept = one(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
        kept.service.metadata.labels = Some([(CLASS_LABEL.0.to_owned(), CLASS_LABEL.1.to_owned())].into());
        assert_eq!(admitted(&kept, None).service.spec.unwrap().load_balancer_class, None);
    }
}
