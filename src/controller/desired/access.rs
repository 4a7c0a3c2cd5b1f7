//! Security groups of a Service's load balancer, and the rules of the one that weir makes.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::super::facts::{Facts, PrefixList};
use super::super::observed::{Carried, IngressRule, Source};
use crate::model::annotation::{self, Problem};
use crate::model::family::Family;
use crate::model::id::SecurityGroupId;
use crate::model::service::{RULE_LIMIT, ServiceSpec};

/// The owner's security groups.
pub(super) fn own_groups(spec: &ServiceSpec, facts: &Facts) -> Result<Vec<Carried>, Problem> {
    let asked = &spec.access.groups;
    let wrong = |what: String| {
        let expected = format!("ids or Name tags of security groups of {}", facts.vpc);
        Problem::new(annotation::SECURITY_GROUPS, asked.join(","), what, expected)
    };
    let mut groups: Vec<Carried> = vec![];
    let mut missing = vec![];
    for text in asked {
        let is_meant = |(id, name): &(&SecurityGroupId, &Option<String>)| {
            id.as_str() == text || name.as_ref().is_some_and(|name| name == text)
        };
        let found: Vec<_> = facts.groups.iter().filter(is_meant).map(|(id, _)| id.clone()).collect();
        match found.as_slice() {
            [] => missing.push(text.as_str()),
            [id] if groups.contains(&Carried::Theirs(id.clone())) => {}
            [id] => groups.push(Carried::Theirs(id.clone())),
            several => {
                let ids: Vec<_> = several.iter().map(SecurityGroupId::as_str).collect();
                return Err(wrong(format!("has {text:?}, which is the Name of {}", ids.join(" and "))));
            }
        }
    }
    if missing.is_empty() {
        Ok(groups)
    } else {
        Err(wrong(format!("has {}, which does not exist", missing.join(", "))))
    }
}

/// Rules of the group that weir makes: each source to each port, and ICMP once for each source.
pub(super) fn frontend_rules(spec: &ServiceSpec, facts: &Facts) -> Result<BTreeSet<IngressRule>, Problem> {
    let lists = prefix_lists(spec, facts)?;
    check_budget(spec, &lists)?;
    let ranges = spec.source_ranges.iter().map(|range| (family(range), Source::Range(*range)));
    let lists = lists.iter().map(|(id, list)| (list.family, Source::PrefixList((*id).clone())));
    let mut rules = BTreeSet::new();
    for (family, source) in ranges.chain(lists) {
        let ports = spec.ports.values().flat_map(|port| port.protocol.parts().iter().map(|part| (part, port.port)));
        rules.extend(ports.map(|(part, port)| {
            let port = i32::from(port);
            IngressRule { protocol: part.as_str().into(), from: port, to: port, source: source.clone() }
        }));
        if spec.access.icmp {
            // "Fragmentation needed" and "packet too big"; type and code take the place of ports (EC2 API).
            let (protocol, from, to) = match family {
                Family::Ipv4 => ("icmp", 3, 4),
                Family::Ipv6 => ("icmpv6", 2, 0),
            };
            rules.insert(IngressRule { protocol: protocol.into(), from, to, source });
        }
    }
    Ok(rules)
}

fn prefix_lists<'a>(spec: &'a ServiceSpec, facts: &'a Facts) -> Result<BTreeMap<&'a String, &'a PrefixList>, Problem> {
    let wrong = |what: String| {
        let value = spec.access.prefix_lists.join(",");
        Problem::new(annotation::PREFIX_LISTS, value, what, "prefix lists of this account and Region")
    };
    let asked = &spec.access.prefix_lists;
    let missing: Vec<_> = asked.iter().filter(|id| !facts.prefix_lists.contains_key(*id)).map(String::as_str).collect();
    if missing.is_empty() {
        Ok(asked.iter().filter_map(|id| Some((id, facts.prefix_lists.get(id)?))).collect())
    } else {
        Err(wrong(format!("has {}, which does not exist", missing.join(", "))))
    }
}

/// A security group counts its rules for each family apart, and a prefix list as many times as it may have entries.
/// (Without prefix lists the parser has counted.)
fn check_budget(spec: &ServiceSpec, lists: &BTreeMap<&String, &PrefixList>) -> Result<(), Problem> {
    if lists.is_empty() {
        return Ok(());
    }
    let sources = |wanted: Family| {
        let ranges = spec.source_ranges.iter().filter(|range| family(range) == wanted).count();
        let lists = lists.values().filter(|list| list.family == wanted);
        ranges + lists.map(|list| list.max_entries).sum::<usize>()
    };
    let most = Family::ALL.map(sources).into_iter().max().unwrap_or_default();
    let needed = most * spec.rules_for_each_source();
    if needed <= RULE_LIMIT {
        return Ok(());
    }
    let sizes: Vec<_> = lists.iter().map(|(id, list)| format!("{id} as {}", list.max_entries)).collect();
    let wrong = format!("needs {needed} inbound rules in a security group, which counts {}", sizes.join(", "));
    let expected = format!("at most {RULE_LIMIT}; take smaller lists or split the Service");
    Err(Problem::new(annotation::PREFIX_LISTS, spec.access.prefix_lists.join(","), wrong, expected))
}

const fn family(range: &IpNet) -> Family {
    match range {
        IpNet::V4(_) => Family::Ipv4,
        IpNet::V6(_) => Family::Ipv6,
    }
}
