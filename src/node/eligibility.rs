//! Whether load balancers should still send new connections to this node: pure.

use std::fmt;

use k8s_openapi::api::core::v1::Node;

/// Cluster Autoscaler sets it on a node that it is about to remove.
const CLUSTER_AUTOSCALER: &str = "ToBeDeletedByClusterAutoscaler";
/// Karpenter sets it on a node that it is about to remove.
const KARPENTER: &str = "karpenter.sh/disrupted";
/// Prefix of the taints of AWS's node termination handler: `spot-itn`, `asg-lifecycle-termination`, …
const TERMINATION_HANDLER: &str = "aws-node-termination-handler/";

/// Whose word on a node's end counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainSignals {
    /// Cluster Autoscaler's alone, as with kube-proxy.
    ClusterAutoscaler,
    /// Karpenter's and the node termination handler's as well.
    #[default]
    All,
}

impl DrainSignals {
    fn counts(self, taint: &str) -> bool {
        taint == CLUSTER_AUTOSCALER
            || (self == Self::All && (taint == KARPENTER || taint.starts_with(TERMINATION_HANDLER)))
    }
}

/// Why a node is not eligible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ineligible {
    /// There is no Node object.
    Missing,
    /// The Node object is being deleted.
    Deleting,
    /// A taint with this key says that the node will go.
    Tainted(String),
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("the Node object does not exist"),
            Self::Deleting => f.write_str("the Node object is being deleted"),
            Self::Tainted(key) => write!(f, "the Node carries the taint {key}"),
        }
    }
}

/// Judges a Node as it was last seen (P53, P55). A cordon alone changes nothing.
///
/// # Errors
/// Why the node is not eligible.
pub fn check(node: Option<&Node>, signals: DrainSignals) -> Result<(), Ineligible> {
    let node = node.ok_or(Ineligible::Missing)?;
    if node.metadata.deletion_timestamp.is_some() {
        return Err(Ineligible::Deleting);
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    match taints.iter().find(|taint| signals.counts(&taint.key)) {
        Some(taint) => Err(Ineligible::Tainted(taint.key.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tainted(key: &str) -> Node {
        let taint = json!({ "key": key, "effect": "PreferNoSchedule", "value": "1" });
        serde_json::from_value(json!({ "spec": { "taints": [taint] } })).unwrap()
    }

    #[test]
    fn p53_a_node_that_is_going_or_gone_is_not_eligible() {
        let deleting: Node =
            serde_json::from_value(json!({ "metadata": { "deletionTimestamp": "2026-11-25T00:00:00Z" } })).unwrap();
        for signals in [DrainSignals::ClusterAutoscaler, DrainSignals::All] {
            assert_eq!(check(Some(&Node::default()), signals), Ok(()));
            assert_eq!(check(None, signals), Err(Ineligible::Missing));
            assert_eq!(check(Some(&deleting), signals), Err(Ineligible::Deleting));
            let tainted = check(Some(&tainted(CLUSTER_AUTOSCALER)), signals);
            assert_eq!(tainted, Err(Ineligible::Tainted(CLUSTER_AUTOSCALER.into())));
        }
    }

    #[test]
    fn p53_a_cordon_alone_changes_nothing() {
        let mut cordoned = tainted("node.kubernetes.io/unschedulable");
        cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
        assert_eq!(check(Some(&cordoned), DrainSignals::All), Ok(()));
    }

    #[test]
    fn r25_karpenter_and_the_termination_handler_count_where_wanted() {
        for key in [KARPENTER, "aws-node-termination-handler/spot-itn"] {
            assert_eq!(check(Some(&tainted(key)), DrainSignals::All), Err(Ineligible::Tainted(key.into())));
            assert_eq!(check(Some(&tainted(key)), DrainSignals::ClusterAutoscaler), Ok(()));
        }
    }
}
