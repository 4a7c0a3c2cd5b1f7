//! What may go wrong between us and nftables, and where.

use std::fmt;
use std::io;

use crate::netfilter::Family;

/// Numbers of errno.h.
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const EAGAIN: i32 = 11;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENFILE: i32 = 23;
pub(super) const EMSGSIZE: i32 = 90;
pub(super) const ENOBUFS: i32 = 105;

/// Why nothing was read, or nothing applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table, the set or map, the element to delete, or the chain that a value goes to.
    #[error("{0}: it, or what it refers to, does not exist")]
    Missing(Place),
    /// A set keeps one value for a key; delete the old one first, in the same transaction.
    #[error("{0}: it exists already, with another value")]
    Exists(Place),
    /// Something else still refers to it, or an old kernel is not yet done with it.
    #[error("{0}: it is still in use")]
    Busy(Place),
    /// The set was made with a size, and has reached it.
    #[error("{0}: the set is full")]
    Full(Place),
    /// More than one transaction can carry.
    #[error("the changes need more than the {0} bytes that fit into one transaction")]
    TooBig(usize),
    /// The process lacks CAP_NET_ADMIN in this network namespace, or another program has made the table for itself alone.
    #[error("the kernel refuses: the capability NET_ADMIN is missing, or another program owns the table")]
    Denied,
    /// The ruleset changed while it was listed, so the listing may lack something or say it twice.
    #[error("the ruleset changed while it was being read")]
    Interrupted,
    /// The answer did not arrive whole. Whether a transaction was applied must be read back.
    #[error("the kernel's answer was lost: it is unknown whether the change was made")]
    Lost,
    /// An answer that makes no sense to us, such as an interval where single keys are expected.
    #[error("{0}: the kernel's answer cannot be read")]
    Unreadable(Place),
    /// Any other answer of the kernel.
    #[error("{place}: the kernel refuses{}", words.as_ref().map(|words| format!(", saying “{words}”")).unwrap_or_default())]
    Refused {
        /// What was refused.
        place: Place,
        /// The kernel's own words, if it had any.
        words: Option<String>,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The socket failed.
    #[error("cannot talk to the kernel")]
    Io(#[from] io::Error),
}

impl Error {
    /// The error that an errno means. `limit` is how much one transaction may carry.
    pub(super) fn from_errno(errno: i32, place: Place, words: Option<&str>, limit: usize) -> Self {
        match errno {
            ENOENT => Self::Missing(place),
            EEXIST => Self::Exists(place),
            EBUSY => Self::Busy(place),
            ENFILE => Self::Full(place),
            EMSGSIZE => Self::TooBig(limit),
            EPERM => Self::Denied,
            EINTR | EAGAIN => Self::Interrupted,
            _ => Self::Refused { place, words: words.map(str::to_owned), source: io::Error::from_raw_os_error(errno) },
        }
    }
}

/// What an error is about, as closely as the kernel told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The table's family.
    pub family: Family,
    /// The table.
    pub table: String,
    /// The set or map in it.
    pub set: Option<String>,
    /// The element's key.
    pub key: Option<Vec<u8>>,
}

impl Place {
    /// A table as a whole.
    pub(super) fn table(family: Family, table: &str) -> Self {
        Self { family, table: table.to_owned(), set: None, key: None }
    }

    /// A set as a whole.
    pub(super) fn set(family: Family, table: &str, set: &str) -> Self {
        Self { set: Some(set.to_owned()), ..Self::table(family, table) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(key) = &self.key {
            f.write_str("element 0x")?;
            key.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
            f.write_str(" of ")?;
        }
        if let Some(set) = &self.set {
            write!(f, "set {set} of ")?;
        }
        let family = match self.family {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        };
        write!(f, "table {family} {}", self.table)
    }
}
