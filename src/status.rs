//! `weir status`: Services with what AWS has for them.
//!
//! ```text
//!   Services, Events, Nodes ─┐
//!   load balancers, targets ─┴─read─► Seen ─tree─► Tree (JSON) ─text─► lines
//! ```
//!
//! [`tree`] and [`text`] are pure. Nothing is changed, and nothing is taken from the controller's memory: what is shown
//! is what the API server and AWS say.

pub mod read;
pub mod text;
pub mod tree;
