//! The Kubernetes edge: Events, status, finalizers, leadership.

pub mod event;
pub mod lease;
pub mod reason;
pub mod service;

use anyhow::Context as _;

/// A client for the cluster of KUBECONFIG or, in a pod, of its service account. Whether the API server can be reached
/// shows with the first request; its address is in the log for that.
///
/// # Errors
/// There is no configuration, or it cannot be used.
pub async fn connect() -> anyhow::Result<kube::Client> {
    let config = kube::Config::infer().await.context("cannot find the cluster: set KUBECONFIG, or run in a pod")?;
    tracing::info!(api_server = %config.cluster_url, version = env!("CARGO_PKG_VERSION"), "starting");
    kube::Client::try_from(config).context("cannot use the configuration of the cluster")
}
