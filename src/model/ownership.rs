//! Ownership tags: written here, read here, nowhere else.
//!
//! A resource without our cluster's tag is never changed or deleted (DESIGN D4). Names and statuses prove nothing.

use std::collections::BTreeMap;
use std::fmt;

use super::id::ServiceKey;

/// Tags of an AWS resource.
pub type Tags = BTreeMap<String, String>;

/// Key of the tag that names the cluster.
pub const CLUSTER_TAG: &str = "weir.dev/cluster";
/// Key of the tag with the cluster's own id, the UID of its namespace `kube-system`: two clusters of one name in an
/// account must not take each other's resources for their own.
pub const CLUSTER_UID_TAG: &str = "weir.dev/cluster-uid";
/// Key of the tag that names the Service as `namespace/name`.
pub const SERVICE_TAG: &str = "weir.dev/service";
/// Key of the tag with the Service's UID: a Service made again under the same name owns nothing of the first one.
pub const UID_TAG: &str = "weir.dev/service-uid";
/// Key of the tag that says which of the Service's resources this is.
pub const RESOURCE_TAG: &str = "weir.dev/resource";
/// Key of the tag that lists the keys of the user's tags we set, so that a tag taken out of the annotation can be
/// removed without touching tags that others put on the resource.
pub const MANAGED_TAG: &str = "weir.dev/managed-tags";
/// All tags of ours begin with this.
pub const TAG_PREFIX: &str = "weir.dev/";
/// Longest value of an ELB tag, in characters (ELB API, `TagValue`).
pub const TAG_VALUE_LIMIT: usize = 255;

/// What a tagged resource is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A Service's Network Load Balancer.
    Balancer,
    /// A Service's listener.
    Listener,
    /// The target group of one port of a Service.
    TargetGroup,
    /// The security group with a Service's source ranges.
    FrontendGroup,
    /// The security group that all load balancers of the cluster carry.
    BackendGroup,
}

impl Role {
    /// The word in the tag.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Balancer => "load-balancer",
            Self::Listener => "listener",
            Self::TargetGroup => "target-group",
            Self::FrontendGroup => "frontend-group",
            Self::BackendGroup => "backend-group",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Balancer, Self::Listener, Self::TargetGroup, Self::FrontendGroup, Self::BackendGroup]
            .into_iter()
            .find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The Service a resource belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The Service's namespace and name.
    pub service: ServiceKey,
    /// The Service's UID.
    pub uid: String,
}

/// Tags for a resource that belongs to a Service.
pub fn service_tags(cluster: &str, owner: &Owner, role: Role, user: &Tags) -> Tags {
    let mut tags = user.clone();
    if !user.is_empty() {
        tags.insert(MANAGED_TAG.into(), encode_keys(user.keys()));
    }
    tags.insert(CLUSTER_TAG.into(), cluster.into());
    tags.insert(SERVICE_TAG.into(), owner.service.to_string());
    tags.insert(UID_TAG.into(), owner.uid.clone());
    tags.insert(RESOURCE_TAG.into(), role.as_str().into());
    tags
}

/// Tags for a resource that all Services of the cluster share.
pub fn cluster_tags(cluster: &str, role: Role) -> Tags {
    Tags::from([(CLUSTER_TAG.into(), cluster.into()), (RESOURCE_TAG.into(), role.as_str().into())])
}

/// The Service that owns a resource with these tags, if it is one of this cluster's.
pub fn owner(cluster: &str, tags: &Tags) -> Option<Owner> {
    if !is_of_cluster(cluster, tags) {
        return None;
    }
    let (namespace, name) = tags.get(SERVICE_TAG)?.split_once('/')?;
    Some(Owner { service: ServiceKey::new(namespace, name), uid: tags.get(UID_TAG)?.clone() })
}

/// Whether these tags carry this cluster's mark.
pub fn is_of_cluster(cluster: &str, tags: &Tags) -> bool {
    tags.get(CLUSTER_TAG).is_some_and(|value| value == cluster)
}

/// The same tags with the cluster's own id.
pub fn with_cluster_uid(mut tags: Tags, uid: &str) -> Tags {
    tags.insert(CLUSTER_UID_TAG.into(), uid.into());
    tags
}

/// Whether these tags carry the id of another cluster than the one with this UID. Without any id they do not.
pub fn is_of_other_uid(uid: &str, tags: &Tags) -> bool {
    tags.get(CLUSTER_UID_TAG).is_some_and(|value| value != uid)
}

/// The role in these tags.
pub fn role(tags: &Tags) -> Option<Role> {
    Role::parse(tags.get(RESOURCE_TAG)?)
}

/// Tags to set and keys to remove, so that `observed` carries what `desired` says. Tags that somebody else set stay.
pub fn tag_changes(desired: &Tags, observed: &Tags) -> (Tags, Vec<String>) {
    let set = desired
        .iter()
        .filter(|(key, value)| observed.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let set_before = observed.get(MANAGED_TAG).map(|text| decode_keys(text)).unwrap_or_default();
    let remove = set_before
        .into_iter()
        .chain(observed.contains_key(MANAGED_TAG).then(|| MANAGED_TAG.to_owned()))
        .filter(|key| observed.contains_key(key) && !desired.contains_key(key))
        .collect();
    (set, remove)
}

/// Keys in one tag value. ELB allows letters, digits, blanks and `+ - = . _ : / @` there, so blanks separate, and `@`
/// escapes a blank (`@_`) or itself (`@@`).
pub fn encode_keys<'a>(keys: impl Iterator<Item = &'a String>) -> String {
    keys.map(|key| key.replace('@', "@@").replace(' ', "@_")).collect::<Vec<_>>().join(" ")
}

fn decode_keys(text: &str) -> Vec<String> {
    text.split(' ')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let mut key = String::new();
            let mut letters = part.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    '@' => key.push(if letters.next() == Some('_') { ' ' } else { '@' }),
                    other => key.push(other),
                }
            }
            key
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Owner {
        Owner { service: ServiceKey::new("shop", "order"), uid: "u-1".into() }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let tags = service_tags("demo", &demo(), Role::TargetGroup, &Tags::new());
        assert_eq!(owner("demo", &tags), Some(demo()));
        assert_eq!(role(&tags), Some(Role::TargetGroup));
    }

    #[test]
    fn another_cluster_owns_nothing_here() {
        let tags = service_tags("other", &demo(), Role::Balancer, &Tags::new());
        assert_eq!(owner("demo", &tags), None);
        assert_eq!(owner("demo", &cluster_tags("demo", Role::BackendGroup)), None, "shared by all Services");
    }

    #[test]
    fn another_cluster_of_the_same_name_is_told_by_its_id() {
        let tags = service_tags("demo", &demo(), Role::Balancer, &Tags::new());
        assert!(!is_of_other_uid("c-1", &tags), "made before there was an id");
        let tags = with_cluster_uid(tags, "c-1");
        assert!(!is_of_other_uid("c-1", &tags));
        assert!(is_of_other_uid("c-2", &tags));
    }

    #[test]
    fn a_tag_taken_out_of_the_annotation_goes_and_a_foreign_one_stays() {
        let before = Tags::from([("team@x".into(), "a".into()), ("cost center".into(), "7".into())]);
        let mut observed = service_tags("demo", &demo(), Role::Balancer, &before);
        observed.insert("audit".into(), "theirs".into());
        let desired = service_tags("demo", &demo(), Role::Balancer, &Tags::new());
        let (set, mut remove) = tag_changes(&desired, &observed);
        remove.sort();
        assert_eq!(set, Tags::new());
        assert_eq!(remove, ["cost center", "team@x", MANAGED_TAG]);
    }

    #[test]
    fn equal_tags_need_nothing() {
        let user = Tags::from([("team".into(), "a".into())]);
        let tags = service_tags("demo", &demo(), Role::Balancer, &user);
        assert_eq!(tag_changes(&tags, &tags), (Tags::new(), vec![]));
    }
}
