//! What is told of a change, and that what is rehearsed comes to its end.

use proptest::prelude::*;

use super::*;
use crate::controller::observed::Asg;
use crate::controller::plan::tests::{CLUSTER, UID, any_spec, facts, owner, policy, spec, web};
use crate::model::id::ServiceKey;
use crate::model::name;
use crate::model::node::{Origin, Worker};
use crate::model::ownership::Tags;
use crate::model::service::Scheme;

const INSTANCE: &str = "i-1";
/// In no Auto Scaling group.
const LONER: &str = "i-2";

/// A cluster of two nodes, of which one is in an Auto Scaling group, without any Service.
fn cluster() -> State {
    let mut state = State::default();
    let mut facts = facts();
    facts.node_groups.chosen.insert("sg-nodes".into());
    state.facts = Some(facts);
    let tags = Tags::from([(format!("kubernetes.io/cluster/{CLUSTER}"), "owned".into())]);
    let asg = Asg { tags, instances: [INSTANCE.into()].into(), ..Asg::default() };
    state.observed.asgs.insert("workers".into(), asg);
    for (instance, asg) in [(INSTANCE, Some("workers".into())), (LONER, None)] {
        let id = InstanceId::from(instance);
        let worker = Worker {
            name: instance.into(),
            instance: Ok(id.clone()),
            eligible: true,
            labels: Labels::new(),
            origin: Origin::Unknown,
        };
        state.workers.insert(instance.into(), worker);
        state.membership.insert(id, asg);
    }
    state
}

fn play(state: &mut State, wishes: &[Wish]) -> Rehearsal {
    let needs_shared = wishes.iter().any(|wish| !matches!(wish, Wish::Release { .. }));
    rehearse(state, &Script { policy: &policy(), wishes, needs_shared, now: Instant::now() })
}

fn serve(spec: &ServiceSpec) -> Wish {
    Wish::Serve(Box::new(spec.clone()))
}

/// What another process reads of this account.
fn read_anew(state: &State) -> State {
    let mut fresh = cluster();
    fresh.observed = state.observed.clone();
    for group in fresh.observed.target_groups.values_mut() {
        (group.intent, group.served, group.nodes) = (Intent::Undecided, false, Labels::new());
    }
    for (arn, targets) in &state.targets {
        let holders = state.observed.asgs.values().filter(|asg| asg.sources.contains_key(arn));
        let attached: BTreeSet<_> = holders.flat_map(|asg| asg.instances.clone()).collect();
        let listed = attached.difference(&targets.expelled).chain(&targets.direct).cloned().collect();
        fresh.record_targets(CLUSTER, arn, &listed, true);
    }
    fresh
}

fn settled(spec: &ServiceSpec) -> State {
    let mut state = cluster();
    assert!(play(&mut state, &[serve(spec)]).settled);
    read_anew(&state)
}

/// Sign and words of each act, without the names' hashes.
fn told(acts: &[Act]) -> Vec<String> {
    let prefix = name::cluster_prefix(CLUSTER);
    let plain = |word: &str| {
        let bare = word.trim_matches(|letter| "(),;:".contains(letter));
        match bare.strip_prefix(&prefix).and_then(|rest| rest.rsplit_once('-')) {
            Some((readable, _)) => word.replace(bare, readable),
            None => word.to_owned(),
        }
    };
    let say = |act: &Act| act.to_string().split(' ').map(plain).collect::<Vec<_>>().join(" ");
    acts.iter().map(|act| format!("{:?}: {}", act.kind(), say(act))).collect()
}

fn one(state: &mut State, wish: Wish) -> (Fate, Vec<String>) {
    let rehearsal = play(state, &[wish]);
    assert!(rehearsal.settled && rehearsal.unread.is_empty() && rehearsal.unresolved.is_empty());
    (rehearsal.parts[0].fate(), told(&rehearsal.parts[0].acts))
}

#[test]
fn a_first_service_is_told_from_its_security_group_to_its_targets() {
    let mut state = cluster();
    let rehearsal = play(&mut state, &[serve(&web())]);
    assert_eq!(rehearsal.parts[0].fate(), Fate::Create);
    assert_eq!(
        told(&rehearsal.parts[0].acts),
        [
            "Create: create security group order",
            "Change: allow in security group order: tcp 80 from 0.0.0.0/0",
            "Create: create internet-facing load balancer order in subnet-a (za), subnet-b (zb)",
            "Create: create target group order-80 for TCP 30080",
            "Create: create listener TCP 80 on order to order-80",
            "Create: register in target group order-80: i-2",
            "Create: attach target group order-80 to Auto Scaling group workers",
        ]
    );
    let shared = told(&rehearsal.shared);
    assert_eq!(shared[0], "Create: create security group backend");
    let rules = "tcp 10256 from backend, tcp 30000-32767 from backend, udp 30000-32767 from backend";
    assert_eq!(shared[1..], [format!("Change: allow in node group sg-nodes: {rules}")]);
}

#[test]
fn another_node_port_is_told_to_the_end_with_its_reason() {
    let edited = spec(&[(80, Protocol::Tcp, 30081)]);
    let (fate, acts) = one(&mut settled(&web()), serve(&edited));
    assert_eq!(fate, Fate::Change);
    assert_eq!(
        acts,
        [
            "Create: create target group order-80 for TCP 30081 in place of order-80 (NodePort: 30080 → 30081)",
            "Create: register in target group order-80: i-2",
            "Create: attach target group order-80 to Auto Scaling group workers",
            "Wait: waiting for target group order-80 to get its targets",
            "Change: set listener 80 on order to TCP for order-80 (target group: order-80 → order-80)",
            "Delete: detach target group order-80 from Auto Scaling group workers",
            "Wait: waiting for Auto Scaling group workers to let go of target group order-80",
            "Delete: delete target group order-80: the Service does not ask for it",
        ]
    );
}

#[test]
fn another_scheme_replaces_the_load_balancer() {
    let edited = ServiceSpec { scheme: Some(Scheme::Internal), ..web() };
    let (fate, acts) = one(&mut settled(&web()), serve(&edited));
    assert_eq!(fate, Fate::Replace);
    let replaced = "in place of order (scheme: internet-facing → internal)";
    assert!(acts[0].ends_with(replaced), "{acts:?}");
    let goes = acts.iter().position(|act| act.starts_with("Delete: delete load balancer"));
    let waits = acts.iter().position(|act| act.ends_with("to take over"));
    assert!(waits.is_some() && waits < goes, "{acts:?}");
}

#[test]
fn what_a_change_changes_is_told() {
    let mut state = settled(&web());
    let arn = {
        let group = state.observed.target_groups.values_mut().next().unwrap();
        group.health.port = "9999".into();
        group.health.interval = 30;
        group.arn.clone()
    };
    for group in state.observed.groups.values_mut().filter(|group| group.tags.contains_key(ownership::UID_TAG)) {
        group.tags.insert(ownership::RESOURCE_TAG.into(), "nonsense".into());
    }
    // Somebody detached it.
    state.observed.asgs.get_mut(&"workers".into()).unwrap().sources.clear();
    let targets = state.targets.get_mut(&arn).unwrap();
    targets.direct.clear();
    let (fate, acts) = one(&mut state, serve(&web()));
    assert_eq!(fate, Fate::Change);
    assert_eq!(
        acts,
        [
            "Change: tag order with weir.dev/resource (weir.dev/resource: nonsense → frontend-group)",
            "Change: check health of target group order-80 by HTTP on 10256 (port: 9999 → 10256; interval: 30 s → 10 s)",
            "Create: register in target group order-80: i-2",
            "Create: attach target group order-80 to Auto Scaling group workers",
        ]
    );
}

#[test]
fn a_service_that_goes_takes_along_what_all_shared_if_it_was_the_last() {
    let mut state = settled(&web());
    let rehearsal = play(&mut state, &[Wish::Release { owner: owner(UID), unprotect: false }]);
    assert_eq!(rehearsal.parts[0].fate(), Fate::Delete);
    assert_eq!(
        told(&rehearsal.parts[0].acts),
        [
            "Delete: delete load balancer order: the Service is no longer served",
            "Delete: detach target group order-80 from Auto Scaling group workers",
            "Wait: waiting for Auto Scaling group workers to let go of target group order-80",
            "Delete: delete target group order-80: the Service is no longer served",
            "Delete: delete security group order: the Service is no longer served",
        ]
    );
    let shared = told(&rehearsal.shared);
    assert!(shared[0].starts_with("Change: no longer allow in node group sg-nodes"), "{shared:?}");
    assert_eq!(shared[1], "Delete: delete security group backend: no Service needs it");
    assert!(state.observed.groups.is_empty());
}

#[test]
fn a_refused_service_keeps_what_it_has_and_its_targets() {
    let mut state = settled(&web());
    state.observed.asgs.get_mut(&"workers".into()).unwrap().sources.clear();
    let bad = ServiceSpec { subnets: vec!["subnet-9".into()], ..web() };
    let (fate, acts) = one(&mut state, serve(&bad));
    assert_eq!(fate, Fate::Refused);
    assert_eq!(acts, ["Create: attach target group order-80 to Auto Scaling group workers"]);
    let (_, acts) = one(&mut settled(&web()), Wish::Keep(owner(UID), Some(Labels::new())));
    assert_eq!(acts, [""; 0]);
}

#[test]
fn an_older_service_gets_the_free_slot_first() {
    let mut state = cluster();
    state.observed.asgs.get_mut(&"workers".into()).unwrap().sources =
        (0..49).map(|number| (format!("arn:theirs/{number}").into(), SourceState::Added)).collect();
    let named = |name: &str, second| {
        let mut spec = web();
        spec.owner = Owner { service: ServiceKey::new("shop", name), uid: name.into() };
        spec.created = jiff::Timestamp::from_second(second).unwrap();
        spec
    };
    let rehearsal = play(&mut state, &[serve(&named("young", 2)), serve(&named("old", 1))]);
    let attaches = |part: &Part| part.acts.iter().any(|act| matches!(act, Act::Attach { .. }));
    assert_eq!(rehearsal.parts.iter().map(attaches).collect::<Vec<_>>(), [false, true]);
    assert!(matches!(rehearsal.parts[0].notes.first(), Some(Note::NoSlot(_))));
}

#[test]
fn what_is_not_known_of_targets_and_nodes_is_asked_for() {
    let mut state = settled(&web());
    state.targets.clear();
    let rehearsal = play(&mut state, &[serve(&web())]);
    assert_eq!(rehearsal.unread.len(), 1);
    let mut state = settled(&web());
    state.membership.remove(&LONER.into());
    let rehearsal = play(&mut state, &[serve(&web())]);
    assert_eq!(rehearsal.unresolved, [LONER.into()].into());
}

/// Every write that is told.
fn writes(rehearsal: &Rehearsal) -> Vec<String> {
    let acts = rehearsal.parts.iter().flat_map(|part| &part.acts).chain(&rehearsal.shared);
    acts.filter(|act| act.kind() != Kind::Wait).map(ToString::to_string).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_change_that_was_rehearsed_nothing_is_left_to_do(first in any_spec(), second in any_spec()) {
        let mut state = cluster();
        prop_assert!(play(&mut state, &[serve(&first)]).settled);
        let mut state = read_anew(&state);
        let rehearsal = play(&mut state, &[serve(&second)]);
        prop_assert!(rehearsal.settled);
        if rehearsal.parts[0].refusal.is_none() {
            let again = play(&mut read_anew(&state), &[serve(&second)]);
            prop_assert_eq!(writes(&again), [""; 0]);
        }
        let gone = play(&mut state, &[Wish::Release { owner: owner(UID), unprotect: false }]);
        prop_assert!(gone.settled);
        prop_assert!(state.observed.owners(CLUSTER).is_empty() && state.observed.groups.is_empty());
        prop_assert!(state.observed.asgs.values().all(|asg| asg.sources.is_empty()));
    }
}
