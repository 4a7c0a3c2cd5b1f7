//! Who may connect.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::AddressType;
use crate::model::annotation::{self, Annotations, Problem};

/// The ranges of the spec, else of the annotation, else everyone. Canonical and without those another one covers.
pub(super) fn parse_source_ranges(
    in_spec: &[String],
    annotations: Annotations<'_>,
    address_type: AddressType,
    problems: &mut Vec<Problem>,
) -> BTreeSet<IpNet> {
    let (field, texts) = if in_spec.is_empty() {
        (annotation::SOURCE_RANGES, annotations.list(annotation::SOURCE_RANGES))
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
                problems.push(Problem::new(field, text, "is no address range", "CIDR blocks such as 192.0.2.0/24"));
            }
        }
    }
    if ranges.is_empty() {
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
