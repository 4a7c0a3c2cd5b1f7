//! The kernel's packet filter: what is in our tables, how it is written as text and as bytes, and who carries it there.

pub mod flows;
pub mod netlink;
pub mod nft;
pub mod object;
pub mod rule;
pub mod script;
pub mod trace;

pub use crate::model::family::Family;
