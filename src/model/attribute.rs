//! Attributes of load balancers, target groups and listeners: which there are, which values they take, and which value
//! stands for "not set" (ELB API, `LoadBalancerAttribute`, `TargetGroupAttribute`, `ListenerAttribute`).
//!
//! An attribute that a Service does not ask for is to have AWS's default. Since the defaults are known here, what was
//! just made needs no reading back.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::service::{Protocol, Scheme};

/// Attributes by key.
pub type Attributes = BTreeMap<String, String>;

/// Values that an attribute takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Values {
    /// `true` or `false`.
    Flag,
    /// A whole number in a range.
    Number(RangeOf),
    /// A whole number in a range, or `off`.
    NumberOrOff(RangeOf),
    /// One of these words.
    Words(&'static [&'static str]),
    /// Any text.
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RangeOf(u32, u32);

impl RangeOf {
    const fn range(self) -> RangeInclusive<u32> {
        self.0..=self.1
    }
}

impl Values {
    fn take(self, value: &str) -> bool {
        let is_in = |range: RangeOf| value.parse().is_ok_and(|number: u32| range.range().contains(&number));
        match self {
            Self::Flag => value == "true" || value == "false",
            Self::Number(range) => is_in(range),
            Self::NumberOrOff(range) => value == "off" || is_in(range),
            Self::Words(words) => words.contains(&value),
            Self::Text => true,
        }
    }

    fn expected(self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Number(RangeOf(first, last)) => format!("a number from {first} to {last}"),
            Self::NumberOrOff(RangeOf(first, last)) => format!("off, or a number from {first} to {last}"),
            Self::Words(words) => one_of(words),
            Self::Text => "any text".to_owned(),
        }
    }
}

/// A list for people: `a, b or c`.
pub fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// What has attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A Network Load Balancer.
    Balancer(Scheme),
    /// A target group of instances behind one.
    TargetGroup(Protocol),
    /// One of its listeners.
    Listener(Protocol),
}

const BALANCER: &[(&str, Values, &str)] = &[
    ("access_logs.s3.bucket", Values::Text, ""),
    ("access_logs.s3.enabled", Values::Flag, "false"),
    ("access_logs.s3.prefix", Values::Text, ""),
    ("deletion_protection.enabled", Values::Flag, "false"),
    (
        "dns_record.client_routing_policy",
        Values::Words(&["any_availability_zone", "partial_availability_zone_affinity", "availability_zone_affinity"]),
        "any_availability_zone",
    ),
    ("ipv6.deny_all_igw_traffic", Values::Flag, "false"),
    ("load_balancing.cross_zone.enabled", Values::Flag, "false"),
    (SECONDARY_ADDRESSES, Values::Number(RangeOf(0, 7)), "0"),
    ("zonal_shift.config.enabled", Values::Flag, "false"),
];

/// Secondary addresses of a zone. They become more and never fewer: AWS refuses that, with whatever else stands in the call
/// (ELB API, `LoadBalancerAttribute`: "After you set this value, you can't decrease it").
const SECONDARY_ADDRESSES: &str = "secondary_ips.auto_assigned.per_subnet";

/// How many healthy targets, or which share of them, a zone needs (ELB user guide, "Target group health").
const COUNT: RangeOf = RangeOf(1, 1000);
const PERCENTAGE: RangeOf = RangeOf(1, 100);

const TARGET_GROUP: &[(&str, Values, &str)] = &[
    ("deregistration_delay.connection_termination.enabled", Values::Flag, "false"),
    ("deregistration_delay.timeout_seconds", Values::Number(RangeOf(0, 3600)), "300"),
    (
        "load_balancing.cross_zone.enabled",
        Values::Words(&["true", "false", "use_load_balancer_configuration"]),
        "use_load_balancer_configuration",
    ),
    ("preserve_client_ip.enabled", Values::Flag, "true"),
    ("proxy_protocol_v2.enabled", Values::Flag, "false"),
    ("stickiness.enabled", Values::Flag, "false"),
    ("stickiness.type", Values::Words(&["source_ip"]), "source_ip"),
    ("target_group_health.dns_failover.minimum_healthy_targets.count", Values::NumberOrOff(COUNT), "1"),
    ("target_group_health.dns_failover.minimum_healthy_targets.percentage", Values::NumberOrOff(PERCENTAGE), "off"),
    ("target_group_health.unhealthy_state_routing.minimum_healthy_targets.count", Values::Number(COUNT), "1"),
    (
        "target_group_health.unhealthy_state_routing.minimum_healthy_targets.percentage",
        Values::NumberOrOff(PERCENTAGE),
        "off",
    ),
    ("target_health_state.unhealthy.connection_termination.enabled", Values::Flag, "true"),
    ("target_health_state.unhealthy.draining_interval_seconds", Values::Number(RangeOf(0, 360_000)), "0"),
];

const LISTENER: &[(&str, Values, &str)] = &[("tcp.idle_timeout.seconds", Values::Number(RangeOf(60, 6000)), "350")];

impl Holder {
    const fn table(self) -> &'static [(&'static str, Values, &'static str)] {
        match self {
            Self::Balancer(_) => BALANCER,
            Self::TargetGroup(_) => TARGET_GROUP,
            Self::Listener(_) => LISTENER,
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Balancer(_) => "a Network Load Balancer",
            Self::TargetGroup(_) => "a target group of a Network Load Balancer",
            Self::Listener(_) => "a TCP listener",
        }
    }

    /// What stands for "not set".
    fn default(self, key: &str) -> Option<&'static str> {
        let (_, _, default) = self.table().iter().find(|(known, ..)| *known == key)?;
        let carries_udp = matches!(self, Self::TargetGroup(Protocol::Udp | Protocol::TcpUdp));
        Some(match (self, key) {
            // Traffic from the internet gateway is denied to internal ones unless told otherwise.
            (Self::Balancer(Scheme::Internal), "ipv6.deny_all_igw_traffic") => "true",
            // For new target groups, and weir makes its own; older ones of others differ.
            (_, "deregistration_delay.connection_termination.enabled") if carries_udp => "true",
            (_, "target_health_state.unhealthy.connection_termination.enabled") if carries_udp => "false",
            _ => default,
        })
    }

    /// What is wrong with an attribute, as the end of a sentence, and what would be right.
    pub fn objection(self, key: &str, value: &str) -> Option<(String, String)> {
        let Some((_, values, _)) = self.table().iter().find(|(known, ..)| *known == key) else {
            let keys: Vec<_> = self.table().iter().map(|(key, ..)| *key).collect();
            return Some((format!("has {key:?}, which is no attribute of {}", self.title()), one_of(&keys)));
        };
        if !values.take(value) {
            return Some((format!("has {value:?} for {key}"), values.expected()));
        }
        let Self::TargetGroup(protocol) = self else { return None };
        let carries_udp = matches!(protocol, Protocol::Udp | Protocol::TcpUdp);
        match (key, value) {
            ("preserve_client_ip.enabled", "false") if carries_udp => {
                Some((format!("turns off {key}, which cannot be disabled for UDP"), "true".to_owned()))
            }
            ("target_health_state.unhealthy.connection_termination.enabled", "true") if carries_udp => {
                Some((format!("turns on {key}, which UDP does not have"), "false".to_owned()))
            }
            ("stickiness.enabled", "true") if protocol == Protocol::Tls => {
                Some((format!("turns on {key}, which a TLS target group does not have"), "false".to_owned()))
            }
            _ => None,
        }
    }

    /// What to write so that `observed` becomes what is asked for, and AWS's default in all else. A key that `observed`
    /// lacks has its default.
    pub fn changes(self, asked: &Attributes, observed: &Attributes) -> Attributes {
        let mut changes = Attributes::new();
        for (key, ..) in self.table() {
            let wanted = asked.get(*key).map(String::as_str).or_else(|| self.default(key));
            let present = observed.get(*key).map(String::as_str).or_else(|| self.default(key));
            // A protection that nobody asked for is somebody's decision, and deletion respects it.
            let is_theirs = *key == "deletion_protection.enabled" && !asked.contains_key(*key);
            let stays = *key == SECONDARY_ADDRESSES && surplus(asked, observed).is_some();
            if let Some(wanted) = wanted
                && Some(wanted) != present
                && !is_theirs
                && !stays
            {
                changes.insert((*key).to_owned(), wanted.to_owned());
            }
        }
        changes
    }
}

/// How many secondary addresses a load balancer has in each zone, and how many of them are asked for, where these are
/// fewer: it keeps them all.
pub fn surplus(asked: &Attributes, observed: &Attributes) -> Option<(u32, u32)> {
    let count = |attributes: &Attributes| attributes.get(SECONDARY_ADDRESSES).map_or(Some(0), |text| text.parse().ok());
    count(observed).zip(count(asked)).filter(|(present, wanted)| present > wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> Attributes {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    const TCP: Holder = Holder::TargetGroup(Protocol::Tcp);
    const UDP: Holder = Holder::TargetGroup(Protocol::Udp);
    const PUBLIC: Holder = Holder::Balancer(Scheme::InternetFacing);

    #[test]
    fn what_is_not_asked_for_has_the_default() {
        assert_eq!(TCP.changes(&attributes(&[]), &attributes(&[])), attributes(&[]));
        let asked = attributes(&[("deregistration_delay.timeout_seconds", "30")]);
        assert_eq!(TCP.changes(&asked, &attributes(&[])), asked);
        assert_eq!(TCP.changes(&asked, &asked), attributes(&[]));
        let reset = attributes(&[("deregistration_delay.timeout_seconds", "300")]);
        assert_eq!(TCP.changes(&attributes(&[]), &asked), reset);
    }

    #[test]
    fn udp_ends_flows_unless_told_otherwise() {
        let key = "deregistration_delay.connection_termination.enabled";
        let off = attributes(&[(key, "false")]);
        assert_eq!(UDP.changes(&attributes(&[]), &off), attributes(&[(key, "true")]));
        assert_eq!(TCP.changes(&attributes(&[]), &off), attributes(&[]));
        let shown = attributes(&[("target_health_state.unhealthy.connection_termination.enabled", "false")]);
        assert_eq!(UDP.changes(&attributes(&[]), &shown), attributes(&[]));
    }

    #[test]
    fn protection_that_others_set_stays_and_ours_goes_with_a_word() {
        let protected = attributes(&[("deletion_protection.enabled", "true")]);
        assert_eq!(PUBLIC.changes(&attributes(&[]), &protected), attributes(&[]));
        let off = attributes(&[("deletion_protection.enabled", "false")]);
        assert_eq!(PUBLIC.changes(&off, &protected), off);
    }

    #[test]
    fn secondary_addresses_become_more_and_never_fewer() {
        let with = |count: &str| attributes(&[(SECONDARY_ADDRESSES, count)]);
        for (asked, observed, change, kept) in [
            (with("3"), with("1"), with("3"), None),
            (with("3"), attributes(&[]), with("3"), None),
            (with("3"), with("3"), attributes(&[]), None),
            (with("1"), with("3"), attributes(&[]), Some((3, 1))),
            (attributes(&[]), with("3"), attributes(&[]), Some((3, 0))),
        ] {
            assert_eq!(PUBLIC.changes(&asked, &observed), change, "{asked:?} {observed:?}");
            assert_eq!(surplus(&asked, &observed), kept, "{asked:?} {observed:?}");
        }
        let cross_zone = ("load_balancing.cross_zone.enabled", "true");
        let asked = attributes(&[cross_zone]);
        assert_eq!(PUBLIC.changes(&asked, &with("3")), asked, "the others are not held up");
    }

    #[test]
    fn internal_load_balancers_deny_the_gateway() {
        let internal = Holder::Balancer(Scheme::Internal);
        let observed = attributes(&[("ipv6.deny_all_igw_traffic", "true")]);
        assert_eq!(internal.changes(&attributes(&[]), &observed), attributes(&[]));
        assert_eq!(PUBLIC.changes(&attributes(&[]), &observed), attributes(&[("ipv6.deny_all_igw_traffic", "false")]));
    }

    #[test]
    fn objections() {
        let wrong = |holder: Holder, key: &str, value: &str| {
            let (wrong, expected) = holder.objection(key, value).expect("objected to");
            format!("{wrong}; expected {expected}")
        };
        assert_eq!(
            wrong(TCP, "deregistration_delay.timeout_seconds", "3601"),
            "has \"3601\" for deregistration_delay.timeout_seconds; expected a number from 0 to 3600"
        );
        assert_eq!(
            wrong(UDP, "preserve_client_ip.enabled", "false"),
            "turns off preserve_client_ip.enabled, which cannot be disabled for UDP; expected true"
        );
        assert_eq!(
            wrong(Holder::Listener(Protocol::Tcp), "routing.http.x", "1"),
            "has \"routing.http.x\", which is no attribute of a TCP listener; expected tcp.idle_timeout.seconds"
        );
        let alb = wrong(PUBLIC, "idle_timeout.timeout_seconds", "60");
        assert!(alb.contains("which is no attribute of a Network Load Balancer"), "{alb}");
        assert_eq!(TCP.objection("preserve_client_ip.enabled", "false"), None);
        for holder in [TCP, UDP, PUBLIC, Holder::Listener(Protocol::Tcp)] {
            for (key, ..) in holder.table() {
                let default = holder.default(key);
                assert!(default.is_none_or(|value| holder.objection(key, value).is_none()), "{key}");
            }
        }
    }
}
