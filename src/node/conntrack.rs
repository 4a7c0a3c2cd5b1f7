//! Which UDP flows an endpoint's leaving has left behind: pure.
//!
//! A UDP sender never learns that its endpoint is gone, and each of its packets keeps the dead entry alive; so the entry
//! has to go. TCP is never touched: an established connection ends when one of its sides ends it (P58).

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::family::Family;
use crate::netfilter::flows::Flow;

/// Serving endpoints of UDP frontends whose endpoints changed. A frontend that nothing serves any more is listed with no
/// endpoint, and one that is not listed is left alone (P62).
///
/// *Serving* is all that counts: traffic policy, topology and termination play no part, so a flow to a terminating or
/// remote endpoint lives on as a TCP connection would (P59).
#[derive(Clone, Debug, Default)]
pub struct ServingByFrontend(HashMap<SocketAddr, Arc<HashSet<SocketAddr>>>);

impl ServingByFrontend {
    /// Adds a frontend: a ClusterIP, a VIP or an external IP with its port, or a node's address with the NodePort. All
    /// frontends of a ServicePort may share one set.
    pub fn insert(&mut self, frontend: SocketAddr, serving: Arc<HashSet<SocketAddr>>) {
        self.0.insert(frontend, serving);
    }

    /// Adds all frontends of another list, which is newer.
    pub fn extend(&mut self, newer: Self) {
        self.0.extend(newer.0);
    }

    /// Whether there is nothing to clean in this family, which saves reading the table.
    pub fn is_empty(&self, family: Family) -> bool {
        !self.0.keys().any(|frontend| Family::of(frontend.ip()) == family)
    }

    /// Whether the flow goes to one of these frontends and ends at what is no serving endpoint of it (P59, P60).
    ///
    /// That includes a flow from before there were rules or endpoints: its entry has no DNAT, so its replies would come
    /// from the frontend itself, which is no endpoint. It holds with no endpoint left too, also for NodePorts (P61).
    pub fn is_stale(&self, flow: &Flow) -> bool {
        self.0.get(&flow.original_destination).is_some_and(|serving| !serving.contains(&flow.reply_source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER_IP: &str = "10.96.0.10:53";
    const NODE_PORT: &str = "192.168.1.5:30053";

    fn serving(frontends: &[&str], endpoints: &[&str]) -> ServingByFrontend {
        let endpoints = Arc::new(endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect());
        let mut serving = ServingByFrontend::default();
        for frontend in frontends {
            serving.insert(frontend.parse().unwrap(), Arc::clone(&endpoints));
        }
        serving
    }

    fn flow(original_destination: &str, reply_source: &str) -> Flow {
        Flow {
            original_destination: original_destination.parse().unwrap(),
            reply_source: reply_source.parse().unwrap(),
        }
    }

    #[test]
    fn p59_a_flow_is_stale_when_its_endpoint_serves_no_more() {
        let serving = serving(&[CLUSTER_IP, NODE_PORT], &["10.0.3.4:1053", "10.0.3.5:1053"]);
        for frontend in [CLUSTER_IP, NODE_PORT] {
            assert!(!serving.is_stale(&flow(frontend, "10.0.3.4:1053")));
            assert!(serving.is_stale(&flow(frontend, "10.0.3.6:1053")));
        }
    }

    #[test]
    fn p60_a_changed_target_port_makes_a_flow_stale() {
        assert!(serving(&[CLUSTER_IP], &["10.0.3.4:1054"]).is_stale(&flow(CLUSTER_IP, "10.0.3.4:1053")));
    }

    #[test]
    fn p60_flows_without_dnat_are_stale_once_there_are_endpoints() {
        let serving = serving(&[CLUSTER_IP, NODE_PORT], &["10.0.3.4:1053"]);
        assert!(serving.is_stale(&flow(CLUSTER_IP, CLUSTER_IP)));
        assert!(serving.is_stale(&flow(NODE_PORT, NODE_PORT)));
    }

    #[test]
    fn p60_p61_with_no_endpoint_left_every_flow_is_stale_also_of_nodeports() {
        let serving = serving(&[CLUSTER_IP, NODE_PORT], &[]);
        assert!(serving.is_stale(&flow(CLUSTER_IP, "10.0.3.4:1053")));
        assert!(serving.is_stale(&flow(NODE_PORT, "10.0.3.4:1053")));
    }

    #[test]
    fn p62_flows_to_other_destinations_are_left_alone() {
        let serving = serving(&[CLUSTER_IP], &[]);
        for destination in ["10.96.0.10:54", "10.96.0.11:53", "10.0.3.4:53", "[fd00:96::a]:53"] {
            assert!(!serving.is_stale(&flow(destination, "10.0.3.4:1053")), "{destination}");
        }
    }

    #[test]
    fn a_family_without_frontends_needs_no_dump() {
        let serving = serving(&[CLUSTER_IP], &[]);
        assert!(!serving.is_empty(Family::Ipv4));
        assert!(serving.is_empty(Family::Ipv6));
    }
}
