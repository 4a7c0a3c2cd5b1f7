//! What is in our tables: frontends, endpoints, verdicts, and the elements that tie them together.
//!
//! Everything here is small and `Copy`: a node holds tens of thousands of elements. Names of chains exist only where
//! text or bytes are made of them, and are read back from there.

use std::fmt;
use std::net::IpAddr;

use super::Family;

/// A transport protocol of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The word nft has for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The number it has in an IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol that Kubernetes, or a person, writes like this; nothing else is a Service port's.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.word().eq_ignore_ascii_case(text))
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.number() == number)
    }
}

/// One address and port on which a Service port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// ClusterIP, external address or node address.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Service port or NodePort.
    pub port: u16,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, protocol, port } = self;
        write!(f, "{} {}", std::net::SocketAddr::new(*address, *port), protocol.word())
    }
}

/// Where a connection is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// A pod's address.
    pub address: IpAddr,
    /// The port its server listens on.
    pub port: u16,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::net::SocketAddr::new(self.address, self.port))
    }
}

/// Whether a connection's source becomes this node's address, if its endpoint is on another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceNat {
    /// Never.
    Never,
    /// Whoever asks.
    Always,
    /// If this node itself asks, and not if one of its pods does.
    FromHost,
}

/// Which part of a frontend's endpoints is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Region {
    /// Indices from 0: the endpoints of policy Cluster, those on this node first.
    Low,
    /// Indices from [`HIGH`]: the endpoints of policy Local, where they are not simply the first of the others.
    High,
}

/// Where [`Region::High`] begins. A Service port has at most this many endpoints in one region.
pub const HIGH: u16 = 32_768;

/// Why a Service port has chains of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Private {
    /// Session affinity among the endpoints of a region.
    Affinity(Region),
    /// The source ranges of its load balancer addresses. What comes after them is part of the name, as a hash: a chain
    /// that goes to other endpoints is another chain, and elements point to it in the transaction that adds those.
    Guard(u32),
}

/// A Service port, as the names of its own chains and sets have it: a hash, since names of Services can be longer than
/// the kernel allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u64);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A chain that is not a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Sends the connection to one of `count` endpoints; shared by all Service ports with as many.
    Pick {
        /// Transport protocol.
        protocol: Protocol,
        /// How many endpoints there are.
        count: u16,
        /// Where they begin.
        region: Region,
        /// What happens to the source.
        source: SourceNat,
    },
    /// A chain of one Service port.
    Own {
        /// Whose.
        id: PortId,
        /// For what.
        private: Private,
        /// What happens to the source.
        source: SourceNat,
    },
    /// Sends the connection to one endpoint and remembers that for the client.
    Pin {
        /// Service port.
        id: PortId,
        /// Endpoint, as a hash.
        endpoint: u32,
    },
    /// Answers with ICMP port unreachable.
    Refuse,
    /// What to do with Service addresses that nothing answers on.
    Unknown,
    /// Gives the connection this node's address.
    SourceNat,
}

const REFUSE: &str = "refuse";
const UNKNOWN: &str = "unknown-ports";
const SOURCE_NAT: &str = "source-nat";

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pick { protocol, count, region, source } => {
                write!(f, "lb-{}-{count}{}{}", protocol.word(), region_suffix(*region), source_suffix(*source))
            }
            Self::Own { id, private: Private::Affinity(region), source } => {
                write!(f, "affinity-{id}{}{}", region_suffix(*region), source_suffix(*source))
            }
            Self::Own { id, private: Private::Guard(next), source } => {
                write!(f, "guard-{id}-{next:08x}{}", source_suffix(*source))
            }
            Self::Pin { id, endpoint } => write!(f, "pin-{id}-{endpoint:08x}"),
            Self::Refuse => f.write_str(REFUSE),
            Self::Unknown => f.write_str(UNKNOWN),
            Self::SourceNat => f.write_str(SOURCE_NAT),
        }
    }
}

const fn region_suffix(region: Region) -> &'static str {
    match region {
        Region::Low => "",
        Region::High => "-high",
    }
}

const fn source_suffix(source: SourceNat) -> &'static str {
    match source {
        SourceNat::Never => "",
        SourceNat::Always => "-snat",
        SourceNat::FromHost => "-hostsnat",
    }
}

impl Target {
    /// The chain of this name, if it is one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            REFUSE => return Some(Self::Refuse),
            UNKNOWN => return Some(Self::Unknown),
            SOURCE_NAT => return Some(Self::SourceNat),
            _ => {}
        }
        let (kind, rest) = name.split_once('-')?;
        let mut parts: Vec<&str> = rest.split('-').collect();
        if kind == "pin" {
            let [id, endpoint] = parts[..] else { return None };
            return Some(Self::Pin { id: parse_id(id)?, endpoint: u32::from_str_radix(endpoint, 16).ok()? });
        }
        let source = match parts.last() {
            Some(&"snat") => SourceNat::Always,
            Some(&"hostsnat") => SourceNat::FromHost,
            _ => SourceNat::Never,
        };
        if source != SourceNat::Never {
            parts.pop();
        }
        let region = if parts.last() == Some(&"high") { Region::High } else { Region::Low };
        if region == Region::High {
            parts.pop();
        }
        match (kind, &parts[..]) {
            ("lb", [protocol, count]) => {
                Some(Self::Pick { protocol: Protocol::parse(protocol)?, count: count.parse().ok()?, region, source })
            }
            ("affinity", [id]) => Some(Self::Own { id: parse_id(id)?, private: Private::Affinity(region), source }),
            ("guard", [id, next]) => {
                let private = Private::Guard(u32::from_str_radix(next, 16).ok()?);
                Some(Self::Own { id: parse_id(id)?, private, source })
            }
            _ => None,
        }
    }

    /// Whether it belongs to one Service port and goes with it.
    pub const fn is_private(self) -> bool {
        matches!(self, Self::Own { .. } | Self::Pin { .. })
    }
}

fn parse_id(text: &str) -> Option<PortId> {
    u64::from_str_radix(text, 16).ok().map(PortId)
}

/// A verdict map, map or set of our table that every Service shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collection {
    /// Verdicts for connections of this node and its pods.
    Inside,
    /// Verdicts for all other connections.
    Outside,
    /// Endpoints of every frontend of one protocol, by index.
    Endpoints(Protocol),
    /// Addresses of Services of which unused ports are refused.
    ClusterIps,
    /// Addresses of endpoints on this node: their answers pass here in any case.
    LocalEndpoints,
    /// The same addresses, paired with themselves: a pod that was sent to itself.
    Hairpin,
}

impl Collection {
    /// All of them, in the order in which they are filled: what dispatches comes last.
    pub const ALL: [Self; 8] = [
        Self::Endpoints(Protocol::Tcp),
        Self::Endpoints(Protocol::Udp),
        Self::Endpoints(Protocol::Sctp),
        Self::LocalEndpoints,
        Self::Hairpin,
        Self::ClusterIps,
        Self::Inside,
        Self::Outside,
    ];

    /// Its name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
            Self::Endpoints(Protocol::Tcp) => "endpoints-tcp",
            Self::Endpoints(Protocol::Udp) => "endpoints-udp",
            Self::Endpoints(Protocol::Sctp) => "endpoints-sctp",
            Self::ClusterIps => "cluster-ips",
            Self::LocalEndpoints => "local-endpoints",
            Self::Hairpin => "hairpin",
        }
    }
}

/// What an element is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Of [`Collection::Inside`].
    Inside(Frontend),
    /// Of [`Collection::Outside`].
    Outside(Frontend),
    /// Of [`Collection::Endpoints`]: the frontend and an index.
    Endpoint(Frontend, u16),
    /// Of [`Collection::ClusterIps`].
    ClusterIp(IpAddr),
    /// Of [`Collection::LocalEndpoints`].
    LocalEndpoint(IpAddr),
    /// Of [`Collection::Hairpin`].
    Hairpin(IpAddr),
}

/// What an element holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Nothing: it is a member of a set.
    Member,
    /// The connection goes on in this chain.
    Goto(Target),
    /// The packet is dropped.
    Drop,
    /// The connection goes to this endpoint.
    Backend(Backend),
}

impl Key {
    /// Where the element is.
    pub const fn collection(&self) -> Collection {
        match self {
            Self::Inside(_) => Collection::Inside,
            Self::Outside(_) => Collection::Outside,
            Self::Endpoint(frontend, _) => Collection::Endpoints(frontend.protocol),
            Self::ClusterIp(_) => Collection::ClusterIps,
            Self::LocalEndpoint(_) => Collection::LocalEndpoints,
            Self::Hairpin(_) => Collection::Hairpin,
        }
    }

    /// The frontend whose element it is, if it is one's.
    pub const fn frontend(&self) -> Option<Frontend> {
        match self {
            Self::Inside(frontend) | Self::Outside(frontend) | Self::Endpoint(frontend, _) => Some(*frontend),
            Self::ClusterIp(_) | Self::LocalEndpoint(_) | Self::Hairpin(_) => None,
        }
    }

    /// Appends the bytes the kernel has for it: each field padded to four bytes, ports and addresses in network order,
    /// the index in the host's, as `numgen` yields it.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Inside(frontend) | Self::Outside(frontend) => {
                write_address(bytes, frontend.address);
                bytes.extend([frontend.protocol.number(), 0, 0, 0]);
                write_port(bytes, frontend.port);
            }
            Self::Endpoint(frontend, index) => {
                write_address(bytes, frontend.address);
                write_port(bytes, frontend.port);
                bytes.extend(u32::from(*index).to_ne_bytes());
            }
            Self::ClusterIp(address) | Self::LocalEndpoint(address) => write_address(bytes, *address),
            Self::Hairpin(address) => {
                write_address(bytes, *address);
                write_address(bytes, *address);
            }
        }
    }

    /// Reads what [`Key::write`] wrote; nothing else is an element of ours.
    pub fn read(family: Family, collection: Collection, bytes: &[u8]) -> Option<Self> {
        let (address, rest) = read_address(family, bytes)?;
        Some(match (collection, rest) {
            (Collection::Inside | Collection::Outside, [number, 0, 0, 0, high, low, 0, 0]) => {
                let port = u16::from_be_bytes([*high, *low]);
                let frontend = Frontend { address, protocol: Protocol::from_number(*number)?, port };
                if collection == Collection::Inside { Self::Inside(frontend) } else { Self::Outside(frontend) }
            }
            (Collection::Endpoints(protocol), [high, low, 0, 0, a, b, c, d]) => {
                let frontend = Frontend { address, protocol, port: u16::from_be_bytes([*high, *low]) };
                Self::Endpoint(frontend, u32::from_ne_bytes([*a, *b, *c, *d]).try_into().ok()?)
            }
            (Collection::ClusterIps, []) => Self::ClusterIp(address),
            (Collection::LocalEndpoints, []) => Self::LocalEndpoint(address),
            (Collection::Hairpin, second) => {
                let (same, []) = read_address(family, second)? else { return None };
                if same != address {
                    return None;
                }
                Self::Hairpin(address)
            }
            _ => return None,
        })
    }

    /// As nft writes it.
    pub fn text(&self) -> String {
        match self {
            Self::Inside(Frontend { address, protocol, port })
            | Self::Outside(Frontend { address, protocol, port }) => {
                format!("{address} . {} . {port}", protocol.word())
            }
            Self::Endpoint(Frontend { address, port, .. }, index) => format!("{address} . {port} . {index}"),
            Self::ClusterIp(address) | Self::LocalEndpoint(address) => address.to_string(),
            Self::Hairpin(address) => format!("{address} . {address}"),
        }
    }
}

impl Value {
    /// As nft writes it, with what separates it from the key.
    pub fn text(&self) -> String {
        match self {
            Self::Member => String::new(),
            Self::Goto(target) => format!(" : goto {target}"),
            Self::Drop => " : drop".to_owned(),
            Self::Backend(Backend { address, port }) => format!(" : {address} . {port}"),
        }
    }
}

impl Backend {
    /// Appends the bytes the kernel has for it.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        write_address(bytes, self.address);
        write_port(bytes, self.port);
    }

    /// Reads what [`Backend::write`] wrote.
    pub fn read(family: Family, bytes: &[u8]) -> Option<Self> {
        match read_address(family, bytes)? {
            (address, [high, low, 0, 0]) => Some(Self { address, port: u16::from_be_bytes([*high, *low]) }),
            _ => None,
        }
    }
}

fn write_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
}

fn write_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

fn read_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    Some(match family {
        Family::Ipv4 => {
            let (address, rest) = bytes.split_first_chunk::<4>()?;
            (IpAddr::from(*address), rest)
        }
        Family::Ipv6 => {
            let (address, rest) = bytes.split_first_chunk::<16>()?;
            (IpAddr::from(*address), rest)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_are_read_back() {
        let id = PortId(0x00ab_cdef_0123_4567);
        let mut targets =
            vec![Target::Refuse, Target::Unknown, Target::SourceNat, Target::Pin { id, endpoint: 0xbeef }];
        for source in [SourceNat::Never, SourceNat::Always, SourceNat::FromHost] {
            for region in [Region::Low, Region::High] {
                targets.push(Target::Pick { protocol: Protocol::Sctp, count: 1000, region, source });
                targets.push(Target::Own { id, private: Private::Affinity(region), source });
            }
            targets.push(Target::Own { id, private: Private::Guard(0xbeef), source });
        }
        for target in targets {
            assert_eq!(Target::parse(&target.to_string()), Some(target), "{target}");
        }
        for foreign in ["", "lb", "lb-tcp", "lb-icmp-3", "lb-tcp-x", "affinity-zz", "prerouting", "pin-1"] {
            assert_eq!(Target::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn elements_are_read_back() {
        let addresses = [(Family::Ipv4, "10.96.0.1"), (Family::Ipv6, "fd00:96::1")];
        for (family, address) in addresses {
            let address: IpAddr = address.parse().unwrap();
            let frontend = Frontend { address, protocol: Protocol::Udp, port: 53 };
            let keys = [
                Key::Inside(frontend),
                Key::Outside(frontend),
                Key::Endpoint(frontend, HIGH + 7),
                Key::ClusterIp(address),
                Key::LocalEndpoint(address),
                Key::Hairpin(address),
            ];
            for key in keys {
                let mut bytes = Vec::new();
                key.write(&mut bytes);
                assert_eq!(Key::read(family, key.collection(), &bytes), Some(key));
                bytes.push(1);
                assert_eq!(Key::read(family, key.collection(), &bytes), None);
            }
            let backend = Backend { address, port: 8080 };
            let mut bytes = Vec::new();
            backend.write(&mut bytes);
            assert_eq!(Backend::read(family, &bytes), Some(backend));
            assert_eq!(Backend::read(family, &bytes[1..]), None);
        }
    }
}
