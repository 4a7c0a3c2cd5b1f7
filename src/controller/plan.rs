//! Pure: `(Desired, Slice) → Plan`. The order of steps and the choice between changing and replacing live here.
//!
//! ```text
//! desired | observed | plan
//! --------+----------+------------------------------------------------------------------
//!    a    |    -     | create, then connect
//!    a    |    a'    | change in place; what AWS cannot change has another name, so it is
//!         |          | the two rows around this one
//!    -    |    a     | disconnect, release from Auto Scaling groups, delete
//! ```
//!
//! Safety is the order: create and connect first, then disconnect and delete. A listener never points at a target group
//! that has no targets yet while the one it replaces has some, and a target group is never deleted while an Auto
//! Scaling group lists it, since such a group could launch nothing any more (kops#8819).
//!
//! Steps name resources by name, not by ARN, so that a plan can be shown whole before anything exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::desired::{Desired, DesiredBalancer, DesiredGroup, DesiredListener, DesiredTargetGroup};
use super::observed::{
    Balancer, BalancerState, Carried, HealthCheck, IngressRule, Intent, Listener, Mapping, Slice, TargetGroup,
};
use crate::model::attribute::{Attributes, Holder};
use crate::model::id::{AsgName, SecurityGroupId, Zone};
use crate::model::node::Labels;
use crate::model::ownership::{Tags, tag_changes};
use crate::model::service::{AddressType, Protocol, Tls};

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes a security group.
    CreateGroup { name: String, description: String, tags: Tags },
    /// Adds inbound rules to one of our groups.
    Authorize { group: String, rules: BTreeSet<IngressRule> },
    /// Takes inbound rules out of one of our groups.
    Revoke { group: String, rules: BTreeSet<IngressRule> },
    /// Adds inbound rules that name the backend group to a group of the nodes.
    AuthorizeNodes { group: SecurityGroupId, rules: BTreeSet<IngressRule> },
    /// Takes such rules out again.
    RevokeNodes { group: SecurityGroupId, rules: BTreeSet<IngressRule> },
    /// Deletes one of our groups.
    DeleteGroup { name: String, because: &'static str },
    /// Makes a load balancer. It carries groups from the start, since one born without can never get any.
    CreateBalancer(DesiredBalancer),
    /// Sets the groups of a load balancer, and whether their rules hold for PrivateLink.
    SetGroups { balancer: String, groups: Vec<Carried>, rules_on_private_link: bool },
    /// Sets the IP families of a load balancer's clients.
    SetAddressType { balancer: String, address_type: AddressType },
    /// Sets the subnets of a load balancer, the addresses there, and where it changes what comes with them.
    SetSubnets {
        balancer: String,
        subnets: BTreeMap<Zone, Mapping>,
        address_type: Option<AddressType>,
        source_nat: Option<bool>,
    },
    /// Reserves capacity for a load balancer; 0 units end a reservation.
    ReserveCapacity { balancer: String, units: i32 },
    /// Deletes a load balancer, and its listeners with it.
    DeleteBalancer { name: String, because: &'static str },
    /// Makes a target group.
    CreateTargetGroup(DesiredTargetGroup),
    /// Changes a health check.
    ModifyHealthCheck { target_group: String, health: HealthCheck },
    /// Tells placement what to do with a target group. No AWS call.
    Intend { target_group: String, intent: Intent },
    /// Tells placement which nodes may be targets of a target group. No AWS call.
    Select { target_group: String, nodes: Labels },
    /// Deletes a target group.
    DeleteTargetGroup { name: String, because: &'static str },
    /// Makes a listener.
    CreateListener {
        balancer: String,
        port: u16,
        protocol: Protocol,
        tls: Option<Tls>,
        target_group: String,
        tags: Tags,
    },
    /// Changes a listener: all of it in one call, since a listener that becomes TLS needs its certificate at once.
    ModifyListener { balancer: String, port: u16, protocol: Protocol, tls: Option<Tls>, target_group: String },
    /// Adds a certificate to the list of a TLS listener.
    AddCertificate { balancer: String, port: u16, certificate: String },
    /// Takes a certificate out of that list.
    RemoveCertificate { balancer: String, port: u16, certificate: String },
    /// Sets attributes.
    ModifyAttributes { of: AttributesOf, attributes: Attributes },
    /// Deletes a listener.
    DeleteListener { balancer: String, port: u16, because: &'static str },
    /// Sets tags.
    Tag { resource: Resource, tags: Tags },
    /// Removes tags that we set before.
    Untag { resource: Resource, keys: Vec<String> },
}

/// Something with tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A load balancer, by name.
    Balancer(String),
    /// A target group, by name.
    TargetGroup(String),
    /// A security group, by name.
    Group(String),
    /// A listener, by load balancer and port.
    Listener(String, u16),
}

impl Resource {
    /// Its name, or that of what it belongs to.
    pub fn name(&self) -> &str {
        match self {
            Self::Balancer(name) | Self::TargetGroup(name) | Self::Group(name) | Self::Listener(name, _) => name,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balancer(name) | Self::TargetGroup(name) | Self::Group(name) => f.write_str(name),
            Self::Listener(balancer, port) => write!(f, "listener {port} of {balancer}"),
        }
    }
}

/// Something with attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributesOf {
    /// A load balancer, by name.
    Balancer(String),
    /// A target group, by name.
    TargetGroup(String),
    /// A listener, by load balancer and port.
    Listener(String, u16),
}

impl fmt::Display for AttributesOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balancer(name) => write!(f, "load balancer {name}"),
            Self::TargetGroup(name) => write!(f, "target group {name}"),
            Self::Listener(balancer, port) => write!(f, "listener {port} of {balancer}"),
        }
    }
}

/// Something that must happen before the next step can be planned. Not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// AWS is setting the load balancer up.
    Provisioning { balancer: String },
    /// A new target group gets its targets before the listener moves to it.
    Targets { target_group: String },
    /// Auto Scaling groups still list the target group.
    Detaching { target_group: String, asgs: Vec<AsgName> },
    /// The load balancer that replaces another one is not usable yet.
    Replacement { balancer: String },
    /// AWS could not set the load balancer up, twice in a row. Only time or people help.
    SetUpFailed { balancer: String, reason: String },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provisioning { balancer } => write!(f, "waiting for load balancer {balancer} to become active"),
            Self::Targets { target_group } => write!(f, "waiting for target group {target_group} to get its targets"),
            Self::Detaching { target_group, asgs } => {
                let names: Vec<_> = asgs.iter().map(AsgName::as_str).collect();
                write!(
                    f,
                    "waiting for Auto Scaling group {} to let go of target group {target_group}",
                    names.join(", ")
                )
            }
            Self::Replacement { balancer } => write!(f, "waiting for load balancer {balancer} to take over"),
            Self::SetUpFailed { balancer, reason } => {
                write!(f, "AWS could not set up load balancer {balancer} a second time: {reason}")
            }
        }
    }
}

/// What to do now, and what is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Writes, in order.
    pub steps: Vec<Step>,
    /// What holds further steps back.
    pub waits: Vec<Wait>,
}

impl Step {
    /// Whether it writes to AWS. Others are notes to ourselves.
    pub const fn is_write(&self) -> bool {
        !matches!(self, Self::Intend { .. } | Self::Select { .. })
    }

    /// Whether other steps of the same plan make sense although this one failed. What several others need carries the
    /// rest; everything else stands for itself, or for one port.
    pub const fn is_independent(&self) -> bool {
        !matches!(
            self,
            Self::CreateGroup { .. }
                | Self::CreateBalancer { .. }
                | Self::DeleteBalancer { .. }
                | Self::DeleteGroup { .. }
                | Self::DeleteTargetGroup { .. }
                | Self::DeleteListener { .. }
                | Self::RevokeNodes { .. }
        )
    }

    /// Whether this step cannot succeed, or must not be taken, where `failed` did not.
    pub fn needs(&self, failed: &Self) -> bool {
        match (self, failed) {
            // It would overwrite the record of which tags are ours while some of those are still to be removed.
            (Self::Tag { resource, .. }, Self::Untag { resource: other, .. }) => resource == other,
            (
                Self::CreateListener { target_group, .. } | Self::ModifyListener { target_group, .. },
                Self::CreateTargetGroup(made),
            ) => *target_group == made.name,
            (
                Self::RemoveCertificate { balancer, port, .. },
                Self::ModifyListener { balancer: other, port: of, .. }
                | Self::AddCertificate { balancer: other, port: of, .. },
            ) => balancer == other && port == of,
            _ => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |rules: &BTreeSet<IngressRule>| rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let zones = |subnets: &BTreeMap<Zone, Mapping>| {
            let zone = |(zone, mapping): (&Zone, &Mapping)| match mapping.addresses().join(" ") {
                none if none.is_empty() => format!("{} ({zone})", mapping.subnet),
                addresses => format!("{} ({zone}, {addresses})", mapping.subnet),
            };
            subnets.iter().map(zone).collect::<Vec<_>>().join(", ")
        };
        match self {
            Self::CreateGroup { name, .. } => write!(f, "create security group {name}"),
            Self::Authorize { group, rules } => write!(f, "allow in security group {group}: {}", join(rules)),
            Self::Revoke { group, rules } => write!(f, "no longer allow in security group {group}: {}", join(rules)),
            Self::AuthorizeNodes { group, rules } => write!(f, "allow in node group {group}: {}", join(rules)),
            Self::RevokeNodes { group, rules } => write!(f, "no longer allow in node group {group}: {}", join(rules)),
            Self::DeleteGroup { name, because } => write!(f, "delete security group {name}: {because}"),
            Self::CreateBalancer(balancer) => {
                let DesiredBalancer { name, scheme, subnets, .. } = balancer;
                write!(f, "create {scheme} load balancer {name} in {}", zones(subnets))
            }
            Self::SetGroups { balancer, groups, rules_on_private_link } => {
                let groups = groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                write!(f, "set security groups of load balancer {balancer} to {groups}")?;
                if *rules_on_private_link { Ok(()) } else { f.write_str(", not for PrivateLink") }
            }
            Self::SetAddressType { balancer, address_type } => {
                write!(f, "set IP address type of load balancer {balancer} to {address_type}")
            }
            Self::SetSubnets { balancer, subnets, address_type, source_nat } => {
                write!(f, "set subnets of load balancer {balancer} to {}", zones(subnets))?;
                if let Some(address_type) = address_type {
                    write!(f, ", {address_type}")?;
                }
                match source_nat {
                    Some(true) => f.write_str(", source NAT by prefix on"),
                    Some(false) => f.write_str(", source NAT by prefix off"),
                    None => Ok(()),
                }
            }
            Self::ReserveCapacity { balancer, units } => {
                write!(f, "reserve {units} capacity units for load balancer {balancer}")
            }
            Self::DeleteBalancer { name, because } => write!(f, "delete load balancer {name}: {because}"),
            Self::CreateTargetGroup(group) => {
                write!(f, "create target group {} for {} {}", group.name, group.protocol.as_str(), group.port)
            }
            Self::ModifyHealthCheck { target_group, health } => {
                write!(f, "check health of target group {target_group} by {} on {}", health.protocol, health.port)
            }
            Self::Intend { target_group, intent } => write!(f, "{intent:?} target group {target_group}"),
            Self::Select { target_group, nodes } if nodes.is_empty() => {
                write!(f, "take every node for target group {target_group}")
            }
            Self::Select { target_group, nodes } => {
                let labels: Vec<_> = nodes.iter().map(|(key, value)| format!("{key}={value}")).collect();
                write!(f, "take nodes with {} for target group {target_group}", labels.join(", "))
            }
            Self::DeleteTargetGroup { name, because } => write!(f, "delete target group {name}: {because}"),
            Self::CreateListener { balancer, port, protocol, target_group, .. } => {
                write!(f, "create listener {} {port} on {balancer} to {target_group}", protocol.as_str())
            }
            Self::ModifyListener { balancer, port, protocol, tls, target_group } => {
                write!(f, "set listener {port} on {balancer} to {} for {target_group}", protocol.as_str())?;
                tls.as_ref().map_or(Ok(()), |tls| {
                    write!(f, " with {} and {}", tls.policy, tls.certificates.first().map_or("", String::as_str))
                })
            }
            Self::AddCertificate { balancer, port, certificate } => {
                write!(f, "add certificate {certificate} to listener {port} on {balancer}")
            }
            Self::RemoveCertificate { balancer, port, certificate } => {
                write!(f, "remove certificate {certificate} of listener {port} on {balancer}")
            }
            Self::ModifyAttributes { of, attributes } => {
                let pairs: Vec<_> = attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
                write!(f, "set attributes of {of}: {}", pairs.join(", "))
            }
            Self::DeleteListener { balancer, port, because } => {
                write!(f, "delete listener {port} on {balancer}: {because}")
            }
            Self::Tag { resource, tags } => {
                write!(f, "tag {resource} with {}", tags.keys().cloned().collect::<Vec<_>>().join(", "))
            }
            Self::Untag { resource, keys } => write!(f, "remove tags of {resource}: {}", keys.join(", ")),
        }
    }
}

/// The attribute that keeps a load balancer from being deleted.
pub const DELETION_PROTECTION: &str = "deletion_protection.enabled";
/// So many certificates fit in the lists of a load balancer whatever its quota, which can be raised (ELB quotas).
const CERTIFICATES: usize = 25;
const NOT_ASKED_FOR: &str = "the Service does not ask for it";
const REPLACED: &str = "another one takes its place";
/// Why a load balancer goes before its successor is there: the one case in which a change interrupts a Service.
pub const COLLIDES: &str = "the one that replaces it needs its addresses; expect an interruption";
const RELEASED: &str = "the Service is no longer served";
/// Why a load balancer goes that AWS could not set up: it never becomes usable, and its name is needed.
pub const NOT_SET_UP: &str = "AWS could not set it up";

/// What to do so that AWS has what a Service desires.
pub fn plan(desired: &Desired, slice: &Slice<'_>) -> Plan {
    let mut plan = Plan::default();
    if let Some(frontend) = &desired.frontend {
        plan.frontend_group(frontend, slice);
    }
    plan.drop_colliding(desired, slice);
    let balancer = slice.balancers.iter().copied().find(|balancer| balancer.name == desired.balancer.name);
    let balancer = plan.drop_failed(slice, balancer);
    plan.create_balancer(desired, balancer);
    if let Some(balancer) = balancer {
        // Before the listeners: which protocols they may have depends on it.
        plan.change_addresses(&desired.balancer, balancer);
    }
    plan.target_groups(desired, slice);
    plan.listeners(desired, slice, balancer);
    if let Some(balancer) = balancer {
        plan.change_balancer(desired, balancer);
    }
    plan.remove_extras(desired, slice, balancer);
    plan
}

/// What to do so that AWS has nothing of a Service any more.
///
/// The load balancer goes first: traffic ends at once and for good, nothing drains after that, and where AWS refuses
/// the deletion (protection, an endpoint service) nothing else has been touched.
///
/// `unprotect` says that the Service's owner has switched deletion protection off. Otherwise it is respected, whoever
/// switched it on.
pub fn teardown(slice: &Slice<'_>, unprotect: bool) -> Plan {
    let mut plan = Plan::default();
    for balancer in &slice.balancers {
        let off = Attributes::from([(DELETION_PROTECTION.to_owned(), "false".to_owned())]);
        // Where nobody has read it, it may be on.
        let is_on = balancer
            .attributes
            .as_ref()
            .is_none_or(|known| known.get(DELETION_PROTECTION).is_some_and(|value| value == "true"));
        if unprotect && is_on {
            let of = AttributesOf::Balancer(balancer.name.clone());
            plan.steps.push(Step::ModifyAttributes { of, attributes: off });
        }
        plan.steps.push(Step::DeleteBalancer { name: balancer.name.clone(), because: RELEASED });
    }
    for group in &slice.target_groups {
        plan.remove_target_group(group, slice, RELEASED);
    }
    let last_goes = slice.target_groups.iter().all(|group| group.intent == Intent::Release);
    if last_goes && plan.waits.is_empty() {
        for group in &slice.groups {
            plan.steps.push(Step::DeleteGroup { name: group.name.clone(), because: RELEASED });
        }
    }
    plan
}

impl Plan {
    fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    fn frontend_group(&mut self, desired: &DesiredGroup, slice: &Slice<'_>) {
        let name = &desired.name;
        let Some(observed) = slice.groups.iter().find(|group| group.name == *name) else {
            let (description, tags) = (desired.description.clone(), desired.tags.clone());
            self.push(Step::CreateGroup { name: name.clone(), description, tags });
            self.push(Step::Authorize { group: name.clone(), rules: desired.rules.clone() });
            return;
        };
        let missing: BTreeSet<_> = desired.rules.difference(&observed.rules).cloned().collect();
        if !missing.is_empty() {
            self.push(Step::Authorize { group: name.clone(), rules: missing });
        }
        let stale: BTreeSet<_> = observed.rules.difference(&desired.rules).cloned().collect();
        if !stale.is_empty() {
            self.push(Step::Revoke { group: name.clone(), rules: stale });
        }
        self.tags(&Resource::Group(name.clone()), &desired.tags, &observed.tags);
    }

    /// A load balancer that AWS could not set up goes, once, so that it is made again. Returns the one to work on.
    fn drop_failed<'a>(&mut self, slice: &Slice<'_>, observed: Option<&'a Balancer>) -> Option<&'a Balancer> {
        let balancer = observed?;
        let BalancerState::Failed(reason) = &balancer.state else { return observed };
        let name = balancer.name.clone();
        if slice.remade.contains(name.as_str()) {
            self.waits.push(Wait::SetUpFailed { balancer: name, reason: reason.clone() });
            return observed;
        }
        self.push(Step::DeleteBalancer { name, because: NOT_SET_UP });
        None
    }

    /// Addresses that a Service chooses cannot be in use twice: the load balancer that holds them goes first.
    fn drop_colliding(&mut self, desired: &Desired, slice: &Slice<'_>) {
        for old in colliding(desired, slice) {
            self.push(Step::DeleteBalancer { name: old.name.clone(), because: COLLIDES });
        }
    }

    fn create_balancer(&mut self, desired: &Desired, observed: Option<&Balancer>) {
        match observed.map(|balancer| &balancer.state) {
            None => self.push(Step::CreateBalancer(desired.balancer.clone())),
            Some(BalancerState::Provisioning) => {
                self.waits.push(Wait::Provisioning { balancer: desired.balancer.name.clone() });
            }
            Some(BalancerState::Active | BalancerState::Failed(_)) => {}
        }
    }

    fn target_groups(&mut self, desired: &Desired, slice: &Slice<'_>) {
        for group in desired.target_groups.values() {
            let name = &group.name;
            let Some(observed) = slice.target_groups.iter().find(|observed| observed.name == *name) else {
                self.push(Step::CreateTargetGroup(group.clone()));
                continue;
            };
            // Before it is served: no other node must become a target meanwhile.
            if observed.nodes != group.nodes {
                self.push(Step::Select { target_group: name.clone(), nodes: group.nodes.clone() });
            }
            if observed.intent != Intent::Serve {
                self.push(Step::Intend { target_group: name.clone(), intent: Intent::Serve });
            }
            if observed.health != group.health {
                self.push(Step::ModifyHealthCheck { target_group: name.clone(), health: group.health.clone() });
            }
            let holder = Holder::TargetGroup(group.protocol);
            let of = AttributesOf::TargetGroup(name.clone());
            self.attributes(&of, holder, &group.attributes, observed.attributes.as_ref());
            self.tags(&Resource::TargetGroup(name.clone()), &group.tags, &observed.tags);
        }
    }

    /// What is not known is left alone until it has been read.
    fn attributes(&mut self, of: &AttributesOf, holder: Holder, asked: &Attributes, observed: Option<&Attributes>) {
        let changes = observed.map(|observed| holder.changes(asked, observed)).unwrap_or_default();
        // A bucket that ELB cannot write to must not hold up the other attributes.
        let (logs, others): (Attributes, Attributes) =
            changes.into_iter().partition(|(key, _)| key.starts_with("access_logs."));
        for attributes in [others, logs].into_iter().filter(|attributes| !attributes.is_empty()) {
            self.push(Step::ModifyAttributes { of: of.clone(), attributes });
        }
    }

    fn listeners(&mut self, desired: &Desired, slice: &Slice<'_>, balancer: Option<&Balancer>) {
        let none = BTreeMap::new();
        let observed = balancer.and_then(|balancer| balancer.listeners.as_ref()).unwrap_or(&none);
        for (port, wanted) in &desired.listeners {
            let Some(group) = desired.target_groups.get(port) else { continue };
            match observed.get(port) {
                Some(listener) => {
                    self.change_listener(desired, slice, *port, wanted, group, listener);
                    if let Some(tags) = &listener.tags {
                        let resource = Resource::Listener(desired.balancer.name.clone(), *port);
                        self.tags(&resource, &desired.listener_tags, tags);
                    }
                }
                None => self.push(Step::CreateListener {
                    balancer: desired.balancer.name.clone(),
                    port: *port,
                    protocol: wanted.protocol,
                    tls: wanted.tls.clone(),
                    target_group: group.name.clone(),
                    tags: desired.listener_tags.clone(),
                }),
            }
        }
        for port in observed.keys().filter(|port| !desired.target_groups.contains_key(port)) {
            let balancer = desired.balancer.name.clone();
            self.push(Step::DeleteListener { balancer, port: *port, because: NOT_ASKED_FOR });
        }
    }

    fn change_listener(
        &mut self,
        desired: &Desired,
        slice: &Slice<'_>,
        port: u16,
        wanted: &DesiredListener,
        group: &DesiredTargetGroup,
        listener: &Listener,
    ) {
        let balancer = || desired.balancer.name.clone();
        let known = slice.target_groups.iter().find(|observed| observed.name == group.name);
        let connected = known.is_some_and(|known| listener.target_group.as_ref() == Some(&known.arn));
        // Where the listener points at nothing of ours there is nothing to protect by waiting.
        let moves = slice.target_groups.iter().any(|old| listener.target_group.as_ref() == Some(&old.arn));
        if moves && !connected && !known.is_some_and(|known| is_served(group, known)) {
            self.waits.push(Wait::Targets { target_group: group.name.clone() });
            return;
        }
        let (missing, stale) = certificate_changes(wanted, listener);
        let add = |certificate| Step::AddCertificate { balancer: balancer(), port, certificate };
        // Added first: no name goes unserved in between. What becomes the default needs not be there before.
        let fits = listener.certificates.iter().flatten().count() + missing.len() <= CERTIFICATES;
        let (before, after) = if fits { (missing, vec![]) } else { (vec![], missing) };
        self.steps.extend(before.into_iter().map(add));
        if !connected || !wanted.is_met_by(listener) {
            let (protocol, tls, target_group) = (wanted.protocol, wanted.tls.clone(), group.name.clone());
            self.push(Step::ModifyListener { balancer: balancer(), port, protocol, tls, target_group });
        }
        let remove = |certificate| Step::RemoveCertificate { balancer: balancer(), port, certificate };
        self.steps.extend(stale.into_iter().map(remove));
        self.steps.extend(after.into_iter().map(add));
        let of = AttributesOf::Listener(balancer(), port);
        // Only TCP listeners have any.
        if wanted.protocol == Protocol::Tcp && listener.protocol == Protocol::Tcp.as_str() {
            let holder = Holder::Listener(wanted.protocol);
            self.attributes(&of, holder, &wanted.attributes, listener.attributes.as_ref());
        }
    }

    fn change_addresses(&mut self, wanted: &DesiredBalancer, observed: &Balancer) {
        if !is_too_early(wanted, observed) {
            self.steps.extend(address_step(wanted, observed));
        }
    }

    fn change_balancer(&mut self, desired: &Desired, observed: &Balancer) {
        let wanted = &desired.balancer;
        let same_groups = wanted.group_ids.len() == wanted.groups.len() && wanted.group_ids == observed.groups;
        if !same_groups || wanted.rules_on_private_link != observed.rules_on_private_link {
            let (balancer, groups) = (wanted.name.clone(), wanted.groups.clone());
            self.push(Step::SetGroups { balancer, groups, rules_on_private_link: wanted.rules_on_private_link });
        }
        // A load balancer that is being set up takes no reservation yet.
        let is_active = observed.state == BalancerState::Active;
        if is_active && observed.capacity.is_some_and(|units| units != wanted.capacity) {
            self.push(Step::ReserveCapacity { balancer: wanted.name.clone(), units: wanted.capacity });
        }
        let (of, holder) = (AttributesOf::Balancer(wanted.name.clone()), Holder::Balancer(wanted.scheme));
        self.attributes(&of, holder, &wanted.attributes, observed.attributes.as_ref());
        self.tags(&Resource::Balancer(wanted.name.clone()), &wanted.tags, &observed.tags);
    }

    /// What the Service owns and does not ask for: target groups once no listener needs them, then whole load
    /// balancers once their successor is usable.
    fn remove_extras(&mut self, desired: &Desired, slice: &Slice<'_>, balancer: Option<&Balancer>) {
        let usable = balancer.is_some_and(|balancer| {
            balancer.state == BalancerState::Active
                && balancer
                    .listeners
                    .as_ref()
                    .is_some_and(|listeners| desired.target_groups.keys().all(|port| listeners.contains_key(port)))
        });
        let all_served = desired
            .target_groups
            .values()
            .all(|group| slice.target_groups.iter().any(|observed| is_served(group, observed)));
        // Until it has moved, and been seen to: the step that moves a listener may fail.
        let listeners = balancer.and_then(|balancer| balancer.listeners.as_ref()).into_iter().flatten();
        let staying = listeners.filter(|(port, _)| desired.listeners.contains_key(port));
        let mut in_use: BTreeSet<_> = staying.filter_map(|(_, listener)| listener.target_group.clone()).collect();
        let dropped: Vec<_> = colliding(desired, slice).map(|old| &old.name).collect();
        let others = slice.balancers.iter().filter(|old| old.name != desired.balancer.name);
        for old in others.filter(|old| !dropped.contains(&&old.name)) {
            if usable && all_served {
                self.push(Step::DeleteBalancer { name: old.name.clone(), because: REPLACED });
            } else {
                self.waits.push(Wait::Replacement { balancer: desired.balancer.name.clone() });
                let listeners = old.listeners.iter().flat_map(BTreeMap::values);
                in_use.extend(listeners.filter_map(|listener| listener.target_group.clone()));
            }
        }
        let wanted: BTreeSet<_> = desired.target_groups.values().map(|group| group.name.as_str()).collect();
        for group in &slice.target_groups {
            if !wanted.contains(group.name.as_str()) && !in_use.contains(&group.arn) {
                self.remove_target_group(group, slice, NOT_ASKED_FOR);
            }
        }
        let frontend = desired.frontend.as_ref().map(|frontend| &frontend.name);
        let is_carried = |id: &SecurityGroupId| slice.balancers.iter().any(|balancer| balancer.groups.contains(id));
        for group in slice.groups.iter().filter(|group| Some(&group.name) != frontend && !is_carried(&group.id)) {
            self.push(Step::DeleteGroup { name: group.name.clone(), because: REPLACED });
        }
    }

    /// Release, see it let go everywhere, delete: each in its own round.
    fn remove_target_group(&mut self, group: &TargetGroup, slice: &Slice<'_>, because: &'static str) {
        let name = group.name.clone();
        let was_released = group.intent == Intent::Release;
        if !was_released {
            self.push(Step::Intend { target_group: name.clone(), intent: Intent::Release });
        }
        match slice.attachments.get(group.name.as_str()) {
            Some(asgs) if !asgs.is_empty() => {
                let asgs = asgs.iter().copied().cloned().collect();
                self.waits.push(Wait::Detaching { target_group: name, asgs });
            }
            _ if was_released => self.push(Step::DeleteTargetGroup { name, because }),
            // By a later plan: an attachment may be under way that this one does not see.
            _ => {}
        }
    }

    fn tags(&mut self, resource: &Resource, desired: &Tags, observed: &Tags) {
        let (tags, keys) = tag_changes(desired, observed);
        // Removed first: what is set next forgets which keys were ours before.
        if !keys.is_empty() {
            self.push(Step::Untag { resource: resource.clone(), keys });
        }
        if !tags.is_empty() {
            self.push(Step::Tag { resource: resource.clone(), tags });
        }
    }
}

impl DesiredListener {
    /// ARNs of the certificates in its list: none where there is just the default one, else all, the default one last.
    /// Among those in the list AWS chooses what a client can do and knows the name of, an ECDSA one before an RSA one;
    /// what is only the default gets no client that one in the list fits (NLB user guide, "Server certificates").
    fn listed_certificates(&self) -> impl Iterator<Item = &String> {
        let all = self.tls.as_ref().map(|tls| tls.certificates.as_slice());
        let all = all.filter(|all| all.len() > 1).unwrap_or_default();
        all.iter().skip(1).chain(all.first())
    }

    /// Whether a listener has its protocol and TLS settings.
    fn is_met_by(&self, listener: &Listener) -> bool {
        let tls = self.tls.as_ref();
        listener.protocol == self.protocol.as_str()
            && tls.is_none_or(|tls| {
                listener.certificate.as_ref() == tls.certificates.first()
                    && listener.policy.as_ref() == Some(&tls.policy)
                    && listener.alpn == tls.alpn
            })
    }
}

/// Certificates to add to a listener's list and to remove. None while it is no TLS listener, or they have not been read.
fn certificate_changes(wanted: &DesiredListener, listener: &Listener) -> (Vec<String>, Vec<String>) {
    let is_tls = wanted.tls.is_some() && listener.protocol == wanted.protocol.as_str();
    let Some(present) = listener.certificates.as_ref().filter(|_| is_tls) else { return Default::default() };
    let missing = wanted.listed_certificates().filter(|arn| !present.contains(*arn));
    // A default one that is alone does no harm in the list, and AWS removes no default certificate.
    let is_asked_for = |arn: &&String| wanted.tls.iter().any(|tls| tls.certificates.contains(arn));
    (missing.cloned().collect(), present.iter().filter(|arn| !is_asked_for(arn)).cloned().collect())
}

/// Whether a target group has its targets, and the ones that are asked for now.
fn is_served(desired: &DesiredTargetGroup, observed: &TargetGroup) -> bool {
    observed.name == desired.name && observed.served && observed.nodes == desired.nodes
}

/// The Service's other load balancers that hold an address which the desired one is to have.
fn colliding<'a>(desired: &'a Desired, slice: &'a Slice<'_>) -> impl Iterator<Item = &'a Balancer> {
    let wanted = &desired.balancer;
    let collides = |old: &&Balancer| {
        old.subnets.values().any(|has| wanted.subnets.values().any(|mapping| mapping.collides_with(has)))
    };
    slice.balancers.iter().copied().filter(|old| old.name != wanted.name).filter(collides)
}

/// What brings subnets, addresses, IP address type and source NAT to what is desired: one call for all of it, since the
/// last two may depend on each other.
fn address_step(wanted: &DesiredBalancer, observed: &Balancer) -> Option<Step> {
    let balancer = wanted.name.clone();
    let address_type = (wanted.address_type != observed.address_type).then_some(wanted.address_type);
    let changes_nat = wanted.source_nat != observed.source_nat;
    // What goes with the IP address type or with source NAT is not given any more.
    let enabled: BTreeMap<_, _> = observed
        .subnets
        .iter()
        .map(|(zone, mapping)| {
            let ipv6 = mapping.ipv6.filter(|_| wanted.address_type == AddressType::Dualstack);
            let source_nat_prefix = mapping.source_nat_prefix.filter(|_| wanted.source_nat);
            (zone.clone(), Mapping { ipv6, source_nat_prefix, ..mapping.clone() })
        })
        .collect();
    match (next_subnets(&wanted.subnets, &enabled), address_type) {
        (None, None) if !changes_nat => None,
        (None, Some(address_type)) if !changes_nat => Some(Step::SetAddressType { balancer, address_type }),
        (next, address_type) => {
            let subnets = next.unwrap_or(enabled);
            let source_nat = (changes_nat || wanted.source_nat).then_some(wanted.source_nat);
            Some(Step::SetSubnets { balancer, subnets, address_type, source_nat })
        }
    }
}

/// Whether a UDP listener that is about to go must be gone first: with IPv6 clients it cannot do without source NAT.
fn is_too_early(wanted: &DesiredBalancer, observed: &Balancer) -> bool {
    let is_udp = |listener: &Listener| listener.protocol.contains("UDP");
    let is_without_nat = wanted.address_type == AddressType::Dualstack && !wanted.source_nat;
    is_without_nat && observed.listeners.iter().flat_map(BTreeMap::values).any(is_udp)
}

/// The subnets to set next. The subnet of an enabled zone cannot be swapped in one call: the zone is left out first and
/// put back with the next plan (ELB API, `SetSubnets`; LBC#4171).
fn next_subnets(
    desired: &BTreeMap<Zone, Mapping>,
    observed: &BTreeMap<Zone, Mapping>,
) -> Option<BTreeMap<Zone, Mapping>> {
    let mut next = BTreeMap::new();
    for (zone, wanted) in desired {
        match observed.get(zone) {
            Some(enabled) if enabled.subnet != wanted.subnet => {}
            Some(enabled) => drop(next.insert(zone.clone(), wanted.over(enabled))),
            None => drop(next.insert(zone.clone(), wanted.clone())),
        }
    }
    // One zone must always be left; `desired` refuses a swap that would empty the set.
    if next.is_empty() || next == *observed { None } else { Some(next) }
}

#[cfg(test)]
pub(crate) mod tests;
