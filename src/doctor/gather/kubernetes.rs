//! Reads the cluster.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::header::DATE;
use hyper::{Request, StatusCode};
use jiff::fmt::rfc2822;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use kube::{Client, Config, ResourceExt};

use super::super::facts::{
    ApiProblem, DeploymentSeen, Kubernetes, Lbc, LeaseSeen, NodeSeen, Policies, Proxies, Seen, ServiceSeen, Told,
    Unseen, Webhook,
};
use super::super::rights;
use crate::cluster::event::CONTROLLER as REPORTER;
use crate::cluster::node::read_worker;
use crate::command::deployed;
use crate::command::settings::Place;
use crate::model::service::{AddressType, FINALIZER, Port, is_claimed, owner_of, parse};
use crate::settings::{Command, Controller};
use crate::telemetry::chain;

/// Long enough for a busy API server, short enough for a person.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(20);
/// Group and version of admission policies.
const ADMISSION: (&str, &str) = ("admissionregistration.k8s.io", "v1");
const CLASS_POLICY: &str = "weir-class";
const VALIDATION_POLICY: &str = "weir-annotations";
/// The AWS Load Balancer Controller's own class, and its webhook for Services.
const LBC_CLASS: &str = "service.k8s.aws/nlb";
const LBC_WEBHOOK: &str = "mservice.elbv2.k8s.aws";
const LBC_LABEL: &str = "app.kubernetes.io/name=aws-load-balancer-controller";

/// Reads all but Services, which mean something only once the controller's settings are known. Without a client the API
/// server cannot be asked.
pub async fn begin(place: &Place) -> (Kubernetes, Option<Client>) {
    match connect().await {
        Err(problem) => (nothing(problem), None),
        Ok((client, version, ahead)) => {
            let kubernetes = Box::pin(read(&client, place, version, ahead)).await;
            (kubernetes, Some(client))
        }
    }
}

/// A client, the version of the API server, and how far our clock is ahead of its.
async fn connect() -> Result<(Client, (u32, u32), Option<SignedDuration>), ApiProblem> {
    let mut config = Config::infer().await.map_err(|error| ApiProblem::NotConfigured(chain(&error)))?;
    (config.connect_timeout, config.read_timeout) = (Some(CONNECT), Some(ANSWER));
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| ApiProblem::NotConfigured(chain(&error)))?;
    let unreachable = |error: &dyn std::error::Error| ApiProblem::Unreachable(format!("{server} ({})", chain(error)));
    let request = Request::get("/version").body(kube::client::Body::empty()).map_err(|error| unreachable(&error))?;
    let answer = client.send(request).await.map_err(|error| unreachable(&error))?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(|error| unreachable(&error))?.to_bytes();
    if head.status == StatusCode::UNAUTHORIZED {
        return Err(ApiProblem::Unauthorized(String::from_utf8_lossy(&body).chars().take(200).collect()));
    }
    let version = serde_json::from_slice::<Info>(&body).map_err(|error| unreachable(&error))?;
    // EKS says "36+".
    let number = |text: &str| text.trim_end_matches('+').parse().unwrap_or_default();
    let date = head.headers.get(DATE).and_then(|date| rfc2822::parse(date.to_str().ok()?).ok());
    let ahead = date.map(|date| Timestamp::now().duration_since(date.timestamp()));
    Ok((client, (number(&version.major), number(&version.minor)), ahead))
}

fn nothing(problem: ApiProblem) -> Kubernetes {
    fn unseen<T>() -> Seen<T> {
        Err(Unseen("the API server cannot be asked".into()))
    }
    Kubernetes {
        api: Err(problem),
        ahead: None,
        uid: unseen(),
        forbidden: unseen(),
        nodes: unseen(),
        services: unseen(),
        told: unseen(),
        lease: unseen(),
        deployment: unseen(),
        policy: unseen(),
        lbc: unseen(),
        proxies: unseen(),
    }
}

/// The answer, or why there is none.
fn seen<T>(answer: kube::Result<T>, what: &str) -> Seen<T> {
    answer.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 403 => Unseen(format!("this identity may not read {what}")),
        other => Unseen(format!("cannot read {what}: {}", chain(&other))),
    })
}

async fn read(client: &Client, place: &Place, version: (u32, u32), ahead: Option<SignedDuration>) -> Kubernetes {
    let namespace = place.namespace.as_str();
    let all = ListParams::default();
    let (system, nodes, lease, deployment, policy, lbc, proxies) = tokio::join!(
        async { Api::<Namespace>::all(client.clone()).get("kube-system").await },
        async { Api::<Node>::all(client.clone()).list(&all).await },
        async { Api::<Lease>::namespaced(client.clone(), namespace).get_opt("weir-controller").await },
        deployed::find(client, namespace),
        policies(client),
        lbc(client),
        proxies(client, namespace),
    );
    let uid = seen(system, "the namespace kube-system").map(|system| system.uid().unwrap_or_default());
    let deployment = seen(deployment, "the controller's Deployment");
    let account = deployment.as_ref().ok().and_then(Option::as_ref).and_then(service_account);
    let forbidden = forbidden(client, namespace, account.as_deref().unwrap_or(deployed::CONTROLLER)).await;
    Kubernetes {
        api: Ok(version),
        ahead,
        uid,
        forbidden,
        nodes: seen(nodes, "Nodes").map(|nodes| nodes.iter().map(node).collect()),
        services: Err(Unseen("Services were not read".into())),
        told: Err(Unseen("Events were not read".into())),
        lease: seen(lease, "the controller's Lease").map(|lease| lease.map(lease_seen)),
        deployment: deployment.map(|deployment| deployment.and_then(|deployment| deployment_seen(&deployment))),
        policy: seen(policy, "admission policies"),
        lbc: seen(lbc, "Deployments and webhooks of the AWS Load Balancer Controller"),
        proxies: seen(proxies, "DaemonSets of service proxies"),
    }
}

/// Reads Services, and what the controller said of them.
pub async fn services(client: &Client, controller: &Seen<Controller>, kubernetes: &mut Kubernetes) {
    let said = ListParams::default().fields(&format!("reportingController={REPORTER}"));
    let all = ListParams::default();
    let (services, events) = tokio::join!(async { Api::<Service>::all(client.clone()).list(&all).await }, async {
        Api::<Event>::all(client.clone()).list(&said).await
    },);
    let is_relevant = |service: &&Service| {
        let is_balancer = service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
        is_balancer || service.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
    };
    kubernetes.services = seen(services, "Services").map(|services| {
        services.iter().filter(is_relevant).map(|service| service_seen(service, controller.as_ref().ok())).collect()
    });
    kubernetes.told = seen(events, "Events").map(|events| events.iter().filter_map(told).collect());
}

fn node(node: &Node) -> NodeSeen {
    let labels = node.labels();
    NodeSeen {
        worker: read_worker(node),
        zone: labels.get("topology.kubernetes.io/zone").cloned(),
        region: labels.get("topology.kubernetes.io/region").cloned(),
    }
}

fn service_seen(service: &Service, controller: Option<&Controller>) -> ServiceSeen {
    let owner = owner_of(service);
    let spec = service.spec.clone().unwrap_or_default();
    let is_ours =
        controller.is_some_and(|settings| is_claimed(service, &settings.load_balancer_class, settings.claim_classless));
    let parsed = if is_ours { parse(service).map(Some) } else { Ok(None) };
    let asked = parsed.as_ref().ok().and_then(Option::as_ref);
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()?.first());
    ServiceSeen {
        key: owner.service,
        uid: owner.uid,
        created: service.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        deleted: service.metadata.deletion_timestamp.as_ref().map(|time| time.0),
        is_balancer: spec.type_.as_deref() == Some("LoadBalancer"),
        class: spec.load_balancer_class,
        finalizers: service.finalizers().to_vec(),
        address: ingress.and_then(|ingress| ingress.hostname.clone().or_else(|| ingress.ip.clone())),
        problems: parsed.as_ref().err().into_iter().flatten().map(ToString::to_string).collect(),
        scheme: asked.and_then(|asked| asked.scheme),
        address_type: asked.map_or(AddressType::Ipv4, |asked| asked.address_type),
        names_subnets: asked.is_some_and(|asked| !asked.subnets.is_empty()),
        listeners: asked.map(|asked| asked.ports.len()).unwrap_or_default(),
        keeps_client_address: asked.is_some_and(|asked| asked.ports.values().any(keeps_client_address)),
    }
}

/// Target groups of instances keep it unless told otherwise (ELB user guide, "Client IP preservation").
fn keeps_client_address(port: &Port) -> bool {
    port.attributes.get("preserve_client_ip.enabled").is_none_or(|value| value != "false")
}

fn told(event: &Event) -> Option<Told> {
    let series = event.series.as_ref().map(|series| series.last_observed_time.0);
    Some(Told {
        uid: event.regarding.as_ref()?.uid.clone()?,
        reason: event.reason.clone()?,
        note: event.note.clone().unwrap_or_default(),
        at: series.or_else(|| event.event_time.as_ref().map(|time| time.0))?,
    })
}

fn lease_seen(lease: Lease) -> LeaseSeen {
    let spec = lease.spec.unwrap_or_default();
    LeaseSeen { holder: spec.holder_identity, renewed: spec.renew_time.map(|time| time.0) }
}

fn service_account(deployment: &Deployment) -> Option<String> {
    deployment.spec.as_ref()?.template.spec.as_ref()?.service_account_name.clone()
}

/// `None` for a Deployment of that name that does not run weir.
fn deployment_seen(deployment: &Deployment) -> Option<DeploymentSeen> {
    let settings = deployed::controller(deployment)?;
    let status = deployment.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let bad = conditions.iter().find(|condition| {
        (condition.type_ == "Available" && condition.status == "False") || condition.type_ == "ReplicaFailure"
    });
    Some(DeploymentSeen {
        name: format!("{}/{}", deployment.namespace().unwrap_or_default(), deployment.name_any()),
        settings,
        desired: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        available: status.available_replicas.unwrap_or_default(),
        words: bad.and_then(|condition| condition.message.clone()),
    })
}

async fn policies(client: &Client) -> kube::Result<Policies> {
    let (group, version) = ADMISSION;
    let resources = client.list_api_group_resources(&format!("{group}/{version}")).await?.resources;
    let is_served = |plural: &str| resources.iter().any(|resource| resource.name == plural);
    let is_there = async |kind: &str, name: &str| -> kube::Result<bool> {
        let plural = match kind.strip_suffix("Policy") {
            Some(stem) => format!("{stem}Policies").to_lowercase(),
            None => format!("{kind}s").to_lowercase(),
        };
        if !is_served(&plural) {
            return Ok(false);
        }
        let resource = ApiResource {
            group: group.into(),
            version: version.into(),
            api_version: format!("{group}/{version}"),
            kind: kind.into(),
            plural,
        };
        Ok(Api::<DynamicObject>::all_with(client.clone(), &resource).get_opt(name).await?.is_some())
    };
    Ok(Policies {
        is_served: is_served("mutatingadmissionpolicies"),
        has_policy: is_there("MutatingAdmissionPolicy", CLASS_POLICY).await?,
        has_binding: is_there("MutatingAdmissionPolicyBinding", CLASS_POLICY).await?,
        validates: is_there("ValidatingAdmissionPolicy", VALIDATION_POLICY).await?
            && is_there("ValidatingAdmissionPolicyBinding", VALIDATION_POLICY).await?,
    })
}

async fn lbc(client: &Client) -> kube::Result<Lbc> {
    let labelled = ListParams::default().labels(LBC_LABEL);
    let deployments = Api::<Deployment>::all(client.clone()).list(&labelled).await?;
    let webhooks = Api::<MutatingWebhookConfiguration>::all(client.clone()).list(&ListParams::default()).await?;
    let flag = "--load-balancer-class=";
    let class = |deployment: &Deployment| {
        let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
        let mut words = pod.containers.iter().flat_map(|container| container.args.iter().flatten());
        words.find_map(|word| Some(word.strip_prefix(flag)?.to_owned()))
    };
    let seen = |deployment: &Deployment| {
        let name = format!("{}/{}", deployment.namespace().unwrap_or_default(), deployment.name_any());
        let available = deployment.status.as_ref().and_then(|status| status.available_replicas).unwrap_or_default();
        (name, class(deployment).unwrap_or_else(|| LBC_CLASS.to_owned()), available)
    };
    let webhook = webhooks.iter().find_map(|configuration| {
        let webhook = configuration.webhooks.iter().flatten().find(|webhook| webhook.name == LBC_WEBHOOK)?;
        Some(Webhook {
            name: format!("webhook {} of MutatingWebhookConfiguration {}", webhook.name, configuration.name_any()),
            // The default of admissionregistration.k8s.io/v1.
            is_needed: webhook.failure_policy.as_deref().unwrap_or("Fail") == "Fail",
        })
    });
    Ok(Lbc { deployments: deployments.iter().map(seen).collect(), webhook })
}

async fn proxies(client: &Client, namespace: &str) -> kube::Result<Proxies> {
    let kube_proxy = Api::<DaemonSet>::namespaced(client.clone(), "kube-system").get_opt("kube-proxy").await?;
    let weir = Api::<DaemonSet>::namespaced(client.clone(), namespace).get_opt("weir-node").await?;
    let desired = |set: DaemonSet| set.status.map(|status| status.desired_number_scheduled);
    let settings = |set: DaemonSet| {
        let pod = set.spec?.template.spec?;
        let read = pod.containers.iter().find_map(|container| deployed::read(container, "node"))?;
        Some(read.and_then(|command| match command {
            Command::Node(node) => Ok(node.settings),
            other => Err(format!("{other:?} is no node")),
        }))
    };
    Ok(Proxies { kube_proxy: kube_proxy.and_then(desired), weir: weir.and_then(settings) })
}

/// What the controller's ServiceAccount may not do. A person asks about it; the controller itself may ask only about
/// itself.
async fn forbidden(client: &Client, namespace: &str, account: &str) -> Seen<Vec<String>> {
    let user = format!("system:serviceaccount:{namespace}:{account}");
    let review = SelfSubjectReview::default();
    let me = Api::<SelfSubjectReview>::all(client.clone()).create(&PostParams::default(), &review).await;
    let me = me.ok().and_then(|review| review.status?.user_info?.username);
    let about = if me.as_deref() == Some(&user) { None } else { Some(user.as_str()) };
    let asked = rights::NEEDED.iter().flat_map(|right| right.verbs.iter().map(move |verb| (right, *verb)));
    let asked: Vec<_> = asked.collect();
    let answers = asked.iter().map(|(right, verb)| right.is_granted(client, about, namespace, verb));
    let answers = futures::future::try_join_all(answers).await;
    let answers = seen(answers, &format!("what {user} may do"))?;
    let refused = asked.iter().zip(answers).filter(|(_, granted)| !granted);
    Ok(refused.map(|((right, verb), _)| right.words(verb, namespace)).collect())
}
