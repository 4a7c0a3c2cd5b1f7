//! What a Service should have, and the sentences that say why it cannot.

use jiff::Timestamp;

use super::*;
use crate::controller::facts::{NodeGroups, PrefixList, Subnet};
use crate::controller::observed::{BalancerState, SecurityGroup};
use crate::model::family::Family;
use crate::model::id::ServiceKey;
use crate::model::ownership::{cluster_tags, service_tags};
use crate::model::service::{AccessSpec, AddressSpec, Port, SourceNatPrefix};

const CLUSTER: &str = "demo";

fn policy() -> Policy {
    Policy {
        cluster: CLUSTER.into(),
        cluster_uid: "c-1".into(),
        default_scheme: Scheme::InternetFacing,
        node_ports: (30000, 32767),
        health_port: 10256,
    }
}

fn owner(name: &str, uid: &str) -> Owner {
    Owner { service: ServiceKey::new("shop", name), uid: uid.into() }
}

fn spec() -> ServiceSpec {
    ServiceSpec {
        owner: owner("order", "u-1"),
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
        ports: [(80, Port::new(80, Protocol::Tcp, 30080))].into(),
        local_health_port: None,
        health: HealthCheckSpec::default(),
        attributes: Attributes::new(),
        warnings: vec![],
        node_labels: Labels::new(),
    }
}

/// A VPC with one subnet in each of these zones, for load balancers of both schemes.
fn facts(zones: &[&str]) -> Facts {
    let subnets = zones.iter().map(|zone| {
        let roles = ["kubernetes.io/role/elb", "kubernetes.io/role/internal-elb"];
        let subnet = Subnet {
            zone: (*zone).into(),
            in_availability_zone: true,
            ranges: ["10.0.0.0/16".parse().unwrap(), "2600:1f18::/64".parse().unwrap()].into(),
            free_addresses: 100,
            is_public: true,
            tags: roles.iter().map(|role| ((*role).to_owned(), "1".to_owned())).collect(),
        };
        (format!("subnet-{zone}").into(), subnet)
    });
    Facts {
        vpc: "vpc-1".into(),
        subnets: subnets.collect(),
        node_groups: NodeGroups::default(),
        groups: BTreeMap::new(),
        prefix_lists: BTreeMap::new(),
    }
}

fn balancer(name: &str, scheme: Scheme, owner: &Owner, zones: &[&str]) -> Balancer {
    Balancer {
        arn: format!("arn:lb/{name}").into(),
        name: name.into(),
        dns_name: format!("{name}.elb"),
        scheme,
        address_type: AddressType::Ipv4,
        state: BalancerState::Active,
        subnets: zones.iter().map(|zone| ((*zone).into(), format!("subnet-{zone}").into())).collect(),
        source_nat: false,
        groups: BTreeSet::new(),
        rules_on_private_link: true,
        capacity: Some(0),
        tags: service_tags(CLUSTER, owner, Role::Balancer, &Tags::new()),
        listeners: Some(BTreeMap::new()),
        attributes: Some(Attributes::new()),
    }
}

fn observed(balancers: impl IntoIterator<Item = Balancer>) -> Observed {
    let balancers = balancers.into_iter().map(|balancer| (balancer.name.clone(), balancer)).collect();
    Observed { balancers, ..Observed::default() }
}

fn decide(spec: &ServiceSpec, observed: &Observed) -> Desired {
    desired(spec, &facts(&["za", "zb"]), &policy(), observed).unwrap()
}

/// The sentence of the one problem with a Service.
fn refusal(spec: &ServiceSpec, observed: &Observed) -> String {
    match desired(spec, &facts(&["za", "zb"]), &policy(), observed) {
        Err(Refusal::Service(problems)) => match problems.as_slice() {
            [problem] => problem.to_string(),
            _ => panic!("{problems:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn zones(desired: &Desired) -> Vec<&str> {
    desired.balancer.subnets.keys().map(Zone::as_str).collect()
}

fn named(name: &str) -> ServiceSpec {
    ServiceSpec { name: Some(name.into()), ..spec() }
}

#[test]
fn a_service_that_asks_for_no_scheme_gets_the_operators_default() {
    for default_scheme in [Scheme::Internal, Scheme::InternetFacing] {
        let policy = Policy { default_scheme, ..policy() };
        let desired = desired(&spec(), &facts(&["za"]), &policy, &Observed::default()).unwrap();
        assert_eq!(desired.balancer.scheme, default_scheme);
    }
}

#[test]
fn r33_a_scheme_that_is_no_longer_asked_for_stays() {
    let internal = decide(&ServiceSpec { scheme: Some(Scheme::Internal), ..spec() }, &Observed::default());
    let exists = observed([balancer(&internal.balancer.name, Scheme::Internal, &spec().owner, &["za", "zb"])]);
    let desired = decide(&spec(), &exists);
    assert_eq!(desired.balancer.scheme, Scheme::Internal, "not the default, which would replace it");
    assert_eq!(desired.balancer.name, internal.balancer.name);
}

#[test]
fn dualstack_needs_an_ipv6_range_in_every_subnet() {
    let dualstack = ServiceSpec { address_type: AddressType::Dualstack, ..spec() };
    assert_eq!(decide(&dualstack, &Observed::default()).balancer.address_type, AddressType::Dualstack);
    let mut facts = facts(&["za", "zb"]);
    facts.subnets.get_mut(&"subnet-zb".into()).unwrap().ranges = ["10.0.0.0/16".parse().unwrap()].into();
    let fresh = desired(&dualstack, &facts, &policy(), &Observed::default()).unwrap();
    assert_eq!(zones(&fresh), ["za"], "discovery leaves out what cannot be used");
    let before = decide(&spec(), &Observed::default());
    let exists = observed([balancer(&before.balancer.name, before.balancer.scheme, &spec().owner, &["za", "zb"])]);
    let Err(Refusal::Service(problems)) = desired(&dualstack, &facts, &policy(), &exists) else { panic!("accepted") };
    assert_eq!(
        problems[0].to_string(),
        "service.beta.kubernetes.io/aws-load-balancer-ip-address-type: \"dualstack\" cannot be had in subnet-zb, which \
         has no IPv6 range; expected ipv4, or subnets that all have an IPv6 CIDR block"
    );
}

/// Subnets that differ in their ranges, a security group, and prefix lists.
fn network() -> Facts {
    let mut facts = facts(&["za", "zb"]);
    for (number, subnet) in facts.subnets.values_mut().enumerate() {
        let ranges = [format!("10.0.{number}.0/24"), format!("2600:1f18:0:{number}::/64")];
        subnet.ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    }
    let twins = [("sg-1".into(), Some("web".into())), ("sg-2".into(), Some("twin".into()))];
    facts.groups = twins.into_iter().chain([("sg-3".into(), Some("twin".into()))]).collect();
    let list = |family, max_entries| PrefixList { family, max_entries };
    let lists = [("pl-4".into(), list(Family::Ipv4, 40)), ("pl-6".into(), list(Family::Ipv6, 20))];
    facts.prefix_lists = lists.into();
    facts
}

/// Sentences about a Service, without the beginning that all keys share.
fn problems(spec: &ServiceSpec, observed: &Observed) -> Vec<String> {
    let Err(Refusal::Service(problems)) = desired(spec, &network(), &policy(), observed) else { panic!("accepted") };
    let text = |problem: &Problem| problem.to_string().replace("service.beta.kubernetes.io/aws-load-balancer-", "");
    problems.iter().map(text).collect()
}

fn addressed(scheme: Scheme, addresses: AddressSpec) -> ServiceSpec {
    ServiceSpec { scheme: Some(scheme), address_type: AddressType::Dualstack, addresses, ..spec() }
}

fn elastic(ids: &[&str]) -> AddressSpec {
    AddressSpec { allocations: ids.iter().map(|id| (*id).to_owned()).collect(), ..AddressSpec::default() }
}

fn private(addresses: &[&str]) -> AddressSpec {
    let private_ipv4 = addresses.iter().map(|address| address.parse().unwrap()).collect();
    AddressSpec { private_ipv4, ..AddressSpec::default() }
}

#[test]
fn elastic_ips_follow_the_subnets_in_their_order() {
    let subnets = vec!["subnet-zb".into(), "subnet-za".into()];
    let asked = ServiceSpec { subnets, ..addressed(Scheme::InternetFacing, elastic(&["eipalloc-1", "eipalloc-2"])) };
    let balancer = desired(&asked, &network(), &policy(), &Observed::default()).unwrap().balancer;
    let chosen: Vec<_> = balancer.subnets.values().map(|zone| zone.allocation.as_deref().unwrap()).collect();
    assert_eq!(chosen, ["eipalloc-2", "eipalloc-1"], "za, then zb");
}

#[test]
fn other_addresses_find_their_subnets_by_their_ranges() {
    let asked = addressed(Scheme::Internal, private(&["10.0.1.9", "10.0.0.9"]));
    let balancer = desired(&asked, &network(), &policy(), &Observed::default()).unwrap().balancer;
    let chosen: Vec<_> = balancer.subnets.values().map(|zone| zone.private_ipv4.unwrap().to_string()).collect();
    assert_eq!(chosen, ["10.0.0.9", "10.0.1.9"]);
}

#[test]
fn addresses_that_fit_no_subnet() {
    let none = Observed::default();
    let refused = |scheme, addresses| problems(&addressed(scheme, addresses), &none);
    assert_eq!(
        refused(Scheme::InternetFacing, elastic(&["eipalloc-1"])),
        [
            "eip-allocations: \"eipalloc-1\" has 1 entry for 2 subnets; expected one for each of subnet-za,subnet-zb, in \
          this order"
        ]
    );
    assert_eq!(
        refused(Scheme::Internal, elastic(&["eipalloc-1", "eipalloc-2"])),
        [
            "eip-allocations: \"eipalloc-1,eipalloc-2\" can only be set for an internet-facing load balancer; expected no \
          such annotation, or internet-facing in scheme"
        ]
    );
    assert_eq!(
        refused(Scheme::InternetFacing, private(&["10.0.0.9", "10.0.1.9"])),
        [
            "private-ipv4-addresses: \"10.0.0.9,10.0.1.9\" can only be set for an internal load balancer; expected no such \
          annotation, or internal in scheme"
        ]
    );
    let expected = "expected one address in each of subnet-za,subnet-zb";
    for (addresses, wrong) in [
        (["10.0.0.9", "10.9.0.9"], "has 10.9.0.9, which is in none of the load balancer's subnets"),
        (["10.0.0.9", "10.0.0.10"], "has 10.0.0.9,10.0.0.10 in subnet-za"),
    ] {
        let value = addresses.join(",");
        let sentence = format!("private-ipv4-addresses: {value:?} {wrong}; {expected}");
        assert_eq!(refused(Scheme::Internal, private(&addresses)), [sentence]);
    }
    assert_eq!(
        refused(Scheme::Internal, private(&["10.0.1.9"])),
        [format!("private-ipv4-addresses: \"10.0.1.9\" has no address in subnet-za; {expected}")]
    );
    let ipv6 = AddressSpec { ipv6: vec!["2600:1f18:0:1::9".parse().unwrap()], ..AddressSpec::default() };
    assert_eq!(
        refused(Scheme::Internal, ipv6),
        [format!("ipv6-addresses: \"2600:1f18:0:1::9\" has no address in subnet-za; {expected}")]
    );
    let outside = SourceNatPrefix::Chosen("2600:1f18:0:7::/80".parse().unwrap());
    let source_nat_prefixes = vec![SourceNatPrefix::Auto, outside];
    assert_eq!(
        refused(Scheme::Internal, AddressSpec { source_nat: true, source_nat_prefixes, ..AddressSpec::default() }),
        [
            "source-nat-ipv6-prefixes: \"auto_assigned,2600:1f18:0:7::/80\" has 2600:1f18:0:7::/80, which is not inside the \
          IPv6 range of subnet-zb; expected auto_assigned, or a prefix of that range"
        ]
    );
}

#[test]
fn an_address_cannot_be_changed_where_the_subnet_stays() {
    let before = addressed(Scheme::InternetFacing, elastic(&["eipalloc-1", "eipalloc-2"]));
    let desired = desired(&before, &network(), &policy(), &Observed::default()).unwrap();
    let scheme = Scheme::InternetFacing;
    let mut exists = balancer(&desired.balancer.name, scheme, &before.owner, &["za", "zb"]);
    exists.subnets = desired.balancer.subnets;
    let exists = observed([exists]);
    let expected = "expected what it has, another subnet for that zone, or a new Service";
    assert_eq!(
        problems(&addressed(scheme, elastic(&["eipalloc-1", "eipalloc-3"])), &exists),
        [format!(
            "eip-allocations: \"eipalloc-3\" cannot be given to the load balancer, which has eipalloc-2 in subnet-zb; \
             {expected}"
        )]
    );
    let taken = problems(&addressed(scheme, AddressSpec::default()), &exists);
    assert_eq!(
        taken[0],
        format!(
            "eip-allocations: \"\" cannot be taken from the load balancer, which has eipalloc-1 in subnet-za; {expected}"
        )
    );
    let plain = observed([balancer(&desired.balancer.name, scheme, &before.owner, &["za", "zb"])]);
    assert!(problems(&before, &plain)[0].contains("which has one of AWS's choice in subnet-za"));
}

#[test]
fn no_zone_is_added_where_addresses_are_listed_for_those_there_are() {
    let before =
        ServiceSpec { subnets: vec!["subnet-za".into()], ..addressed(Scheme::Internal, private(&["10.0.0.9"])) };
    let desired = desired(&before, &network(), &policy(), &Observed::default()).unwrap();
    let mut exists = balancer(&desired.balancer.name, Scheme::Internal, &before.owner, &[]);
    exists.subnets = desired.balancer.subnets;
    let discovered = addressed(Scheme::Internal, private(&["10.0.0.9"]));
    let after = super::desired(&discovered, &network(), &policy(), &observed([exists])).unwrap();
    assert_eq!(zones(&after), ["za"]);
}

fn open_to(access: AccessSpec) -> ServiceSpec {
    ServiceSpec { access, ..spec() }
}

#[test]
fn groups_of_the_owners_take_the_place_of_ours() {
    let groups = vec!["web".into(), "sg-1".into(), "sg-3".into()];
    let own = AccessSpec { groups, ..AccessSpec::default() };
    let alone = desired(&open_to(own.clone()), &network(), &policy(), &Observed::default()).unwrap();
    assert_eq!(alone.frontend, None);
    let theirs = [Carried::Theirs("sg-1".into()), Carried::Theirs("sg-3".into())];
    assert_eq!(alone.balancer.groups, theirs);
    let managed = AccessSpec { manages_nodes: Some(true), ..own };
    let managed = desired(&open_to(managed), &network(), &policy(), &Observed::default()).unwrap();
    assert_eq!(managed.balancer.groups[2], Carried::Ours(name::backend_group(CLUSTER)));
}

#[test]
fn what_a_service_names_and_nobody_has() {
    let none = Observed::default();
    let groups = |name: &str| open_to(AccessSpec { groups: vec![name.into()], ..AccessSpec::default() });
    let expected = "expected ids or Name tags of security groups of vpc-1";
    assert_eq!(
        problems(&groups("db"), &none),
        [format!("security-groups: \"db\" has db, which does not exist; {expected}")]
    );
    assert_eq!(
        problems(&groups("twin"), &none),
        [format!("security-groups: \"twin\" has \"twin\", which is the Name of sg-2 and sg-3; {expected}")]
    );
    let list = open_to(AccessSpec { prefix_lists: vec!["pl-9".into()], ..AccessSpec::default() });
    assert_eq!(
        problems(&list, &none),
        [
            "security-group-prefix-lists: \"pl-9\" has pl-9, which does not exist; expected prefix lists of this account \
          and Region"
        ]
    );
}

#[test]
fn r29_a_prefix_list_counts_as_many_rules_as_it_may_have_entries() {
    let lists = |ids: &[&str]| AccessSpec {
        prefix_lists: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..AccessSpec::default()
    };
    let with = |access, ports: &[u16]| {
        let ports = ports.iter().map(|port| (*port, Port::new(*port, Protocol::Tcp, 30080)));
        ServiceSpec { ports: ports.collect(), ..open_to(access) }
    };
    let fits = with(lists(&["pl-4", "pl-6"]), &[80]);
    let rules = desired(&fits, &network(), &policy(), &Observed::default()).unwrap().frontend.unwrap().rules;
    assert_eq!(rules.len(), 3, "the families count apart: 41 and 20");
    assert_eq!(
        problems(&with(lists(&["pl-4"]), &[80, 443]), &Observed::default()),
        ["security-group-prefix-lists: \"pl-4\" needs 82 inbound rules in a security group, which counts pl-4 as \
         40; expected at most 60; take smaller lists or split the Service"]
    );
}

#[test]
fn icmp_is_let_in_once_for_each_source() {
    let access = AccessSpec { icmp: true, prefix_lists: vec!["pl-6".into()], ..AccessSpec::default() };
    let desired = desired(&open_to(access), &network(), &policy(), &Observed::default()).unwrap();
    let rules: Vec<_> = desired.frontend.unwrap().rules.iter().map(ToString::to_string).collect();
    let expected = ["icmp 3-4 from 0.0.0.0/0", "icmpv6 2-0 from pl-6", "tcp 80 from 0.0.0.0/0", "tcp 80 from pl-6"];
    assert_eq!(rules, expected);
}

#[test]
fn zones_with_nodes_and_without_subnet_are_found_unless_traffic_crosses_zones() {
    let worker = |zone: &str, labels: &[(&str, &str)]| {
        let mut all: Labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        all.insert(ZONE_LABEL.into(), zone.into());
        Worker::read(zone, &all, Some("aws:///za/i-1")).unwrap()
    };
    let excluded = ("node.kubernetes.io/exclude-from-external-load-balancers", "");
    let workers = [worker("za", &[]), worker("zc", &[]), worker("zd", &[("pool", "web")]), worker("ze", &[excluded])];
    let missing = |spec: &ServiceSpec| {
        let desired = decide(spec, &Observed::default());
        missing_zones(workers.iter(), spec, &desired).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(missing(&spec()), ["zc", "zd"]);
    assert_eq!(missing(&ServiceSpec { node_labels: [("pool".into(), "web".into())].into(), ..spec() }), ["zd"]);
    let on: Attributes = [("load_balancing.cross_zone.enabled".to_owned(), "true".to_owned())].into();
    assert_eq!(missing(&ServiceSpec { attributes: on.clone(), ..spec() }), Vec::<String>::new());
    let mut by_port = spec();
    by_port.ports.get_mut(&80).unwrap().attributes = on;
    assert_eq!(missing(&by_port), Vec::<String>::new());
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let access = AccessSpec { groups: vec!["db".into()], ..AccessSpec::default() };
    let both = ServiceSpec { access, ..addressed(Scheme::Internal, private(&["10.9.0.9"])) };
    assert_eq!(problems(&both, &Observed::default()).len(), 2);
}

#[test]
fn a_change_of_scheme_asks_for_another_load_balancer() {
    let before = decide(&spec(), &Observed::default());
    let exists = observed([balancer(&before.balancer.name, before.balancer.scheme, &spec().owner, &["za", "zb"])]);
    let after = decide(&ServiceSpec { scheme: Some(Scheme::Internal), ..spec() }, &exists);
    assert_ne!(after.balancer.name, before.balancer.name);
    let group = |desired: &Desired| desired.target_groups[&80].name.clone();
    assert_ne!(group(&after), group(&before), "a target group serves one load balancer only");
    assert_eq!(after.frontend, before.frontend, "a security group can be carried by both");
}

#[test]
fn a_name_that_a_strangers_load_balancer_holds_is_refused() {
    let mut taken = Observed::default();
    taken.foreign_balancers.insert("fancy".into(), "arn:lb/theirs".into());
    assert_eq!(
        refusal(&named("fancy"), &taken),
        "service.beta.kubernetes.io/aws-load-balancer-name: \"fancy\" is already the name of load balancer \
         arn:lb/theirs, which this Service does not own; expected a name that is free in the account and Region"
    );
}

#[test]
fn a_name_that_another_services_load_balancer_holds_is_refused() {
    let taken = observed([balancer("fancy", Scheme::InternetFacing, &owner("cart", "u-2"), &["za"])]);
    assert_eq!(
        refusal(&named("fancy"), &taken),
        "service.beta.kubernetes.io/aws-load-balancer-name: \"fancy\" is already the name of the load balancer of \
         Service shop/cart; expected another name"
    );
}

#[test]
fn a_name_that_the_services_own_predecessor_holds_is_refused() {
    let taken = observed([balancer("fancy", Scheme::InternetFacing, &owner("order", "u-0"), &["za"])]);
    assert!(refusal(&named("fancy"), &taken).contains("already the name of the load balancer of Service shop/order"));
}

#[test]
fn a_rename_is_refused_and_builds_no_second_load_balancer() {
    let exists = observed([balancer("first", Scheme::InternetFacing, &spec().owner, &["za", "zb"])]);
    assert_eq!(
        refusal(&named("second"), &exists),
        "service.beta.kubernetes.io/aws-load-balancer-name: \"second\" cannot be given to the load balancer, which \
         exists as \"first\"; expected the existing name, or a new Service"
    );
    assert_eq!(decide(&spec(), &exists).balancer.name, "first", "an annotation taken away renames nothing");
}

#[test]
fn a_name_given_by_hand_cannot_be_kept_over_a_change_of_scheme() {
    let exists = observed([balancer("fancy", Scheme::InternetFacing, &spec().owner, &["za", "zb"])]);
    let edited = ServiceSpec { scheme: Some(Scheme::Internal), ..named("fancy") };
    assert!(refusal(&edited, &exists).contains(
        "\"fancy\" is the name of this Service's internet-facing load balancer, which another one must replace"
    ));
}

#[test]
fn r39_a_new_zone_joins() {
    let exists = observed([balancer("lb", Scheme::InternetFacing, &spec().owner, &["za"])]);
    assert_eq!(zones(&decide(&spec(), &exists)), ["za", "zb"]);
}

#[test]
fn discovery_never_takes_a_zone_away() {
    let exists = observed([balancer("lb", Scheme::InternetFacing, &spec().owner, &["za", "zb"])]);
    let mut facts = facts(&["za", "zb"]);
    let full = facts.subnets.get_mut(&"subnet-zb".into()).unwrap();
    full.free_addresses = 0;
    full.tags.clear();
    let desired = desired(&spec(), &facts, &policy(), &exists).unwrap();
    assert_eq!(zones(&desired), ["za", "zb"]);
}

#[test]
fn a_load_balancer_keeps_its_zones_where_discovery_finds_none() {
    let exists = observed([balancer("lb", Scheme::InternetFacing, &spec().owner, &["za"])]);
    let mut facts = facts(&["za"]);
    facts.subnets.get_mut(&"subnet-za".into()).unwrap().free_addresses = 0;
    assert_eq!(zones(&desired(&spec(), &facts, &policy(), &exists).unwrap()), ["za"]);
}

#[test]
fn r40_no_usable_subnet_is_the_networks_fault_and_names_each() {
    let mut facts = facts(&["za"]);
    facts.subnets.get_mut(&"subnet-za".into()).unwrap().free_addresses = 0;
    let Err(Refusal::Network(sentence)) = desired(&spec(), &facts, &policy(), &Observed::default()) else {
        panic!("accepted")
    };
    assert!(sentence.contains("subnet-za (za) has 0 free addresses, 8 needed"), "{sentence}");
}

#[test]
fn r35_a_swap_of_every_subnet_at_once_is_refused() {
    let mut facts = facts(&["za", "zb"]);
    let other = facts.subnets[&"subnet-za".into()].clone();
    facts.subnets.insert("subnet-other".into(), other);
    let edited = ServiceSpec { subnets: vec!["subnet-other".into()], ..spec() };

    let one_zone = observed([balancer("lb", Scheme::InternetFacing, &spec().owner, &["za"])]);
    let Err(Refusal::Service(problems)) = desired(&edited, &facts, &policy(), &one_zone) else { panic!("accepted") };
    assert!(problems[0].wrong.starts_with("replaces the subnet of every zone at once"), "{}", problems[0]);

    let edited = ServiceSpec { subnets: vec!["subnet-other".into(), "subnet-zb".into()], ..spec() };
    let two_zones = observed([balancer("lb", Scheme::InternetFacing, &spec().owner, &["za", "zb"])]);
    let swapped = desired(&edited, &facts, &policy(), &two_zones).unwrap();
    assert_eq!(swapped.balancer.subnets[&"za".into()], "subnet-other".into());
}

#[test]
fn r42_health_checks_ask_the_node_whatever_the_protocol() {
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::TcpUdp] {
        let ports = [(514, Port::new(514, protocol, 30514))].into();
        let desired = decide(&ServiceSpec { ports, ..spec() }, &Observed::default());
        let health = &desired.target_groups[&514].health;
        assert_eq!((health.protocol.as_str(), health.port.as_str()), ("HTTP", "10256"));
        assert_eq!(health.path.as_deref(), Some("/healthz"));
    }
}

#[test]
fn a_health_check_asks_the_node_unless_its_owner_means_another_server() {
    use HealthPort::{Number, Traffic};
    use HealthProtocol::{Http, Tcp};
    let asked = |health: HealthCheckSpec| {
        let desired = decide(&ServiceSpec { health, ..spec() }, &Observed::default());
        let check = desired.target_groups[&80].health.clone();
        (check.protocol, check.port, check.path.unwrap_or_default())
    };
    let none = HealthCheckSpec::default;
    let path = || Some("/ready".to_owned());
    for (health, wanted) in [
        (none(), ("HTTP", "10256", "/healthz")),
        (HealthCheckSpec { port: Some(Number(10256)), ..none() }, ("HTTP", "10256", "/healthz")),
        (HealthCheckSpec { port: Some(Number(8081)), ..none() }, ("TCP", "8081", "")),
        (HealthCheckSpec { port: Some(Traffic), ..none() }, ("TCP", "traffic-port", "")),
        (HealthCheckSpec { protocol: Some(Http), ..none() }, ("HTTP", "traffic-port", "/")),
        (HealthCheckSpec { protocol: Some(Http), port: Some(Number(8081)), ..none() }, ("HTTP", "8081", "/")),
        (HealthCheckSpec { protocol: Some(Tcp), ..none() }, ("TCP", "traffic-port", "")),
        (HealthCheckSpec { path: path(), ..none() }, ("HTTP", "traffic-port", "/ready")),
        (HealthCheckSpec { path: path(), port: Some(Number(8081)), ..none() }, ("HTTP", "8081", "/ready")),
    ] {
        let (protocol, port, path) = asked(health);
        assert_eq!((protocol.as_str(), port.as_str(), path.as_str()), wanted);
    }
}

#[test]
fn r37_policy_local_asks_the_services_own_health_port() {
    let local = decide(&ServiceSpec { local_health_port: Some(31500), ..spec() }, &Observed::default());
    let cluster = decide(&spec(), &Observed::default());
    assert_eq!(local.target_groups[&80].health.port, "31500");
    assert_eq!(local.target_groups[&80].name, cluster.target_groups[&80].name, "a change in place");
}

#[test]
fn the_first_family_makes_another_target_group() {
    let exists = Observed::default();
    let dual = ServiceSpec { address_type: AddressType::Dualstack, ..spec() };
    let v6 = decide(&ServiceSpec { family: Family::Ipv6, ..dual.clone() }, &exists);
    assert_eq!(v6.target_groups[&80].family, Family::Ipv6);
    assert_ne!(v6.target_groups[&80].name, decide(&dual, &exists).target_groups[&80].name);
}

#[test]
fn node_labels_make_another_target_group_and_other_labels_do_not() {
    let group = |node_labels: Labels| {
        let decided = decide(&ServiceSpec { node_labels: node_labels.clone(), ..spec() }, &Observed::default());
        assert_eq!(decided.target_groups[&80].nodes, node_labels);
        decided.target_groups[&80].name.clone()
    };
    let labelled = |pool: &str| group([("pool".into(), pool.into())].into());
    assert_ne!(labelled("web"), group(Labels::new()));
    assert_eq!(labelled("web"), labelled("batch"));
}

#[test]
fn r41_both_protocols_on_one_port_are_one_target_group_and_two_rules_for_each_range() {
    let ports = [(53, Port::new(53, Protocol::TcpUdp, 30053))].into();
    let source_ranges = ["10.0.0.0/8".parse().unwrap(), "192.168.0.0/16".parse().unwrap()].into();
    let desired = decide(&ServiceSpec { source_ranges, ports, ..spec() }, &Observed::default());
    assert_eq!(desired.target_groups.len(), 1);
    let rules: Vec<_> = desired.frontend.unwrap().rules.iter().map(ToString::to_string).collect();
    let expected = ["tcp 53 from 10.0.0.0/8", "tcp 53 from 192.168.0.0/16"];
    assert_eq!(rules[..2], expected);
    assert_eq!(rules[2..], expected.map(|rule| rule.replace("tcp", "udp")));
}

#[test]
fn only_security_groups_that_exist_have_ids() {
    let mut observed = Observed::default();
    let backend = name::backend_group(CLUSTER);
    let tags = cluster_tags(CLUSTER, Role::BackendGroup);
    let group = SecurityGroup { id: "sg-b".into(), name: backend.clone(), rules: BTreeSet::new(), tags };
    observed.groups.insert(backend.clone(), group);
    let desired = decide(&spec(), &observed);
    let frontend = desired.frontend.unwrap().name;
    assert_eq!(desired.balancer.groups, [Carried::Ours(frontend), Carried::Ours(backend)]);
    assert_eq!(desired.balancer.group_ids, ["sg-b".into()].into());
}

#[test]
fn nodes_admit_load_balancers_by_a_constant_handful_of_rules() {
    let rules: Vec<_> = node_rules(&policy(), &"sg-b".into()).iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["tcp 10256 from sg-b", "tcp 30000-32767 from sg-b", "udp 30000-32767 from sg-b"]);
    // A Service's health check port is a NodePort; so may the nodes' own be.
    let inside = Policy { health_port: 30256, ..policy() };
    assert_eq!(node_rules(&inside, &"sg-b".into()).len(), 2);
}
