//! Examples of plans, and properties of all of them against a simulated AWS that refuses what AWS refuses.

use std::fmt::Debug;
use std::rc::Rc;

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::controller::desired::{Policy, desired};
use crate::controller::facts::{Facts, NodeGroups, PrefixList, Subnet};
use crate::controller::observed::{Asg, Observed, SecurityGroup, SourceState};
use crate::controller::rehearsal::imagine;
use crate::model::family::Family;
use crate::model::id::{ServiceKey, TargetGroupArn};
use crate::model::name;
use crate::model::ownership::{self, Owner, Role, cluster_tags, service_tags};
use crate::model::service::{
    AccessSpec, AddressSpec, HealthCheckSpec, HealthProtocol, Port, Scheme, ServiceSpec, SourceNatPrefix,
};

const DELAY: &str = "deregistration_delay.timeout_seconds";
const IDLE: &str = "tcp.idle_timeout.seconds";
const CROSS_ZONE: &str = "load_balancing.cross_zone.enabled";
pub(crate) const CLUSTER: &str = "demo";
pub(crate) const UID: &str = "u-1";
/// More than any change takes: subnets, targets, set-up and release each have their rounds.
const ROUNDS: usize = 80;

pub(crate) fn policy() -> Policy {
    Policy {
        cluster: CLUSTER.into(),
        cluster_uid: "c-1".into(),
        default_scheme: Scheme::InternetFacing,
        node_ports: (30000, 32767),
        health_port: 10256,
    }
}

pub(crate) fn facts() -> Facts {
    let subnet = |id: &str, zone: &str, number: u8| {
        let ranges = [format!("10.0.{number}.0/24"), format!("2600:1f18:0:{number}::/64")];
        let subnet = Subnet {
            zone: zone.into(),
            in_availability_zone: true,
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            free_addresses: 100,
            is_public: true,
            tags: Tags::from([("kubernetes.io/role/elb".into(), "1".into())]),
        };
        let mut internal = subnet.clone();
        internal.tags.insert("kubernetes.io/role/internal-elb".into(), "1".into());
        (id.into(), internal)
    };
    let subnets = [subnet("subnet-a", "za", 1), subnet("subnet-a2", "za", 2), subnet("subnet-b", "zb", 3)];
    let list = |family, max_entries| PrefixList { family, max_entries };
    Facts {
        vpc: "vpc-1".into(),
        subnets: subnets.into(),
        node_groups: NodeGroups::default(),
        groups: [("sg-mine".into(), Some("mine".into())), ("sg-other".into(), None)].into(),
        prefix_lists: [("pl-4".into(), list(Family::Ipv4, 4)), ("pl-6".into(), list(Family::Ipv6, 6))].into(),
    }
}

pub(crate) fn owner(uid: &str) -> Owner {
    Owner { service: ServiceKey::new("shop", "order"), uid: uid.into() }
}

pub(crate) fn spec(ports: &[(u16, Protocol, u16)]) -> ServiceSpec {
    let ports = ports.iter().map(|(port, protocol, node_port)| (*port, Port::new(*port, *protocol, *node_port)));
    ServiceSpec {
        owner: owner(UID),
        created: Timestamp::UNIX_EPOCH,
        scheme: None,
        name: None,
        address_type: AddressType::Ipv4,
        family: Family::Ipv4,
        subnets: vec![],
        addresses: AddressSpec::default(),
        capacity: 0,
        tags: Tags::new(),
        source_ranges: ["0.0.0.0/0".parse().unwrap()].into(),
        access: AccessSpec::default(),
        ports: ports.collect(),
        local_health_port: None,
        health: HealthCheckSpec::default(),
        attributes: Attributes::new(),
        warnings: vec![],
        node_labels: Labels::new(),
    }
}

fn listener(arn: String, protocol: &str, target_group: Option<TargetGroupArn>) -> Listener {
    Listener {
        arn: arn.into(),
        protocol: protocol.into(),
        target_group,
        certificate: None,
        policy: None,
        alpn: None,
        certificates: Some(BTreeSet::new()),
        tags: Some(Tags::new()),
        attributes: Some(Attributes::new()),
    }
}

fn is_udp(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Udp | Protocol::TcpUdp)
}

pub(crate) fn web() -> ServiceSpec {
    spec(&[(80, Protocol::Tcp, 30080)])
}

/// AWS and placement, simulated: checks each step before it takes it, and moves on with [`World::tick`].
#[derive(Clone)]
struct World {
    observed: Observed,
    steps: Vec<Step>,
    unread: Vec<Reading>,
}

/// Puts something that was read into the view.
type Reading = Rc<dyn Fn(&mut Observed)>;

impl World {
    /// An account with two Auto Scaling groups, the backend group, and things that are not the Service's.
    fn new() -> Self {
        let mut observed = Observed::default();
        let backend = SecurityGroup {
            id: "sg-backend".into(),
            name: name::backend_group(CLUSTER),
            rules: BTreeSet::new(),
            tags: cluster_tags(CLUSTER, Role::BackendGroup),
        };
        observed.groups.insert(backend.name.clone(), backend);
        for asg in ["workers", "burst"] {
            observed.asgs.insert(asg.into(), Asg::default());
        }
        let mut world = Self { observed, steps: vec![], unread: vec![] };
        // The same Service under an earlier UID, another cluster's Service, and things nobody has tagged.
        let others = [service_tags(CLUSTER, &owner("u-0"), Role::Balancer, &Tags::new()), Tags::new(), {
            service_tags("other", &owner(UID), Role::Balancer, &Tags::new())
        }];
        for (number, tags) in others.into_iter().enumerate() {
            world.add_foreign(&format!("foreign-{number}"), &tags);
        }
        world
    }

    fn add_foreign(&mut self, name: &str, tags: &Tags) {
        let arn = TargetGroupArn::from(format!("arn:tg/{name}"));
        let group = TargetGroup {
            arn: arn.clone(),
            name: name.into(),
            protocol: "TCP".into(),
            port: 31000,
            vpc: "vpc-1".into(),
            health: web_health(),
            tags: tags.clone(),
            attributes: None,
            intent: Intent::Undecided,
            nodes: Labels::new(),
            served: false,
        };
        let listener = listener(format!("arn:l/{name}"), "TCP", None);
        let balancer = Balancer {
            arn: format!("arn:lb/{name}").into(),
            name: name.into(),
            dns_name: format!("{name}.elb"),
            scheme: Scheme::InternetFacing,
            address_type: AddressType::Ipv4,
            state: BalancerState::Active,
            subnets: BTreeMap::new(),
            source_nat: false,
            groups: BTreeSet::new(),
            rules_on_private_link: true,
            capacity: Some(0),
            tags: tags.clone(),
            listeners: Some([(80, Listener { target_group: Some(arn.clone()), ..listener })].into()),
            attributes: None,
        };
        let security = SecurityGroup {
            id: format!("sg-{name}").into(),
            name: name.into(),
            rules: BTreeSet::new(),
            tags: tags.clone(),
        };
        self.observed.target_groups.insert(name.into(), group);
        self.observed.balancers.insert(name.into(), balancer);
        self.observed.groups.insert(name.into(), security);
        for asg in self.observed.asgs.values_mut() {
            asg.sources.insert(arn.clone(), SourceState::Added);
        }
    }

    /// Everything that is not the Service's.
    fn foreign(&self) -> impl PartialEq + Debug + use<> {
        let is_foreign = |tags: &Tags| ownership::owner(CLUSTER, tags).is_none_or(|owner| owner.uid != UID);
        let mut observed = self.observed.clone();
        let ours: BTreeSet<_> = self.of().target_groups.iter().map(|group| group.arn.clone()).collect();
        observed.balancers.retain(|_, balancer| is_foreign(&balancer.tags));
        observed.target_groups.retain(|_, group| is_foreign(&group.tags));
        observed.groups.retain(|_, group| is_foreign(&group.tags));
        observed.remade.clear();
        for asg in observed.asgs.values_mut() {
            asg.sources.retain(|arn, _| !ours.contains(arn));
        }
        observed
    }

    fn of(&self) -> Slice<'_> {
        self.observed.of(CLUSTER, UID)
    }

    fn tags_of(&self, resource: &Resource) -> Option<&Tags> {
        let observed = &self.observed;
        match resource {
            Resource::Balancer(name) => observed.balancers.get(name).map(|balancer| &balancer.tags),
            Resource::TargetGroup(name) => observed.target_groups.get(name).map(|group| &group.tags),
            Resource::Group(name) => observed.groups.get(name).map(|group| &group.tags),
            Resource::Listener(balancer, port) => observed.balancers[balancer].listeners.as_ref()?[port].tags.as_ref(),
        }
    }

    fn listeners(&self, balancer: &str) -> &BTreeMap<u16, Listener> {
        self.observed.balancers[balancer].listeners.as_ref().unwrap()
    }

    /// What AWS would refuse, what would cut traffic, and what is none of the Service's business.
    fn check(&self, step: &Step) {
        let (acted_on, creates) = subject(step);
        match self.tags_of(&acted_on) {
            Some(_) if creates => panic!("{step}: exists"),
            None if !creates => panic!("{step}: does not exist"),
            Some(tags) => {
                let owner = ownership::owner(CLUSTER, tags);
                assert_eq!(owner.map(|owner| owner.uid).as_deref(), Some(UID), "{step}: is not the Service's");
            }
            None => {}
        }
        match step {
            Step::DeleteTargetGroup { name, .. } => {
                let arn = &self.observed.target_groups[name].arn;
                for balancer in self.observed.balancers.values() {
                    let mut listeners = balancer.listeners.iter().flat_map(BTreeMap::values);
                    let names_it = listeners.any(|listener| listener.target_group.as_ref() == Some(arn));
                    assert!(!names_it, "{step}: a listener of {} names it", balancer.name);
                }
                for (asg, group) in &self.observed.asgs {
                    assert!(!group.lists(arn), "{step}: Auto Scaling group {asg} names it");
                }
            }
            Step::DeleteGroup { name, .. } => {
                let id = &self.observed.groups[name].id;
                for balancer in self.observed.balancers.values() {
                    assert!(!balancer.groups.contains(id), "{step}: {} carries it", balancer.name);
                }
            }
            Step::CreateListener { balancer, port, target_group, protocol, .. } => {
                self.check_listener(step, balancer, *protocol);
                assert!(!self.listeners(balancer).contains_key(port), "{step}: exists");
                assert!(self.observed.target_groups.contains_key(target_group), "{step}: points at nothing");
            }
            Step::ModifyListener { balancer, port, target_group, protocol, .. } => {
                self.check_listener(step, balancer, *protocol);
                let next = &self.observed.target_groups[target_group];
                let before = self.listeners(balancer)[port].target_group.as_ref();
                let serves = before.is_some_and(|arn| self.observed.target_group(arn).is_some());
                assert!(!serves || before == Some(&next.arn) || next.served, "{step}: has no targets yet");
            }
            Step::DeleteListener { balancer, port, .. } => {
                assert!(self.listeners(balancer).contains_key(port), "{step}: does not exist");
            }
            Step::SetAddressType { balancer, address_type } => {
                let source_nat = self.observed.balancers[balancer].source_nat;
                assert!(*address_type == AddressType::Dualstack || !source_nat, "{step}: leaves source NAT on");
                self.check_udp(step, balancer, *address_type, source_nat);
            }
            Step::SetSubnets { balancer, subnets, address_type, source_nat } => {
                let observed = &self.observed.balancers[balancer];
                let address_type = address_type.unwrap_or(observed.address_type);
                let source_nat = source_nat.unwrap_or(observed.source_nat);
                assert!(!subnets.is_empty(), "{step}: leaves no zone");
                for (zone, enabled) in &observed.subnets {
                    let Some(next) = subnets.get(zone) else { continue };
                    assert_eq!(next.subnet, enabled.subnet, "{step}: swaps {zone} in one call");
                    assert_eq!(next.allocation, enabled.allocation, "{step}: gives another Elastic IP");
                    assert_eq!(next.private_ipv4, enabled.private_ipv4, "{step}: gives another address");
                    let had = enabled.ipv6.filter(|_| address_type == AddressType::Dualstack);
                    let may_choose = observed.address_type == AddressType::Ipv4;
                    assert!(may_choose || next.ipv6 == had, "{step}: gives another IPv6 address");
                }
                for mapping in subnets.values() {
                    let is_v6 = mapping.ipv6.is_some() || mapping.source_nat_prefix.is_some();
                    assert!(address_type == AddressType::Dualstack || !is_v6, "{step}: has IPv6 without dualstack");
                    assert!(
                        mapping.source_nat_prefix.is_none() || source_nat,
                        "{step}: has a prefix without source NAT"
                    );
                }
                self.check_udp(step, balancer, address_type, source_nat);
                self.check_in_use(step, balancer, subnets);
            }
            Step::CreateBalancer(wanted) => {
                self.check_in_use(step, &wanted.name, &wanted.subnets);
                assert!(!wanted.groups.is_empty(), "{step}: is born without security groups");
            }
            Step::SetGroups { groups, .. } => assert!(!groups.is_empty(), "{step}: takes the last group away"),
            Step::ReserveCapacity { balancer, .. } => {
                assert_eq!(self.observed.balancers[balancer].state, BalancerState::Active, "{step}: is too early");
            }
            Step::AddCertificate { balancer, port, .. } => {
                assert_eq!(self.listeners(balancer)[port].protocol, "TLS", "{step}: is not TLS");
            }
            Step::RemoveCertificate { balancer, port, certificate } => {
                let listener = &self.listeners(balancer)[port];
                assert!(listener.certificates.as_ref().unwrap().contains(certificate), "{step}: is not there");
                assert_ne!(listener.certificate.as_ref(), Some(certificate), "{step}: is the default one");
            }
            Step::Revoke { group, rules } => {
                assert!(rules.is_subset(&self.observed.groups[group].rules), "{step}: is not there");
            }
            _ => {}
        }
    }

    /// UDP listeners of a dualstack load balancer cannot do without source NAT by prefix.
    fn check_udp(&self, step: &Step, balancer: &str, address_type: AddressType, source_nat: bool) {
        let udp = self.listeners(balancer).values().any(|listener| listener.protocol.contains("UDP"));
        let is_fine = address_type == AddressType::Ipv4 || source_nat || !udp;
        assert!(is_fine, "{step}: leaves UDP without source NAT");
    }

    fn check_listener(&self, step: &Step, balancer: &str, protocol: Protocol) {
        let balancer = &self.observed.balancers[balancer];
        let is_v4 = balancer.address_type == AddressType::Ipv4;
        assert!(is_v4 || balancer.source_nat || !is_udp(protocol), "{step}: is UDP without source NAT");
    }

    /// An address is one load balancer's.
    fn check_in_use(&self, step: &Step, name: &str, subnets: &BTreeMap<Zone, Mapping>) {
        for other in self.observed.balancers.values().filter(|other| other.name != name) {
            let taken = other.subnets.values().any(|has| subnets.values().any(|mapping| mapping.collides_with(has)));
            assert!(!taken, "{step}: has an address of {}", other.name);
        }
    }

    fn take(&mut self, step: &Step) {
        self.check(step);
        if let Step::ModifyListener { balancer, port, protocol, .. } = step
            && self.listeners(balancer)[port].protocol != protocol.as_str()
        {
            // Attributes are read again; AWS has reset them.
            let (name, port) = (balancer.clone(), *port);
            self.unread.push(Rc::new(move |observed| {
                if let Some(listener) = observed.listener_mut(&name, port) {
                    listener.attributes.get_or_insert_default();
                }
            }));
        }
        let outcome = imagine(&self.observed, step).expect("what the step needs");
        self.observed.record(step, outcome);
        self.steps.push(step.clone());
    }

    /// Time passes: AWS sets load balancers up, placement attaches and detaches, each a stage further; what a new process
    /// did not know is read.
    fn tick(&mut self) {
        for known in std::mem::take(&mut self.unread) {
            known(&mut self.observed);
        }
        for balancer in self.observed.balancers.values_mut() {
            balancer.state = BalancerState::Active;
        }
        for group in self.observed.target_groups.values_mut() {
            for asg in self.observed.asgs.values_mut() {
                let is_picky = !group.nodes.is_empty();
                match (group.intent, asg.sources.get(&group.arn)) {
                    (Intent::Serve, None) if is_picky => group.served = true,
                    (Intent::Serve | Intent::Release, Some(SourceState::Removing)) => {
                        asg.sources.remove(&group.arn);
                    }
                    (Intent::Serve, Some(_)) if is_picky => {
                        asg.sources.insert(group.arn.clone(), SourceState::Removing);
                    }
                    (Intent::Serve, None) => {
                        asg.sources.insert(group.arn.clone(), SourceState::Adding);
                    }
                    (Intent::Serve, Some(_)) => {
                        asg.sources.insert(group.arn.clone(), SourceState::Added);
                        group.served = true;
                    }
                    (Intent::Release, Some(_)) => {
                        asg.sources.insert(group.arn.clone(), SourceState::Removing);
                    }
                    (Intent::Undecided, _) | (Intent::Release, None) => {}
                }
            }
        }
    }

    /// What a new process knows: everything that is in AWS, nothing that is not.
    fn restart(&mut self) {
        let mut unread: Vec<Reading> = std::mem::take(&mut self.unread);
        for group in self.observed.target_groups.values_mut() {
            (group.intent, group.served) = (Intent::Undecided, false);
            if let Some(attributes) = group.attributes.take() {
                let name = group.name.clone();
                unread.push(Rc::new(move |observed| {
                    if let Some(group) = observed.target_groups.get_mut(&name) {
                        group.attributes.get_or_insert_with(|| attributes.clone());
                    }
                }));
            }
            group.nodes.clear();
        }
        for balancer in self.observed.balancers.values_mut() {
            let hidden = balancer.clone();
            (balancer.attributes, balancer.capacity) = (None, None);
            for listener in balancer.listeners.iter_mut().flat_map(BTreeMap::values_mut) {
                (listener.certificates, listener.attributes, listener.tags) = (None, None, None);
            }
            unread.push(Rc::new(move |observed| {
                let Some(balancer) = observed.balancers.get_mut(&hidden.name) else { return };
                balancer.attributes = balancer.attributes.take().or_else(|| hidden.attributes.clone());
                balancer.capacity = balancer.capacity.or(hidden.capacity);
                for (port, listener) in balancer.listeners.iter_mut().flatten() {
                    if let Some(before) = hidden.listeners.iter().flatten().find(|(known, _)| *known == port) {
                        listener.keep(before.1);
                    }
                }
            }));
        }
        self.unread = unread;
    }

    fn plan(&self, spec: Option<&ServiceSpec>) -> Option<Plan> {
        match spec {
            Some(spec) => Some(plan(&desired(spec, &facts(), &policy(), &self.observed).ok()?, &self.of())),
            None => Some(teardown(&self.of(), false)),
        }
    }

    /// Plans and takes steps for so many rounds, or until nothing is left to do; stops after `most` steps. Returns
    /// whether nothing is left to do.
    fn drive(&mut self, spec: Option<&ServiceSpec>, rounds: usize, most: usize) -> bool {
        let mut taken = 0;
        for _ in 0..rounds {
            let Some(plan) = self.plan(spec) else { return true };
            if plan == Plan::default() {
                return true;
            }
            for step in &plan.steps {
                if taken == most {
                    return false;
                }
                self.take(step);
                taken += 1;
            }
            self.tick();
        }
        false
    }

    fn settle(&mut self, spec: Option<&ServiceSpec>) {
        let settled = self.drive(spec, ROUNDS, usize::MAX);
        assert!(settled, "does not settle: {:#?}", self.plan(spec));
        // Placement finishes behind the plan, which must not be of another mind then.
        for _ in 0..3 {
            self.tick();
            assert!(self.plan(spec).is_none_or(|plan| plan == Plan::default()), "{:#?}", self.plan(spec));
        }
    }

    /// The Service's part without what AWS makes up.
    fn shape(&self) -> String {
        let slice = self.of();
        let named = |arn: &Option<TargetGroupArn>| {
            arn.as_ref().and_then(|arn| self.observed.target_group(arn)).map(|group| group.name.clone())
        };
        let balancers: Vec<_> = slice
            .balancers
            .iter()
            .map(|balancer| {
                let listeners = balancer.listeners.iter().flatten();
                let listeners = listeners
                    .map(|(port, shown)| (port, &shown.protocol, &shown.certificate, named(&shown.target_group)));
                let listeners: Vec<_> = listeners.collect();
                let addresses = (balancer.address_type, balancer.source_nat, &balancer.subnets);
                let access = (balancer.groups.len(), balancer.rules_on_private_link);
                (&balancer.name, balancer.scheme, addresses, access, balancer.capacity, &balancer.tags, listeners)
            })
            .collect();
        let target_groups: Vec<_> = slice
            .target_groups
            .iter()
            .map(|group| {
                (&group.name, &group.protocol, group.port, &group.health, &group.tags, group.intent, &group.nodes)
            })
            .collect();
        let groups: Vec<_> = slice.groups.iter().map(|group| (&group.name, &group.rules, &group.tags)).collect();
        format!("{balancers:#?}\n{target_groups:#?}\n{groups:#?}\n{:#?}", slice.attachments)
    }

    /// That AWS has what was asked for, said a second time without the planner's words.
    fn assert_serves(&self, spec: &ServiceSpec) {
        let slice = self.of();
        let [balancer] = slice.balancers.as_slice() else { panic!("{} load balancers", slice.balancers.len()) };
        assert_eq!(balancer.state, BalancerState::Active);
        assert!(spec.scheme.is_none_or(|scheme| scheme == balancer.scheme));
        assert_eq!(balancer.address_type, spec.address_type);
        let listeners = balancer.listeners.as_ref().unwrap();
        assert_eq!(listeners.keys().collect::<Vec<_>>(), spec.ports.keys().collect::<Vec<_>>());
        assert_eq!(slice.target_groups.len(), spec.ports.len());
        for (port, wanted) in &spec.ports {
            let target_group = listeners[port].target_group.as_ref().unwrap();
            let target_group = self.observed.target_group(target_group).expect("a target group of ours");
            let listener = &listeners[port];
            assert_eq!(listener.protocol, wanted.protocol.as_str());
            assert_eq!(
                (target_group.port, target_group.protocol.as_str()),
                (wanted.node_port, wanted.target_protocol.as_str())
            );
            assert!(target_group.served);
            if spec.health.port.is_none() && spec.health.protocol.is_none() {
                let health = spec.local_health_port.unwrap_or(10256).to_string();
                assert_eq!(target_group.health.port, health);
            }
            assert_eq!(target_group.health.interval, spec.health.interval.unwrap_or(10));
            if let Some(tls) = &wanted.tls {
                let mut present = listener.certificates.clone().unwrap();
                if tls.certificates.len() == 1 {
                    present.extend(listener.certificate.clone());
                }
                assert_eq!(present, tls.certificates.iter().cloned().collect());
                assert_eq!((listener.certificate.as_ref(), &listener.alpn), (tls.certificates.first(), &tls.alpn));
            }
            let delay = |attributes: &Attributes| attributes.get(DELAY).cloned().unwrap_or_else(|| "300".into());
            assert_eq!(delay(target_group.attributes.as_ref().unwrap()), delay(&wanted.attributes));
            if wanted.protocol == Protocol::Tcp {
                let idle = |attributes: &Attributes| attributes.get(IDLE).cloned().unwrap_or_else(|| "350".into());
                assert_eq!(idle(listener.attributes.as_ref().unwrap()), idle(&wanted.listener_attributes));
            }
            assert_eq!(target_group.nodes, spec.node_labels);
            let holders = if spec.node_labels.is_empty() { 2 } else { 0 };
            assert_eq!(slice.attachments[target_group.name.as_str()].len(), holders);
        }
        let zone = |attributes: &Attributes| attributes.get(CROSS_ZONE).is_some_and(|value| value == "true");
        assert_eq!(zone(balancer.attributes.as_ref().unwrap()), zone(&spec.attributes));
        self.assert_reachable(spec, balancer);
        let frontend_tags = slice.groups.iter().map(|group| &group.tags);
        let listener_tags = listeners.values().map(|listener| listener.tags.as_ref().unwrap());
        let others = frontend_tags.chain(listener_tags);
        for tags in [&balancer.tags, &slice.target_groups[0].tags].into_iter().chain(others) {
            let user: Tags = tags
                .iter()
                .filter(|(key, _)| !key.starts_with("weir.dev/"))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            assert_eq!(user, spec.tags);
        }
    }

    /// Who may connect, and at which addresses.
    fn assert_reachable(&self, spec: &ServiceSpec, balancer: &Balancer) {
        let access = &spec.access;
        let mut groups: BTreeSet<SecurityGroupId> = access
            .groups
            .iter()
            .map(|text| if text == "mine" { "sg-mine".into() } else { text.as_str().into() })
            .collect();
        let frontends = self.of().groups;
        assert_eq!(frontends.len(), usize::from(access.groups.is_empty()), "frontend groups");
        for frontend in frontends {
            let sources = spec.source_ranges.len() + access.prefix_lists.len();
            assert_eq!(frontend.rules.len(), spec.rules_for_each_source() * sources);
            groups.insert(frontend.id.clone());
        }
        if access.manages_nodes.unwrap_or(access.groups.is_empty()) {
            groups.insert("sg-backend".into());
        }
        assert_eq!(balancer.groups, groups);
        assert_eq!(balancer.rules_on_private_link, access.rules_on_private_link);
        assert_eq!(balancer.capacity, Some(spec.capacity));
        assert_eq!(balancer.source_nat, spec.addresses.source_nat);
        let has =
            |one: fn(&Mapping) -> Option<String>| balancer.subnets.values().filter_map(one).collect::<BTreeSet<_>>();
        let asked = &spec.addresses;
        assert_eq!(has(|zone| zone.allocation.clone()), asked.allocations.iter().cloned().collect());
        let private: BTreeSet<_> = asked.private_ipv4.iter().map(ToString::to_string).collect();
        assert!(has(|zone| zone.private_ipv4.map(|address| address.to_string())).is_superset(&private));
        let ipv6: BTreeSet<_> = asked.ipv6.iter().map(ToString::to_string).collect();
        assert!(has(|zone| zone.ipv6.map(|address| address.to_string())).is_superset(&ipv6));
    }
}

/// What a step acts on, and whether it makes it.
fn subject(step: &Step) -> (Resource, bool) {
    let group = |name: &String| Resource::Group(name.clone());
    let balancer = |name: &String| Resource::Balancer(name.clone());
    let target_group = |name: &String| Resource::TargetGroup(name.clone());
    match step {
        Step::CreateGroup { name, .. } => (group(name), true),
        Step::CreateBalancer(made) => (balancer(&made.name), true),
        Step::CreateTargetGroup(made) => (target_group(&made.name), true),
        Step::Authorize { group: name, .. } | Step::Revoke { group: name, .. } | Step::DeleteGroup { name, .. } => {
            (group(name), false)
        }
        Step::SetGroups { balancer: name, .. }
        | Step::SetAddressType { balancer: name, .. }
        | Step::SetSubnets { balancer: name, .. }
        | Step::ReserveCapacity { balancer: name, .. }
        | Step::CreateListener { balancer: name, .. }
        | Step::ModifyListener { balancer: name, .. }
        | Step::AddCertificate { balancer: name, .. }
        | Step::RemoveCertificate { balancer: name, .. }
        | Step::DeleteListener { balancer: name, .. }
        | Step::Tag { resource: Resource::Listener(name, _), .. }
        | Step::Untag { resource: Resource::Listener(name, _), .. }
        | Step::DeleteBalancer { name, .. } => (balancer(name), false),
        Step::ModifyHealthCheck { target_group: name, .. }
        | Step::Intend { target_group: name, .. }
        | Step::Select { target_group: name, .. }
        | Step::DeleteTargetGroup { name, .. } => (target_group(name), false),
        Step::ModifyAttributes { of, .. } => match of {
            AttributesOf::Balancer(name) | AttributesOf::Listener(name, _) => (balancer(name), false),
            AttributesOf::TargetGroup(name) => (target_group(name), false),
        },
        Step::Tag { resource, .. } | Step::Untag { resource, .. } => (resource.clone(), false),
        Step::AuthorizeNodes { .. } | Step::RevokeNodes { .. } => panic!("{step}: no Service's business"),
    }
}

fn web_health() -> HealthCheck {
    HealthCheck {
        protocol: "HTTP".into(),
        port: "10256".into(),
        path: Some("/healthz".into()),
        interval: 10,
        timeout: 6,
        healthy: 2,
        unhealthy: 2,
        codes: Some("200-399".into()),
    }
}

fn settled(spec: &ServiceSpec) -> World {
    let mut world = World::new();
    world.settle(Some(spec));
    world.steps.clear();
    world
}

fn said(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

/// The first words of each step.
fn kinds(steps: &[Step]) -> Vec<String> {
    said(steps).iter().map(|step| step.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn a_new_service_is_made_in_one_plan() {
    let plan = World::new().plan(Some(&web())).unwrap();
    let expected = ["create security", "allow in", "create internet-facing", "create target", "create listener"];
    assert_eq!(kinds(&plan.steps), expected);
    assert_eq!(plan.waits, []);
}

#[test]
fn a_load_balancer_is_born_with_both_security_groups() {
    let plan = World::new().plan(Some(&web())).unwrap();
    let groups = plan.steps.iter().find_map(|step| match step {
        Step::CreateBalancer(balancer) => Some(balancer.groups.len()),
        _ => None,
    });
    assert_eq!(groups, Some(2));
}

#[test]
fn while_aws_sets_a_load_balancer_up_there_is_a_wait_and_no_step() {
    let mut world = World::new();
    for step in world.plan(Some(&web())).unwrap().steps {
        world.take(&step);
    }
    let plan = world.plan(Some(&web())).unwrap();
    assert_eq!(plan.steps, []);
    let [wait] = plan.waits.as_slice() else { panic!("{:?}", plan.waits) };
    assert!(wait.to_string().ends_with("to become active"), "{wait}");
}

/// AWS could not set the only load balancer up.
fn fail_set_up(world: &mut World) {
    for balancer in
        world.observed.balancers.values_mut().filter(|balancer| balancer.tags.contains_key("weir.dev/service"))
    {
        if !balancer.name.starts_with("foreign") {
            balancer.state = BalancerState::Failed("no address".into());
        }
    }
}

#[test]
fn a_load_balancer_that_aws_cannot_set_up_is_made_again_once() {
    let mut world = World::new();
    for step in world.plan(Some(&web())).unwrap().steps {
        world.take(&step);
    }
    fail_set_up(&mut world);
    let foreign = world.foreign();
    let plan = world.plan(Some(&web())).unwrap();
    assert_eq!(kinds(&plan.steps), ["delete load", "create internet-facing", "create listener"]);
    for step in &plan.steps {
        world.take(step);
    }
    fail_set_up(&mut world);
    let plan = world.plan(Some(&web())).unwrap();
    assert_eq!(plan.steps, []);
    assert!(matches!(plan.waits.as_slice(), [Wait::SetUpFailed { reason, .. }] if reason == "no address"));
    // After the wait it is made again; this time it works.
    world.observed.remade.clear();
    world.settle(Some(&web()));
    world.assert_serves(&web());
    assert_eq!(world.foreign(), foreign);
}

#[test]
fn what_aws_cannot_set_up_is_given_back_like_anything_else() {
    let mut world = settled(&web());
    fail_set_up(&mut world);
    world.settle(None);
    assert!(world.of().is_empty());
    assert!(world.observed.remade.is_empty());
}

#[test]
fn r37_a_new_node_port_moves_the_listener_only_once_the_new_target_group_is_served() {
    let mut world = settled(&web());
    let before = world.of().target_groups[0].name.clone();
    let listener = world.of().balancers[0].listeners.clone().unwrap()[&80].arn.clone();
    let edited = spec(&[(80, Protocol::Tcp, 30081)]);

    let plan = world.plan(Some(&edited)).unwrap();
    assert_eq!(kinds(&plan.steps), ["create target"]);
    assert!(matches!(plan.waits.as_slice(), [Wait::Targets { .. }]), "{:?}", plan.waits);

    world.settle(Some(&edited));
    let expected = ["create target", "set listener", "Release target", "delete target"];
    assert_eq!(kinds(&world.steps), expected);
    assert!(said(&world.steps)[3].starts_with(&format!("delete target group {before}:")));
    assert_eq!(world.of().balancers[0].listeners.as_ref().unwrap()[&80].arn, listener);
    world.assert_serves(&edited);
}

/// One TLS listener with these certificates.
fn secure(certificates: &[&str]) -> ServiceSpec {
    let mut spec = web();
    let port = spec.ports.get_mut(&80).unwrap();
    let certificates = certificates.iter().map(|arn| (*arn).to_owned()).collect();
    port.protocol = Protocol::Tls;
    port.tls = Some(Tls { certificates, policy: "policy".into(), alpn: None });
    spec
}

#[test]
fn certificates_are_added_before_others_are_removed() {
    let mut world = settled(&secure(&["a", "b"]));
    world.settle(Some(&secure(&["a", "c"])));
    assert_eq!(kinds(&world.steps), ["add certificate", "remove certificate"]);
}

#[test]
fn more_certificates_than_fit_side_by_side_are_removed_first() {
    let names: Vec<_> = (0..=50).map(|number| format!("c{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut world = settled(&secure(&names[..=25]));
    world.settle(Some(&secure(&[&names[..1], &names[26..]].concat())));
    let mut kinds = kinds(&world.steps);
    kinds.dedup();
    assert_eq!(kinds, ["remove certificate", "add certificate"]);
}

#[test]
fn the_default_certificate_is_in_the_list_where_there_are_others() {
    let mut world = settled(&secure(&["a", "b"]));
    world.assert_serves(&secure(&["a", "b"]));
    for (wanted, steps) in [
        (&["b", "a"][..], &["set listener"][..]),
        (&["c", "a"], &["add certificate", "set listener", "remove certificate"]),
        // It stays there when the others go: AWS removes no default certificate.
        (&["c"], &["remove certificate"]),
        (&["d"], &["set listener", "remove certificate"]),
        (&["d", "e"], &["add certificate", "add certificate"]),
    ] {
        world.steps.clear();
        world.settle(Some(&secure(wanted)));
        assert_eq!(kinds(&world.steps), steps, "{wanted:?}");
        world.assert_serves(&secure(wanted));
    }
    let added = said(&world.steps);
    assert!(added[0].starts_with("add certificate e to") && added[1].starts_with("add certificate d to"), "{added:?}");
}

#[test]
fn a_listener_that_was_tls_before_gets_all_its_certificates_again() {
    let mut world = settled(&secure(&["a", "b"]));
    world.settle(Some(&web()));
    world.settle(Some(&secure(&["a", "b"])));
    assert_eq!(kinds(&world.steps), ["set listener", "set listener", "add certificate", "add certificate"]);
    world.assert_serves(&secure(&["a", "b"]));
}

#[test]
fn labels_of_nodes_begin_and_end_with_another_target_group_and_change_in_place() {
    let labelled = |pool: &str| ServiceSpec { node_labels: [("pool".into(), pool.into())].into(), ..web() };
    let mut world = settled(&web());
    let name = |world: &World| world.of().target_groups[0].name.clone();
    let for_all = name(&world);
    world.settle(Some(&labelled("web")));
    world.assert_serves(&labelled("web"));
    // An Auto Scaling group that let go of the first one would deregister the nodes with the label too.
    let takes_over = ["create target", "set listener", "Release target", "delete target"];
    assert_eq!(kinds(&world.steps), takes_over);
    let by_label = name(&world);
    world.steps.clear();
    world.settle(Some(&labelled("batch")));
    world.assert_serves(&labelled("batch"));
    assert_eq!(said(&world.steps), [format!("take nodes with pool=batch for target group {by_label}")]);
    world.steps.clear();
    world.settle(Some(&web()));
    world.assert_serves(&web());
    assert_eq!(kinds(&world.steps), takes_over);
    assert_eq!(name(&world), for_all);
}

#[test]
fn a_new_process_knows_the_labels_before_it_serves() {
    let mut picky = web();
    picky.node_labels = [("pool".into(), "web".into())].into();
    let mut world = settled(&picky);
    world.restart();
    assert_eq!(kinds(&world.plan(Some(&picky)).unwrap().steps), ["take nodes", "Serve target"]);
}

#[test]
fn r37_policy_local_changes_the_health_check_in_place() {
    let mut world = settled(&web());
    let mut edited = web();
    edited.local_health_port = Some(31500);
    world.settle(Some(&edited));
    assert_eq!(kinds(&world.steps), ["check health"]);
}

#[test]
fn r33_a_new_scheme_is_served_before_the_old_load_balancer_goes() {
    let mut world = settled(&web());
    let old = world.of().balancers[0].name.clone();
    let mut edited = web();
    edited.scheme = Some(Scheme::Internal);
    world.settle(Some(&edited));
    let expected =
        ["create internal", "create target", "create listener", "delete load", "Release target", "delete target"];
    assert_eq!(kinds(&world.steps), expected);
    assert_eq!(world.steps[3], Step::DeleteBalancer { name: old, because: REPLACED });
    world.assert_serves(&edited);
}

#[test]
fn r33_a_replacement_without_targets_does_not_take_over() {
    let mut world = settled(&web());
    let mut edited = web();
    edited.scheme = Some(Scheme::Internal);
    for step in world.plan(Some(&edited)).unwrap().steps {
        world.take(&step);
    }
    for balancer in world.observed.balancers.values_mut() {
        balancer.state = BalancerState::Active;
    }
    let plan = world.plan(Some(&edited)).unwrap();
    assert_eq!(plan.steps, []);
    assert!(matches!(plan.waits.as_slice(), [Wait::Replacement { .. }]), "{:?}", plan.waits);
}

#[test]
fn the_ip_address_type_is_changed_in_place_both_ways() {
    let mut world = settled(&web());
    let name = world.of().balancers[0].name.clone();
    for address_type in [AddressType::Dualstack, AddressType::Ipv4] {
        let edited = ServiceSpec { address_type, ..web() };
        world.settle(Some(&edited));
        assert_eq!(said(&world.steps), [format!("set IP address type of load balancer {name} to {address_type}")]);
        world.assert_serves(&edited);
        world.steps.clear();
    }
}

#[test]
fn inbound_rules_and_capacity_are_set_once_the_load_balancer_is_there() {
    let access = AccessSpec { rules_on_private_link: false, ..AccessSpec::default() };
    let asked = ServiceSpec { access, capacity: 3000, ..web() };
    let mut world = World::new();
    for step in world.plan(Some(&asked)).unwrap().steps {
        world.take(&step);
    }
    let early = world.plan(Some(&asked)).unwrap();
    assert_eq!(kinds(&early.steps), ["set security"], "AWS reserves nothing before it is active");
    assert!(said(&early.steps)[0].ends_with(", not for PrivateLink"));
    world.steps.clear();
    world.settle(Some(&asked));
    assert_eq!(kinds(&world.steps), ["set security", "reserve 3000"]);
    world.steps.clear();
    world.settle(Some(&web()));
    assert_eq!(kinds(&world.steps), ["set security", "reserve 0"]);
}

#[test]
fn a_reservation_that_nobody_has_read_is_not_written() {
    let mut world = settled(&ServiceSpec { capacity: 3000, ..web() });
    world.restart();
    assert_eq!(kinds(&world.plan(Some(&web())).unwrap().steps), ["Serve target"]);
    world.settle(Some(&web()));
    assert_eq!(kinds(&world.steps), ["Serve target", "reserve 0"]);
}

#[test]
fn the_owners_security_groups_take_over_before_ours_goes_and_the_other_way_round() {
    let mut world = settled(&web());
    let own = AccessSpec { groups: vec!["mine".into()], ..AccessSpec::default() };
    let own = ServiceSpec { access: own, ..web() };
    world.settle(Some(&own));
    assert_eq!(kinds(&world.steps), ["set security", "delete security"]);
    world.assert_serves(&own);
    world.steps.clear();
    world.settle(Some(&web()));
    assert_eq!(kinds(&world.steps), ["create security", "allow in", "set security"]);
    world.assert_serves(&web());
}

#[test]
fn a_load_balancer_goes_before_the_one_that_takes_its_addresses() {
    let fixed = |scheme| ServiceSpec {
        scheme: Some(scheme),
        address_type: AddressType::Dualstack,
        addresses: addresses(Kind::Ipv6, AddressType::Dualstack, &["a", "b"]),
        ..web()
    };
    let mut world = settled(&fixed(Scheme::InternetFacing));
    world.settle(Some(&fixed(Scheme::Internal)));
    assert_eq!(kinds(&world.steps)[..2], ["delete load", "create internal"]);
    assert!(said(&world.steps)[0].ends_with("needs its addresses; expect an interruption"));
    world.assert_serves(&fixed(Scheme::Internal));
}

#[test]
fn dualstack_and_source_nat_come_in_one_call() {
    let mut world = settled(&spec(&[(53, Protocol::Udp, 30053)]));
    let source_nat = AddressSpec { source_nat: true, ..AddressSpec::default() };
    let edited = ServiceSpec {
        address_type: AddressType::Dualstack,
        addresses: source_nat,
        ..spec(&[(53, Protocol::Udp, 30053)])
    };
    world.settle(Some(&edited));
    let [step] = world.steps.as_slice() else { panic!("{:?}", world.steps) };
    assert!(step.to_string().ends_with("subnet-b (zb), dualstack, source NAT by prefix on"), "{step}");
}

#[test]
fn r35_the_subnet_of_an_enabled_zone_is_swapped_in_two_calls() {
    let mut world = settled(&web());
    let mut edited = web();
    edited.subnets = vec!["subnet-a2".into(), "subnet-b".into()];
    world.settle(Some(&edited));
    let names: Vec<_> = world.of().balancers.iter().map(|balancer| balancer.name.clone()).collect();
    let expected = [
        format!("set subnets of load balancer {} to subnet-b (zb)", names[0]),
        format!("set subnets of load balancer {} to subnet-a2 (za), subnet-b (zb)", names[0]),
    ];
    assert_eq!(said(&world.steps), expected);
}

#[test]
fn r29_a_swapped_source_range_touches_those_two_rules_only() {
    let mut before = web();
    before.source_ranges = ["10.0.0.0/8".parse().unwrap(), "192.168.0.0/16".parse().unwrap()].into();
    let mut world = settled(&before);
    let mut edited = before.clone();
    edited.source_ranges = ["10.0.0.0/8".parse().unwrap(), "172.16.0.0/12".parse().unwrap()].into();
    world.settle(Some(&edited));
    let sentences = said(&world.steps);
    assert_eq!(sentences.len(), 2, "{sentences:?}");
    assert!(sentences[0].ends_with(": tcp 80 from 172.16.0.0/12"), "{sentences:?}");
    assert!(sentences[1].ends_with(": tcp 80 from 192.168.0.0/16"), "{sentences:?}");
}

#[test]
fn a_removed_port_loses_its_listener_before_its_target_group() {
    let mut world = settled(&spec(&[(80, Protocol::Tcp, 30080), (443, Protocol::Tcp, 30443)]));
    world.settle(Some(&web()));
    assert_eq!(kinds(&world.steps), ["no longer", "delete listener", "Release target", "delete target"]);
}

#[test]
fn a_listener_that_somebody_pointed_elsewhere_comes_back_at_once() {
    let mut world = settled(&web());
    let name = world.of().balancers[0].name.clone();
    let balancer = world.observed.balancers.get_mut(&name).unwrap();
    balancer.listeners.as_mut().unwrap().get_mut(&80).unwrap().target_group = Some("arn:tg/foreign-0".into());
    world.settle(Some(&web()));
    assert_eq!(kinds(&world.steps), ["set listener"]);
    world.assert_serves(&web());
}

#[test]
fn a_listener_that_nobody_asked_for_goes() {
    let mut world = settled(&web());
    let name = world.of().balancers[0].name.clone();
    let stranger = listener("arn:l/x".into(), "TCP", None);
    let balancer = world.observed.balancers.get_mut(&name).unwrap();
    balancer.listeners.as_mut().unwrap().insert(9999, stranger);
    world.settle(Some(&web()));
    assert_eq!(said(&world.steps), [format!("delete listener 9999 on {name}: {NOT_ASKED_FOR}")]);
}

#[test]
fn r11_a_target_group_stays_while_an_auto_scaling_group_lists_it() {
    let mut world = settled(&web());
    let plan = world.plan(None).unwrap();
    assert_eq!(kinds(&plan.steps), ["delete load", "Release target"]);
    let [wait] = plan.waits.as_slice() else { panic!("{:?}", plan.waits) };
    assert!(wait.to_string().starts_with("waiting for Auto Scaling group burst, workers to let go of"), "{wait}");
    // One of the two has let go, and the other is at it.
    for step in &plan.steps {
        world.take(step);
    }
    let arn = world.of().target_groups[0].arn.clone();
    world.observed.asgs.get_mut(&"workers".into()).unwrap().sources.remove(&arn);
    world.observed.asgs.get_mut(&"burst".into()).unwrap().sources.insert(arn, SourceState::Removing);
    assert_eq!(world.plan(None).unwrap().steps, []);
    world.settle(None);
    assert!(world.of().is_empty());
}

#[test]
fn r11_what_the_older_calls_attached_holds_a_target_group_too() {
    let mut world = settled(&web());
    let arn = world.of().target_groups[0].arn.clone();
    let by_hand = Asg { legacy: [(arn, SourceState::Added)].into(), ..Asg::default() };
    world.observed.asgs.insert("by-hand".into(), by_hand);
    assert!(!world.drive(None, 20, usize::MAX));
    let plan = world.plan(None).unwrap();
    assert_eq!(plan.steps, []);
    let [Wait::Detaching { asgs, .. }] = plan.waits.as_slice() else { panic!("{:?}", plan.waits) };
    assert_eq!(*asgs, ["by-hand".into()]);
    world.observed.asgs.get_mut(&"by-hand".into()).unwrap().legacy.clear();
    world.settle(None);
    assert!(world.of().is_empty());
}

#[test]
fn deletion_protection_goes_first_where_the_owner_says_so_and_only_there() {
    let mut protected = web();
    protected.attributes = [(DELETION_PROTECTION.to_owned(), "true".to_owned())].into();
    let mut world = settled(&protected);
    assert_eq!(kinds(&teardown(&world.of(), false).steps)[0], "delete load");
    assert_eq!(kinds(&teardown(&world.of(), true).steps)[..2], ["set attributes", "delete load"]);
    world.restart();
    assert_eq!(kinds(&teardown(&world.of(), true).steps)[0], "set attributes", "it may be on");
    let open = settled(&web());
    assert_eq!(kinds(&teardown(&open.of(), true).steps)[0], "delete load");
}

#[test]
fn access_logs_are_set_apart_from_other_attributes() {
    let mut world = settled(&web());
    let mut edited = web();
    let asked = [("access_logs.s3.enabled", "true"), ("access_logs.s3.bucket", "logs"), (CROSS_ZONE, "true")];
    edited.attributes = asked.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    world.settle(Some(&edited));
    let sentences = said(&world.steps);
    assert_eq!(sentences.len(), 2, "{sentences:?}");
    assert!(sentences[0].ends_with(": load_balancing.cross_zone.enabled=true"), "{sentences:?}");
    assert!(sentences[1].ends_with(": access_logs.s3.bucket=logs, access_logs.s3.enabled=true"), "{sentences:?}");
}

#[test]
fn tags_of_listeners_follow_the_others() {
    let mut before = web();
    before.tags = Tags::from([("team".into(), "a".into())]);
    let mut world = settled(&before);
    world.settle(Some(&web()));
    let name = world.of().balancers[0].name.clone();
    assert!(said(&world.steps).contains(&format!("remove tags of listener 80 of {name}: team, weir.dev/managed-tags")));
    world.assert_serves(&web());
}

#[test]
fn r7_the_load_balancer_is_the_first_to_go() {
    let world = settled(&web());
    assert!(matches!(world.plan(None).unwrap().steps[0], Step::DeleteBalancer { .. }));
}

#[test]
fn r10_a_teardown_does_not_need_the_load_balancer() {
    let mut world = settled(&web());
    let name = world.of().balancers[0].name.clone();
    world.observed.balancers.remove(&name);
    world.settle(None);
    assert!(world.of().is_empty());
    assert_eq!(kinds(&world.steps), ["Release target", "delete target", "delete security"]);
}

#[test]
fn the_tags_of_others_stay() {
    let mut before = web();
    before.tags = Tags::from([("team".into(), "a".into())]);
    let mut world = settled(&before);
    let name = world.of().balancers[0].name.clone();
    world.observed.balancers.get_mut(&name).unwrap().tags.insert("audit".into(), "theirs".into());
    world.settle(Some(&web()));
    let tags = &world.observed.balancers[&name].tags;
    assert!(tags.contains_key("audit") && !tags.contains_key("team"), "{tags:?}");
}

fn any_port() -> impl Strategy<Value = Port> {
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::TcpUdp, Protocol::Tls]);
    let certificates = subsequence(vec!["cert-a", "cert-b", "cert-c"], 1..=3).prop_shuffle();
    let tls = (certificates, select(vec![None, Some("HTTP2Optional")]), any::<bool>());
    let attribute = |key: &'static str, values: [&'static str; 2]| {
        let chosen = prop::option::of(select(values.to_vec()));
        chosen.prop_map(move |value| value.map(|value| (key.to_owned(), value.to_owned())).into_iter().collect())
    };
    let attributes = (attribute(DELAY, ["30", "300"]), attribute(IDLE, ["60", "350"]));
    (select(vec![53u16, 80, 443]), protocol, 30080u16..30083, tls, attributes).prop_map(
        |(number, protocol, node_port, (certificates, alpn, backend), (attributes, listener_attributes))| {
            let is_tls = protocol == Protocol::Tls;
            let certificates = certificates.into_iter().map(Into::into).collect();
            let tls = Tls { certificates, policy: "policy".into(), alpn: alpn.map(Into::into) };
            let listener_attributes = if protocol == Protocol::Tcp { listener_attributes } else { Attributes::new() };
            Port {
                tls: is_tls.then_some(tls),
                target_protocol: if is_tls && !backend { Protocol::Tcp } else { protocol },
                attributes,
                listener_attributes,
                ..Port::new(number, protocol, node_port)
            }
        },
    )
}

pub(crate) fn any_spec() -> impl Strategy<Value = ServiceSpec> {
    let ports = prop::collection::vec(any_port(), 1..4);
    let scheme = select(vec![None, None, Some(Scheme::Internal), Some(Scheme::InternetFacing)]);
    let tags = select(vec![vec![], vec![("team", "a")], vec![("team", "b"), ("cost center", "7")]]);
    let ranges = subsequence(vec!["0.0.0.0/0", "10.0.0.0/8", "192.168.0.0/16"], 1..=3);
    let subnets = select(vec![vec![], vec!["subnet-a", "subnet-b"], vec!["subnet-a2", "subnet-b"], vec!["subnet-b"]]);
    let name = select(vec![None, None, None, Some("fancy")]);
    let health = (select(vec![None, Some(31500u16)]), select(vec![None, Some(5), Some(30)]), any::<bool>());
    let cross_zone = select(vec![None, Some("true"), Some("false")]);
    let nodes = select(vec![vec![], vec![], vec![("pool", "web")], vec![("pool", "batch"), ("spot", "")]]);
    let family = select(vec![Family::Ipv4, Family::Ipv6]);
    let plain = (ports, scheme, tags, ranges, subnets, name, health, (cross_zone, nodes, family)).prop_map(
        |(ports, scheme, tags, ranges, subnets, name, (local, interval, tcp), (cross_zone, nodes, family))| {
            ServiceSpec {
                scheme,
                family,
                name: name.map(Into::into),
                subnets: subnets.into_iter().map(Into::into).collect(),
                tags: tags.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
                source_ranges: ranges.into_iter().map(|range| range.parse().unwrap()).collect(),
                ports: ports.into_iter().map(|port| (port.port, port)).collect(),
                local_health_port: local,
                health: HealthCheckSpec {
                    interval,
                    protocol: tcp.then_some(HealthProtocol::Tcp),
                    ..HealthCheckSpec::default()
                },
                attributes: cross_zone.map(|value| (CROSS_ZONE.into(), value.into())).into_iter().collect(),
                node_labels: nodes.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
                ..spec(&[])
            }
        },
    );
    (plain, any_access(), any_addresses(), select(vec![0, 0, 2750, 3000])).prop_map(
        |(plain, access, (address_type, source_nat, kind), capacity)| {
            let udp = plain.ports.values().any(|port| is_udp(port.protocol));
            let source_nat =
                address_type == AddressType::Dualstack && (udp || source_nat || matches!(kind, Kind::Prefix));
            let subnets = if plain.subnets.is_empty() { vec!["a", "b"] } else { short(&plain.subnets) };
            let addresses = AddressSpec { source_nat, ..addresses(kind, address_type, &subnets) };
            let is_v4 = address_type == AddressType::Ipv4;
            let family = if is_v4 { Family::Ipv4 } else { plain.family };
            ServiceSpec { address_type, family, addresses, capacity, access, ..plain }
        },
    )
}

fn short(subnets: &[String]) -> Vec<&str> {
    subnets.iter().map(|id| id.trim_start_matches("subnet-")).collect()
}

/// What is asked for in each subnet.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Nothing,
    Elastic,
    Private,
    Ipv6,
    Prefix,
}

fn any_addresses() -> impl Strategy<Value = (AddressType, bool, Kind)> {
    let address_type = select(vec![AddressType::Ipv4, AddressType::Dualstack]);
    let kinds = vec![Kind::Nothing, Kind::Nothing, Kind::Elastic, Kind::Private, Kind::Ipv6, Kind::Prefix];
    (address_type, any::<bool>(), select(kinds))
}

fn addresses(kind: Kind, address_type: AddressType, subnets: &[&str]) -> AddressSpec {
    let number = |subnet: &&str| match *subnet {
        "a" => 1,
        "a2" => 2,
        _ => 3,
    };
    let each = |text: fn(i32) -> String| subnets.iter().map(move |subnet| text(number(subnet)));
    let none = AddressSpec::default();
    let is_v4 = address_type == AddressType::Ipv4;
    match kind {
        Kind::Nothing => none,
        Kind::Elastic => AddressSpec { allocations: each(|number| format!("eipalloc-{number}")).collect(), ..none },
        Kind::Private => {
            let private_ipv4 = each(|number| format!("10.0.{number}.9")).map(|text| text.parse().unwrap()).collect();
            AddressSpec { private_ipv4, ..none }
        }
        Kind::Ipv6 | Kind::Prefix if is_v4 => none,
        Kind::Ipv6 => {
            let ipv6 = each(|number| format!("2600:1f18:0:{number}::9")).map(|text| text.parse().unwrap()).collect();
            AddressSpec { ipv6, ..none }
        }
        Kind::Prefix => {
            let prefixes = each(|number| format!("2600:1f18:0:{number}:8000::/80")).map(|text| text.parse().unwrap());
            AddressSpec { source_nat_prefixes: prefixes.map(SourceNatPrefix::Chosen).collect(), ..none }
        }
    }
}

fn any_access() -> impl Strategy<Value = AccessSpec> {
    let groups = select(vec![vec![], vec![], vec!["mine"], vec!["sg-other", "mine"]]);
    let lists = subsequence(vec!["pl-4", "pl-6"], 0..=2);
    let manages_nodes = select(vec![None, None, Some(true), Some(false)]);
    (groups, lists, manages_nodes, any::<bool>(), any::<bool>()).prop_map(
        |(groups, lists, manages_nodes, rules_on_private_link, icmp)| AccessSpec {
            prefix_lists: lists.into_iter().map(Into::into).collect(),
            groups: groups.into_iter().map(Into::into).collect(),
            manages_nodes,
            rules_on_private_link,
            icmp,
        },
    )
}

/// What the Service's owner asks for one after the other, and the rounds that pass before the next thought.
fn any_history() -> impl Strategy<Value = Vec<(ServiceSpec, usize)>> {
    prop::collection::vec((any_spec(), 0usize..8), 1..5)
}

/// Lives through a history; returns the last thing asked for that was not refused.
fn live(world: &mut World, history: &[(ServiceSpec, usize)]) -> Option<ServiceSpec> {
    let mut last = None;
    for (spec, rounds) in history {
        if world.plan(Some(spec)).is_some() {
            world.drive(Some(spec), *rounds, usize::MAX);
            last = Some(spec.clone());
        }
    }
    last
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Every step on the way is checked by [`World::check`].
    #[test]
    fn any_history_of_edits_ends_in_what_was_asked_for_last_and_then_nothing_is_left_to_do(history in any_history()) {
        let mut world = World::new();
        let foreign = world.foreign();
        if let Some(last) = live(&mut world, &history) {
            world.settle(Some(&last));
            // A refusal on the way out (a name in use by what is being replaced) is the only other end.
            if let Some(plan) = world.plan(Some(&last)) {
                world.assert_serves(&last);
                prop_assert_eq!(plan, Plan::default());
            }
        }
        prop_assert_eq!(world.foreign(), foreign);
    }

    #[test]
    fn a_teardown_from_any_state_on_the_way_leaves_nothing_of_ours_and_all_of_theirs(
        history in any_history(),
        last in any_spec(),
        steps in 0usize..30,
    ) {
        let mut world = World::new();
        let foreign = world.foreign();
        live(&mut world, &history);
        world.drive(Some(&last), ROUNDS, steps);
        world.settle(None);
        prop_assert!(world.of().is_empty());
        prop_assert_eq!(world.plan(None), Some(Plan::default()));
        prop_assert_eq!(world.foreign(), foreign);
    }

    #[test]
    fn a_restart_after_any_step_ends_where_it_would_have_ended_without(
        first in any_spec(),
        second in any_spec(),
        steps in 0usize..30,
        again in 0usize..10,
    ) {
        let mut world = World::new();
        world.settle(Some(&first));
        if world.plan(Some(&second)).is_none() {
            return Ok(());
        }
        let mut straight = world.clone();
        straight.settle(Some(&second));
        for steps in [steps, again] {
            world.drive(Some(&second), ROUNDS, steps);
            world.restart();
        }
        world.settle(Some(&second));
        prop_assert_eq!(world.shape(), straight.shape());
    }

    #[test]
    fn a_teardown_that_was_interrupted_after_any_step_finishes(first in any_spec(), steps in 0usize..10) {
        let mut world = World::new();
        world.settle(Some(&first));
        world.drive(None, ROUNDS, steps);
        world.restart();
        world.settle(None);
        prop_assert!(world.of().is_empty());
    }

    #[test]
    fn a_settled_service_that_a_new_process_finds_costs_no_call(any in any_spec()) {
        let mut world = World::new();
        world.settle(Some(&any));
        world.steps.clear();
        world.restart();
        world.settle(Some(&any));
        prop_assert!(world.steps.iter().all(|step| matches!(step, Step::Intend { .. } | Step::Select { .. })), "{:?}", world.steps);
    }
}
