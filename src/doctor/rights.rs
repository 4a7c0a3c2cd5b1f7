//! What the controller needs in the cluster (manifests/base/controller/rbac.yaml), and how the API server is asked about it.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};

/// Something that is needed.
#[derive(Clone, Copy, Debug)]
pub struct Right {
    /// API group; empty for the core.
    group: &'static str,
    /// Resource, in the plural.
    resource: &'static str,
    /// Subresource, if any.
    subresource: Option<&'static str>,
    /// The only object it is needed for.
    name: Option<&'static str>,
    /// Whether it is needed in the controller's namespace alone.
    is_local: bool,
    /// Verbs.
    pub verbs: &'static [&'static str],
}

const fn everywhere(group: &'static str, resource: &'static str, verbs: &'static [&'static str]) -> Right {
    Right { group, resource, subresource: None, name: None, is_local: false, verbs }
}

/// All that is needed.
pub const NEEDED: &[Right] = &[
    everywhere("", "services", &["get", "list", "watch", "patch"]),
    Right { subresource: Some("status"), ..everywhere("", "services", &["patch"]) },
    Right { name: Some("kube-system"), ..everywhere("", "namespaces", &["get"]) },
    everywhere("", "nodes", &["list", "watch"]),
    everywhere("events.k8s.io", "events", &["create", "get", "patch"]),
    Right { is_local: true, ..everywhere("coordination.k8s.io", "leases", &["create"]) },
    Right {
        is_local: true,
        name: Some("weir-controller"),
        ..everywhere("coordination.k8s.io", "leases", &["get", "update"])
    },
];

impl Right {
    /// Asks whether it is granted: to a ServiceAccount, or to ourselves where `user` is not given.
    ///
    /// # Errors
    /// As of the API server.
    pub async fn is_granted(
        &self,
        client: &Client,
        user: Option<&str>,
        namespace: &str,
        verb: &str,
    ) -> kube::Result<bool> {
        let attributes = ResourceAttributes {
            group: Some(self.group.into()),
            resource: Some(self.resource.into()),
            subresource: self.subresource.map(Into::into),
            name: self.name.map(Into::into),
            namespace: self.is_local.then(|| namespace.to_owned()),
            verb: Some(verb.into()),
            ..ResourceAttributes::default()
        };
        let post = PostParams::default();
        let status = if let Some(user) = user {
            let groups = ["system:serviceaccounts".to_owned(), "system:authenticated".to_owned()];
            let of_namespace = format!("system:serviceaccounts:{namespace}");
            let spec = SubjectAccessReviewSpec {
                user: Some(user.to_owned()),
                groups: Some(groups.into_iter().chain([of_namespace]).collect()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            Api::all(client.clone()).create(&post, &review).await?.status
        } else {
            let spec = SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            Api::all(client.clone()).create(&post, &review).await?.status
        };
        Ok(status.is_some_and(|status| status.allowed))
    }

    /// In words: `patch services/status`, `get leases.coordination.k8s.io weir-controller in weir-system`.
    pub fn words(&self, verb: &str, namespace: &str) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let part = self.subresource.map(|part| format!("/{part}")).unwrap_or_default();
        let name = self.name.map(|name| format!(" {name}")).unwrap_or_default();
        let place = if self.is_local { format!(" in {namespace}") } else { String::new() };
        format!("{verb} {}{group}{part}{name}{place}", self.resource)
    }
}
