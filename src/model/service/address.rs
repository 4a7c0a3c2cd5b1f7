//! What a Service says of its load balancer's addresses.

use std::fmt;

use crate::model::annotation::{self, Annotations, Problem};

/// IP families in which clients reach a load balancer (ELB API, `IpAddressType`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
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
