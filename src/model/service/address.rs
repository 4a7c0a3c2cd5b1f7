//! What a Service says of its load balancer's addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

use super::{Port, Protocol, kept};
use crate::model::annotation::{self, Annotations, Problem};

/// Length of a source NAT prefix (ELB API, `SubnetMapping`).
const SOURCE_NAT_PREFIX_LENGTH: u8 = 80;

/// IP families in which clients reach a load balancer (ELB API, `IpAddressType`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AddressType {
    /// IPv4 alone.
    #[default]
    Ipv4,
    /// Both.
    Dualstack,
}

impl AddressType {
    /// The type as AWS and the annotation spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Dualstack => "dualstack",
        }
    }
}

impl fmt::Display for AddressType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The prefix from which a load balancer speaks to targets for UDP clients with IPv6 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceNatPrefix {
    /// AWS chooses one.
    Auto,
    /// This one.
    Chosen(Ipv6Net),
}

impl fmt::Display for SourceNatPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto_assigned"),
            Self::Chosen(prefix) => prefix.fmt(f),
        }
    }
}

/// Addresses that a Service asks for. Each list is empty, or has one entry for each subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSpec {
    /// Allocation ids of Elastic IPs, in the order of the subnets.
    pub allocations: Vec<String>,
    /// Private IPv4 addresses; each lies in one of the subnets.
    pub private_ipv4: Vec<Ipv4Addr>,
    /// IPv6 addresses; each lies in one of the subnets.
    pub ipv6: Vec<Ipv6Addr>,
    /// Whether the load balancer has an IPv6 prefix in each subnet, from which it speaks to targets for UDP clients.
    pub source_nat: bool,
    /// Those prefixes, in the order of the subnets.
    pub source_nat_prefixes: Vec<SourceNatPrefix>,
}

impl AddressSpec {
    /// Whether it asks for something that each subnet must have one of.
    pub const fn is_for_each_subnet(&self) -> bool {
        !(self.allocations.is_empty()
            && self.private_ipv4.is_empty()
            && self.ipv6.is_empty()
            && self.source_nat_prefixes.is_empty())
    }
}

pub(super) fn parse_address_type(annotations: Annotations<'_>) -> Result<AddressType, Problem> {
    match annotations.text(annotation::IP_ADDRESS_TYPE) {
        None | Some("ipv4") => Ok(AddressType::Ipv4),
        Some("dualstack") => Ok(AddressType::Dualstack),
        Some(other) => {
            let wrong = "is an unknown IP address type";
            Err(Problem::new(annotation::IP_ADDRESS_TYPE, other, wrong, "ipv4 or dualstack"))
        }
    }
}

pub(super) fn parse_addresses(
    annotations: Annotations<'_>,
    address_type: AddressType,
    ports: &BTreeMap<u16, Port>,
    problems: &mut Vec<Problem>,
) -> AddressSpec {
    let allocations = kept(
        list_of(annotations, annotation::EIP_ALLOCATIONS, "allocation id", |part| {
            let hex = part.strip_prefix("eipalloc-")?;
            let is_id = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_id.then(|| part.to_owned())
        }),
        problems,
    );
    let private_ipv4 = kept(addresses(annotations, annotation::PRIVATE_IPV4_ADDRESSES, "IPv4 address"), problems);
    let ipv6 = kept(addresses(annotations, annotation::IPV6_ADDRESSES, "IPv6 address"), problems);
    let source_nat = kept(annotations.switch(annotation::SOURCE_NAT), problems).unwrap_or_default();
    let source_nat_prefixes = kept(parse_source_nat_prefixes(annotations), problems);

    if address_type == AddressType::Ipv4 {
        for (key, is_set) in [(annotation::IPV6_ADDRESSES, !ipv6.is_empty()), (annotation::SOURCE_NAT, source_nat)] {
            if is_set {
                let text = annotations.text(key).unwrap_or_default();
                let expected = format!("no such annotation, or dualstack in {}", annotation::IP_ADDRESS_TYPE);
                problems.push(Problem::new(key, text, "needs a dualstack load balancer", expected));
            }
        }
    }
    if !source_nat_prefixes.is_empty() && !source_nat {
        let key = annotation::SOURCE_NAT_PREFIXES;
        let text = annotations.text(key).unwrap_or_default();
        let expected = format!("no such annotation, or on in {}", annotation::SOURCE_NAT);
        problems.push(Problem::new(key, text, "is given although source NAT by prefix is off", expected));
    }
    let udp = ports.values().find(|port| matches!(port.protocol, Protocol::Udp | Protocol::TcpUdp));
    if let Some(port) = udp.filter(|_| address_type == AddressType::Dualstack && !source_nat)
        && annotations.text(annotation::IP_ADDRESS_TYPE) == Some(address_type.as_str())
    {
        let wrong = format!("cannot be had with UDP on port {} while source NAT by prefix is off", port.port);
        let expected = format!("ipv4, or on in {}", annotation::SOURCE_NAT);
        problems.push(Problem::new(annotation::IP_ADDRESS_TYPE, address_type.as_str(), wrong, expected));
    }
    AddressSpec { allocations, private_ipv4, ipv6, source_nat, source_nat_prefixes }
}

fn addresses<T: FromStr + PartialEq>(
    annotations: Annotations<'_>,
    key: &'static str,
    what: &str,
) -> Result<Vec<T>, Problem> {
    list_of(annotations, key, what, |part| part.parse().ok())
}

/// A list of different things, each read by `read`.
fn list_of<T: PartialEq>(
    annotations: Annotations<'_>,
    key: &'static str,
    what: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Problem> {
    let text = annotations.text(key).unwrap_or_default();
    let article = if what.starts_with(['a', 'I']) { "an" } else { "a" };
    let expected = format!("{article} {what} for each subnet, each once");
    let wrong = |wrong: String| Problem::new(key, text, wrong, expected.clone());
    let mut read_so_far = vec![];
    for part in annotations.list(key, what, expected.clone())? {
        let one = read(part).ok_or_else(|| wrong(format!("has {part:?}, which is no {what}")))?;
        if read_so_far.contains(&one) {
            return Err(wrong(format!("has {part:?} twice")));
        }
        read_so_far.push(one);
    }
    Ok(read_so_far)
}

fn parse_source_nat_prefixes(annotations: Annotations<'_>) -> Result<Vec<SourceNatPrefix>, Problem> {
    let key = annotation::SOURCE_NAT_PREFIXES;
    let expected = "auto_assigned or an IPv6 prefix such as 2001:db8::/80 for each subnet";
    let wrong = |part: &str| {
        let text = annotations.text(key).unwrap_or_default();
        let wrong = format!("has {part:?}, which is no IPv6 prefix of length {SOURCE_NAT_PREFIX_LENGTH}");
        Problem::new(key, text, wrong, expected)
    };
    let read = |part: &&str| match *part {
        "auto_assigned" => Ok(SourceNatPrefix::Auto),
        other => {
            let prefix = other.parse::<Ipv6Net>().ok().filter(|net| net.prefix_len() == SOURCE_NAT_PREFIX_LENGTH);
            prefix.map(|net| SourceNatPrefix::Chosen(net.trunc())).ok_or_else(|| wrong(other))
        }
    };
    annotations.list(key, "IPv6 prefix", expected)?.iter().map(read).collect()
}
