//! The Kubernetes edge: Events, status, finalizers, leadership.

pub mod event;
pub mod lease;
pub mod node;
pub mod reason;
pub mod service;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt};

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

/// What tells this cluster from another one of the same name: nobody can delete that namespace, or make it again.
///
/// # Errors
/// It cannot be read.
pub async fn cluster_uid(client: &kube::Client) -> anyhow::Result<String> {
    let namespace = Api::<Namespace>::all(client.clone()).get("kube-system").await;
    let namespace = namespace.context("cannot read the namespace kube-system, whose UID marks what weir makes")?;
    namespace.uid().context("the namespace kube-system has no UID")
}
