//! A Kubernetes Node as a possible target.

use std::collections::BTreeMap;

use super::id::InstanceId;

/// Labels whose presence, with any value, keeps a node out of load balancers (KEP-1143 and its predecessors).
const EXCLUDING_LABELS: [&str; 2] = [
    "node.kubernetes.io/exclude-from-external-load-balancers",
    "alpha.service-controller.kubernetes.io/exclude-balancer",
];
/// Labels of control-plane nodes, which are never targets.
const CONTROL_PLANE_LABELS: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// Pairs of a node's label and the tag of its Auto Scaling group that carry the same value: what lets a joining node be
/// matched to its group without asking AWS. EKS managed node groups, eksctl and kOps set them.
pub const GROUP_HINTS: [(&str, &str); 3] = [
    ("eks.amazonaws.com/nodegroup", "eks:nodegroup-name"),
    ("alpha.eksctl.io/nodegroup-name", "alpha.eksctl.io/nodegroup-name"),
    ("kops.k8s.io/instancegroup", "kops.k8s.io/instancegroup"),
];
/// Label with a node's zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Label of a node that Karpenter made: its instances are in no Auto Scaling group.
const KARPENTER_LABEL: &str = "karpenter.sh/nodepool";

/// Labels by key, of a node or asked of one.
pub type Labels = BTreeMap<String, String>;

/// A node, trimmed to what placement needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// The Node's name.
    pub name: String,
    /// The instance that the provider ID names, or what is wrong with the provider ID.
    pub instance: Result<InstanceId, String>,
    /// Whether the node may be a target, by its labels.
    pub eligible: bool,
    /// Where its labels say it comes from.
    pub origin: Origin,
    /// Its labels, of which a Service may ask for some.
    pub labels: Labels,
}

/// What a node's labels say about its Auto Scaling group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The group that carries this tag key and value.
    Tagged { key: &'static str, value: String },
    /// In no group.
    NoGroup,
    /// The labels do not say.
    Unknown,
}

impl Worker {
    /// Reads a node. `None` for Fargate nodes, which cannot be instance targets and need no word about it.
    ///
    /// Readiness plays no part: health checks judge it (KEP-3458), and a control plane in trouble that marks every node
    /// NotReady must not take them all out of service.
    pub fn read(name: &str, labels: &Labels, provider_id: Option<&str>) -> Option<Self> {
        if labels.get("eks.amazonaws.com/compute-type").is_some_and(|value| value == "fargate") {
            return None;
        }
        let has = |key: &&str| labels.contains_key(*key);
        let origin = if has(&KARPENTER_LABEL) {
            Origin::NoGroup
        } else {
            GROUP_HINTS
                .iter()
                .find_map(|(label, key)| Some(Origin::Tagged { key, value: labels.get(*label)?.clone() }))
                .unwrap_or(Origin::Unknown)
        };
        Some(Self {
            name: name.to_owned(),
            instance: instance_of(provider_id.unwrap_or_default()),
            eligible: !EXCLUDING_LABELS.iter().chain(&CONTROL_PLANE_LABELS).any(has),
            origin,
            labels: labels.clone(),
        })
    }

    /// Whether it has all of these labels, and with these values.
    pub fn has_labels(&self, asked: &Labels) -> bool {
        asked.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

/// The EC2 instance in a provider ID of the form `aws:///<zone>/<instance>`.
fn instance_of(provider_id: &str) -> Result<InstanceId, String> {
    let wrong =
        |what: &str| Err(format!("spec.providerID: {provider_id:?} {what}; expected aws:///<zone>/<instance id>"));
    if provider_id.is_empty() {
        return wrong("is empty");
    }
    let Some(rest) = provider_id.strip_prefix("aws://") else { return wrong("is not one of AWS") };
    match rest.rsplit('/').next() {
        Some(id)
            if id
                .strip_prefix("i-")
                .is_some_and(|hex| !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit())) =>
        {
            Ok(id.into())
        }
        _ => wrong("does not end in an instance id"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(labels: &[(&str, &str)], provider_id: &str) -> Option<Worker> {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Worker::read("n", &labels, Some(provider_id))
    }

    #[test]
    fn provider_ids() {
        assert_eq!(worker(&[], "aws:///us-east-1a/i-0ab").unwrap().instance, Ok("i-0ab".into()));
        for bad in ["", "aws:///us-east-1a/", "gce://p/z/i-0ab", "i-0ab", "aws:///us-east-1a/i-xyz", "aws:///z/i-"] {
            let sentence = worker(&[], bad).unwrap().instance.unwrap_err();
            assert!(sentence.starts_with("spec.providerID: ") && sentence.contains(bad), "{sentence}");
        }
    }

    #[test]
    fn r23_presence_of_the_label_excludes_whatever_its_value() {
        assert!(!worker(&[(EXCLUDING_LABELS[0], "false")], "aws:///z/i-1").unwrap().eligible);
        assert!(!worker(&[(EXCLUDING_LABELS[0], "")], "aws:///z/i-1").unwrap().eligible);
        assert!(!worker(&[(CONTROL_PLANE_LABELS[0], "")], "aws:///z/i-1").unwrap().eligible);
        assert!(worker(&[], "aws:///z/i-1").unwrap().eligible);
    }

    #[test]
    fn r28_fargate_is_no_target() {
        assert_eq!(worker(&[("eks.amazonaws.com/compute-type", "fargate")], "aws:///z/i-1"), None);
    }

    #[test]
    fn every_label_asked_for_must_be_there_with_its_value() {
        let asked = |labels: &[(&str, &str)]| labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let node = worker(&[("pool", "web"), ("disk", "")], "aws:///z/i-1").unwrap();
        assert!(node.has_labels(&asked(&[])) && node.has_labels(&asked(&[("pool", "web"), ("disk", "")])));
        assert!(
            !node.has_labels(&asked(&[("pool", "we")])) && !node.has_labels(&asked(&[("pool", "web"), ("arch", "")]))
        );
    }

    #[test]
    fn labels_tell_the_group() {
        let managed = worker(&[("eks.amazonaws.com/nodegroup", "ng")], "aws:///z/i-1").unwrap();
        assert_eq!(managed.origin, Origin::Tagged { key: "eks:nodegroup-name", value: "ng".into() });
        assert_eq!(worker(&[(KARPENTER_LABEL, "p")], "aws:///z/i-1").unwrap().origin, Origin::NoGroup);
        assert_eq!(worker(&[], "aws:///z/i-1").unwrap().origin, Origin::Unknown);
    }
}
