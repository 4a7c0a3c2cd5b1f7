//! The Kubernetes edge: Events, status, finalizers, leadership.

pub mod event;
pub mod lease;
pub mod reason;
pub mod service;
