//! A healthy cluster, and what each check says when one thing about it is not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::check::{Report, Severity, examine};
use super::facts::{
    Answer, ApiProblem, Cloud, DeploymentSeen, Facts, Identity, Kubernetes, Lbc, LeaseSeen, NoCredentials, NodeFacts,
    NodeSeen, Policies, Proxies, ServiceSeen, Told, Unseen, Webhook,
};
use super::{cluster_checks, node_checks};
use crate::aws::classify::{AwsError, Class};
use crate::aws::ec2::{Instance, Reference};
use crate::aws::inquiry::{Caller, Health};
use crate::command::deployed;
use crate::command::settings::Place;
use crate::controller::desired::node_rules;
use crate::controller::facts::Subnet;
use crate::controller::observed::{Asg, Balancer, BalancerState, IngressRule, SecurityGroup, Source, SourceState};
use crate::model::id::{ServiceKey, TargetGroupArn};
use crate::model::name;
use crate::model::node::Worker;
use crate::model::ownership::{Owner, Role, Tags, service_tags, with_cluster_uid};
use crate::model::service::{AddressType, Scheme};
use crate::netfilter::netlink::{FilterSeen, TableSeen};
use crate::settings::{Cli, Command, Controller};

const ZONE: &str = "us-east-1a";

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

fn controller(name: &str) -> Controller {
    let place = Place { cluster_name: Some(name.into()), region: None, namespace: "weir-system".into() };
    deployed::settings(&place, None).unwrap()
}

fn tags(list: &[(&str, &str)]) -> Tags {
    list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

const OURS: (&str, &str) = ("kubernetes.io/cluster/demo", "owned");

fn node(number: u32) -> NodeSeen {
    let id = format!("aws:///{ZONE}/i-{number}");
    NodeSeen {
        worker: Worker::read(&format!("n{number}"), &BTreeMap::new(), Some(&id)),
        zone: Some(ZONE.into()),
        region: Some("us-east-1".into()),
    }
}

fn service(name: &str) -> ServiceSeen {
    ServiceSeen {
        key: ServiceKey::new("shop", name),
        uid: format!("uid-{name}"),
        created: now() - SignedDuration::from_hours(2),
        deleted: None,
        is_balancer: true,
        class: Some("weir.dev/nlb".into()),
        finalizers: vec!["weir.dev/load-balancer".into()],
        address: Some("order.example.com".into()),
        problems: vec![],
        scheme: None,
        address_type: AddressType::Ipv4,
        names_subnets: false,
        listeners: 1,
        keeps_client_address: true,
    }
}

fn group_arn() -> TargetGroupArn {
    format!("arn:aws:elasticloadbalancing:us-east-1:1:targetgroup/{}order-80-x/1", name::cluster_prefix("demo")).into()
}

fn owned(role: Role) -> Tags {
    let owner = Owner { service: ServiceKey::new("shop", "order"), uid: "uid-order".into() };
    with_cluster_uid(service_tags("demo", &owner, role, &Tags::new()), "cluster-uid")
}

fn kubernetes() -> Kubernetes {
    Kubernetes {
        api: Ok((1, 37)),
        ahead: Some(SignedDuration::ZERO),
        uid: Ok("cluster-uid".into()),
        forbidden: Ok(vec![]),
        nodes: Ok(vec![node(1), node(2)]),
        services: Ok(vec![service("order")]),
        told: Ok(vec![]),
        lease: Ok(Some(LeaseSeen { holder: Some("weir-1".into()), renewed: Some(now()) })),
        deployment: Ok(Some(DeploymentSeen {
            name: "weir-system/weir-controller".into(),
            settings: Ok(controller("demo")),
            desired: 2,
            available: 2,
            words: None,
        })),
        policy: Ok(Policies { is_served: true, has_policy: true, has_binding: true, validates: true }),
        lbc: Ok(Lbc::default()),
        proxies: Ok(Proxies::default()),
    }
}

fn node_group() -> SecurityGroup {
    SecurityGroup { id: "sg-nodes".into(), name: "nodes".into(), rules: BTreeSet::new(), tags: tags(&[OURS]) }
}

fn references() -> Vec<Reference> {
    let settings = controller("demo");
    let policy = settings.policy("cluster-uid".into());
    let rules = node_rules(&policy, &"sg-backend".into()).into_iter();
    rules.map(|rule| Reference { group: "sg-nodes".into(), rule, is_ours: true }).collect()
}

fn subnet() -> Subnet {
    Subnet {
        zone: ZONE.into(),
        in_availability_zone: true,
        free_addresses: 100,
        is_public: true,
        tags: tags(&[OURS, ("kubernetes.io/role/elb", "1")]),
        ranges: BTreeSet::new(),
    }
}

fn asg() -> Asg {
    Asg {
        tags: tags(&[OURS]),
        instances: ["i-1".into(), "i-2".into()].into(),
        sources: [(group_arn(), SourceState::Added)].into(),
        ..Asg::default()
    }
}

fn balancer() -> Balancer {
    Balancer {
        arn: "arn:lb".into(),
        name: "weir-x".into(),
        dns_name: "order.example.com".into(),
        scheme: Scheme::InternetFacing,
        address_type: AddressType::Ipv4,
        source_nat: false,
        rules_on_private_link: true,
        capacity: None,
        state: BalancerState::Active,
        subnets: BTreeMap::new(),
        groups: BTreeSet::new(),
        tags: owned(Role::Balancer),
        listeners: None,
        attributes: None,
    }
}

fn healthy(state: &str) -> Health {
    Health { state: state.into(), reason: (state != "healthy").then(|| "Target.FailedHealthChecks".into()) }
}

fn cloud() -> Cloud {
    let instance = Instance { vpc: "vpc-1".into(), groups: ["sg-nodes".into()].into() };
    Cloud {
        region: "us-east-1".into(),
        identity: Identity::Known(Caller { account: "123456789012".into(), arn: "arn:aws:iam::1:role/weir".into() }),
        failures: vec![],
        instances: Ok([("i-1".into(), instance.clone()), ("i-2".into(), instance)].into()),
        vpc: Ok("vpc-1".into()),
        subnets: Ok([("subnet-1".into(), subnet())].into()),
        node_groups: Ok([("sg-nodes".into(), node_group())].into()),
        backend: Ok(Some("sg-backend".into())),
        references: Ok(references()),
        balancers: Ok(vec![balancer()]),
        target_groups: Ok([group_arn()].into()),
        target_group_tags: Ok([(group_arn(), owned(Role::TargetGroup))].into()),
        health: Ok([(group_arn(), [("i-1".into(), healthy("healthy"))].into())].into()),
        asgs: Ok([("workers".into(), asg())].into()),
        refreshing: Ok(BTreeSet::new()),
        limits: Ok([("network-load-balancers".to_owned(), 50), ("target-groups".to_owned(), 3000)].into()),
    }
}

fn well() -> Facts {
    Facts {
        controller: Ok(controller("demo")),
        patience: Duration::from_mins(5),
        now: now(),
        kubernetes: kubernetes(),
        cloud: cloud(),
    }
}

/// The report about a cluster that is well but for one thing.
fn but(change: impl FnOnce(&mut Facts)) -> Report {
    let mut facts = well();
    change(&mut facts);
    examine(&cluster_checks(), &facts)
}

/// The first finding is of this check and severity, and says these words.
#[track_caller]
fn first(report: &Report, id: &str, severity: Severity, words: &[&str]) {
    let Some(finding) = report.findings.first() else { panic!("nothing was found") };
    assert_eq!((finding.id, finding.severity), (id, severity), "{finding:?}");
    for words in words {
        assert!(finding.finding.contains(words), "{}: {}", finding.id, finding.finding);
    }
    assert!(!finding.remedy.is_empty());
}

use Severity::{Error, Note, Warning};

fn error(action: &'static str, class: Class, code: &str, message: &str) -> AwsError {
    AwsError { action, resource: "*".into(), class, code: code.into(), message: message.into() }
}

fn refused_with(code: &str, message: &str) -> Report {
    but(|facts| {
        let error = error("sts:GetCallerIdentity", Class::Unauthenticated, code, message);
        facts.cloud = unasked(Identity::Refused(error));
    })
}

fn unasked(identity: Identity) -> Cloud {
    fn unseen<T>() -> Result<T, Unseen> {
        Err(Unseen("AWS cannot be asked".into()))
    }
    Cloud {
        identity,
        instances: unseen(),
        vpc: unseen(),
        subnets: unseen(),
        node_groups: unseen(),
        backend: unseen(),
        references: unseen(),
        balancers: unseen(),
        target_groups: unseen(),
        target_group_tags: unseen(),
        health: unseen(),
        asgs: unseen(),
        refreshing: unseen(),
        limits: unseen(),
        ..cloud()
    }
}

fn told(service: &str, reason: &str, note: &str, minutes_ago: i64) -> Told {
    Told {
        uid: format!("uid-{service}"),
        reason: reason.into(),
        note: note.into(),
        at: now() - SignedDuration::from_mins(minutes_ago),
    }
}

#[test]
fn a_healthy_cluster_has_no_finding() {
    let report = but(|_| {});
    assert_eq!(report.findings, []);
    assert_eq!(report.not_looked_at, []);
    assert_eq!(report.fine.len(), cluster_checks().len());
}

#[test]
fn ids_are_unique_and_whatever_is_explained_is_a_check() {
    let ids: Vec<_> =
        cluster_checks().iter().map(|check| check.id).chain(node_checks().iter().map(|check| check.id)).collect();
    let unique: BTreeSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
    let sources = [
        include_str!("identity.rs"),
        include_str!("kubernetes.rs"),
        include_str!("network.rs"),
        include_str!("node.rs"),
        include_str!("proxies.rs"),
        include_str!("scaling.rs"),
        include_str!("services.rs"),
    ];
    let named = sources.iter().flat_map(|text| text.split(".explaining(&[").skip(1));
    let named: Vec<_> = named.filter_map(|rest| rest.split(']').next()).flat_map(|list| list.split(',')).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in named {
        let name = name.trim().trim_matches('"');
        assert!(name.is_empty() || ids.contains(&name), "{name}");
    }
}

#[test]
fn every_check_is_in_the_documentation_and_the_documentation_has_no_other() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/troubleshooting.md");
    let text = std::fs::read_to_string(path).unwrap();
    let documented: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let cluster = cluster_checks();
    let node = node_checks();
    let checks =
        cluster.iter().map(|check| (check.id, check.title)).chain(node.iter().map(|check| (check.id, check.title)));
    let checks: Vec<_> = checks.collect();
    for (id, title) in &checks {
        assert!(
            text.contains(&format!("| `{id}` | {title} |")),
            "docs/troubleshooting.md has no row for {id}: {title}"
        );
    }
    let ids: BTreeSet<_> = checks.iter().map(|(id, _)| *id).collect();
    assert_eq!(documented.difference(&ids).collect::<Vec<_>>(), Vec::<&&str>::new());
}

// --- Kubernetes

#[test]
fn an_api_server_that_cannot_be_asked_is_the_first_thing() {
    let report = but(|facts| {
        let unseen = || Unseen("the API server cannot be asked".into());
        facts.kubernetes.api = Err(ApiProblem::Unreachable("connection refused".into()));
        facts.kubernetes.nodes = Err(unseen());
        facts.kubernetes.services = Err(unseen());
        facts.kubernetes.lease = Err(unseen());
        facts.cloud = unasked(Identity::NoRegion);
    });
    first(&report, "kubernetes-unreachable", Error, &["connection refused"]);
    assert!(report.not_looked_at.iter().any(|skipped| skipped.id == "service-waiting"));
    let report = but(|facts| facts.kubernetes.api = Err(ApiProblem::Unauthorized("no".into())));
    first(&report, "kubernetes-unauthorized", Error, &["401"]);
    let report = but(|facts| facts.kubernetes.api = Err(ApiProblem::NotConfigured("no file".into())));
    first(&report, "kubernetes-unreachable", Error, &["neither a kubeconfig", "no file"]);
}

#[test]
fn rights_flags_and_pods_of_the_controller() {
    let report = but(|facts| facts.kubernetes.forbidden = Ok(vec!["patch services/status".into()]));
    first(&report, "rbac-missing", Error, &["patch services/status"]);
    let deployment = |change: fn(&mut DeploymentSeen)| {
        but(|facts| {
            let deployment = facts.kubernetes.deployment.as_mut().unwrap().as_mut().unwrap();
            change(deployment);
            facts.kubernetes.lease = Ok(None);
        })
    };
    let report = deployment(|it| it.settings = Err("unexpected argument '--clasless'".into()));
    first(&report, "controller-flags", Error, &["--clasless", "weir-system/weir-controller"]);
    let report = deployment(|it| (it.available, it.words) = (0, Some("does not have minimum availability".into())));
    first(&report, "controller-down", Error, &["0 of 2", "minimum availability"]);
    assert_eq!(report.findings[1].id, "leader-none");
    assert_eq!(report.findings[1].follows_from, ["controller-down"]);
    let report = but(|facts| facts.controller = Err(Unseen("nobody tells it".into())));
    first(&report, "cluster-name-unknown", Error, &["nobody tells it", "the nodes' tags name demo"]);
    let report = but(|facts| {
        let verbs = ["get services", "patch services", "patch services/status"];
        facts.kubernetes.forbidden = Ok(verbs.map(str::to_owned).into());
        (facts.kubernetes.deployment, facts.kubernetes.lease) = (Ok(None), Ok(None));
    });
    first(&report, "controller-absent", Error, &["no Deployment weir-controller"]);
    assert_eq!(report.findings[1].finding, "its ServiceAccount may not get, patch services; patch services/status");
    assert_eq!(report.findings[1].follows_from, ["controller-absent"]);
}

#[test]
fn leadership() {
    let lease = |holder: &str, seconds_ago: i64| {
        let renewed = Some(now() - SignedDuration::from_secs(seconds_ago));
        but(|facts| facts.kubernetes.lease = Ok(Some(LeaseSeen { holder: Some(holder.into()), renewed })))
    };
    assert_eq!(lease("weir-1", 20).findings, []);
    first(&lease("weir-1", 3600), "leader-stale", Error, &["weir-1", "3600 s ago"]);
    first(&lease("", 0), "leader-none", Error, &["gave it back"]);
    first(&but(|facts| facts.kubernetes.lease = Ok(None)), "leader-none", Error, &["weir-system/weir-controller"]);
    let report = but(|facts| {
        facts.controller.as_mut().unwrap().leader_elect = false;
        facts.kubernetes.lease = Ok(None);
    });
    assert_eq!(report.findings, [], "not elected, not missed");
}

#[test]
fn what_gives_services_their_class() {
    let policy = |policy: Policies, has_service: bool| {
        but(|facts| {
            facts.kubernetes.policy = Ok(policy);
            if has_service {
                let pending = ServiceSeen { class: None, address: None, finalizers: vec![], ..service("pending") };
                facts.kubernetes.services = Ok(vec![pending]);
            }
        })
    };
    let none = Policies { is_served: true, has_policy: false, has_binding: false, validates: true };
    first(&policy(none, false), "class-policy-missing", Warning, &["no MutatingAdmissionPolicy weir-class"]);
    let report = policy(none, true);
    first(&report, "class-policy-missing", Error, &["no MutatingAdmissionPolicy weir-class"]);
    assert_eq!(
        (report.findings[1].id, &report.findings[1].follows_from[..]),
        ("service-unclaimed", &["class-policy-missing"][..])
    );
    let unbound = Policies { has_policy: true, ..none };
    first(&policy(unbound, false), "class-policy-missing", Warning, &["MutatingAdmissionPolicyBinding"]);
    let old = Policies { is_served: false, ..none };
    let report = but(|facts| (facts.kubernetes.policy, facts.kubernetes.api) = (Ok(old), Ok((1, 33))));
    first(&report, "kubernetes-too-old", Warning, &["1.33"]);
    let report = but(|facts| {
        facts.kubernetes.policy = Ok(old);
        facts.controller.as_mut().unwrap().claim_classless = true;
    });
    assert_eq!(report.findings, [], "Services without a class are claimed all the same");
    let report = but(|facts| facts.kubernetes.policy.as_mut().unwrap().validates = false);
    first(&report, "validation-policy-missing", Note, &["weir-annotations"]);
}

#[test]
fn other_controllers_and_proxies() {
    let lbc = |class: &str, available, is_needed| {
        but(|facts| {
            let webhook = Some(Webhook { name: "webhook x of y".into(), is_needed });
            let deployments = vec![("kube-system/lbc".to_owned(), class.to_owned(), available)];
            facts.kubernetes.lbc = Ok(Lbc { deployments, webhook });
        })
    };
    first(&lbc("weir.dev/nlb", 1, true), "lbc-same-class", Error, &["kube-system/lbc"]);
    first(&lbc("service.k8s.aws/nlb", 0, true), "lbc-webhook-dead", Error, &["webhook x of y"]);
    first(&lbc("service.k8s.aws/nlb", 0, false), "lbc-webhook", Note, &["webhook x of y"]);
    let report = but(|facts| {
        let service = &mut facts.kubernetes.services.as_mut().unwrap()[0];
        service.finalizers.push("service.k8s.aws/resources".into());
    });
    first(&report, "service-claimed-twice", Error, &["shop/order", "service.k8s.aws/resources"]);

    let proxies = |words: &[&str]| {
        but(|facts| {
            let line = ["weir", "node"].into_iter().chain(words.iter().copied());
            let Command::Node(node) = <Cli as clap::Parser>::parse_from(line).command else { panic!() };
            facts.kubernetes.proxies = Ok(Proxies { kube_proxy: Some(3), weir: Some(Ok(node.settings)) });
        })
    };
    first(&proxies(&[]), "kube-proxy-beside-replace", Error, &["kube-system/kube-proxy", "3 nodes"]);
    first(&proxies(&["--mode=beside"]), "health-port-shared", Error, &["0.0.0.0:10256"]);
    assert_eq!(proxies(&["--mode=beside", "--healthz-address=0.0.0.0:20256"]).findings, []);
    let report = but(|facts| {
        facts.kubernetes.proxies = Ok(Proxies { kube_proxy: None, weir: Some(Err("unexpected argument".into())) });
    });
    first(&report, "node-flags", Error, &["unexpected argument"]);
}

// --- identity

#[test]
fn credentials() {
    let nobody = |none| but(|facts| facts.cloud = unasked(Identity::Nobody(none)));
    first(&nobody(NoCredentials::Missing("no provider".into())), "credentials-missing", Error, &["no provider"]);
    first(&nobody(NoCredentials::Expired("at noon".into())), "credentials-expired", Error, &["at noon"]);
    first(&nobody(NoCredentials::Refused("no such role".into())), "credentials-invalid", Error, &["no such role"]);
    first(&refused_with("ExpiredToken", "it has expired"), "credentials-expired", Error, &["it has expired"]);
    first(&refused_with("InvalidClientTokenId", "is invalid"), "credentials-invalid", Error, &["is invalid"]);
    let report = but(|facts| {
        facts.kubernetes.told = Ok(vec![told("order", "AwsCredentialsInvalid", "the token file is missing", 1)]);
    });
    first(&report, "credentials-invalid", Error, &["the controller has no valid ones", "the token file is missing"]);
    let report = but(|facts| facts.cloud = unasked(Identity::NoRegion));
    first(&report, "region-unknown", Error, &["AWS_REGION"]);
    let report = but(|facts| {
        let lost = error("sts:GetCallerIdentity", Class::Transient, "NoAnswer", "dns error");
        facts.cloud = unasked(Identity::Refused(lost));
    });
    first(&report, "aws-unreachable", Error, &["dns error", "us-east-1"]);
    let report = but(|facts| facts.cloud = unasked(Identity::NoTrust("no CA certificates are found".into())));
    first(&report, "aws-unreachable", Error, &["no CA certificates"]);
}

#[test]
fn clocks() {
    first(&refused_with("RequestTimeTooSkewed", ""), "clock-skew", Error, &["RequestTimeTooSkewed"]);
    let words = "Signature expired: 20260101T000000Z is now earlier than 20260101T001000Z";
    first(&refused_with("SignatureDoesNotMatch", words), "clock-skew", Error, &["Signature expired"]);
    first(&refused_with("SignatureDoesNotMatch", "check your key"), "credentials-invalid", Error, &["check your key"]);
    let ahead = |seconds| but(|facts| facts.kubernetes.ahead = Some(SignedDuration::from_secs(seconds)));
    assert_eq!(ahead(20).findings, []);
    first(&ahead(-90), "clock-skew", Warning, &["90 s behind"]);
    first(&ahead(900), "clock-skew", Error, &["900 s ahead of"]);
}

#[test]
fn another_region_and_another_account() {
    let gone = |facts: &mut Facts| {
        facts.cloud.instances = Ok(BTreeMap::new());
        facts.cloud.vpc = Err(Unseen("the cluster's VPC is not known".into()));
    };
    let report = but(|facts| {
        facts.cloud.region = "eu-west-1".into();
        gone(facts);
    });
    first(&report, "region-wrong", Error, &["eu-west-1", "us-east-1"]);
    assert_eq!(report.findings[1].follows_from, ["region-wrong"]);
    first(&but(gone), "account-wrong", Error, &["123456789012", "i-1"]);
}

#[test]
fn denials_name_the_action() {
    let denied = |action, resource: &str| AwsError {
        resource: resource.into(),
        ..error(action, Class::Denied, "UnauthorizedOperation", "no")
    };
    let report = but(|facts| facts.cloud.failures = vec![denied("ec2:DescribeSubnets", "vpc-1")]);
    first(&report, "permission-denied", Error, &["ec2:DescribeSubnets", "arn:aws:iam::1:role/weir"]);
    let report = but(|facts| facts.cloud.failures = vec![denied("elasticloadbalancing:DescribeAccountLimits", "*")]);
    assert_eq!(report.findings, [], "the controller needs it not");
    let report = but(|facts| {
        facts.cloud.failures = vec![denied("ec2:AuthorizeSecurityGroupIngress", "sg-nodes")];
        facts.cloud.node_groups.as_mut().unwrap().values_mut().for_each(|group| group.tags.clear());
    });
    first(&report, "permission-denied", Error, &["ec2:AuthorizeSecurityGroupIngress on sg-nodes"]);
    assert!(report.findings[0].remedy.ends_with("tag sg-nodes"), "{}", report.findings[0].remedy);
    let report = but(|facts| {
        let note = "AWS denies elasticloadbalancing:CreateListener on x";
        facts.kubernetes.told = Ok(vec![told("order", "AwsAccessDenied", note, 1)]);
    });
    first(&report, "permission-denied", Error, &["shop/order", "elasticloadbalancing:CreateListener"]);
    let report = but(|facts| {
        let denied = told("order", "AwsAccessDenied", "AWS denies x", 9);
        facts.kubernetes.told = Ok(vec![told("order", "Recovered", "", 1), denied]);
    });
    assert_eq!(report.findings, [], "it is over");
}

// --- network

#[test]
fn names_of_clusters() {
    let report = but(|facts| facts.controller = Ok(controller("other")));
    first(&report, "cluster-name-other", Error, &["--cluster-name=demo", "other"]);
    let report = but(|facts| {
        facts.controller = Ok(controller("other"));
        facts.kubernetes.deployment = Ok(None);
    });
    first(&report, "cluster-name-other", Error, &["kubernetes.io/cluster/other", "name demo"]);
    let report = but(|facts| {
        let left = facts.cloud.balancers.as_mut().unwrap();
        left[0].tags.insert("weir.dev/cluster".into(), "former".into());
    });
    first(&report, "cluster-renamed", Warning, &["former", "weir-x"]);
    let report = but(|facts| {
        let theirs = facts.cloud.balancers.as_mut().unwrap();
        theirs[0].tags.insert("weir.dev/cluster-uid".into(), "theirs".into());
    });
    first(&report, "cluster-twin", Warning, &["demo", "weir-x"]);
}

#[test]
fn nodes_that_are_none() {
    let report = but(|facts| {
        facts.kubernetes.nodes = Ok(vec![]);
        facts.cloud.instances = Ok(BTreeMap::new());
        facts.cloud.vpc = Err(Unseen("the cluster's VPC is not known".into()));
    });
    first(&report, "node-none", Error, &["has no node"]);
    let report = but(|facts| {
        let nodes = facts.kubernetes.nodes.as_mut().unwrap();
        nodes.iter_mut().filter_map(|node| node.worker.as_mut()).for_each(|worker| worker.eligible = false);
    });
    first(&report, "node-none", Error, &["all 2 nodes are kept out"]);
    let report = but(|facts| {
        let odd = Worker::read("odd", &BTreeMap::new(), Some("kind://x")).unwrap();
        facts.kubernetes.nodes.as_mut().unwrap()[0].worker = Some(odd);
    });
    first(&report, "node-provider-id", Warning, &["Node odd", "kind://x"]);
    let report = but(|facts| {
        let instance = Instance { vpc: "vpc-2".into(), groups: ["sg-nodes".into()].into() };
        facts.cloud.instances.as_mut().unwrap().insert("i-2".into(), instance);
        facts.cloud.vpc = Err(Unseen("the cluster's VPC is not known".into()));
    });
    first(&report, "vpc-unknown", Error, &["vpc-1, vpc-2"]);
}

#[test]
fn subnets_are_told_by_what_they_lack_last() {
    let with =
        |change: fn(&mut Subnet)| but(|facts| facts.cloud.subnets.as_mut().unwrap().values_mut().for_each(change));
    let report = with(|subnet| {
        subnet.tags = tags(&[("kubernetes.io/cluster/theirs", "owned"), ("kubernetes.io/role/elb", "1")]);
    });
    first(&report, "subnet-other-cluster", Error, &["subnet-1 (us-east-1a)"]);
    assert_eq!(
        (report.findings[1].id, &report.findings[1].follows_from[..]),
        ("subnet-none", &["subnet-other-cluster"][..])
    );
    first(&with(|subnet| subnet.free_addresses = 3), "subnet-full", Error, &["3 free addresses"]);
    first(&with(|subnet| subnet.in_availability_zone = false), "subnet-zone", Error, &["subnet-1"]);
    let report = with(|subnet| {
        subnet.tags.remove("kubernetes.io/role/elb");
        subnet.is_public = false;
    });
    first(&report, "subnet-route", Error, &["no route to an internet gateway"]);
    let report = with(|subnet| {
        subnet.tags.insert("kubernetes.io/role/internal-elb".into(), "1".into());
        subnet.tags.remove("kubernetes.io/role/elb");
        subnet.is_public = false;
    });
    first(&report, "subnet-route", Error, &["subnet-1"]);
    let report = but(|facts| {
        let elsewhere = Subnet { zone: "us-east-1b".into(), ..subnet() };
        let untagged = Subnet { tags: Tags::new(), ..subnet() };
        facts.cloud.subnets = Ok([("subnet-1".into(), untagged), ("subnet-2".into(), elsewhere)].into());
    });
    first(&report, "subnet-role", Warning, &["subnet-1 (us-east-1a) is not tagged kubernetes.io/role/elb"]);
    let report = but(|facts| facts.kubernetes.services.as_mut().unwrap()[0].address_type = AddressType::Dualstack);
    first(&report, "subnet-no-ipv6", Error, &["subnet-1"]);
    let report = but(|facts| {
        let private = Subnet { tags: Tags::new(), is_public: false, ..subnet() };
        facts.cloud.subnets.as_mut().unwrap().insert("subnet-0".into(), private);
    });
    assert_eq!(report.findings, [], "the zone has a subnet that fits");
}

#[test]
fn security_groups_of_the_nodes() {
    let report = but(|facts| {
        let instances = facts.cloud.instances.as_mut().unwrap();
        for instance in instances.values_mut() {
            instance.groups.insert("sg-more".into());
        }
        let more = SecurityGroup { id: "sg-more".into(), ..node_group() };
        facts.cloud.node_groups.as_mut().unwrap().insert("sg-more".into(), more);
        let moved = references().into_iter().map(|each| Reference { group: "sg-more".into(), ..each });
        facts.cloud.references = Ok(moved.collect());
    });
    first(&report, "node-group-ambiguous", Warning, &["sg-more, sg-nodes"]);
    let report =
        but(|facts| facts.cloud.node_groups.as_mut().unwrap().values_mut().for_each(|group| group.tags.clear()));
    first(&report, "node-group-untagged", Warning, &["sg-nodes"]);
    let report = but(|facts| facts.cloud.references = Ok(vec![]));
    first(&report, "node-group-closed", Error, &["sg-nodes", "tcp 30000-32767 from sg-backend", "10256"]);

    let rule = |port: i32, source: &str| IngressRule {
        protocol: "tcp".into(),
        from: port,
        to: port,
        source: Source::Range(source.parse().unwrap()),
    };
    let filled = |count: i32, references: Vec<Reference>| {
        but(|facts| {
            facts.cloud.references = Ok(references);
            let groups = facts.cloud.node_groups.as_mut().unwrap();
            for group in groups.values_mut() {
                group.rules = (1..=count).map(|port| rule(port, "10.0.0.0/8")).collect();
            }
        })
    };
    first(&filled(58, vec![]), "security-group-full", Error, &["58 inbound rules, and 3 more"]);
    first(&filled(58, references()), "security-group-full", Warning, &["58 inbound rules of 60"]);
    assert_eq!(filled(100, references()).findings, [], "the quota was raised");
    let report = but(|facts| {
        facts.cloud.references = Ok(vec![]);
        let all = IngressRule {
            protocol: "-1".into(),
            from: -1,
            to: -1,
            source: Source::Range("0.0.0.0/0".parse().unwrap()),
        };
        for group in facts.cloud.node_groups.as_mut().unwrap().values_mut() {
            group.rules.insert(all.clone());
        }
    });
    assert_eq!(report.findings, [], "everyone is let in");
}

// --- Auto Scaling groups and quotas

fn with_asg(change: impl Fn(&mut Asg)) -> Report {
    but(|facts| facts.cloud.asgs.as_mut().unwrap().values_mut().for_each(&change))
}

#[test]
fn traps_of_auto_scaling_groups() {
    first(&with_asg(|asg| asg.elb_health = true), "asg-elb-health", Warning, &["workers"]);
    first(&with_asg(|asg| asg.add_suspended = true), "asg-add-suspended", Warning, &["workers"]);
    first(&with_asg(|asg| asg.tags.clear()), "asg-untagged", Warning, &["workers"]);
    let ghost = "arn:aws:elasticloadbalancing:us-east-1:1:targetgroup/theirs/9";
    let report = with_asg(|asg| asg.legacy.extend([(ghost.into(), SourceState::Added)]));
    first(&report, "asg-ghost", Error, &["workers", ghost]);
    assert!(report.findings[0].remedy.contains("detach-load-balancer-target-groups"));
    let filled = |count: usize| {
        but(|facts| {
            let more: Vec<TargetGroupArn> =
                (1..count).map(|number| format!("arn:x:targetgroup/t{number}/1").into()).collect();
            facts.cloud.target_groups.as_mut().unwrap().extend(more.iter().cloned());
            let asg = facts.cloud.asgs.as_mut().unwrap().values_mut().next().unwrap();
            asg.sources.extend(more.into_iter().map(|arn| (arn, SourceState::Added)));
        })
    };
    first(&filled(50), "asg-full", Warning, &["50 of 50 target groups, 49 of them not weir's"]);
    first(&filled(45), "asg-full", Note, &["45 of 50"]);
    assert_eq!(filled(44).findings, []);
    let report = but(|facts| facts.cloud.refreshing = Ok(["workers".into()].into()));
    first(&report, "asg-refresh", Note, &["workers"]);
    let report = but(|facts| {
        let theirs = Asg { elb_health: true, ..Asg::default() };
        facts.cloud.asgs.as_mut().unwrap().insert("theirs".into(), theirs);
    });
    assert_eq!(report.findings, [], "another cluster's");
}

#[test]
fn quotas() {
    let limited =
        |name: &str, max: usize| but(|facts| facts.cloud.limits.as_mut().unwrap().extend([(name.to_owned(), max)]));
    first(&limited("network-load-balancers", 1), "quota", Error, &["1 of 1", "network-load-balancers"]);
    first(&limited("target-groups", 1), "quota", Error, &["target-groups"]);
    let zonal = "targets-per-availability-zone-per-network-load-balancer";
    first(&limited(zonal, 2), "quota", Error, &["shop/order", "1 ports × 2 nodes", ZONE]);
    let report = but(|facts| {
        facts.kubernetes.told = Ok(vec![told("order", "AwsQuotaExceeded", "TooManyListeners", 1)]);
    });
    first(&report, "quota", Error, &["shop/order", "TooManyListeners"]);
    let report = but(|facts| facts.cloud.limits = Err(Unseen("AWS denies it".into())));
    assert_eq!(report.findings, []);
    assert_eq!(report.not_looked_at[0].id, "quota");
}

// --- Services

fn with_service(change: impl FnOnce(&mut ServiceSeen)) -> Report {
    but(|facts| change(&mut facts.kubernetes.services.as_mut().unwrap()[0]))
}

#[test]
fn services_that_get_nothing() {
    let report = with_service(|it| (it.class, it.address, it.finalizers) = (None, None, vec![]));
    first(&report, "service-unclaimed", Error, &["shop/order"]);
    let theirs = |finalizer: &str| {
        with_service(|it| (it.class, it.address, it.finalizers) = (None, None, vec![finalizer.into()]))
    };
    assert_eq!(theirs("service.kubernetes.io/load-balancer-cleanup").findings, []);
    let report = with_service(|it| (it.class, it.address) = (Some("weir.dev/nlbs".into()), None));
    first(&report, "service-class-unknown", Warning, &["weir.dev/nlbs"]);
    let report = with_service(|it| (it.problems, it.address) = (vec!["spec.ports: wrong".into()], None));
    first(&report, "service-refused", Error, &["spec.ports: wrong"]);
    assert_eq!(report.findings[1].follows_from, ["service-refused"]);
    let report =
        but(|facts| facts.kubernetes.told = Ok(vec![told("order", "InvalidConfiguration", "the name is taken", 1)]));
    first(&report, "service-refused", Error, &["the name is taken"]);
    let report = but(|facts| {
        facts.kubernetes.services.as_mut().unwrap()[0].address = None;
        facts.kubernetes.told = Ok(vec![told("order", "Waiting", "load balancer x to become active", 3)]);
    });
    first(&report, "service-waiting", Error, &["120 minutes", "Waiting: load balancer x to become active"]);
    let report =
        but(|facts| facts.kubernetes.told = Ok(vec![told("order", "Contested", "DeleteListener was undone", 1)]));
    first(&report, "service-contested", Warning, &["shop/order", "DeleteListener was undone"]);
    let report = with_service(|it| (it.address, it.created) = (None, now() - SignedDuration::from_mins(1)));
    assert_eq!(report.findings, [], "one minute is not long");
    let report = with_service(|it| it.deleted = Some(now() - SignedDuration::from_mins(30)));
    first(&report, "service-deleting", Error, &["30 minutes", "has said nothing"]);
}

#[test]
fn r44_pods_that_come_back_to_their_own_node() {
    let internal = |keeps| {
        with_service(|it| {
            (it.scheme, it.names_subnets, it.keeps_client_address) = (Some(Scheme::Internal), true, keeps);
        })
    };
    first(&internal(true), "service-hairpin", Note, &["shop/order"]);
    let report = internal(false);
    assert_eq!(report.findings, []);
}

#[test]
fn no_healthy_target() {
    let with = |states: &[&str]| {
        but(|facts| {
            let targets =
                states.iter().enumerate().map(|(number, state)| (format!("i-{number}").into(), healthy(state)));
            facts.cloud.health = Ok([(group_arn(), targets.collect())].into());
        })
    };
    first(
        &with(&["unhealthy", "unhealthy"]),
        "service-no-healthy-target",
        Error,
        &["shop/order", "Target.FailedHealthChecks"],
    );
    assert_eq!(with(&["unhealthy", "healthy"]).findings, []);
    assert_eq!(with(&["initial"]).findings, [], "not yet judged");
    assert_eq!(with(&[]).findings, []);
}

#[test]
fn many_target_groups_are_looked_into_in_part() {
    let other = || TargetGroupArn::from(group_arn().as_str().replace("weir-", "weir-other-"));
    let with = |state: &str| {
        but(|facts| {
            let tags = facts.cloud.target_group_tags.as_mut().unwrap();
            let same = tags.get(&group_arn()).unwrap().clone();
            tags.insert(other(), same);
            facts.cloud.health = Ok([(group_arn(), [("i-1".into(), healthy(state))].into())].into());
        })
    };
    first(&with("unhealthy"), "service-no-healthy-target", Error, &["shop/order"]);
    let report = with("healthy");
    assert_eq!(report.findings, []);
    let [skipped] = &report.not_looked_at[..] else { panic!("{:?}", report.not_looked_at) };
    assert_eq!(skipped.reason, "1 of 2 target groups were looked into; their targets are well");
}

// --- one node

fn well_node() -> NodeFacts {
    let table = |family| TableSeen { family, name: "weir".into(), owner: None };
    NodeFacts {
        replaces: true,
        mark: 0x1000,
        healthz: "0.0.0.0:10256".parse().unwrap(),
        answer: Answer::Weir(200),
        has_net_admin: true,
        kernel: Some((6, 12)),
        nft: Ok((1, 0, 6)),
        has_ipv6: true,
        tables: Ok(vec![table("ip"), table("ip6")]),
        filters: Ok(vec![]),
        kube_proxy: Ok(vec![]),
        legacy: vec![],
        forwards: Some(true),
        forwards_v6: Some(true),
        uplinks: vec![("eth0".into(), 2)],
        marks: Ok(vec![(0x80, 0x80)]),
        conntrack: vec![],
    }
}

fn node_but(change: impl FnOnce(&mut NodeFacts)) -> Report {
    let mut facts = well_node();
    change(&mut facts);
    examine(&node_checks(), &facts)
}

#[test]
fn a_healthy_node_has_no_finding() {
    let report = node_but(|_| {});
    assert_eq!(report.findings, []);
    assert_eq!(report.fine.len(), node_checks().len());
}

#[test]
fn what_a_node_lacks() {
    let report = node_but(|it| (it.nft, it.tables) = (Err("nft cannot be run".into()), Ok(vec![])));
    first(&report, "nft-missing", Error, &["nft cannot be run"]);
    assert_eq!(report.findings[1].follows_from, ["nft-missing"]);
    first(&node_but(|it| it.nft = Ok((0, 9, 3))), "nft-old", Error, &["0.9.3"]);
    first(&node_but(|it| it.kernel = Some((5, 4))), "kernel-old", Warning, &["5.4"]);
    first(&node_but(|it| it.has_net_admin = false), "net-admin-missing", Error, &["NET_ADMIN"]);
    first(&node_but(|it| it.tables = Ok(vec![])), "table-missing", Error, &["table ip weir", "table ip6 weir"]);
    first(&node_but(|it| it.answer = Answer::Nobody), "agent-silent", Error, &["0.0.0.0:10256"]);
    first(&node_but(|it| it.answer = Answer::Weir(503)), "agent-silent", Error, &["503"]);
    first(
        &node_but(|it| it.conntrack = vec![("proc/sys/x", 7)]),
        "conntrack-settings",
        Note,
        &["/proc/sys/x should be 7"],
    );
}

#[test]
fn what_stands_in_a_nodes_way() {
    let owned = node_but(|it| it.tables.as_mut().unwrap()[0].owner = Some(4711));
    first(&owned, "table-owned", Error, &["ip weir", "4711"]);
    let rules = || Ok(vec!["table ip kube-proxy".into()]);
    first(&node_but(|it| it.kube_proxy = rules()), "kube-proxy-rules", Error, &["table ip kube-proxy"]);
    assert_eq!(node_but(|it| (it.kube_proxy, it.replaces) = (rules(), false)).findings, []);
    first(&node_but(|it| it.marks = Ok(vec![(0, 0x1000)])), "mark-taken", Error, &["0x0/0x1000"]);
    first(&node_but(|it| it.forwards = Some(false)), "ip-forward-off", Error, &["net.ipv4.ip_forward"]);
    first(&node_but(|it| it.uplinks = vec![("eth0".into(), 1)]), "rp-filter-strict", Warning, &["eth0"]);
    first(&node_but(|it| it.answer = Answer::Other("HTTP/1.1 200 OK".into())), "health-port-taken", Error, &["200 OK"]);
    first(&node_but(|it| it.legacy = vec!["iptables nat".into()]), "iptables-legacy", Note, &["iptables nat"]);
    let filter = |rules, drops| FilterSeen {
        family: "inet",
        table: "firewalld".into(),
        name: "input".into(),
        hook: "input",
        drops,
        rules,
    };
    first(&node_but(|it| it.filters = Ok(vec![filter(3, true)])), "firewall-drops", Warning, &["firewalld", "3 rules"]);
    first(&node_but(|it| it.filters = Ok(vec![filter(0, true)])), "firewall-drops", Error, &["nothing passes"]);
    assert_eq!(node_but(|it| it.filters = Ok(vec![filter(3, false)])).findings, []);
}
