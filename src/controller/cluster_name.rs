//! Pure: whether the account speaks of the cluster by the name that weir was given.
//!
//! A wrong name works at first: subnets are found by their routes, and nodes by their instances. But all that weir makes
//! carries it, and under the right one, later, everything is made a second time.

use std::collections::BTreeSet;

use super::account::State;
use crate::model::ownership::Tags;

/// The prefix of the tag that EKS, eksctl and kOps give to subnets and Auto Scaling groups.
const TAG: &str = "kubernetes.io/cluster/";
/// The tag that EKS gives to the Auto Scaling groups of its node groups.
const EKS_TAG: &str = "eks:cluster-name";

/// What is wrong with the name.
#[derive(Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The nodes are another cluster's by their tags, and nothing is this one's.
    Wrong(String),
    /// Nothing carries the name.
    Unknown(String),
}

/// Judges the name by what has been read.
pub fn doubt(cluster: &str, state: &State) -> Option<Doubt> {
    let holds_node = |instances: &BTreeSet<_>| {
        state.workers.values().any(|worker| worker.instance.as_ref().is_ok_and(|instance| instances.contains(instance)))
    };
    let asgs: Vec<_> = state.observed.asgs.iter().filter(|(_, asg)| holds_node(&asg.instances)).collect();
    let subnets = state.facts.iter().flat_map(|facts| facts.subnets.values()).map(|subnet| &subnet.tags);
    let mut tagged = asgs.iter().map(|(_, asg)| &asg.tags).chain(subnets);
    if tagged.any(|tags| names(tags).contains(cluster)) || !state.observed.owners(cluster).is_empty() {
        return None;
    }
    let theirs = asgs.iter().find_map(|(name, asg)| Some((name, names(&asg.tags).into_iter().next()?)));
    Some(match theirs {
        Some((asg, other)) => Doubt::Wrong(format!(
            "--cluster-name: {cluster:?} is the name of no cluster here: the nodes' Auto Scaling group {asg} carries \
             that of {other:?}, and neither it nor a subnet carries the tag {TAG}{cluster}"
        )),
        None => Doubt::Unknown(format!(
            "no Auto Scaling group of the nodes and no subnet of their VPC carries the tag {TAG}{cluster}; if \
             --cluster-name is not the cluster's name, set it right before there are Services"
        )),
    })
}

/// The clusters that these tags name.
fn names(tags: &Tags) -> BTreeSet<&str> {
    let by_key = tags.keys().filter_map(|key| key.strip_prefix(TAG));
    by_key.chain(tags.get(EKS_TAG).map(String::as_str)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::observed::Asg;
    use crate::model::node::Worker;

    fn state(tags: &[(&str, &str)]) -> State {
        let mut state = State::default();
        let worker = Worker::read("n", &[].into(), Some("aws:///us-east-1a/i-1")).unwrap();
        state.workers.insert("n".into(), worker);
        let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let asg = Asg { tags, instances: ["i-1".into()].into(), ..Asg::default() };
        state.observed.asgs.insert("workers".into(), asg);
        state
    }

    #[test]
    fn a_name_is_right_if_something_carries_it() {
        assert_eq!(doubt("demo", &state(&[("kubernetes.io/cluster/demo", "owned")])), None);
        assert_eq!(doubt("demo", &state(&[("eks:cluster-name", "demo")])), None);
    }

    #[test]
    fn a_name_is_wrong_if_the_nodes_carry_another_one() {
        let Some(Doubt::Wrong(sentence)) = doubt("prod", &state(&[("eks:cluster-name", "demo")])) else { panic!() };
        assert!(sentence.contains("workers carries that of \"demo\""), "{sentence}");
    }

    #[test]
    fn a_name_is_in_doubt_if_nothing_carries_any() {
        assert!(matches!(doubt("prod", &state(&[("Name", "x")])), Some(Doubt::Unknown(_))));
    }
}
