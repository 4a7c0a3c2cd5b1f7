//! Writes to Services: the finalizer and the load balancer's part of the status.

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, PortStatus, Service};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::model::service::{FINALIZER, owner_of};

/// Sets or removes our finalizer, leaving those of others. Refused by the API server if the Service changed meanwhile.
///
/// Returns whether the Service is still there.
///
/// # Errors
/// As of the API server.
pub async fn set_finalizer(client: &kube::Client, service: &Service, wanted: bool) -> kube::Result<bool> {
    let present = service.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    if present == wanted {
        return Ok(true);
    }
    let mut finalizers: Vec<_> =
        service.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    if wanted {
        finalizers.push(FINALIZER.to_owned());
    }
    // The UID pins the object: a Service made again under the same name is another one.
    let patch = json!({"metadata": {
        "uid": service.metadata.uid, "resourceVersion": service.metadata.resource_version, "finalizers": finalizers,
    }});
    let written = api(client, service).patch(&service.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
    match written {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        other => other.map(|_| true),
    }
}

/// Writes the hostname, or clears it. Nothing is written if it is there already.
///
/// # Errors
/// As of the API server. A Service that is gone, or that stopped being a LoadBalancer in the meantime, has lost the race
/// and is no error; any other status that is refused is one.
pub async fn set_hostname(client: &kube::Client, service: &Service, hostname: Option<&str>) -> kube::Result<bool> {
    let ingress = hostname.map(|hostname| vec![ingress(service, hostname)]);
    let present = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let present = present.and_then(|balancer| balancer.ingress.clone()).filter(|ingress| !ingress.is_empty());
    if present == ingress {
        return Ok(false);
    }
    let status = LoadBalancerStatus { ingress };
    let patch =
        json!({"metadata": {"uid": service.metadata.uid}, "status": {"loadBalancer": {"ingress": status.ingress}}});
    let api = api(client, service);
    let written = api.patch_status(&service.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
    match written {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(kube::Error::Api(refusal)) if refusal.code == 422 => {
            let now = api.get_opt(&service.name_any()).await?;
            if now.is_some_and(|now| takes_hostname(&now, service)) {
                Err(kube::Error::Api(refusal))
            } else {
                Ok(false)
            }
        }
        other => other.map(|_| true),
    }
}

/// Whether this is the same Service still, and one that may have a hostname.
fn takes_hostname(now: &Service, service: &Service) -> bool {
    let kind = now.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    now.metadata.uid == service.metadata.uid && kind == Some("LoadBalancer")
}

/// A hostname carries no `ipMode` (the API server refuses it there), and must be lower case, which AWS's is not always.
fn ingress(service: &Service, hostname: &str) -> LoadBalancerIngress {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
    let ports = ports.map(|port| PortStatus {
        port: port.port,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        error: None,
    });
    LoadBalancerIngress {
        hostname: Some(hostname.to_ascii_lowercase()),
        ports: Some(ports.collect()),
        ..LoadBalancerIngress::default()
    }
}

fn api(client: &kube::Client, service: &Service) -> Api<Service> {
    Api::namespaced(client.clone(), &owner_of(service).service.namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(uid: &str, kind: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"type": kind}})).unwrap()
    }

    #[test]
    fn only_another_type_or_another_service_loses_the_race() {
        let service = seen("u-1", "LoadBalancer");
        for (uid, kind, takes) in [
            ("u-1", "LoadBalancer", true),
            ("u-1", "ClusterIP", false),
            ("u-1", "NodePort", false),
            ("u-2", "LoadBalancer", false),
        ] {
            assert_eq!(takes_hostname(&seen(uid, kind), &service), takes, "{uid} {kind}");
        }
    }
}
