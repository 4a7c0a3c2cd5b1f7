//! Pure: what all Services of a cluster share, which is the backend group and the rules that admit it to the nodes.

use std::collections::BTreeSet;

use super::desired::{Policy, node_rules};
use super::observed::Observed;
use super::plan::Step;
use crate::model::id::SecurityGroupId;
use crate::model::name;
use crate::model::ownership::{Role, cluster_tags, with_cluster_uid};

/// The next steps that make it, with rules in these groups of the nodes. Rules come after the backend group, whose id
/// they name.
pub fn missing(policy: &Policy, observed: &Observed, node_groups: &BTreeSet<SecurityGroupId>) -> Vec<Step> {
    let cluster = &policy.cluster;
    let Some(backend) = observed.backend_group(cluster) else {
        return vec![Step::CreateGroup {
            name: name::backend_group(cluster),
            description: format!("Load balancers of cluster {cluster}"),
            tags: with_cluster_uid(cluster_tags(cluster, Role::BackendGroup), &policy.cluster_uid),
        }];
    };
    let desired = node_rules(policy, &backend.id);
    let mut steps = vec![];
    for group in node_groups {
        let present = observed.node_rules.get(group).cloned().unwrap_or_default();
        let missing: BTreeSet<_> = desired.difference(&present).cloned().collect();
        let stale: BTreeSet<_> = present.difference(&desired).cloned().collect();
        if !missing.is_empty() {
            steps.push(Step::AuthorizeNodes { group: group.clone(), rules: missing });
        }
        if !stale.is_empty() {
            steps.push(Step::RevokeNodes { group: group.clone(), rules: stale });
        }
    }
    steps
}

/// The steps that give it back, once no Service needs it.
pub fn leftovers(cluster: &str, observed: &Observed) -> Vec<Step> {
    let rules = observed.node_rules.iter();
    let rules = rules.map(|(group, rules)| Step::RevokeNodes { group: group.clone(), rules: rules.clone() });
    let group = observed.backend_group(cluster);
    let because = "no Service needs it";
    rules.chain(group.map(|group| Step::DeleteGroup { name: group.name.clone(), because })).collect()
}
