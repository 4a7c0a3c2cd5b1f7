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
    nodes.into_iter().filter_map(|node| Some((node.name_any(), read_worker(node)?))).collect()
}

/// One node. `None` for Fargate nodes.
pub fn read_worker(node: &Node) -> Option<Worker> {
    let provider_id = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref());
    Worker::read(&node.name_any(), node.labels(), provider_id)
}

/// The Region of the nodes, where the environment names none.
pub fn region_of<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Option<String> {
    if is_region_in_environment() {
        return None;
    }
    nodes.into_iter().find_map(|node| node.labels().get("topology.kubernetes.io/region").cloned())
}

/// Whether the environment names a Region, as the AWS SDK reads it.
pub fn is_region_in_environment() -> bool {
    ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().any(|name| std::env::var_os(name).is_some())
}
