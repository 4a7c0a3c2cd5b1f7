//! The domain's words: plain data and pure functions over it. Nothing here awaits, reads a clock or holds a client.

pub mod annotation;
pub mod attribute;
pub mod family;
pub mod id;
pub mod name;
pub mod node;
pub mod ownership;
pub mod service;
pub mod text;
