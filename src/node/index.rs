//! Services and EndpointSlices, as the watches tell of them → what each Service needs. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::{core, discovery};

use super::endpoint::{Choice, Slice, choose, count_local};
use super::health_check_port::HealthCheck;
use super::local::{Lacking, Locals};
use super::programme::{PortName, Rank};
use super::ruleset::{Contribution, Facts, Order, contribute, port_id};
use super::service::{Mode, Port, Service, key};
use crate::model::id::ServiceKey;
use crate::netfilter::Family;

/// What the API server has told so far.
#[derive(Debug)]
pub struct Index {
    node: String,
    mode: Mode,
    external_ips: bool,
    services: HashMap<ServiceKey, Service>,
    /// By their names. Most Services have one.
    slices: HashMap<ServiceKey, Vec<(String, Slice)>>,
    /// To which Service a slice belonged when it was seen last.
    belongs: HashMap<ServiceKey, ServiceKey>,
    changed: BTreeSet<ServiceKey>,
    locals: Locals,
}

impl Index {
    /// An empty one, for a node.
    pub fn new(node: String, mode: Mode, external_ips: bool) -> Self {
        let (services, slices, belongs, changed, locals) = <_>::default();
        Self { node, mode, external_ips, services, slices, belongs, changed, locals }
    }

    /// A Service was made or changed.
    pub fn apply_service(&mut self, object: &core::v1::Service) {
        let Some(key) = key(&object.metadata) else { return };
        match Service::read(object, &self.mode, self.external_ips) {
            Some(service) => {
                if self.services.get(&key) != Some(&service) {
                    self.services.insert(key.clone(), service);
                    self.touch(key);
                }
            }
            None => self.delete_service(&key),
        }
    }

    /// A Service is gone.
    pub fn delete_service(&mut self, key: &ServiceKey) {
        if self.services.remove(key).is_some() {
            self.touch(key.clone());
        }
    }

    /// All Services have been listed: others are gone.
    pub fn keep_services(&mut self, listed: &BTreeSet<ServiceKey>) {
        let gone: Vec<_> = self.services.keys().filter(|key| !listed.contains(key)).cloned().collect();
        for key in gone {
            self.delete_service(&key);
        }
    }

    /// A slice was made or changed.
    pub fn apply_slice(&mut self, object: &discovery::v1::EndpointSlice) {
        let Some(name) = key(&object.metadata) else { return };
        let Some(slice) = Slice::read(object, &self.node) else { return self.delete_slice(&name) };
        if self.belongs.get(&name).is_some_and(|service| *service != slice.service) {
            self.delete_slice(&name);
        }
        let service = slice.service.clone();
        let slices = self.slices.entry(service.clone()).or_default();
        match slices.binary_search_by_key(&&name.name, |(name, _)| name) {
            Ok(at) if slices[at].1 == slice => return,
            Ok(at) => slices[at].1 = slice,
            Err(at) => {
                // There is hardly ever a second one.
                slices.reserve_exact(1);
                slices.insert(at, (name.name.clone(), slice));
            }
        }
        self.belongs.insert(name, service.clone());
        self.touch(service);
    }

    /// A slice is gone.
    pub fn delete_slice(&mut self, name: &ServiceKey) {
        let Some(service) = self.belongs.remove(name) else { return };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.retain(|(known, _)| *known != name.name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.touch(service);
    }

    /// All slices have been listed: others are gone.
    pub fn keep_slices(&mut self, listed: &BTreeSet<ServiceKey>) {
        let gone: Vec<_> = self.belongs.keys().filter(|name| !listed.contains(name)).cloned().collect();
        for name in gone {
            self.delete_slice(&name);
        }
    }

    /// Something that every Service depends on has changed.
    pub fn touch_all(&mut self) {
        self.changed.extend(self.services.keys().cloned());
    }

    /// Services that may need something else than before.
    pub fn take_changed(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.changed)
    }

    /// Whether [`Index::take_changed`] would return any.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// How many Services and slices there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.services.len(), self.belongs.len())
    }

    /// A Service, if it has frontends and is ours.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// All Services that have frontends and are ours.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &Service)> {
        self.services.iter()
    }

    /// The endpoints of a Service port.
    pub fn choose(&self, key: &ServiceKey, port: &Port, family: Family, zone: Option<&str>) -> Choice {
        choose(self.slices_of(key), family, &port.name, port.protocol, zone)
    }

    /// What a Service needs. `order` tells how endpoints of one of its ports are ordered in the kernel.
    pub fn contributions(
        &self,
        family: Family,
        key: &ServiceKey,
        facts: &Facts,
        order: impl Fn(&Service, &Port) -> Order,
    ) -> BTreeMap<PortName, (Rank, Contribution)> {
        let Some(service) = self.services.get(key).filter(|service| service.cluster_ip(family).is_some()) else {
            return BTreeMap::new();
        };
        let ports = service.ports.iter().map(|port| {
            let choice = self.choose(key, port, family, facts.zone.as_deref());
            let made = contribute(family, key, service, port, &choice, facts, &order(service, port));
            let rank = Rank { created: service.created, id: port_id(key, port) };
            ((port.name.clone(), port.protocol), (rank, made))
        });
        ports.collect()
    }

    /// The health checks to answer, by port.
    pub fn health_checks(&self) -> BTreeMap<u16, HealthCheck> {
        self.locals.checks()
    }

    /// Whether [`Index::health_checks`] has changed since this was asked last.
    pub const fn take_health_checks_changed(&mut self) -> bool {
        self.locals.take_checks_changed()
    }

    /// How many Services have endpoints, but no ready one on our node, where their policy asks for one.
    pub const fn lacking(&self) -> Lacking {
        self.locals.lacking()
    }

    fn touch(&mut self, key: ServiceKey) {
        let local = self.slices.contains_key(&key).then(|| count_local(self.slices_of(&key)));
        self.locals.set(&key, self.services.get(&key), local);
        self.changed.insert(key);
    }

    fn slices_of(&self, key: &ServiceKey) -> impl Iterator<Item = &Slice> {
        self.slices.get(key).into_iter().flatten().map(|(_, slice)| slice)
    }
}
