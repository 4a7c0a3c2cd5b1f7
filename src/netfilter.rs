//! The kernel's packet filter: what is in our tables, how it is written as text and as bytes, and who carries it there.

pub mod netlink;

/// An address family. Each has its own table, and neither waits for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, table `ip weir`.
    Ipv4,
    /// IPv6, table `ip6 weir`.
    Ipv6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];
}
