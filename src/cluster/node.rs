//! Node objects → what the model knows of nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use crate::model::node::Worker;

/// Leaves of a Node what is read of it.
pub fn trim_node(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    node.status = None;
    if let Some(spec) = &mut node.spec {
        spec.pod_cidrs = None;
        spec.config_source = None;
    }
}

/// Nodes by name.
pub fn read_workers<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> BTreeMap<String, Worker> {
    let none = BTreeMap::new();
    let read = nodes.into_iter().filter_map(|node| {
        let labels = node.metadata.labels.as_ref().unwrap_or(&none);
        let provider_id = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref());
        Some((node.name_any(), Worker::read(&node.name_any(), labels, provider_id)?))
    });
    read.collect()
}

/// The Region of the nodes, where the environment names none.
pub fn region_of<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Option<String> {
    if ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().any(|name| std::env::var_os(name).is_some()) {
        return None;
    }
    nodes.into_iter().find_map(|node| node.labels().get("topology.kubernetes.io/region").cloned())
}
