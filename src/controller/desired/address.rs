//! Which subnet gets which of the addresses that a Service asks for, and what cannot be changed any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::facts::{Facts, Subnet};
use super::super::observed::{Balancer, BalancerState, Mapping};
use crate::model::annotation::{self, Problem};
use crate::model::id::{SubnetId, Zone};
use crate::model::service::{AddressType, Scheme, ServiceSpec, SourceNatPrefix};

/// What stays possible where an address cannot be changed.
const EXPECTED: &str = "what it has, another subnet for that zone, or a new Service";

/// The load balancer's part in each zone. `subnets` are in the order that lists of addresses follow.
pub(super) fn mappings(
    spec: &ServiceSpec,
    scheme: Scheme,
    subnets: &[(Zone, SubnetId)],
    facts: &Facts,
    kept: Option<&Balancer>,
) -> Result<BTreeMap<Zone, Mapping>, Vec<Problem>> {
    let asked = &spec.addresses;
    let mut problems = vec![];
    check_ipv6(spec, subnets, facts, &mut problems);
    if scheme == Scheme::Internal && !asked.allocations.is_empty() {
        let wrong = "can only be set for an internet-facing load balancer";
        let expected = format!("no such annotation, or internet-facing in {}", annotation::SCHEME);
        problems.push(Problem::new(annotation::EIP_ALLOCATIONS, asked.allocations.join(","), wrong, expected));
    }
    if scheme == Scheme::InternetFacing && !asked.private_ipv4.is_empty() {
        let wrong = "can only be set for an internal load balancer";
        let expected = format!("no such annotation, or internal in {}", annotation::SCHEME);
        problems.push(Problem::new(annotation::PRIVATE_IPV4_ADDRESSES, join(&asked.private_ipv4), wrong, expected));
    }
    let mut mappings = BTreeMap::new();
    for (zone, subnet) in subnets {
        mappings.insert(zone.clone(), Mapping::from(subnet.clone()));
    }
    let mut note = |found: Result<(), Problem>| problems.extend(found.err());
    note(in_order(annotation::EIP_ALLOCATIONS, &asked.allocations, subnets, &mut mappings, |mapping, allocation| {
        mapping.allocation = Some(allocation.clone());
    }));
    note(in_range(
        annotation::PRIVATE_IPV4_ADDRESSES,
        &asked.private_ipv4,
        facts,
        &mut mappings,
        |mapping, address| {
            mapping.private_ipv4 = Some(address);
        },
    ));
    note(in_range(annotation::IPV6_ADDRESSES, &asked.ipv6, facts, &mut mappings, |mapping, address| {
        mapping.ipv6 = Some(address);
    }));
    note(in_order(
        annotation::SOURCE_NAT_PREFIXES,
        &asked.source_nat_prefixes,
        subnets,
        &mut mappings,
        |mapping, prefix| {
            mapping.source_nat_prefix = match prefix {
                SourceNatPrefix::Auto => None,
                SourceNatPrefix::Chosen(prefix) => Some(*prefix),
            };
        },
    ));
    note(check_prefixes(spec, facts, &mappings));
    if let Some(kept) = kept.filter(|kept| kept.state == BalancerState::Active && problems.is_empty()) {
        problems.extend(mappings.iter().filter_map(|(zone, wanted)| fixed(zone, wanted, kept)));
    }
    if problems.is_empty() { Ok(mappings) } else { Err(problems) }
}

/// Refuses dualstack where a subnet has no IPv6 range.
fn check_ipv6(spec: &ServiceSpec, subnets: &[(Zone, SubnetId)], facts: &Facts, problems: &mut Vec<Problem>) {
    let has_none = |id: &SubnetId| facts.subnets.get(id).is_some_and(|subnet| !subnet.has_ipv6());
    let lacking: Vec<_> = subnets.iter().map(|(_, id)| id).filter(|id| has_none(id)).collect();
    if spec.address_type == AddressType::Dualstack && !lacking.is_empty() {
        let wrong = format!("cannot be had in {}, which has no IPv6 range", join(&lacking));
        let expected = "ipv4, or subnets that all have an IPv6 CIDR block";
        problems.push(Problem::new(annotation::IP_ADDRESS_TYPE, spec.address_type.as_str(), wrong, expected));
    }
}

/// Gives each subnet the entry at its place in a list.
fn in_order<T: Display>(
    key: &str,
    asked: &[T],
    subnets: &[(Zone, SubnetId)],
    mappings: &mut BTreeMap<Zone, Mapping>,
    give: impl Fn(&mut Mapping, &T),
) -> Result<(), Problem> {
    if asked.is_empty() {
        return Ok(());
    }
    if asked.len() != subnets.len() {
        let ids: Vec<_> = subnets.iter().map(|(_, id)| id).collect();
        let wrong =
            format!("has {} for {}", count(asked.len(), "entry", "entries"), count(ids.len(), "subnet", "subnets"));
        return Err(Problem::new(key, join(asked), wrong, format!("one for each of {}, in this order", join(&ids))));
    }
    for ((zone, _), one) in subnets.iter().zip(asked) {
        if let Some(mapping) = mappings.get_mut(zone) {
            give(mapping, one);
        }
    }
    Ok(())
}

/// Gives each subnet the one address that lies in it.
fn in_range<A: Copy + Display + Into<IpAddr>>(
    key: &str,
    asked: &[A],
    facts: &Facts,
    mappings: &mut BTreeMap<Zone, Mapping>,
    give: impl Fn(&mut Mapping, A),
) -> Result<(), Problem> {
    if asked.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = mappings.values().map(|mapping| mapping.subnet.clone()).collect();
    let wrong =
        |what: String| Err(Problem::new(key, join(asked), what, format!("one address in each of {}", join(&ids))));
    let ranges = |id: &SubnetId| facts.subnets.get(id).map(|subnet| subnet.ranges.clone()).unwrap_or_default();
    let is_in = |ranges: &BTreeSet<IpNet>, address: A| ranges.iter().any(|range| range.contains(&address.into()));
    if let Some(stray) = asked.iter().find(|address| !ids.iter().any(|id| is_in(&ranges(id), **address))) {
        return wrong(format!("has {stray}, which is in none of the load balancer's subnets"));
    }
    for mapping in mappings.values_mut() {
        let ranges = ranges(&mapping.subnet);
        let found: Vec<_> = asked.iter().copied().filter(|address| is_in(&ranges, *address)).collect();
        match found[..] {
            [address] => give(mapping, address),
            [] => return wrong(format!("has no address in {}", mapping.subnet)),
            _ => return wrong(format!("has {} in {}", join(&found), mapping.subnet)),
        }
    }
    Ok(())
}

fn check_prefixes(spec: &ServiceSpec, facts: &Facts, mappings: &BTreeMap<Zone, Mapping>) -> Result<(), Problem> {
    for mapping in mappings.values() {
        let Some(prefix) = mapping.source_nat_prefix else { continue };
        let is_inside = |subnet: &Subnet| subnet.ranges.iter().any(|range| range.contains(&IpNet::V6(prefix)));
        if !facts.subnets.get(&mapping.subnet).is_some_and(is_inside) {
            let wrong = format!("has {prefix}, which is not inside the IPv6 range of {}", mapping.subnet);
            let value = join(&spec.addresses.source_nat_prefixes);
            let expected = "auto_assigned, or a prefix of that range";
            return Err(Problem::new(annotation::SOURCE_NAT_PREFIXES, value, wrong, expected));
        }
    }
    Ok(())
}

/// The address in a zone that would have to change, which AWS does not do.
fn fixed(zone: &Zone, wanted: &Mapping, kept: &Balancer) -> Option<Problem> {
    let has = kept.subnets.get(zone).filter(|has| has.subnet == wanted.subnet)?;
    let refuse = |key: &str, value: String, has: Option<String>| {
        let has = has.unwrap_or_else(|| "one of AWS's choice".into());
        let wrong = format!("cannot be given to the load balancer, which has {has} in {}", wanted.subnet);
        Some(Problem::new(key, value, wrong, EXPECTED))
    };
    match (&wanted.allocation, &has.allocation) {
        (Some(asked), has) if Some(asked) != has.as_ref() => {
            return refuse(annotation::EIP_ALLOCATIONS, asked.clone(), has.clone());
        }
        (None, Some(has)) => {
            let wrong = format!("cannot be taken from the load balancer, which has {has} in {}", wanted.subnet);
            return Some(Problem::new(annotation::EIP_ALLOCATIONS, "", wrong, EXPECTED));
        }
        _ => {}
    }
    // What AWS chose itself it may show or not: only what is asked for is compared.
    if let Some(asked) = wanted.private_ipv4.filter(|_| wanted.private_ipv4 != has.private_ipv4) {
        let has = has.private_ipv4.map(|address| address.to_string());
        return refuse(annotation::PRIVATE_IPV4_ADDRESSES, asked.to_string(), has);
    }
    let has_v6 = kept.address_type == AddressType::Dualstack;
    if let Some(asked) = wanted.ipv6.filter(|_| has_v6 && wanted.ipv6 != has.ipv6) {
        let has = has.ipv6.map(|address| address.to_string());
        return refuse(annotation::IPV6_ADDRESSES, asked.to_string(), has);
    }
    None
}

fn join(list: &[impl Display]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
