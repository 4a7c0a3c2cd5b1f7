//! The node's own addresses: which of them answer NodePorts (pure here), and what they are right now ([`follow`]).

pub mod follow;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

use crate::model::family::Family;

/// Which addresses of the node answer NodePorts (`--nodeport-addresses`).
///
/// Loopback is in none of them. A rule could serve it only with `route_localnet`, which opens the host's loopback
/// services to its neighbours (CVE-2020-8558).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The Node object's main IPv4 and IPv6 address.
    Primary,
    /// Every local address.
    All,
    /// None: a NodePort on 127.0.0.1 or ::1 behaves like any closed port.
    Localhost,
    /// The local addresses in these networks.
    Cidrs(Vec<IpNet>),
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cidr = |part: &str| {
            part.trim().parse().map(|cidr: IpNet| cidr.trunc()).map_err(|_| {
                format!(
                    "{part:?} is no CIDR such as 10.0.0.0/16; give CIDRs separated by commas, or one of the words \
                     primary, all and localhost alone"
                )
            })
        };
        match text.trim() {
            "primary" => Ok(Self::Primary),
            "all" => Ok(Self::All),
            "localhost" => Ok(Self::Localhost),
            cidrs => cidrs.split(',').map(cidr).collect::<Result<_, _>>().map(Self::Cidrs),
        }
    }
}

impl NodePortAddresses {
    /// Something that the operator should know about this choice.
    pub const fn warning(&self) -> Option<&'static str> {
        match self {
            Self::Localhost => Some(
                "--nodeport-addresses=localhost: weir serves no NodePort on loopback addresses (that needs \
                 route_localnet, CVE-2020-8558), so NodePorts answer on no address of this node",
            ),
            Self::Primary | Self::All | Self::Cidrs(_) => None,
        }
    }

    /// The addresses that answer, of the Node's main addresses and of all local ones (P24–P26).
    pub fn select(&self, primary: &[IpAddr], local: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let served = |address: &&IpAddr| !address.is_loopback();
        match self {
            Self::Primary => primary.iter().filter(served).copied().collect(),
            Self::All => local.iter().filter(served).copied().collect(),
            Self::Localhost => BTreeSet::new(),
            Self::Cidrs(cidrs) => {
                let within = |address: &&IpAddr| cidrs.iter().any(|cidr| cidr.contains(*address));
                local.iter().filter(served).filter(within).copied().collect()
            }
        }
    }

    /// The addresses that servers for NodePort traffic listen on (P46): those selected, or the unspecified one for
    /// `all`, which then also covers addresses that cannot be bound by themselves (link-local ones without a scope).
    pub fn listen_on(&self, selected: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        match self {
            // A listener on [::] takes IPv4 too.
            Self::All if selected.iter().any(IpAddr::is_ipv6) => BTreeSet::from([Ipv6Addr::UNSPECIFIED.into()]),
            Self::All => BTreeSet::from([Ipv4Addr::UNSPECIFIED.into()]),
            Self::Primary | Self::Localhost | Self::Cidrs(_) => selected.clone(),
        }
    }
}

/// The Node's main addresses: the first of each family, internal ones first, then external ones (P24).
pub fn primary_addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let of_type = |wanted: &'static str| {
        addresses
            .iter()
            .filter(move |address| address.type_ == wanted)
            .filter_map(|address| address.address.parse().ok())
    };
    let ordered: Vec<IpAddr> = of_type("InternalIP").chain(of_type("ExternalIP")).collect();
    Family::ALL.iter().filter_map(|family| ordered.iter().find(|ip| Family::of(**ip) == *family).copied()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn select(setting: &str) -> BTreeSet<IpAddr> {
        let primary = ["10.0.1.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let local = ips(&["127.0.0.1", "10.0.1.5", "10.0.9.9", "172.17.0.1", "::1", "fd00::5", "fe80::1"]);
        setting.parse::<NodePortAddresses>().unwrap().select(&primary, &local)
    }

    #[test]
    fn p24_primary_and_cidrs() {
        assert_eq!(select("primary"), ips(&["10.0.1.5", "fd00::5"]));
        assert_eq!(select("10.0.1.0/24, 172.17.0.0/16"), ips(&["10.0.1.5", "172.17.0.1"]));
        assert_eq!(select("10.0.1.77/24"), ips(&["10.0.1.5"]));
        assert_eq!(select("fd00::/8"), ips(&["fd00::5"]));
    }

    #[test]
    fn p25_all_is_every_local_address_but_loopback() {
        assert_eq!(select("all"), ips(&["10.0.1.5", "10.0.9.9", "172.17.0.1", "fd00::5", "fe80::1"]));
    }

    #[test]
    fn p26_loopback_is_never_served() {
        assert_eq!(select("localhost"), ips(&[]));
        assert_eq!(select("127.0.0.0/8,::1/128"), ips(&[]));
        assert!(NodePortAddresses::Localhost.warning().is_some());
        assert!(NodePortAddresses::Primary.warning().is_none());
    }

    #[test]
    fn a_wrong_setting_is_named_with_what_would_be_right() {
        for (text, named) in
            [("", "\"\""), ("10.0.0.1", "\"10.0.0.1\""), ("primary,10.0.0.0/8", "\"primary\""), ("ALL", "\"ALL\"")]
        {
            let sentence = text.parse::<NodePortAddresses>().unwrap_err();
            assert!(sentence.starts_with(named) && sentence.contains("10.0.0.0/16"), "{sentence}");
        }
    }

    #[test]
    fn p46_servers_listen_on_the_selected_addresses_or_on_all() {
        let both = ips(&["10.0.1.5", "fd00::5"]);
        assert_eq!(NodePortAddresses::Primary.listen_on(&both), both);
        assert_eq!(NodePortAddresses::All.listen_on(&both), ips(&["::"]));
        assert_eq!(NodePortAddresses::All.listen_on(&ips(&["10.0.1.5"])), ips(&["0.0.0.0"]));
    }

    #[test]
    fn p24_the_primary_addresses_are_the_first_of_each_family_internal_ones_first() {
        let node = |addresses: serde_json::Value| -> Node {
            serde_json::from_value(json!({ "status": { "addresses": addresses } })).unwrap()
        };
        let entry = |kind: &str, address: &str| json!({ "type": kind, "address": address });
        let both = node(json!([
            entry("ExternalIP", "54.1.2.3"),
            entry("Hostname", "ip-10-0-1-5"),
            entry("InternalIP", "10.0.1.5"),
            entry("InternalIP", "10.0.1.6"),
            entry("ExternalIP", "2001:db8::1"),
        ]));
        let expected: Vec<IpAddr> = vec!["10.0.1.5".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(primary_addresses(&both), expected);
        assert!(primary_addresses(&Node::default()).is_empty());
    }
}
