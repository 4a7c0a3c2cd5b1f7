//! Deterministic, bounded names of AWS resources.
//!
//! `weir-<cluster hash>-<readable>-<hash>`, 32 characters at most, `[A-Za-z0-9-]`, no hyphen at an edge and no two in a
//! row: what ELB asks of load balancers and target groups. The cluster hash makes the name alone enough to recognise a
//! target group of ours that no longer exists but still hangs on an Auto Scaling group. The last hash holds everything
//! whose change forces a new resource, so that the old and the new one can live side by side.

use sha2::{Digest, Sha256};

use super::family::Family;
use super::id::ServiceKey;

/// Longest name of a load balancer or target group (ELB API).
pub const NAME_LIMIT: usize = 32;
const READABLE_LIMIT: usize = 11;
const CLUSTER_HASH_LENGTH: usize = 6;
const HASH_LENGTH: usize = 8;

/// What every generated name of this cluster begins with.
pub fn cluster_prefix(cluster: &str) -> String {
    format!("weir-{}-", hash(&["cluster", cluster], CLUSTER_HASH_LENGTH))
}

/// Name of a Service's load balancer. The scheme cannot be changed on a load balancer, so it is part of the hash.
pub fn balancer(cluster: &str, service: &ServiceKey, uid: &str, scheme: &str) -> String {
    compose(cluster, &service.name, &["balancer", cluster, &service.namespace, &service.name, uid, scheme])
}

/// What a target group keeps for life.
#[derive(Clone, Copy, Debug)]
pub struct TargetGroupTraits<'a> {
    /// Its protocol, in AWS's word.
    pub protocol: &'a str,
    /// The NodePort that it sends to.
    pub node_port: u16,
    /// IP family of its targets.
    pub family: Family,
    /// Whether it takes nodes by label only. AWS could change that, but an Auto Scaling group that lets go of a target
    /// group deregisters all of its instances there, those with the label too.
    pub picks_nodes: bool,
}

/// Name of the target group of one listener. A target group serves one load balancer, and cannot change its traits.
pub fn target_group(
    cluster: &str,
    service: &ServiceKey,
    balancer: &str,
    listener_port: u16,
    traits: TargetGroupTraits<'_>,
) -> String {
    let (port, node_port) = (listener_port.to_string(), traits.node_port.to_string());
    let mut readable = readable(&service.name);
    readable.truncate(READABLE_LIMIT.saturating_sub(port.len() + 1));
    let readable = readable.trim_end_matches('-');
    let mut parts = vec![
        "group",
        cluster,
        &service.namespace,
        &service.name,
        balancer,
        port.as_str(),
        traits.protocol,
        node_port.as_str(),
    ];
    if traits.family == Family::Ipv6 {
        parts.push(traits.family.name());
    }
    if traits.picks_nodes {
        parts.push("by label");
    }
    compose(cluster, &format!("{readable}-{port}"), &parts)
}

/// Name of the security group with a Service's source ranges.
pub fn frontend_group(cluster: &str, service: &ServiceKey, uid: &str) -> String {
    compose(cluster, &service.name, &["frontend", cluster, &service.namespace, &service.name, uid])
}

/// Name of the security group that all load balancers of the cluster carry.
pub fn backend_group(cluster: &str) -> String {
    compose(cluster, "backend", &["backend", cluster])
}

fn compose(cluster: &str, text: &str, parts: &[&str]) -> String {
    let mut readable = readable(text);
    readable.truncate(READABLE_LIMIT);
    let readable = readable.trim_matches('-');
    let separator = if readable.is_empty() { "" } else { "-" };
    format!("{}{readable}{separator}{}", cluster_prefix(cluster), hash(parts, HASH_LENGTH))
}

/// The characters of a Kubernetes name that AWS takes too, and no two hyphens in a row.
fn readable(text: &str) -> String {
    let mut kept = String::new();
    for letter in text.chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '-') {
        if letter != '-' || !kept.ends_with('-') {
            kept.push(letter);
        }
    }
    kept
}

/// Lower-case base 32 of a SHA-256 over the parts, each with its length in front so that no two lists look alike.
fn hash(parts: &[&str], length: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    digest.finalize().iter().take(length).map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRAITS: TargetGroupTraits<'_> =
        TargetGroupTraits { protocol: "TCP", node_port: 30080, family: Family::Ipv4, picks_nodes: false };

    fn legal(name: &str) -> bool {
        name.len() <= NAME_LIMIT
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-')
            && !name.starts_with('-')
            && !name.ends_with('-')
            && !name.contains("--")
    }

    proptest! {
        #[test]
        fn every_name_is_legal(
            cluster in "[ -~]{1,100}", namespace in "[a-z0-9-]{1,63}", name in "[a-z0-9.-]{1,253}",
            port in 1u16.., node_port in 1u16..,
        ) {
            let key = ServiceKey::new(namespace, name);
            let lb = balancer(&cluster, &key, "uid", "internal");
            prop_assert!(legal(&lb), "{lb}");
            let group = target_group(&cluster, &key, &lb, port, TargetGroupTraits { node_port, ..TRAITS });
            prop_assert!(legal(&group), "{group}");
            prop_assert!(group.starts_with(&cluster_prefix(&cluster)));
            prop_assert!(legal(&frontend_group(&cluster, &key, "uid")));
        }
    }

    #[test]
    fn what_forces_a_new_resource_changes_the_name() {
        let key = ServiceKey::new("shop", "order");
        let one = target_group("demo", &key, "lb", 80, TRAITS);
        for other in [
            TargetGroupTraits { node_port: 30081, ..TRAITS },
            TargetGroupTraits { protocol: "UDP", ..TRAITS },
            TargetGroupTraits { family: Family::Ipv6, ..TRAITS },
            TargetGroupTraits { picks_nodes: true, ..TRAITS },
        ] {
            assert_ne!(one, target_group("demo", &key, "lb", 80, other), "{other:?}");
        }
        assert_ne!(one, target_group("demo", &key, "lb2", 80, TRAITS));
        assert_ne!(one, target_group("demo", &ServiceKey::new("shop-order", ""), "lb", 80, TRAITS));
        assert_ne!(balancer("demo", &key, "u1", "internal"), balancer("demo", &key, "u2", "internal"));
    }

    #[test]
    fn a_name_that_is_cut_at_a_hyphen_has_no_two_in_a_row() {
        let key = ServiceKey::new("shop", "nothing-set");
        let group = target_group("demo", &key, "lb", 80, TRAITS);
        assert!(group.starts_with(&format!("{}nothing-80-", cluster_prefix("demo"))), "{group}");
    }

    #[test]
    fn names_are_stable_across_releases() {
        let key = ServiceKey::new("default", "order");
        assert_eq!(balancer("demo", &key, "u", "internal"), balancer("demo", &key, "u", "internal"));
        assert!(balancer("demo", &key, "u", "internal").starts_with(&format!("{}order-", cluster_prefix("demo"))));
    }
}
