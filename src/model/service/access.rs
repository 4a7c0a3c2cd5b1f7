//! Who may connect, and by whose security groups that is decided.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{AddressType, kept};
use crate::model::annotation::{self, Annotations, Problem};

/// Security groups of one network interface at most, after the quota was raised (VPC quotas; 5 before that).
const GROUP_LIMIT: usize = 16;

/// What a Service says of security groups, beside its source ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessSpec {
    /// Prefix lists of those who may connect.
    pub prefix_lists: Vec<String>,
    /// Ids or `Name` tags of the owner's security groups; if there are any, weir makes none of its own.
    pub groups: Vec<String>,
    /// Whether weir admits the load balancer to the nodes, if the Service says so.
    pub manages_nodes: Option<bool>,
    /// Whether inbound rules hold for what comes through PrivateLink too.
    pub rules_on_private_link: bool,
    /// Whether the messages of path MTU discovery are let in.
    pub icmp: bool,
}

impl Default for AccessSpec {
    fn default() -> Self {
        Self { prefix_lists: vec![], groups: vec![], manages_nodes: None, rules_on_private_link: true, icmp: false }
    }
}

impl AccessSpec {
    /// Whether the load balancer carries the group that the nodes admit: unless its owner brings groups, or says no.
    pub fn carries_backend(&self) -> bool {
        self.manages_nodes.unwrap_or(self.groups.is_empty())
    }
}

/// Everything but the source ranges.
pub(super) fn parse_access(
    annotations: Annotations<'_>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> AccessSpec {
    if kept(annotations.flag(annotation::NO_SECURITY_GROUPS), problems) == Some(true) {
        let text = annotations.text(annotation::NO_SECURITY_GROUPS).unwrap_or_default();
        let wrong = "asks for a load balancer without security groups, which could never get any later";
        problems.push(Problem::new(annotation::NO_SECURITY_GROUPS, text, wrong, "false"));
    }
    let icmp = annotations.text(annotation::ICMP).unwrap_or("off");
    if !["on", "off"].contains(&icmp) {
        warnings.push(format!("{}: {icmp:?} is taken as off; expected on or off", annotation::ICMP));
    }
    let private_link = kept(annotations.switch(annotation::PRIVATE_LINK_RULES), problems);
    let access = AccessSpec {
        prefix_lists: kept(parse_prefix_lists(annotations), problems),
        groups: kept(parse_groups(annotations), problems),
        manages_nodes: kept(annotations.flag(annotation::MANAGE_BACKEND_RULES), problems),
        rules_on_private_link: private_link.unwrap_or(true),
        icmp: icmp == "on",
    };
    for key in [annotation::SOURCE_RANGES, annotation::PREFIX_LISTS, annotation::ICMP] {
        if annotations.text(key).is_some() && !access.groups.is_empty() {
            warnings.push(format!("{key}: {}", without_effect()));
        }
    }
    access
}

/// What is said of rules for security groups that are not ours.
pub(super) fn without_effect() -> String {
    format!("is ignored; the rules of the groups in {} are their owner's", annotation::SECURITY_GROUPS)
}

/// The ranges of the spec, else of the annotation, else everyone unless prefix lists say who. Canonical and without
/// those another one covers.
pub(super) fn parse_source_ranges(
    in_spec: &[String],
    annotations: Annotations<'_>,
    address_type: AddressType,
    access: &AccessSpec,
    problems: &mut Vec<Problem>,
) -> BTreeSet<IpNet> {
    const EXPECTED: &str = "CIDR blocks such as 192.0.2.0/24";
    let (field, texts) = if in_spec.is_empty() {
        let listed = annotations.list(annotation::SOURCE_RANGES, "address range", EXPECTED);
        (annotation::SOURCE_RANGES, kept(listed, problems))
    } else {
        ("spec.loadBalancerSourceRanges", in_spec.iter().map(|text| text.trim()).collect())
    };
    let mut ranges = vec![];
    for text in texts {
        match text.parse::<IpNet>() {
            Ok(IpNet::V4(range)) => ranges.push(IpNet::V4(range.trunc())),
            Ok(IpNet::V6(range)) if address_type == AddressType::Dualstack => ranges.push(IpNet::V6(range.trunc())),
            Ok(IpNet::V6(_)) => {
                problems.push(Problem::new(
                    field,
                    text,
                    "is an IPv6 range and the load balancer is not dualstack",
                    "IPv4 ranges",
                ));
            }
            Err(_) => {
                problems.push(Problem::new(field, text, "is no address range", EXPECTED));
            }
        }
    }
    if ranges.is_empty() && access.prefix_lists.is_empty() {
        ranges.push(IpNet::V4(Ipv4Net::default()));
        if address_type == AddressType::Dualstack {
            ranges.push(IpNet::V6(Ipv6Net::default()));
        }
    }
    IpNet::aggregate(&ranges).into_iter().collect()
}

/// How many ranges the family with the most of them has: a security group counts its rules for each family apart.
pub(super) fn most_of_a_family(ranges: &BTreeSet<IpNet>) -> usize {
    let v4 = ranges.iter().filter(|range| matches!(range, IpNet::V4(_))).count();
    v4.max(ranges.len() - v4)
}

fn is_id(text: &str, kind: &str) -> bool {
    text.strip_prefix(kind).is_some_and(|hex| !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn parse_prefix_lists(annotations: Annotations<'_>) -> Result<Vec<String>, Problem> {
    let key = annotation::PREFIX_LISTS;
    let expected = "ids of prefix lists such as pl-0123abcd";
    let list = annotations.list(key, "prefix list", expected)?;
    let text = annotations.text(key).unwrap_or_default();
    let wrong = |what: String| Problem::new(key, text, what, expected);
    if let Some(bad) = list.iter().find(|part| !is_id(part, "pl-")) {
        return Err(wrong(format!("has {bad:?}, which is no id of a prefix list")));
    }
    let mut seen = BTreeSet::new();
    Ok(list.into_iter().filter(|part| seen.insert(*part)).map(str::to_owned).collect())
}

fn parse_groups(annotations: Annotations<'_>) -> Result<Vec<String>, Problem> {
    let key = annotation::SECURITY_GROUPS;
    let expected = format!("up to {GROUP_LIMIT} ids of security groups or values of their Name tags, each once");
    let list = annotations.list(key, "security group", &expected)?;
    let text = annotations.text(key).unwrap_or_default();
    let wrong = |what: String| Err(Problem::new(key, text, what, expected.clone()));
    for (index, part) in list.iter().enumerate() {
        if part.starts_with("sg-") && !is_id(part, "sg-") {
            return wrong(format!("has {part:?}, which is no id of a security group"));
        }
        if list[..index].contains(part) {
            return wrong(format!("has {part:?} twice"));
        }
    }
    if list.len() > GROUP_LIMIT {
        return wrong(format!("has {} security groups", list.len()));
    }
    Ok(list.into_iter().map(str::to_owned).collect())
}
