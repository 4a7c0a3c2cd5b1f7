//! Commands for people: each reads, decides by pure functions, and prints. None of them changes anything.

pub mod deployed;
pub mod doctor;
pub mod settings;
pub mod status;
