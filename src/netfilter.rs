//! The edge to the kernel's packet filter.

pub mod flows;
