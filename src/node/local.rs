//! What depends on which endpoints a node has itself: health checks of Services, and how many Services lack a local
//! endpoint. Kept with each change, so that no sync looks at all Services. Pure.

use std::collections::{BTreeMap, HashMap};

use super::health_check_port::HealthCheck;
use super::service::{Service, TrafficPolicy};
use crate::model::id::ServiceKey;

/// Services of policy Local that have endpoints, and none of them on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    /// By `spec.externalTrafficPolicy`.
    pub external: usize,
    /// By `spec.internalTrafficPolicy`.
    pub internal: usize,
}

/// What one Service adds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Part {
    lacks_external: bool,
    lacks_internal: bool,
    check: Option<(u16, i64, HealthCheck)>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Locals {
    parts: HashMap<ServiceKey, Part>,
    lacking: Lacking,
    /// Health checks by port, then by age of their Service: while two have one port in transit, the older one answers.
    checks: BTreeMap<u16, BTreeMap<(i64, ServiceKey), HealthCheck>>,
    checks_changed: bool,
}

impl Locals {
    /// A Service, or its endpoints, changed. `local` counts its ready endpoints on this node; `None` where it has no
    /// slice at all.
    pub fn set(&mut self, key: &ServiceKey, service: Option<&Service>, local: Option<usize>) {
        let part = service.map(|service| part(key, service, local)).filter(|part| *part != Part::default());
        if self.parts.get(key) == part.as_ref() {
            return;
        }
        if let Some(before) = self.parts.remove(key) {
            self.subtract(key, &before);
        }
        if let Some(part) = part {
            self.add(key, &part);
            self.parts.insert(key.clone(), part);
        }
    }

    /// How many Services lack a local endpoint.
    pub const fn lacking(&self) -> Lacking {
        self.lacking
    }

    /// The health checks to answer, by port.
    pub fn checks(&self) -> BTreeMap<u16, HealthCheck> {
        let oldest = self.checks.iter().filter_map(|(port, checks)| Some((*port, checks.first_key_value()?.1.clone())));
        oldest.collect()
    }

    /// Whether [`Locals::checks`] has changed since this was asked last.
    pub const fn take_checks_changed(&mut self) -> bool {
        std::mem::replace(&mut self.checks_changed, false)
    }

    fn add(&mut self, key: &ServiceKey, part: &Part) {
        self.lacking.external += usize::from(part.lacks_external);
        self.lacking.internal += usize::from(part.lacks_internal);
        if let Some((port, created, check)) = &part.check {
            self.checks.entry(*port).or_default().insert((*created, key.clone()), check.clone());
            self.checks_changed = true;
        }
    }

    fn subtract(&mut self, key: &ServiceKey, part: &Part) {
        self.lacking.external -= usize::from(part.lacks_external);
        self.lacking.internal -= usize::from(part.lacks_internal);
        let Some((port, created, _)) = &part.check else { return };
        if let Some(checks) = self.checks.get_mut(port) {
            checks.remove(&(*created, key.clone()));
            if checks.is_empty() {
                self.checks.remove(port);
            }
        }
        self.checks_changed = true;
    }
}

fn part(key: &ServiceKey, service: &Service, local: Option<usize>) -> Part {
    let lacks = local == Some(0);
    let check = service.health_check_port.map(|port| {
        let (service_key, uid) = (key.clone(), service.uid.clone());
        (port, service.created, HealthCheck { service: service_key, uid, local_endpoints: local.unwrap_or(0) })
    });
    Part {
        lacks_external: lacks && service.external_policy == TrafficPolicy::Local,
        lacks_internal: lacks && service.internal_policy == TrafficPolicy::Local,
        check,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const NAMES: [&str; 3] = ["one", "two", "three"];

    fn service(created: i64, external: bool, internal: bool, port: Option<u16>) -> Service {
        let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        Service {
            uid: format!("made at {created}"),
            created,
            ports: vec![],
            cluster_ips: vec![],
            external_ips: vec![],
            balancer_ips: vec![],
            source_ranges: vec![],
            external_policy: policy(external),
            internal_policy: policy(internal),
            affinity: None,
            health_check_port: port,
        }
    }

    fn key(name: &str) -> ServiceKey {
        ServiceKey::new("shop", name)
    }

    #[test]
    fn of_two_services_with_one_port_the_older_answers() {
        let mut locals = Locals::default();
        locals.set(&key("new"), Some(&service(2, true, false, Some(31500))), Some(1));
        locals.set(&key("old"), Some(&service(1, true, false, Some(31500))), None);
        assert_eq!(locals.checks()[&31500].service, key("old"));
        assert!(locals.take_checks_changed());
        assert!(!locals.take_checks_changed());
        locals.set(&key("old"), None, None);
        assert_eq!(locals.checks()[&31500].service, key("new"));
        assert!(locals.take_checks_changed());
    }

    #[test]
    fn a_service_without_endpoints_lacks_none() {
        let mut locals = Locals::default();
        locals.set(&key("one"), Some(&service(1, true, true, None)), None);
        assert_eq!(locals.lacking(), Lacking::default());
        locals.set(&key("one"), Some(&service(1, true, true, None)), Some(0));
        assert_eq!(locals.lacking(), Lacking { external: 1, internal: 1 });
    }

    type Event = (&'static str, Option<(i64, bool, bool, Option<u16>)>, Option<usize>);

    fn event() -> impl Strategy<Value = Event> {
        let port = proptest::option::of(31500..31502_u16);
        let service = proptest::option::of((1..3_i64, any::<bool>(), any::<bool>(), port));
        (select(NAMES.to_vec()), service, proptest::option::of(0..2_usize))
    }

    proptest! {
        #[test]
        fn changes_end_where_a_fresh_start_does(events in proptest::collection::vec(event(), 1..20)) {
            let (mut followed, mut last) = (Locals::default(), BTreeMap::new());
            for (name, given, local) in events {
                let made = given.map(|(created, external, internal, port)| service(created, external, internal, port));
                followed.set(&key(name), made.as_ref(), local);
                last.insert(name, (made, local));
            }
            let mut fresh = Locals::default();
            for (name, (made, local)) in &last {
                fresh.set(&key(name), made.as_ref(), *local);
            }
            prop_assert_eq!(followed.lacking(), fresh.lacking());
            prop_assert_eq!(followed.checks(), fresh.checks());
            prop_assert_eq!(followed.parts, fresh.parts);
        }
    }
}
