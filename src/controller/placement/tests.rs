//! Each row of the module's table, and convergence against a simulated AWS.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::controller::account::State;
use crate::controller::observed::{HealthCheck, TargetGroup};
use crate::model::id::ServiceKey;
use crate::model::ownership::{Owner, Role, Tags, service_tags};

const CLUSTER: &str = "demo";

/// A state to ask placement about, built up call by call.
#[derive(Default)]
struct Stage {
    state: State,
    refusing: BTreeMap<AsgName, String>,
    unfit: BTreeSet<InstanceId>,
    shares: BTreeMap<TargetGroupArn, usize>,
}

fn ours(name: &str) -> TargetGroupArn {
    format!("arn:aws:elasticloadbalancing:us-east-1:1:targetgroup/{}{name}/0123", name::cluster_prefix(CLUSTER)).into()
}

fn theirs(number: usize) -> TargetGroupArn {
    format!("arn:aws:elasticloadbalancing:us-east-1:1:targetgroup/theirs-{number}/0123").into()
}

fn set<T: Ord + From<String>>(ids: &[&str]) -> BTreeSet<T> {
    ids.iter().map(|id| T::from((*id).to_owned())).collect()
}

impl Stage {
    /// An Auto Scaling group of the cluster.
    fn asg(mut self, name: &str, instances: &[&str]) -> Self {
        let tags = Tags::from([(format!("kubernetes.io/cluster/{CLUSTER}"), "owned".into())]);
        let asg = Asg { tags, instances: set(instances), ..Asg::default() };
        self.state.observed.asgs.insert(name.into(), asg);
        for instance in instances {
            self.state.membership.insert((*instance).into(), Some(name.into()));
        }
        self
    }

    fn change(mut self, asg: &str, change: impl FnOnce(&mut Asg)) -> Self {
        change(self.state.observed.asgs.get_mut(&asg.into()).unwrap());
        self
    }

    fn foreign(self, asg: &str, count: usize) -> Self {
        self.change(asg, |asg| asg.sources.extend((0..count).map(|number| (theirs(number), SourceState::Added))))
    }

    fn attached(self, asg: &str, group: &str) -> Self {
        self.change(asg, |asg| {
            asg.sources.insert(ours(group), SourceState::Added);
        })
    }

    fn worker(mut self, instance: &str, eligible: bool, origin: Origin) -> Self {
        let labels = Labels::new();
        let worker =
            Worker { name: format!("node-{instance}"), instance: Ok(instance.into()), eligible, origin, labels };
        self.state.workers.insert(worker.name.clone(), worker);
        self
    }

    /// Eligible nodes.
    fn nodes(mut self, instances: &[&str]) -> Self {
        for instance in instances {
            self = self.worker(instance, true, Origin::Unknown);
        }
        self
    }

    /// A node in no Auto Scaling group.
    fn loner(mut self, instance: &str) -> Self {
        self.state.membership.insert(instance.into(), None);
        self.worker(instance, true, Origin::Unknown)
    }

    fn excluded(self, instance: &str) -> Self {
        self.worker(instance, false, Origin::Unknown)
    }

    /// A target group whose Service was made in this second; its targets have been read, and there are none but those
    /// of attachments.
    fn group(mut self, group: &str, intent: Intent, second: i64) -> Self {
        let target_group = TargetGroup {
            arn: ours(group),
            name: group.into(),
            protocol: "TCP".into(),
            port: 30080,
            vpc: "vpc-1".into(),
            health: HealthCheck {
                protocol: "HTTP".into(),
                port: "10256".into(),
                path: None,
                interval: 10,
                timeout: 6,
                healthy: 2,
                unhealthy: 2,
                codes: None,
            },
            attributes: Some(BTreeMap::new()),
            tags: service_tags(
                CLUSTER,
                &Owner { service: ServiceKey::new("shop", group), uid: group.into() },
                Role::TargetGroup,
                &Tags::new(),
            ),
            intent,
            nodes: Labels::new(),
            served: false,
        };
        self.state.observed.target_groups.insert(group.into(), target_group);
        self.state.targets.insert(ours(group), Targets { known: true, ..Targets::default() });
        let created = Timestamp::from_second(second).unwrap();
        self.state.seniority.insert(ours(group), (created, group.into(), 80));
        self
    }

    fn serve(self, group: &str, second: i64) -> Self {
        self.group(group, Intent::Serve, second)
    }

    /// The Service of a target group asks for nodes with this label.
    fn pick(mut self, group: &str, label: (&str, &str)) -> Self {
        let picky = self.state.observed.target_groups.get_mut(group).unwrap();
        picky.nodes = [(label.0.into(), label.1.into())].into();
        self
    }

    fn label(mut self, instance: &str, label: (&str, &str)) -> Self {
        let worker = self.state.workers.get_mut(&format!("node-{instance}")).unwrap();
        worker.labels.insert(label.0.into(), label.1.into());
        self
    }

    fn targets(mut self, group: &str, change: impl FnOnce(&mut Targets)) -> Self {
        change(self.state.targets.entry(ours(group)).or_default());
        self
    }

    fn place(&self) -> Placement {
        place(&Scene {
            cluster: CLUSTER,
            observed: &self.state.observed,
            workers: &self.state.workers,
            membership: &self.state.membership,
            targets: &self.state.targets,
            seniority: &self.state.seniority,
            leaving: &self.state.leaving,
            refusing: &self.refusing,
            unfit: &self.unfit,
            shares: &self.shares,
        })
    }
}

fn attach(asg: &str, groups: &[&str]) -> BTreeMap<AsgName, Vec<TargetGroupArn>> {
    [(asg.into(), groups.iter().map(|group| ours(group)).collect())].into()
}

fn targets_of(group: &str, instances: &[&str]) -> BTreeMap<TargetGroupArn, BTreeSet<InstanceId>> {
    [(ours(group), set(instances))].into()
}

fn notes(placement: &Placement, group: &str) -> Vec<Note> {
    placement.notes.get(&ours(group)).into_iter().flatten().cloned().collect()
}

#[test]
fn a_free_slot_is_taken_and_nothing_is_registered_by_us() {
    let placement = Stage::default().asg("a", &["i-1", "i-2"]).nodes(&["i-1", "i-2"]).serve("x", 1).place();
    assert_eq!(placement, Placement { attach: attach("a", &["x"]), ..Placement::default() });
}

#[test]
fn an_attachment_that_is_there_needs_nothing() {
    let stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]).serve("x", 1).attached("a", "x");
    assert!(stage.place().is_empty() && stage.place().is_served(&ours("x")));
}

#[test]
fn a_node_that_joins_or_leaves_an_attached_group_costs_nothing() {
    let stage =
        Stage::default().asg("a", &["i-1", "i-2", "i-3"]).nodes(&["i-1", "i-2"]).serve("x", 1).attached("a", "x");
    assert!(stage.place().is_empty());
    assert!(stage.nodes(&["i-3"]).place().is_empty());
}

#[test]
fn r12_the_oldest_services_get_the_slots_and_the_others_are_registered() {
    let stage = Stage::default().asg("a", &["i-1"]).foreign("a", 48).nodes(&["i-1"]);
    let placement = stage.serve("young", 3).serve("old", 1).serve("middle", 2).place();
    assert_eq!(placement.attach, attach("a", &["old", "middle"]));
    assert_eq!(placement.register, targets_of("young", &["i-1"]));
    assert_eq!(notes(&placement, "young"), [Note::NoSlot("a".into())]);
    assert_eq!(notes(&placement, "old"), []);
    assert!(!placement.is_served(&ours("young")) && !placement.is_served(&ours("old")));
}

#[test]
fn r12_an_older_service_takes_no_slot_from_a_younger_one() {
    let stage = Stage::default().asg("a", &["i-1"]).foreign("a", 49).nodes(&["i-1"]);
    let placement = stage.serve("young", 3).attached("a", "young").serve("old", 1).place();
    assert_eq!(placement.register, targets_of("old", &["i-1"]));
    assert_eq!((placement.attach, placement.detach), (BTreeMap::new(), BTreeMap::new()));
}

#[test]
fn r12_a_slot_that_comes_free_is_taken_and_its_nodes_stay_registered() {
    let stage = Stage::default().asg("a", &["i-1"]).foreign("a", 49).nodes(&["i-1"]).serve("x", 1);
    let placement = stage.targets("x", |targets| targets.direct = set(&["i-1"])).place();
    assert_eq!(placement, Placement { attach: attach("a", &["x"]), ..Placement::default() });
}

#[test]
fn target_groups_attached_by_the_older_calls_take_slots_too() {
    let stage = Stage::default().asg("a", &["i-1"]).foreign("a", 25).nodes(&["i-1"]).serve("x", 1);
    let full =
        stage.change("a", |asg| asg.legacy = (100..125).map(|number| (theirs(number), SourceState::Added)).collect());
    assert_eq!(full.place().attach, BTreeMap::new());
    assert_eq!(full.place().register, targets_of("x", &["i-1"]));
}

#[test]
fn r17_a_group_with_elb_health_checks_is_never_attached() {
    let stage = Stage::default().asg("a", &["i-1"]).change("a", |asg| asg.elb_health = true).nodes(&["i-1"]);
    let placement = stage.serve("x", 1).place();
    assert_eq!(placement.attach, BTreeMap::new());
    assert_eq!(placement.register, targets_of("x", &["i-1"]));
    assert_eq!(notes(&placement, "x"), [Note::ElbHealthCheck("a".into())]);
}

#[test]
fn r17_a_switch_to_elb_health_checks_while_attached_registers_and_detaches() {
    let stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]).serve("x", 1).attached("a", "x");
    let placement = stage.change("a", |asg| asg.elb_health = true).place();
    assert_eq!(placement.register, targets_of("x", &["i-1"]), "before AWS takes them out");
    assert_eq!(placement.detach, [("a".into(), [ours("x")].into())].into());
    assert_eq!(notes(&placement, "x"), [Note::ElbHealthCheck("a".into())]);
}

#[test]
fn r19_nodes_are_registered_while_an_instance_refresh_refuses_the_attachment() {
    let mut stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]).serve("x", 1).serve("y", 2).attached("a", "y");
    stage.refusing = [("a".into(), "a refresh".into())].into();
    let placement = stage.place();
    assert_eq!(placement.register, targets_of("x", &["i-1"]));
    assert_eq!(notes(&placement, "x"), [Note::Refuses("a".into(), "a refresh".into())]);
    assert_eq!(notes(&placement, "y"), [], "it is attached already");
    stage.refusing.clear();
    let after = stage.targets("x", |targets| targets.direct = set(&["i-1"])).place();
    assert_eq!(after, Placement { attach: attach("a", &["x"]), ..Placement::default() });
}

#[test]
fn a_group_that_adds_nothing_is_attached_and_its_nodes_registered() {
    let stage = Stage::default().asg("a", &["i-1"]).change("a", |asg| asg.add_suspended = true).nodes(&["i-1"]);
    let placement = stage.serve("x", 1).place();
    assert_eq!(placement.attach, attach("a", &["x"]));
    assert_eq!(placement.register, targets_of("x", &["i-1"]));
}

#[test]
fn r18_two_groups_and_a_node_in_none() {
    let stage = Stage::default().asg("a", &["i-1"]).asg("b", &["i-2"]).nodes(&["i-1", "i-2"]).loner("i-3");
    let placement = stage.serve("x", 1).place();
    assert_eq!(placement.attach.keys().map(AsgName::as_str).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(placement.register, targets_of("x", &["i-3"]));
}

#[test]
fn an_empty_group_of_the_cluster_is_attached_and_a_strangers_is_not() {
    let stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]).asg("empty", &[]).asg("strange", &["i-8"]);
    let placement = stage.change("strange", |asg| asg.tags.clear()).serve("x", 1).place();
    assert_eq!(placement.attach.keys().map(AsgName::as_str).collect::<Vec<_>>(), ["a", "empty"]);
}

#[test]
fn a_group_that_is_being_deleted_is_not_attached() {
    let stage = Stage::default().asg("a", &["i-1"]).change("a", |asg| asg.deleting = true).nodes(&["i-1"]);
    assert_eq!(stage.serve("x", 1).place().attach, BTreeMap::new());
}

#[test]
fn r23_a_group_of_excluded_nodes_only_is_not_attached() {
    let stage = Stage::default().asg("masters", &["i-1"]).excluded("i-1").loner("i-2").serve("x", 1);
    let placement = stage.place();
    assert_eq!(placement.attach, BTreeMap::new());
    assert_eq!(placement.register, targets_of("x", &["i-2"]));
}

#[test]
fn r23_an_excluded_node_is_taken_out_only_once_the_attachment_has_put_it_in() {
    let stage = Stage::default().asg("a", &["i-1", "i-2"]).nodes(&["i-1"]).excluded("i-2").serve("x", 1);
    assert_eq!(stage.place().deregister, BTreeMap::new());
    let stage = stage.change("a", |asg| asg.sources = [(ours("x"), SourceState::Adding)].into());
    assert_eq!(stage.place(), Placement { settle: set(&["a"]), ..Placement::default() });
    let stage = stage.attached("a", "x");
    assert_eq!(stage.place(), Placement { deregister: targets_of("x", &["i-2"]), ..Placement::default() });
    let stage = stage.targets("x", |targets| targets.expelled = set(&["i-2"]));
    assert!(stage.place().is_empty());
    let stage = stage.nodes(&["i-2"]);
    assert_eq!(stage.place(), Placement { register: targets_of("x", &["i-2"]), ..Placement::default() });
}

#[test]
fn an_excluded_node_that_was_registered_directly_is_taken_out() {
    let stage = Stage::default().loner("i-1").loner("i-2").excluded("i-2").serve("x", 1);
    let placement = stage.targets("x", |targets| targets.direct = set(&["i-1", "i-2"])).place();
    assert_eq!(placement, Placement { deregister: targets_of("x", &["i-2"]), ..Placement::default() });
}

#[test]
fn r11_a_release_detaches_from_every_group_empty_ones_and_those_no_longer_selected_among_them() {
    let stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]).asg("empty", &[]).asg("former", &["i-9"]);
    let stage = stage.change("former", |asg| asg.tags.clear()).group("x", Intent::Release, 1);
    let placement = stage.attached("a", "x").attached("empty", "x").attached("former", "x").place();
    assert_eq!(placement.detach.keys().map(AsgName::as_str).collect::<Vec<_>>(), ["a", "empty", "former"]);
    assert_eq!(placement.attach, BTreeMap::new());
}

#[test]
fn a_detachment_under_way_is_not_asked_for_again() {
    let stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]).group("x", Intent::Release, 1);
    let stage = stage.change("a", |asg| asg.sources = [(ours("x"), SourceState::Removing)].into());
    assert!(stage.place().is_empty());
}

#[test]
fn a_slot_is_not_free_before_its_detachment_has_ended() {
    let stage = Stage::default().asg("a", &["i-1"]).foreign("a", 49).nodes(&["i-1"]).serve("x", 1);
    let stage = stage.change("a", |asg| {
        asg.sources.insert(ours("gone"), SourceState::Removing);
    });
    assert_eq!(stage.place().attach, BTreeMap::new());
    assert_eq!(stage.place().register, targets_of("x", &["i-1"]));
}

#[test]
fn r11_our_ghosts_are_detached_and_those_of_others_stay() {
    let stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]).foreign("a", 3).attached("a", "gone");
    assert_eq!(stage.place().detach, [("a".into(), [ours("gone")].into())].into());
}

#[test]
fn r15_what_is_not_ours_is_never_detached() {
    let stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]).foreign("a", 50);
    let stage = stage.change("a", |asg| asg.elb_health = true).serve("x", 1);
    assert_eq!(stage.place().detach, BTreeMap::new());
}

#[test]
fn an_undecided_target_group_is_left_as_it_is() {
    let stage = Stage::default().asg("a", &["i-1"]).asg("b", &["i-2"]).nodes(&["i-1", "i-2"]).loner("i-3");
    let stage = stage.group("x", Intent::Undecided, 1).attached("a", "x");
    assert!(stage.place().is_empty());
    assert!(stage.change("a", |asg| asg.elb_health = true).place().is_empty());
}

#[test]
fn r24_an_empty_list_of_nodes_deregisters_nothing() {
    let stage = Stage::default().asg("a", &["i-1"]).serve("x", 1).attached("a", "x");
    let stage = stage.targets("x", |targets| {
        targets.direct = set(&["i-2"]);
        targets.strangers = set(&["i-3"]);
    });
    let placement = stage.place();
    assert!(placement.is_empty());
    assert_eq!(notes(&placement, "x"), [Note::NoNode]);
}

#[test]
fn r24_readiness_is_no_input() {
    // Does not compile once a node or the scene has more to look at; this test is then to be written for real.
    let Worker { name, instance, eligible, origin, labels } = Worker::read("n", &BTreeMap::new(), None).unwrap();
    assert!(instance.is_err() && eligible && origin == Origin::Unknown && name == "n" && labels.is_empty());
}

#[test]
fn r20_a_node_without_an_instance_holds_nobody_up() {
    let stage = Stage::default().loner("i-1").serve("x", 1);
    let mut stage = stage;
    let origin = Origin::Unknown;
    let (instance, labels) = (Err("is empty".into()), Labels::new());
    let odd = Worker { name: "odd".into(), instance, eligible: true, origin, labels };
    stage.state.workers.insert("odd".into(), odd);
    assert_eq!(stage.place(), Placement { register: targets_of("x", &["i-1"]), ..Placement::default() });
}

#[test]
fn r21_an_instance_that_aws_refused_a_moment_ago_is_left_out() {
    let mut stage = Stage::default().loner("i-1").loner("i-2").serve("x", 1);
    stage.unfit = set(&["i-2"]);
    assert_eq!(stage.place().register, targets_of("x", &["i-1"]));
}

#[test]
fn r27_a_target_group_keeps_to_its_share_of_a_quota() {
    let mut stage = Stage::default().loner("i-1").loner("i-2").loner("i-3").serve("x", 1).serve("y", 2);
    stage = stage.targets("x", |targets| {
        targets.known = true;
        targets.direct = set(&["i-1", "i-2", "i-3"]);
    });
    stage.shares = [(ours("x"), 2), (ours("y"), 1)].into();
    let placement = stage.place();
    assert_eq!(placement.deregister, targets_of("x", &["i-3"]));
    assert_eq!(placement.register, targets_of("y", &["i-1"]));
    assert_eq!(notes(&placement, "x"), [Note::Full { has: 2, of: 3 }]);
    stage.shares.clear();
    assert_eq!(stage.place().register, targets_of("y", &["i-1", "i-2", "i-3"]), "as before, once there is room");
}

const WEB: (&str, &str) = ("pool", "web");

#[test]
fn nodes_with_the_labels_asked_for_are_registered_one_by_one() {
    let stage = Stage::default().asg("a", &["i-1", "i-2"]).nodes(&["i-1", "i-2"]).loner("i-3").loner("i-4");
    let stage = stage.label("i-1", WEB).label("i-3", WEB).label("i-4", ("pool", "batch"));
    let placement = stage.serve("x", 1).pick("x", WEB).serve("y", 2).place();
    assert_eq!(placement.attach, attach("a", &["y"]), "an attachment would take every node");
    assert_eq!(placement.register[&ours("x")], set(&["i-1", "i-3"]));
    assert_eq!(notes(&placement, "x"), []);
}

#[test]
fn labels_asked_for_later_register_before_the_attachment_goes() {
    let stage = Stage::default().asg("a", &["i-1", "i-2"]).nodes(&["i-1", "i-2"]).label("i-1", WEB);
    let stage = stage.serve("x", 1).attached("a", "x").pick("x", WEB);
    let placement = stage.place();
    assert_eq!(placement.register, targets_of("x", &["i-1"]));
    assert_eq!(placement.detach, [("a".into(), [ours("x")].into())].into());
    // Once it has let go, what is left is read.
    let stage = stage.change("a", |asg| asg.sources.clear()).targets("x", |targets| targets.known = false);
    assert_eq!(stage.place().read, [ours("x")].into());
    let stage = stage.targets("x", |targets| (targets.known, targets.direct) = (true, set(&["i-1", "i-2"])));
    assert_eq!(stage.place(), Placement { deregister: targets_of("x", &["i-2"]), ..Placement::default() });
}

#[test]
fn labels_no_longer_asked_for_attach_before_anything_else() {
    let stage = Stage::default().asg("a", &["i-1", "i-2"]).nodes(&["i-1", "i-2"]).serve("x", 1);
    let placement = stage.targets("x", |targets| targets.direct = set(&["i-1"])).place();
    assert_eq!(placement, Placement { attach: attach("a", &["x"]), ..Placement::default() });
}

#[test]
fn a_new_process_leaves_attached_what_another_target_group_is_to_take_over() {
    let labels = || Labels::from([(WEB.0.into(), WEB.1.into())]);
    let stage = Stage::default().asg("a", &["i-1", "i-2"]).nodes(&["i-1", "i-2"]).label("i-1", WEB);
    let mut stage = stage.group("x", Intent::Undecided, 1).attached("a", "x");
    assert!(stage.state.keep_serving(CLUSTER, "x", &labels()));
    assert_eq!(stage.place(), Placement::default(), "what is attached stays until another one is served");
    // One that was registered one by one before goes on with the labels.
    let mut stage = stage.group("y", Intent::Undecided, 2);
    assert!(stage.state.keep_serving(CLUSTER, "y", &labels()));
    assert_eq!(stage.place().register, targets_of("y", &["i-1"]));
    assert!(!stage.state.keep_serving(CLUSTER, "y", &Labels::new()), "it has been decided");
}

#[test]
fn a_label_that_comes_or_goes_moves_that_node_only() {
    let stage = Stage::default().loner("i-1").loner("i-2").label("i-2", WEB).serve("x", 1).pick("x", WEB);
    let placement = stage.targets("x", |targets| targets.direct = set(&["i-1"])).place();
    assert_eq!(placement.register, targets_of("x", &["i-2"]));
    assert_eq!(placement.deregister, targets_of("x", &["i-1"]));
}

#[test]
fn labels_on_no_node_empty_the_target_group_and_are_worth_a_word() {
    let stage = Stage::default().loner("i-1").serve("x", 1).pick("x", WEB);
    let stage = stage.targets("x", |targets| targets.direct = set(&["i-1"]));
    let placement = stage.place();
    assert_eq!(placement.deregister, targets_of("x", &["i-1"]));
    let [note] = notes(&placement, "x").try_into().unwrap();
    assert_eq!(
        note.to_string(),
        "service.beta.kubernetes.io/aws-load-balancer-target-node-labels: \"pool=web\" is on no node that can be a \
         target, so the load balancer has none"
    );
    // A new process does not know what was registered for other labels before.
    let stage = stage.targets("x", |targets| *targets = Targets::default());
    assert_eq!(stage.place().read, [ours("x")].into());
}

#[test]
fn no_word_about_auto_scaling_groups_where_labels_are_asked_for() {
    let stage = Stage::default().asg("a", &["i-1"]).change("a", |asg| asg.elb_health = true).nodes(&["i-1"]);
    let placement = stage.label("i-1", WEB).serve("x", 1).pick("x", WEB).place();
    assert_eq!(notes(&placement, "x"), []);
}

#[test]
fn a_node_that_is_gone_is_deregistered_and_the_others_stay() {
    let stage = Stage::default().loner("i-1").serve("x", 1);
    let placement = stage.targets("x", |targets| targets.direct = set(&["i-1", "i-2"])).place();
    assert_eq!(placement, Placement { deregister: targets_of("x", &["i-2"]), ..Placement::default() });
}

#[test]
fn a_stranger_goes_unless_an_attached_group_has_it_by_now() {
    let stage = Stage::default().asg("a", &["i-1", "i-2"]).nodes(&["i-1"]).serve("x", 1).attached("a", "x");
    let placement = stage.targets("x", |targets| targets.strangers = set(&["i-2", "i-3"])).place();
    assert_eq!(placement.deregister, targets_of("x", &["i-3"]));
}

fn managed(value: &str) -> Origin {
    Origin::Tagged { key: "eks:nodegroup-name", value: value.into() }
}

fn tag(asg: &mut Asg) {
    asg.tags.insert("eks:nodegroup-name".into(), "ng".into());
}

#[test]
fn a_node_groups_label_tells_the_auto_scaling_group_without_a_call() {
    let stage = Stage::default().asg("a", &[]).change("a", tag).worker("i-1", true, managed("ng"));
    let placement = stage.serve("x", 1).attached("a", "x").place();
    assert!(placement.is_empty(), "{placement:?}");
}

#[test]
fn a_label_that_fits_two_auto_scaling_groups_or_none_is_looked_up() {
    let two = Stage::default().asg("a", &[]).change("a", tag).asg("b", &[]).change("b", tag);
    let none = Stage::default().asg("a", &[]);
    for stage in [two, none] {
        let placement = stage.worker("i-1", true, managed("ng")).serve("x", 1).place();
        assert_eq!(placement.resolve, set(&["i-1"]));
        assert_eq!(placement.register, BTreeMap::new(), "nothing is guessed");
        assert!(!placement.is_served(&ours("x")));
    }
}

#[test]
fn what_aws_said_counts_for_more_than_a_label() {
    let mut stage = Stage::default().asg("a", &[]).change("a", tag).worker("i-1", true, managed("ng"));
    stage.state.membership.insert("i-1".into(), None);
    assert_eq!(stage.serve("x", 1).attached("a", "x").place().register, targets_of("x", &["i-1"]));
}

#[test]
fn an_unresolved_instance_is_never_deregistered() {
    let stage = Stage::default().loner("i-1").worker("i-2", true, Origin::Unknown).serve("x", 1);
    let placement = stage.targets("x", |targets| targets.direct = set(&["i-1", "i-2"])).place();
    assert_eq!(placement.deregister, BTreeMap::new());
}

#[test]
fn targets_that_have_not_been_read_are_read_before_anything_is_done_about_them() {
    let stage = Stage::default().loner("i-1").serve("x", 1).targets("x", |targets| targets.known = false);
    let placement = stage.place();
    assert_eq!(placement, Placement { read: [ours("x")].into(), ..Placement::default() });
    assert!(!placement.is_served(&ours("x")));
}

#[test]
fn where_attachments_alone_decide_targets_are_not_read() {
    let stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]).serve("x", 1).attached("a", "x");
    assert!(stage.targets("x", |targets| *targets = Targets::default()).place().is_empty());
}

#[test]
fn r17_what_is_left_after_a_detachment_is_read_again() {
    // The detachment took its instances out at some moment, perhaps after we had put them in again.
    let stage = Stage::default().asg("a", &["i-1"]).change("a", |asg| asg.elb_health = true).nodes(&["i-1"]);
    let stage = stage.serve("x", 1).targets("x", |targets| {
        targets.direct = set(&["i-1"]);
        targets.known = false;
    });
    assert_eq!(stage.place().read, [ours("x")].into());
}

#[test]
fn r23_a_reading_during_an_attachment_does_not_hide_an_excluded_node() {
    let mut stage = Stage::default().asg("a", &["i-1", "i-2"]).nodes(&["i-1"]).excluded("i-2").serve("x", 1);
    stage = stage.change("a", |asg| asg.sources = [(ours("x"), SourceState::Adding)].into());
    stage.state.record_targets(CLUSTER, &ours("x"), &BTreeSet::new(), false);
    let stage = stage.attached("a", "x");
    assert_eq!(stage.place().deregister, targets_of("x", &["i-2"]));
}

/// AWS and the loop that carries placements out (`controller::targets`), simulated.
struct World {
    stage: Stage,
    /// What is registered.
    registered: BTreeMap<TargetGroupArn, BTreeSet<InstanceId>>,
    /// What AWS answers about instances.
    truth: BTreeMap<InstanceId, Option<AsgName>>,
    /// Whether detachments change targets when they end, not when they begin.
    late: bool,
    /// Attachments and detachments under way.
    changing: VecDeque<(AsgName, TargetGroupArn)>,
}

#[derive(Clone, Debug)]
struct Plot {
    /// For each Auto Scaling group: foreign attachments, older ones, ELB health check, adds nothing, members.
    asgs: Vec<(usize, usize, bool, bool, usize)>,
    /// For each instance: whether it is a node, whether that is eligible.
    instances: Vec<(bool, bool)>,
    /// Nodes in no group.
    loners: Vec<bool>,
    groups: usize,
    late: bool,
    /// What changes once all is quiet: toggled eligibilities, toggled health check types, target groups to release.
    toggled: Vec<usize>,
    switched: Vec<usize>,
    released: usize,
    freed: bool,
    /// Target groups whose Service begins to ask for labels, or no longer does.
    picky: Vec<usize>,
}

fn any_plot() -> impl Strategy<Value = Plot> {
    let asg = (44usize..=48, 0usize..=2, prop::bool::weighted(0.25), prop::bool::weighted(0.25), 0usize..4);
    (
        prop::collection::vec(asg, 0..4),
        prop::collection::vec((prop::bool::weighted(0.8), prop::bool::weighted(0.7)), 12),
        prop::collection::vec(prop::bool::weighted(0.7), 0..3),
        1usize..14,
        any::<bool>(),
        prop::collection::vec(0usize..14, 0..6),
        prop::collection::vec(0usize..4, 0..3),
        0usize..4,
        any::<bool>(),
        prop::collection::vec(0usize..14, 0..4),
    )
        .prop_map(|(asgs, instances, loners, groups, late, toggled, switched, released, freed, picky)| Plot {
            asgs,
            instances,
            loners,
            groups,
            late,
            toggled,
            switched,
            released,
            freed,
            picky,
        })
}

impl World {
    fn new(plot: &Plot) -> Self {
        let mut stage = Stage::default();
        let mut truth = BTreeMap::new();
        let mut instances = plot.instances.iter().enumerate();
        for (number, (foreign, legacy, elb_health, add_suspended, members)) in plot.asgs.iter().enumerate() {
            let name = format!("asg-{number}");
            let members: Vec<_> = instances.by_ref().take(*members).collect();
            let ids: Vec<_> = members.iter().map(|(number, _)| format!("i-{number}")).collect();
            let ids: Vec<_> = ids.iter().map(String::as_str).collect();
            stage = stage.asg(&name, &ids).foreign(&name, *foreign).change(&name, |asg| {
                asg.legacy = (100..100 + legacy).map(|number| (theirs(number), SourceState::Added)).collect();
                (asg.elb_health, asg.add_suspended) = (*elb_health, *add_suspended);
            });
            for (id, (_, (is_node, eligible))) in ids.iter().zip(members) {
                truth.insert((*id).into(), Some(name.as_str().into()));
                if *is_node {
                    stage = stage.worker(id, *eligible, Origin::Unknown);
                }
            }
        }
        for (number, eligible) in plot.loners.iter().enumerate() {
            let id = format!("i-loner-{number}");
            truth.insert(id.as_str().into(), None);
            stage = stage.worker(&id, *eligible, Origin::Unknown);
        }
        // Every other node has the label that Services ask for.
        for worker in stage.state.workers.values_mut().step_by(2) {
            worker.labels.insert(WEB.0.into(), WEB.1.into());
        }
        // Nothing has been looked up yet.
        stage.state.membership.clear();
        for number in 0..plot.groups {
            let name = format!("x-{number}");
            stage = stage.serve(&name, i64::try_from(number).unwrap()).targets(&name, |targets| targets.known = false);
        }
        Self { stage, registered: BTreeMap::new(), truth, late: plot.late, changing: VecDeque::new() }
    }

    /// The nodes that are to be targets of a target group.
    fn eligible(&self, arn: &TargetGroupArn) -> BTreeSet<InstanceId> {
        let nodes = &self.stage.state.observed.target_group(arn).unwrap().nodes;
        let workers = self.stage.state.workers.values().filter(|worker| worker.eligible && worker.has_labels(nodes));
        workers.map(|worker| worker.instance.clone().unwrap()).collect()
    }

    fn is_node(&self, instance: &InstanceId) -> bool {
        self.stage.state.workers.values().any(|worker| worker.instance.as_ref() == Ok(instance))
    }

    fn asgs(&self) -> &BTreeMap<AsgName, Asg> {
        &self.stage.state.observed.asgs
    }

    fn foreign(&self) -> Vec<(AsgName, TargetGroupArn)> {
        let ours: BTreeSet<_> = self.stage.state.observed.target_groups.values().map(|group| &group.arn).collect();
        let all = self.asgs().iter().flat_map(|(name, asg)| asg.sources.keys().map(move |arn| (name, arn)));
        all.filter(|(_, arn)| !ours.contains(arn)).map(|(name, arn)| (name.clone(), arn.clone())).collect()
    }

    fn intent(&self, arn: &TargetGroupArn) -> Intent {
        self.stage.state.observed.target_group(arn).unwrap().intent
    }

    /// One pass in the order of `controller::targets`. Returns whether there was anything to do.
    fn pass(&mut self) -> bool {
        let placement = self.stage.place();
        let quiet = placement.is_empty() && self.changing.is_empty();
        let mut known = self.truth.clone();
        known.retain(|instance, _| placement.resolve.contains(instance));
        self.stage.state.membership.extend(known);
        for arn in &placement.read {
            let listed = self.registered.get(arn).cloned().unwrap_or_default();
            self.stage.state.record_targets(CLUSTER, arn, &listed, false);
        }
        for (arn, instances) in &placement.register {
            self.registered.entry(arn.clone()).or_default().extend(instances.iter().cloned());
            let targets = self.stage.state.targets.get_mut(arn).unwrap();
            targets.expelled.retain(|instance| !instances.contains(instance));
            targets.direct.extend(instances.iter().cloned());
        }
        for (asg, groups) in &placement.attach {
            for arn in groups.iter().take(10) {
                self.attach(asg, arn);
            }
        }
        for (asg, groups) in &placement.detach {
            for arn in groups.iter().take(10) {
                self.detach(asg, arn);
            }
        }
        for (arn, instances) in &placement.deregister {
            let eligible = self.eligible(arn);
            assert!(instances.is_disjoint(&eligible), "an eligible node is deregistered: {instances:?}");
            self.registered.entry(arn.clone()).or_default().retain(|instance| !instances.contains(instance));
            self.stage.state.record_deregistered(arn, instances);
        }
        for (name, asg) in self.asgs() {
            assert!(asg.sources.len() + asg.legacy.len() <= SLOTS, "{name} has too many");
        }
        !quiet
    }

    fn attach(&mut self, name: &AsgName, arn: &TargetGroupArn) {
        let asg = self.stage.state.observed.asgs.get_mut(name).unwrap();
        assert!(!asg.elb_health, "{name} would terminate nodes");
        assert!(asg.sources.insert(arn.clone(), SourceState::Adding).is_none(), "{name} has it");
        let members = asg.instances.clone();
        let targets = self.stage.state.targets.entry(arn.clone()).or_default();
        targets.expelled.retain(|instance| !members.contains(instance));
        self.begin(name, arn);
    }

    fn detach(&mut self, name: &AsgName, arn: &TargetGroupArn) {
        let asg = self.stage.state.observed.asgs.get_mut(name).unwrap();
        assert!(asg.sources.insert(arn.clone(), SourceState::Removing).is_some(), "{name} does not have it");
        let (elb_health, members) = (asg.elb_health, asg.instances.clone());
        let is_picky = !self.stage.state.observed.target_group(arn).unwrap().nodes.is_empty();
        assert!(elb_health || is_picky || self.intent(arn) == Intent::Release, "detached without need");
        let targets = self.stage.state.targets.entry(arn.clone()).or_default();
        targets.direct.retain(|instance| !members.contains(instance));
        self.begin(name, arn);
    }

    fn begin(&mut self, name: &AsgName, arn: &TargetGroupArn) {
        self.changing.retain(|change| *change != (name.clone(), arn.clone()));
        self.changing.push_back((name.clone(), arn.clone()));
        if !self.late {
            self.take_effect(name, arn);
        }
    }

    fn take_effect(&mut self, name: &AsgName, arn: &TargetGroupArn) {
        let asg = &self.stage.state.observed.asgs[name];
        let registered = self.registered.entry(arn.clone()).or_default();
        match asg.sources[arn] {
            SourceState::Adding if asg.add_suspended => {}
            SourceState::Adding => registered.extend(asg.instances.iter().cloned()),
            SourceState::Removing => registered.retain(|instance| !asg.instances.contains(instance)),
            SourceState::Added => panic!("{name} is not changing {arn}"),
        }
    }

    /// A change under way ends, and the loop sees that.
    fn tick(&mut self) {
        let Some((name, arn)) = self.changing.pop_front() else { return };
        if self.late {
            self.take_effect(&name, &arn);
        }
        let sources = &mut self.stage.state.observed.asgs.get_mut(&name).unwrap().sources;
        if sources[&arn] == SourceState::Adding {
            sources.insert(arn, SourceState::Added);
        } else {
            sources.remove(&arn);
            self.stage.state.targets.entry(arn).and_modify(|targets| targets.known = false);
        }
    }

    fn settle(&mut self) {
        // Every slot of every group could be used and given back, one by one.
        for _ in 0..400 {
            if !self.pass() && self.changing.is_empty() {
                return self.check();
            }
            self.tick();
        }
        panic!("does not settle: {:#?}", self.stage.place());
    }

    /// The end: every eligible node is a target, no other node is, and members that are no node go with attachments.
    fn check(&self) {
        for group in self.stage.state.observed.target_groups.values() {
            let eligible = self.eligible(&group.arn);
            let none = BTreeSet::new();
            let registered = self.registered.get(&group.arn).unwrap_or(&none);
            let holders = self.asgs().iter().filter(|(_, asg)| asg.sources.contains_key(&group.arn));
            if group.intent == Intent::Release {
                assert_eq!(holders.count(), 0, "{} is still attached", group.name);
                continue;
            }
            assert!(group.nodes.is_empty() || holders.clone().count() == 0, "{} is attached", group.name);
            let members: BTreeSet<_> = holders.flat_map(|(_, asg)| asg.instances.clone()).collect();
            let missing: Vec<_> = eligible.difference(registered).collect();
            assert!(missing.is_empty(), "{} lacks {missing:?}", group.name);
            let extra: Vec<_> = registered.difference(&eligible).collect();
            let is_fine = |instance: &&&InstanceId| members.contains(**instance) && !self.is_node(instance);
            assert!(extra.iter().all(|instance| is_fine(&instance)), "{} has {extra:?}", group.name);
        }
    }

    fn change(&mut self, plot: &Plot) {
        let count = self.stage.state.workers.len().max(1);
        for number in &plot.toggled {
            if let Some(worker) = self.stage.state.workers.values_mut().nth(number % count) {
                worker.eligible = !worker.eligible;
            }
        }
        for number in &plot.switched {
            if let Some(asg) = self.stage.state.observed.asgs.values_mut().nth(*number) {
                asg.elb_health = !asg.elb_health;
            }
        }
        for number in &plot.picky {
            if let Some(group) = self.stage.state.observed.target_groups.values_mut().nth(*number) {
                let picks = group.nodes.is_empty();
                group.nodes = if picks { [(WEB.0.into(), WEB.1.into())].into() } else { Labels::new() };
            }
        }
        for group in self.stage.state.observed.target_groups.values_mut().take(plot.released) {
            group.intent = Intent::Release;
        }
        if plot.freed {
            for asg in self.stage.state.observed.asgs.values_mut() {
                asg.sources.remove(&theirs(0));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_eligible_node_becomes_a_target_and_stays_one_whatever_changes(plot in any_plot()) {
        let mut world = World::new(&plot);
        let foreign = world.foreign();
        world.settle();
        prop_assert_eq!(world.foreign(), foreign);
        world.change(&plot);
        let foreign = world.foreign();
        world.settle();
        prop_assert_eq!(world.foreign(), foreign);
        // The old state comes back.
        world.change(&Plot { freed: false, ..plot });
        world.settle();
    }
}

#[test]
fn a_group_is_surveyed_once_whoever_of_it_is_left() {
    let workers = |instances: &[&str]| Stage::default().nodes(instances).state.workers;
    let mut stage = Stage::default().asg("workers", &["i-1", "i-2", "i-3"]).nodes(&["i-1", "i-2"]);
    let network = crate::aws::ec2::Instance { vpc: "vpc-1".into(), groups: BTreeSet::new() };
    stage.state.instances.insert("i-1".into(), network);
    // The one whose network was read leaves in the moment in which another comes.
    assert!(!stage.state.replace_workers(CLUSTER, workers(&["i-2", "i-3"])));
    // A node of no group is nobody's sibling, and neither is the first one of another group.
    stage.state.membership.insert("i-9".into(), None);
    assert!(stage.state.replace_workers(CLUSTER, workers(&["i-2", "i-9"])));
    let mut stage = stage.asg("more", &["i-4"]);
    assert!(stage.state.replace_workers(CLUSTER, workers(&["i-2", "i-4"])));
}

#[test]
fn a_slot_does_not_go_to_a_service_that_is_being_deleted() {
    let mut stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]).foreign("a", 49).serve("x", 1).serve("y", 2);
    stage.state.leaving.insert("x".into());
    let placement = stage.place();
    assert_eq!(placement.attach, attach("a", &["y"]));
    // AWS may refuse the deletion: until then its nodes are targets all the same.
    assert_eq!(placement.register, targets_of("x", &["i-1"]));
}

#[test]
fn r11_what_the_older_calls_attached_goes_when_it_is_ours_and_released() {
    let stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]);
    let stage = stage.group("x", Intent::Release, 1).serve("y", 2);
    let stage = stage.change("a", |asg| {
        let arns = [ours("x"), ours("y"), ours("ghost"), theirs(1)];
        asg.legacy = arns.map(|arn| (arn, SourceState::Added)).into();
    });
    assert_eq!(stage.place().detach_legacy, [("a".into(), [ours("x"), ours("ghost")].into())].into());
    let stage = stage.change("a", |asg| asg.legacy = [(ours("x"), SourceState::Removing)].into());
    assert_eq!(stage.place().detach_legacy, BTreeMap::new());
}

/// What a drift check reads next: the same, with these instances in the Auto Scaling groups.
fn reading(stage: &Stage, members: &[(&str, &[&str])]) -> Observed {
    let mut fresh = stage.state.observed.clone();
    for (asg, instances) in members {
        fresh.asgs.get_mut(&(*asg).into()).unwrap().instances = set(instances);
    }
    fresh
}

fn merge(stage: &mut Stage, fresh: Observed) {
    let began = stage.state.now();
    stage.state.merge(fresh, began, tokio::time::Instant::now());
}

#[test]
fn r18_an_instance_that_left_its_group_is_registered_by_itself_and_forgotten_when_it_enters() {
    let mut stage = Stage::default().asg("a", &["i-1", "i-2"]).nodes(&["i-1", "i-2"]).serve("x", 1).attached("a", "x");
    let fresh = reading(&stage, &[("a", &["i-2"])]);
    merge(&mut stage, fresh);
    assert_eq!(stage.state.membership[&"i-1".into()], None);
    assert_eq!(stage.place().register, targets_of("x", &["i-1"]));
    let mut stage = stage.targets("x", |targets| targets.direct = set(&["i-1"]));
    let fresh = reading(&stage, &[("a", &["i-1", "i-2"])]);
    merge(&mut stage, fresh);
    // The group registers who enters, and will take out who leaves.
    assert_eq!(stage.state.targets[&ours("x")].direct, set(&[]));
    assert_eq!(stage.place(), Placement::default());
}

#[test]
fn an_instance_that_moves_between_groups_is_in_the_second() {
    let mut stage = Stage::default().asg("a", &["i-1", "i-2"]).asg("b", &["i-3"]).nodes(&["i-1", "i-2", "i-3"]);
    stage = stage.serve("x", 1).attached("a", "x").attached("b", "x");
    stage = stage.targets("x", |targets| targets.expelled = set(&["i-1", "i-3"]));
    let fresh = reading(&stage, &[("a", &["i-2"]), ("b", &["i-1", "i-3"])]);
    merge(&mut stage, fresh);
    assert_eq!(stage.state.membership[&"i-1".into()], Some("b".into()));
    assert_eq!(stage.state.targets[&ours("x")].expelled, set(&["i-3"]), "its new group registers it");
}

#[test]
fn a_write_makes_no_reading_of_something_else_old() {
    let mut state = State::default();
    let began = state.now();
    state.touch("x");
    assert!(state.is_written_since("x", began) && !state.is_written_since("y", began));
    assert!(!state.is_written_since("x", state.now()));
}

#[test]
fn a_reading_lets_go_of_what_is_gone() {
    let mut stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]);
    let now = tokio::time::Instant::now();
    for instance in ["i-1", "i-gone"] {
        stage.state.record_unfit(instance.into(), "InvalidTarget".into(), now);
    }
    stage.state.touch("a");
    stage.state.touch("gone");
    let hour = std::time::Duration::from_hours(1);
    stage.state.foreign = [("arn:old".into(), now), ("arn:new".into(), now + hour)].into();
    let (fresh, began) = (reading(&stage, &[]), stage.state.now());
    stage.state.touch("made meanwhile");
    stage.state.merge(fresh, began, now + hour);
    assert_eq!(stage.state.unfit.keys().collect::<Vec<_>>(), [&"i-1".into()]);
    assert_eq!(stage.state.foreign.keys().collect::<Vec<_>>(), [&"arn:new".into()]);
    let written = ["a", "gone", "made meanwhile"].map(|name| stage.state.is_written_since(name, 0));
    assert_eq!(written, [true, false, true]);
}

#[test]
fn a_promised_place_in_the_order_is_kept_and_not_for_ever() {
    let mut stage = Stage::default().asg("a", &["i-1"]).nodes(&["i-1"]);
    let age = |second, service: &str| (Timestamp::from_second(second).unwrap(), service.to_owned(), 80);
    stage.state.promised = [("x".into(), age(1, "shop/x")), ("y".into(), age(2, "shop/y"))].into();
    let made = Stage::default().serve("x", 9).state.observed.target_groups.remove("x").unwrap();
    let step = crate::controller::plan::Step::CreateTargetGroup(crate::controller::desired::DesiredTargetGroup {
        name: made.name.clone(),
        vpc: made.vpc.clone(),
        protocol: crate::model::service::Protocol::Tcp,
        family: crate::model::family::Family::Ipv4,
        port: made.port,
        health: made.health.clone(),
        nodes: made.nodes.clone(),
        tags: made.tags.clone(),
        attributes: BTreeMap::new(),
    });
    stage.state.record(&step, crate::controller::observed::Outcome::TargetGroup(made));
    assert_eq!(stage.state.seniority[&ours("x")], age(1, "shop/x"));
    stage.state.forget_promises(&ServiceKey::new("shop", "y"));
    assert!(stage.state.promised.is_empty());
}
