//! What a decision needs to know about the cluster's network, and the choice of subnets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::annotation::{self, Problem};
use crate::model::family::Family;
use crate::model::id::{SecurityGroupId, SubnetId, VpcId, Zone};
use crate::model::ownership::Tags;
use crate::model::service::{AddressType, Scheme, ServiceSpec};
use crate::model::text;

/// Free addresses a subnet needs for a load balancer (ELB user guide, "Subnets for your load balancer").
const ADDRESSES_NEEDED: i32 = 8;

/// The cluster's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The cluster's VPC.
    pub vpc: VpcId,
    /// Its subnets.
    pub subnets: BTreeMap<SubnetId, Subnet>,
    /// One security group for each way the nodes are set up, and how it was chosen where that was not obvious.
    pub node_groups: NodeGroups,
    /// Security groups that Services name, with their `Name` tags.
    pub groups: BTreeMap<SecurityGroupId, Option<String>>,
    /// Prefix lists that Services name.
    pub prefix_lists: BTreeMap<String, PrefixList>,
}

/// A prefix list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixList {
    /// Family of its entries.
    pub family: Family,
    /// How many inbound rules it counts as.
    pub max_entries: usize,
}

/// What Services name and only AWS knows: ids or `Name` tags of security groups, and ids of prefix lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Of security groups.
    pub groups: BTreeSet<String>,
    /// Of prefix lists.
    pub prefix_lists: BTreeSet<String>,
}

impl Facts {
    /// What of a Service's names is not known.
    pub fn lacks(&self, spec: &ServiceSpec) -> Asked {
        let knows = |text: &String| {
            let mut known = self.groups.iter();
            known.any(|(id, name)| id.as_str() == text || name.as_ref() == Some(text))
        };
        let lists = spec.access.prefix_lists.iter().filter(|id| !self.prefix_lists.contains_key(*id));
        Asked {
            groups: spec.access.groups.iter().filter(|text| !knows(text)).cloned().collect(),
            prefix_lists: lists.cloned().collect(),
        }
    }
}

/// Security groups of the nodes that must admit the load balancers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeGroups {
    /// The chosen groups.
    pub chosen: BTreeSet<SecurityGroupId>,
    /// Sentences about nodes with several candidates.
    pub warnings: BTreeSet<String>,
}

/// A subnet of the VPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its zone.
    pub zone: Zone,
    /// Whether the zone is an Availability Zone, not a Local, Wavelength or Outpost one.
    pub in_availability_zone: bool,
    /// Its address ranges, of either family.
    #[serde(with = "text::set")]
    pub ranges: BTreeSet<IpNet>,
    /// Free IPv4 addresses.
    pub free_addresses: i32,
    /// Whether its route table leads to an internet gateway.
    pub is_public: bool,
    /// Its tags.
    pub tags: Tags,
}

impl Subnet {
    /// Whether it has an IPv6 range, without which a dualstack load balancer cannot be in it.
    pub fn has_ipv6(&self) -> bool {
        self.ranges.iter().any(|range| matches!(range, IpNet::V6(_)))
    }
}

/// The choice of one node's security group: its only one, else the one EKS made for the cluster, else the lowest id
/// among those tagged for the cluster. Never an error, since a load balancer must not wait for tags to be tidied.
pub fn choose_node_group(
    cluster: &str,
    groups: &BTreeMap<SecurityGroupId, Tags>,
) -> Option<(SecurityGroupId, Option<String>)> {
    if groups.len() == 1 {
        return groups.keys().next().map(|only| (only.clone(), None));
    }
    let cluster_key = format!("kubernetes.io/cluster/{cluster}");
    let tagged: Vec<_> = groups.iter().filter(|(_, tags)| tags.contains_key(&cluster_key)).collect();
    let by_eks = tagged.iter().find(|(_, tags)| tags.get("aws:eks:cluster-name").is_some_and(|name| name == cluster));
    let chosen = by_eks.or_else(|| tagged.first()).map_or_else(|| groups.keys().next(), |(id, _)| Some(id))?;
    let ambiguous = tagged.len() != 1;
    let warning = ambiguous.then(|| {
        let (named, what): (Vec<_>, _) = if tagged.is_empty() {
            (groups.keys().collect(), "none of which is tagged")
        } else {
            (tagged.iter().map(|(id, _)| *id).collect(), "all tagged")
        };
        let ids = named.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(", ");
        format!("nodes carry security groups {ids}, {what} {cluster_key}; rules for load balancers go into {chosen}")
    });
    Some((chosen.clone(), warning))
}

/// Subnets named by the Service's owner, in that order.
///
/// # Errors
/// A name that fits no subnet, or two subnets in one zone.
pub fn named_subnets(names: &[String], facts: &Facts) -> Result<Vec<(Zone, SubnetId)>, Problem> {
    let text = names.join(",");
    let wrong = |what: String| {
        Problem::new(annotation::SUBNETS, &text, what, format!("subnets of {}, one for each zone", facts.vpc))
    };
    let mut chosen: Vec<(Zone, SubnetId)> = vec![];
    let mut missing = vec![];
    for name in names {
        let is_meant = |id: &SubnetId, subnet: &Subnet| {
            id.as_str() == name || subnet.tags.get("Name").is_some_and(|tag| tag == name)
        };
        let mut found = facts.subnets.iter().filter(|(id, subnet)| is_meant(id, subnet)).peekable();
        if found.peek().is_none() {
            missing.push(name.as_str());
        }
        for (id, subnet) in found {
            match chosen.iter().find(|(zone, _)| *zone == subnet.zone) {
                Some((_, other)) if other != id => {
                    return Err(wrong(format!("has {other} and {id}, both in zone {}", subnet.zone)));
                }
                Some(_) => {}
                None => chosen.push((subnet.zone.clone(), id.clone())),
            }
        }
    }
    if missing.is_empty() {
        Ok(chosen)
    } else {
        Err(wrong(format!("has {}, which does not exist", missing.join(", "))))
    }
}

/// Why a subnet takes no load balancer. Later ones are closer to taking one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unfit {
    /// Others carry this tag of the scheme's role, it does not.
    NoRole(&'static str),
    /// Without such tags routes decide, and this one's is the other scheme's.
    Route { is_public: bool },
    /// It is tagged for other clusters alone.
    OtherCluster,
    /// It is in a Local or Wavelength Zone, or on an Outpost.
    Zone,
    /// A dualstack load balancer needs a range of IPv6 addresses there.
    NoIpv6,
    /// It has no more free addresses than these.
    Full(i32),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRole(role) => write!(f, "is not tagged {role}"),
            Self::Route { is_public: true } => f.write_str("has a route to an internet gateway"),
            Self::Route { is_public: false } => f.write_str("has no route to an internet gateway"),
            Self::OtherCluster => f.write_str("is tagged for another cluster"),
            Self::Zone => f.write_str("is in no Availability Zone"),
            Self::NoIpv6 => f.write_str("has no IPv6 range"),
            Self::Full(free) => write!(f, "has {free} free addresses, {ADDRESSES_NEEDED} needed"),
        }
    }
}

/// Which subnets could take a load balancer, by the rules of EKS: role tags, else reachability.
pub fn judge_subnets<'a>(
    cluster: &str,
    scheme: Scheme,
    address_type: AddressType,
    facts: &'a Facts,
) -> BTreeMap<&'a SubnetId, (&'a Subnet, Option<Unfit>)> {
    let role = match scheme {
        Scheme::Internal => "kubernetes.io/role/internal-elb",
        Scheme::InternetFacing => "kubernetes.io/role/elb",
    };
    let has_role = |subnet: &Subnet| subnet.tags.get(role).is_some_and(|value| value.is_empty() || value == "1");
    let by_role = facts.subnets.values().any(has_role);
    let wants_public = scheme == Scheme::InternetFacing;
    let judge = |subnet: &Subnet| {
        if by_role && !has_role(subnet) {
            Some(Unfit::NoRole(role))
        } else if !by_role && subnet.is_public != wants_public {
            Some(Unfit::Route { is_public: subnet.is_public })
        } else if is_of_another_cluster(cluster, &subnet.tags) {
            Some(Unfit::OtherCluster)
        } else if !subnet.in_availability_zone {
            Some(Unfit::Zone)
        } else if address_type == AddressType::Dualstack && !subnet.has_ipv6() {
            Some(Unfit::NoIpv6)
        } else if subnet.free_addresses < ADDRESSES_NEEDED {
            Some(Unfit::Full(subnet.free_addresses))
        } else {
            None
        }
    };
    facts.subnets.iter().map(|(id, subnet)| (id, (subnet, judge(subnet)))).collect()
}

/// Subnets by the rules of EKS: one for each zone, tagged for the cluster first, then the lowest id.
///
/// # Errors
/// A sentence that gives each subnet of the VPC and why it fell out.
pub fn discover_subnets(
    cluster: &str,
    scheme: Scheme,
    address_type: AddressType,
    facts: &Facts,
) -> Result<BTreeMap<Zone, SubnetId>, String> {
    let mut reasons = vec![];
    let mut best: BTreeMap<Zone, (bool, SubnetId)> = BTreeMap::new();
    for (id, (subnet, unfit)) in judge_subnets(cluster, scheme, address_type, facts) {
        if let Some(reason) = unfit {
            reasons.push(format!("{id} ({}) {reason}", subnet.zone));
            continue;
        }
        let foreign = !subnet.tags.contains_key(&format!("kubernetes.io/cluster/{cluster}"));
        let candidate = (foreign, id.clone());
        best.entry(subnet.zone.clone())
            .and_modify(|chosen| *chosen = chosen.clone().min(candidate.clone()))
            .or_insert(candidate);
    }
    if best.is_empty() {
        let list = if reasons.is_empty() { "it has no subnets".to_owned() } else { reasons.join("; ") };
        return Err(format!("no usable subnet for an {scheme} load balancer in {}: {list}", facts.vpc));
    }
    Ok(best.into_iter().map(|(zone, (_, id))| (zone, id)).collect())
}

fn is_of_another_cluster(cluster: &str, tags: &Tags) -> bool {
    let mut clusters = tags.keys().filter_map(|key| key.strip_prefix("kubernetes.io/cluster/")).peekable();
    clusters.peek().is_some() && !clusters.any(|name| name == cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(zone: &str, tags: &[(&str, &str)]) -> Subnet {
        Subnet {
            zone: zone.into(),
            in_availability_zone: true,
            ranges: BTreeSet::new(),
            free_addresses: 200,
            is_public: false,
            tags: tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    fn facts(subnets: Vec<(&str, Subnet)>) -> Facts {
        let subnets = subnets.into_iter().map(|(id, subnet)| (id.into(), subnet)).collect();
        Facts {
            vpc: "vpc-1".into(),
            subnets,
            node_groups: NodeGroups::default(),
            groups: BTreeMap::new(),
            prefix_lists: BTreeMap::new(),
        }
    }

    const ELB: (&str, &str) = ("kubernetes.io/role/elb", "1");
    const OURS: (&str, &str) = ("kubernetes.io/cluster/demo", "owned");

    fn ids(chosen: &BTreeMap<Zone, SubnetId>) -> Vec<&str> {
        chosen.values().map(SubnetId::as_str).collect()
    }

    #[test]
    fn one_per_zone_tagged_for_the_cluster_first_then_the_lowest_id() {
        let facts = facts(vec![
            ("subnet-1", subnet("us-east-1a", &[ELB])),
            ("subnet-2", subnet("us-east-1a", &[ELB, OURS])),
            ("subnet-4", subnet("us-east-1b", &[ELB])),
            ("subnet-3", subnet("us-east-1b", &[ELB])),
            ("subnet-5", subnet("us-east-1c", &[])),
        ]);
        let chosen = discover_subnets("demo", Scheme::InternetFacing, AddressType::Ipv4, &facts).unwrap();
        assert_eq!(ids(&chosen), ["subnet-2", "subnet-3"]);
    }

    #[test]
    fn without_role_tags_the_route_decides() {
        let mut public = subnet("us-east-1a", &[]);
        public.is_public = true;
        let facts = facts(vec![("subnet-1", public), ("subnet-2", subnet("us-east-1b", &[]))]);
        assert_eq!(
            ids(&discover_subnets("demo", Scheme::InternetFacing, AddressType::Ipv4, &facts).unwrap()),
            ["subnet-1"]
        );
        assert_eq!(ids(&discover_subnets("demo", Scheme::Internal, AddressType::Ipv4, &facts).unwrap()), ["subnet-2"]);
    }

    #[test]
    fn r40_the_error_gives_each_subnet_and_its_reason() {
        let mut full = subnet("us-east-1a", &[ELB]);
        full.free_addresses = 3;
        let mut local = subnet("us-east-1-bos-1a", &[ELB]);
        local.in_availability_zone = false;
        let facts = facts(vec![
            ("subnet-1", full),
            ("subnet-2", subnet("us-east-1b", &[ELB, ("kubernetes.io/cluster/other", "owned")])),
            ("subnet-3", subnet("us-east-1c", &[])),
            ("subnet-4", local),
        ]);
        assert_eq!(
            discover_subnets("demo", Scheme::InternetFacing, AddressType::Ipv4, &facts).unwrap_err(),
            "no usable subnet for an internet-facing load balancer in vpc-1: \
             subnet-1 (us-east-1a) has 3 free addresses, 8 needed; \
             subnet-2 (us-east-1b) is tagged for another cluster; \
             subnet-3 (us-east-1c) is not tagged kubernetes.io/role/elb; \
             subnet-4 (us-east-1-bos-1a) is in no Availability Zone"
        );
    }

    #[test]
    fn dualstack_takes_subnets_with_an_ipv6_range_only() {
        let mut dual = subnet("us-east-1a", &[ELB]);
        dual.ranges = ["10.0.0.0/20".parse().unwrap(), "2600:1f18::/64".parse().unwrap()].into();
        let mut v4 = subnet("us-east-1b", &[ELB]);
        v4.ranges = ["10.0.16.0/20".parse().unwrap()].into();
        let facts = facts(vec![("subnet-1", dual), ("subnet-2", v4.clone())]);
        let discover = |facts| discover_subnets("demo", Scheme::InternetFacing, AddressType::Dualstack, facts);
        assert_eq!(ids(&discover(&facts).unwrap()), ["subnet-1"]);
        let sentence = discover(&self::facts(vec![("subnet-2", v4)])).unwrap_err();
        assert!(sentence.ends_with("subnet-2 (us-east-1b) has no IPv6 range"), "{sentence}");
    }

    #[test]
    fn named_subnets_by_id_and_by_name() {
        let facts = facts(vec![
            ("subnet-1", subnet("us-east-1a", &[("Name", "public-a")])),
            ("subnet-2", subnet("us-east-1b", &[])),
            ("subnet-3", subnet("us-east-1b", &[])),
        ]);
        let named = |names: &[&str]| named_subnets(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(), &facts);
        let in_order = |names: &[&str]| named(names).unwrap().into_iter().map(|(_, id)| id).collect::<Vec<_>>();
        assert_eq!(in_order(&["public-a", "subnet-3"]), ["subnet-1".into(), "subnet-3".into()]);
        assert_eq!(in_order(&["subnet-3", "subnet-1"]), ["subnet-3".into(), "subnet-1".into()]);
        assert!(named(&["subnet-9"]).unwrap_err().to_string().contains("has subnet-9, which does not exist"));
        assert!(named(&["subnet-2", "subnet-3"]).unwrap_err().to_string().contains("both in zone us-east-1b"));
    }

    #[test]
    fn r30_one_group_is_chosen_by_a_fixed_rule() {
        let tags =
            |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Tags>();
        let two = BTreeMap::from([("sg-2".into(), tags(&[OURS])), ("sg-1".into(), tags(&[OURS]))]);
        let (chosen, warning) = choose_node_group("demo", &two).unwrap();
        assert_eq!(chosen, "sg-1".into());
        let warning = warning.unwrap();
        assert!(warning.contains("sg-1, sg-2"), "{warning}");
        let eks = BTreeMap::from([
            ("sg-1".into(), tags(&[OURS])),
            ("sg-2".into(), tags(&[OURS, ("aws:eks:cluster-name", "demo")])),
        ]);
        assert_eq!(choose_node_group("demo", &eks).unwrap().0, "sg-2".into());
        let clear = BTreeMap::from([("sg-1".into(), tags(&[])), ("sg-2".into(), tags(&[OURS]))]);
        assert_eq!(choose_node_group("demo", &clear), Some(("sg-2".into(), None)));
    }
}
