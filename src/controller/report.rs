//! What people are told: one Event for each transition, not one for each try.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use kube::Resource;
use kube::runtime::reflector::{ObjectRef, Store};

use crate::cluster::event::{Events, Kind};
use crate::cluster::reason::Reason;
use crate::metrics::{Metrics, OfReason};
use crate::model::ownership::Owner;
use crate::model::service::owner_of;
use crate::telemetry::chain;

/// The load balancer can be used.
pub const READY: Reason = Reason::LoadBalancerReady;
/// What hindered it is over.
pub const RECOVERED: Reason = Reason::Recovered;
/// Something is being waited for.
pub const WAITING: Reason = Reason::Waiting;
/// The load balancer and all that belongs to it is gone.
pub const DELETED: Reason = Reason::LoadBalancerDeleted;
/// Its owner must change the Service.
pub const INVALID: Reason = Reason::InvalidConfiguration;
/// Some of what the Service says has no effect.
pub const IGNORED: Reason = Reason::ConfigurationIgnored;
/// No subnet can be used, or the VPC is not known.
pub const NETWORK: Reason = Reason::NetworkNotUsable;
/// A listener that the Service does not ask for is taken away.
pub const LISTENER_REMOVED: Reason = Reason::ListenerRemoved;
/// Nodes carry several security groups that could take the rules.
pub const NODE_GROUPS: Reason = Reason::NodeSecurityGroupAmbiguous;
/// A zone of the load balancer goes for a moment, since its subnet changes.
pub const SUBNET_SWAP: Reason = Reason::SubnetsChanging;
/// Somebody else undoes what weir writes.
pub const CONTESTED: Reason = Reason::Contested;
/// Nodes are in a zone in which the load balancer is not.
pub const ZONE_MISSING: Reason = Reason::ZoneWithoutSubnet;
/// A load balancer has more secondary addresses than it should.
pub const ADDRESSES_KEPT: Reason = Reason::SecondaryAddressesKept;
/// A change cannot be made without an interruption.
pub const INTERRUPTION: Reason = Reason::Interruption;
/// AWS could not set the load balancer up.
pub const FAILED: Reason = Reason::LoadBalancerFailed;

/// Whether an Event of this reason says that all is well, whatever was said before it.
pub fn is_well(reason: &str) -> bool {
    [READY, RECOVERED].iter().any(|well| well.name() == reason)
}

/// Whether this tells of trouble, which is over when all that a Service asks for is in place.
pub fn is_trouble(reason: Reason) -> bool {
    reason.name().starts_with("Aws") || [INVALID, NETWORK, FAILED].contains(&reason)
}

/// Whether this tells of a step on the way, which has been taken when all that a Service asks for is in place.
pub fn is_passing(reason: Reason) -> bool {
    [WAITING, SUBNET_SWAP, CONTESTED, INTERRUPTION].contains(&reason)
}

const NODE: &str = "node/";

/// Publishes what is new.
pub struct Reporter {
    events: Events,
    services: Store<Service>,
    nodes: Store<Node>,
    metrics: Metrics,
    said: Mutex<BTreeMap<(String, Reason), BTreeSet<String>>>,
}

impl Reporter {
    /// Nothing has been said yet.
    pub fn new(events: Events, services: Store<Service>, nodes: Store<Node>, metrics: Metrics) -> Self {
        Self { events, services, nodes, metrics, said: Mutex::default() }
    }

    /// Says something about a Service, unless it was the last thing said for this reason. Returns whether it was new.
    pub async fn tell(&self, service: &Service, kind: Kind, reason: Reason, note: &str) -> bool {
        self.tell_all(service, kind, reason, &BTreeSet::from([note.to_owned()])).await
    }

    /// Whether this was the last thing said about a Service for this reason.
    pub fn has_told(&self, service: &Service, reason: Reason, note: &str) -> bool {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.get(&(owner_of(service).uid, reason)).is_some_and(|notes| notes.contains(note))
    }

    /// Whether the last thing to be said about a Service for this reason was not heard.
    pub fn owes(&self, service: &Service, reason: Reason) -> bool {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.get(&(owner_of(service).uid, reason)).is_some_and(BTreeSet::is_empty)
    }

    /// Says all that is to be said about a Service for one reason, but for what was said the last time. Returns whether
    /// something was new.
    pub async fn tell_all(&self, service: &Service, kind: Kind, reason: Reason, notes: &BTreeSet<String>) -> bool {
        let owner = owner_of(service);
        let news = self.news(&owner.uid, reason, notes);
        for note in &news {
            match kind {
                Kind::Normal => tracing::info!(service = %owner.service, reason = reason.name(), note, "Event"),
                Kind::Warning => tracing::warn!(service = %owner.service, reason = reason.name(), note, "Event"),
            }
            if !self.publish(&service.object_ref(&()), kind, reason, note).await {
                self.unsay(&owner.uid, reason, note);
            }
        }
        !news.is_empty()
    }

    /// UIDs of the Services that are being deleted.
    pub fn leaving(&self) -> BTreeSet<String> {
        let leaving = |service: &Service| service.metadata.deletion_timestamp.is_some();
        let services = self.services.state();
        services.iter().filter(|service| leaving(service)).filter_map(|service| service.metadata.uid.clone()).collect()
    }

    /// Warns about a Service that is known by its owner's tags only.
    pub async fn warn_owner(&self, owner: &Owner, reason: Reason, notes: &BTreeSet<String>) {
        let reference = ObjectRef::new(&owner.service.name).within(&owner.service.namespace);
        let found = self.services.get(&reference).filter(|service| service.metadata.uid.as_deref() == Some(&owner.uid));
        if let Some(service) = found {
            self.tell_all(&service, Kind::Warning, reason, notes).await;
        } else {
            tracing::warn!(service = %owner.service, reason = reason.name(), ?notes, "of a Service that is gone");
        }
    }

    /// Warns about a Node.
    pub async fn warn_node(&self, name: &str, reason: Reason, note: &str) {
        let Some(node) = self.nodes.get(&ObjectRef::new(name)) else { return };
        let object = node_object(name);
        for note in self.news(&object, reason, &BTreeSet::from([note.to_owned()])) {
            tracing::warn!(node = name, reason = reason.name(), note, "Event");
            if !self.publish(&node.object_ref(&()), Kind::Warning, reason, &note).await {
                self.unsay(&object, reason, &note);
            }
        }
    }

    /// Forgets what was said about Nodes, but for these, which are in trouble still.
    pub fn retain_nodes(&self, troubled: &BTreeSet<(String, Reason)>) {
        let troubled: BTreeSet<_> = troubled.iter().map(|(name, reason)| (node_object(name), *reason)).collect();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.retain(|key, _| !key.0.starts_with(NODE) || troubled.contains(key));
    }

    /// Forgets what was said about Services, but for those with these UIDs.
    pub fn retain_services(&self, uids: &BTreeSet<String>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.retain(|(object, _), _| object.starts_with(NODE) || uids.contains(object));
    }

    /// Forgets what was said about a Service for these reasons, so that it is said again if it comes back. Returns
    /// whether anything was.
    pub fn forget(&self, uid: &str, is_over: impl Fn(Reason) -> bool) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let before = said.len();
        said.retain(|(object, reason), _| object != uid || !is_over(*reason));
        said.len() < before
    }

    fn news(&self, object: &str, reason: Reason, notes: &BTreeSet<String>) -> Vec<String> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let before = said.insert((object.to_owned(), reason), notes.clone()).unwrap_or_default();
        notes.difference(&before).cloned().collect()
    }

    /// Takes back that something was said, since nobody heard it.
    fn unsay(&self, object: &str, reason: Reason, note: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        // What is left empty is owed.
        if let Some(notes) = said.get_mut(&(object.to_owned(), reason)) {
            notes.remove(note);
        }
    }

    /// Returns whether it succeeded.
    async fn publish(&self, about: &ObjectReference, kind: Kind, reason: Reason, note: &str) -> bool {
        // An Event that cannot be written must not hold up the work it is about.
        match self.events.publish(about, kind, reason, note).await {
            Ok(()) => {
                self.metrics.events.get_or_create(&OfReason { reason: reason.name() }).inc();
                true
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot publish an Event");
                false
            }
        }
    }
}

/// What a Node is called among the objects of which something was said. A UID has no slash.
fn node_object(name: &str) -> String {
    format!("{NODE}{name}")
}
