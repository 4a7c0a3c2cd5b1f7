//! What is shown, as a person sees it.

use super::*;
use crate::controller::observed::{HealthCheck, Intent};
use crate::model::id::ServiceKey;
use crate::model::ownership::{Owner, Role, Tags, service_tags};
use crate::model::service::{AddressType, Scheme};
use crate::status::text::text;

const GROUP: &str = "arn:aws:elasticloadbalancing:us-east-1:1:targetgroup/weir-order-80/1";

fn tags(role: Role) -> Tags {
    let owner = Owner { service: ServiceKey::new("shop", "order"), uid: "u".into() };
    service_tags("demo", &owner, role, &Tags::new())
}

fn worker(number: u32) -> Worker {
    Worker::read(&format!("node-{number}"), &Labels::new(), Some(&format!("aws:///us-east-1a/i-{number}"))).unwrap()
}

fn balancer() -> Balancer {
    let listener = Listener {
        arn: "arn:listener".into(),
        protocol: "TCP".into(),
        target_group: Some(GROUP.into()),
        certificate: None,
        policy: None,
        alpn: None,
        certificates: None,
        attributes: None,
        tags: None,
    };
    Balancer {
        arn: "arn:lb".into(),
        name: "weir-order".into(),
        dns_name: "weir-order-1.elb.us-east-1.amazonaws.com".into(),
        scheme: Scheme::InternetFacing,
        address_type: AddressType::Ipv4,
        source_nat: false,
        rules_on_private_link: true,
        capacity: None,
        state: BalancerState::Active,
        subnets: [("us-east-1a".into(), "subnet-1".into()), ("us-east-1b".into(), "subnet-2".into())].into(),
        groups: BTreeSet::new(),
        tags: tags(Role::Balancer),
        listeners: Some([(80, listener)].into()),
        attributes: None,
    }
}

fn target_group() -> TargetGroup {
    let health = HealthCheck {
        protocol: "HTTP".into(),
        port: "10256".into(),
        path: Some("/healthz".into()),
        interval: 10,
        timeout: 6,
        healthy: 2,
        unhealthy: 2,
        codes: None,
    };
    TargetGroup {
        arn: GROUP.into(),
        name: "weir-order-80".into(),
        protocol: "TCP".into(),
        port: 30080,
        vpc: "vpc-1".into(),
        health,
        tags: tags(Role::TargetGroup),
        attributes: None,
        intent: Intent::Undecided,
        nodes: Labels::new(),
        served: false,
    }
}

fn health(state: &str, reason: Option<&str>) -> Health {
    Health { state: state.into(), reason: reason.map(str::to_owned) }
}

/// A Service with a load balancer, two nodes in an Auto Scaling group and one in none.
fn seen() -> Seen {
    let asg = Asg {
        instances: ["i-1".into(), "i-2".into()].into(),
        sources: [(GROUP.into(), SourceState::Added)].into(),
        ..Asg::default()
    };
    let observed = Observed {
        balancers: [("weir-order".to_owned(), balancer())].into(),
        target_groups: [("weir-order-80".to_owned(), target_group())].into(),
        asgs: [("workers".into(), asg)].into(),
        ..Observed::default()
    };
    let targets = ["i-1", "i-2", "i-3"].map(|id| (id.into(), health("healthy", None)));
    Seen {
        cluster: "demo".into(),
        class: "weir.dev/nlb".into(),
        services: vec![Service {
            name: "shop/order".into(),
            uid: "u".into(),
            is_ours: true,
            kind: "LoadBalancer".into(),
            class: Some("weir.dev/nlb".into()),
            hostname: Some("weir-order-1.elb.us-east-1.amazonaws.com".into()),
            is_leaving: false,
            problems: vec![],
            node_labels: [].into(),
            told: Ok(vec![]),
        }],
        workers: vec![worker(1), worker(2), worker(3)],
        observed,
        health: [(GROUP.into(), targets.into())].into(),
    }
}

fn shown(change: impl FnOnce(&mut Seen)) -> String {
    let mut seen = seen();
    change(&mut seen);
    text(&trees(&seen))
}

#[test]
fn a_service_that_is_served() {
    let expected = "\
Service shop/order  ready  weir-order-1.elb.us-east-1.amazonaws.com
└─ Network Load Balancer weir-order  active, internet-facing, us-east-1a, us-east-1b
   └─ listener TCP 80
      └─ target group weir-order-80  3 of 3 healthy, NodePort 30080, checked by HTTP 10256/healthz
         ├─ registered one by one: nodes in no Auto Scaling group  1 of 1 healthy
         └─ Auto Scaling group workers, attached  2 of 2 healthy

";
    assert_eq!(shown(|_| {}), expected);
}

#[test]
fn what_is_sick_missing_or_under_way_is_named() {
    let text = shown(|seen| {
        let targets = seen.health.get_mut(&GROUP.into()).unwrap();
        targets.insert("i-1".into(), health("unhealthy", Some("Target.Timeout: Request timed out")));
        targets.remove(&"i-3".into());
        seen.workers.push(Worker::read("odd", &Labels::new(), Some("")).unwrap());
        let asg = seen.observed.asgs.values_mut().next().unwrap();
        asg.sources.insert(GROUP.into(), SourceState::Adding);
    });
    let expected = "
      └─ target group weir-order-80  1 of 2 healthy, NodePort 30080, checked by HTTP 10256/healthz
         ├─ Auto Scaling group workers, adding  1 of 2 healthy
         │  └─ i-1 node-1  unhealthy (Target.Timeout: Request timed out)
         └─ no targets yet: node-3, odd (spec.providerID: \"\" is empty; expected aws:///<zone>/<instance id>)
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn why_nodes_are_registered_one_by_one() {
    let with = |change: fn(&mut Asg)| {
        shown(|seen| {
            let asg = seen.observed.asgs.values_mut().next().unwrap();
            asg.sources.clear();
            change(asg);
        })
    };
    let text = with(|asg| asg.elb_health = true);
    assert!(
        text.contains("nodes of Auto Scaling group workers, since its health check type is ELB  2 of 2 healthy"),
        "{text}"
    );
    let text = with(|asg| {
        asg.legacy.extend((0..50).map(|number| (format!("arn:{number}").into(), SourceState::Added)));
    });
    assert!(text.contains("since all of its slots are taken"), "{text}");
    let text = shown(|seen| {
        seen.observed.asgs.values_mut().for_each(|asg| asg.sources.clear());
        seen.services[0].node_labels = [("pool".to_owned(), "web".to_owned())].into();
    });
    assert!(text.contains("since the Service asks for labels of nodes"), "{text}");
    assert!(!text.contains("no targets yet"), "{text}");
}

#[test]
fn what_is_pending_says_what_it_waits_for() {
    let pending = |told: &[(&str, &str)]| {
        shown(|seen| {
            seen.services[0].hostname = None;
            seen.services[0].told = Ok(told.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned(), false)).collect());
            seen.observed = Observed::default();
        })
    };
    let text = pending(&[("Waiting", "load balancer weir-order to become active")]);
    let expected = "\
Service shop/order  pending
├─ there is no load balancer yet
└─ Waiting: load balancer weir-order to become active

";
    assert_eq!(text, expected);
    assert!(pending(&[]).contains("`weir doctor` looks for the reason"));
    let unread = shown(|seen| {
        seen.services[0].hostname = None;
        seen.services[0].told = Err("cannot list Events: events is forbidden".to_owned());
    });
    assert!(unread.contains("what the controller said of it is not known: cannot list Events"), "{unread}");
    assert!(!unread.contains("has said nothing"), "{unread}");
    let text = shown(|seen| seen.observed = Observed::default());
    assert!(text.contains("is published, and there is no load balancer of this Service"), "{text}");
    let text = shown(|seen| {
        let balancer = seen.observed.balancers.values_mut().next().unwrap();
        (balancer.state, balancer.listeners) = (BalancerState::Failed("no addresses".into()), Some(BTreeMap::new()));
    });
    assert!(text.contains("failed (no addresses)") && text.contains("it has no listener"), "{text}");
    assert!(text.contains("no listener leads to target group weir-order-80"), "{text}");
}

#[test]
fn what_is_refused_leaving_or_not_ours() {
    let state = |change: fn(&mut Service)| {
        let mut seen = seen();
        change(&mut seen.services[0]);
        let [tree] = &trees(&seen)[..] else { panic!() };
        (tree.state, tree.words.join("; "))
    };
    assert_eq!(state(|it| it.problems = vec!["spec.x: wrong".into()]), (State::Refused, "spec.x: wrong".into()));
    let taken =
        |it: &mut Service| it.told = Ok(vec![("InvalidConfiguration".into(), "the name is taken".into(), true)]);
    assert_eq!(state(taken), (State::Refused, "InvalidConfiguration: the name is taken".into()));
    let over = |it: &mut Service| {
        it.told = Ok(vec![("InvalidConfiguration".into(), "x".into(), true), ("Recovered".into(), "y".into(), false)]);
    };
    assert_eq!(state(over), (State::Ready, String::new()));
    let full = |it: &mut Service| it.told = Ok(vec![("AutoScalingGroupFull".into(), "50".into(), true)]);
    assert_eq!(state(full), (State::Ready, "AutoScalingGroupFull: 50".into()));
    assert_eq!(state(|it| it.is_leaving = true).0, State::Deleting);
    let (kind, words) = state(|it| (it.is_ours, it.class) = (false, Some("other".into())));
    assert_eq!(kind, State::NotOurs);
    assert!(words.contains("is other, and weir serves weir.dev/nlb"), "{words}");
    let (_, words) = state(|it| (it.is_ours, it.kind) = (false, "ClusterIP".into()));
    assert_eq!(words, "its type is ClusterIP");
}

#[test]
fn nothing_to_show() {
    assert_eq!(text(&[]), "weir looks after no Service\n");
}
