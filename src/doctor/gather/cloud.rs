//! Reads the account.

use std::collections::{BTreeMap, BTreeSet};

use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_credential_types::provider::error::CredentialsError;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;

use super::super::facts::{Cloud, Identity, Kubernetes, NoCredentials, Seen, Unseen, seen};
use crate::aws::classify::{AwsError, Class};
use crate::aws::inquiry::Caller;
use crate::aws::{self, Aws};
use crate::cluster::lease::Claim;
use crate::cluster::node::is_region_in_environment;
use crate::command::settings::Place;
use crate::controller::facts::choose_node_group;
use crate::metrics::Metrics;
use crate::model::id::{AsgName, InstanceId, ListenerArn, LoadBalancerArn, SecurityGroupId, TargetGroupArn, VpcId};
use crate::model::ownership::{self, Role, Tags, cluster_tags};
use crate::settings::Controller;
use crate::telemetry::chain;

/// A person waits: what fails twice is told.
const ATTEMPTS: u32 = 2;
/// Target groups whose targets are looked at: a call for each.
const LOOKED_INTO: usize = 100;
const AT_ONCE: usize = 8;
/// Ids of what does not exist, to ask whether asking is allowed.
const NO_INSTANCE: &str = "i-00000000000000000";
const NO_GROUP: &str = "sg-00000000000000000";
const NO_ASG: &str = "weir-doctor";
const NO_PREFIX_LIST: &str = "pl-00000000000000000";

/// Reads the account, as far as it lets us.
pub async fn gather(place: &Place, controller: &Seen<Controller>, kubernetes: &Kubernetes) -> Cloud {
    let region = region(place, controller, kubernetes);
    let config = match aws::configuration(region.clone()).await {
        Ok(config) => config,
        Err(error) => return nothing(region.unwrap_or_default(), Identity::NoTrust(format!("{error:#}"))),
    };
    let config = config.into_builder().retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS)).build();
    let region = config.region().map(ToString::to_string).unwrap_or_default();
    // Writes are dry runs.
    let aws = Aws::new(&config, &Metrics::default(), &Claim::unlimited()).at_once();
    match identify(&config, &aws).await {
        Identity::Known(caller) => Box::pin(read(&aws, region, caller, controller, kubernetes)).await,
        other => nothing(region, other),
    }
}

/// The Region to ask for; `None` leaves it to the environment.
fn region(place: &Place, controller: &Seen<Controller>, kubernetes: &Kubernetes) -> Option<String> {
    let told = place.region.clone().or_else(|| controller.as_ref().ok()?.region.clone());
    told.or_else(|| {
        let nodes = kubernetes.nodes.as_ref().ok().filter(|_| !is_region_in_environment())?;
        nodes.iter().find_map(|node| node.region.clone())
    })
}

async fn identify(config: &SdkConfig, aws: &Aws) -> Identity {
    if config.region().is_none() {
        return Identity::NoRegion;
    }
    if let Err(none) = credentials(config).await {
        return Identity::Nobody(none);
    }
    match aws.describe_caller().await {
        Ok(caller) => Identity::Known(caller),
        // Where STS cannot be reached, as from a closed VPC, the rest may be.
        Err(error) if error.class == Class::Transient => match aws.describe_asgs().await {
            Err(other) if other.class == Class::Transient => Identity::Refused(error),
            _ => Identity::Known(Caller { account: "unknown".into(), arn: "this identity".into() }),
        },
        Err(error) => Identity::Refused(error),
    }
}

/// Whether there are credentials to try.
async fn credentials(config: &SdkConfig) -> Result<(), NoCredentials> {
    let Some(provider) = config.credentials_provider() else {
        return Err(NoCredentials::Missing("nothing is set up that could give any".into()));
    };
    match provider.provide_credentials().await {
        Ok(credentials) => match credentials.expiry().and_then(|expiry| Timestamp::try_from(expiry).ok()) {
            Some(expiry) if expiry <= Timestamp::now() => {
                Err(NoCredentials::Expired(format!("they were good until {expiry:.0}")))
            }
            _ => Ok(()),
        },
        Err(error @ CredentialsError::CredentialsNotLoaded(_)) => {
            Err(NoCredentials::Missing(format!("{}{}", chain(&error), sources())))
        }
        Err(error) => {
            let words = format!("{}{}", chain(&error), sources());
            let is_expired = ["ExpiredToken", "token has expired"].iter().any(|code| words.contains(code));
            Err(if is_expired { NoCredentials::Expired(words) } else { NoCredentials::Refused(words) })
        }
    }
}

/// What the environment says of where credentials come from, for the end of a sentence.
fn sources() -> String {
    const TOLD: [&str; 5] = [
        "AWS_PROFILE",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    ];
    let set: Vec<_> = TOLD.iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?))).collect();
    if set.is_empty() { String::new() } else { format!("; the environment has {}", set.join(", ")) }
}

fn unseen<T>(why: &str) -> Seen<T> {
    Err(Unseen(why.into()))
}

fn nothing(region: String, identity: Identity) -> Cloud {
    let why = "AWS cannot be asked";
    Cloud {
        region,
        identity,
        failures: vec![],
        instances: unseen(why),
        vpc: unseen(why),
        subnets: unseen(why),
        node_groups: unseen(why),
        backend: unseen(why),
        references: unseen(why),
        balancers: unseen(why),
        target_groups: unseen(why),
        target_group_tags: unseen(why),
        health: unseen(why),
        asgs: unseen(why),
        refreshing: unseen(why),
        limits: unseen(why),
    }
}

/// Takes note of failures.
#[derive(Default)]
struct Failures(Vec<AwsError>);

impl Failures {
    /// The answer, or why there is none; the failure is noted down.
    fn keep<T>(&mut self, answer: Result<T, AwsError>) -> Seen<T> {
        answer.map_err(|error| {
            let why = match error.class {
                Class::Denied => format!("AWS denies {}", error.action),
                _ => format!("{} failed ({})", error.action, error.code),
            };
            self.0.push(error);
            Unseen(why)
        })
    }
}

async fn read(
    aws: &Aws,
    region: String,
    caller: Caller,
    controller: &Seen<Controller>,
    kubernetes: &Kubernetes,
) -> Cloud {
    let mut failures = Failures::default();
    let mut cloud = nothing(region, Identity::Known(caller));
    let (asgs, balancers, target_groups, limits) = tokio::join!(
        aws.describe_asgs(),
        aws.describe_balancers(),
        aws.describe_target_group_arns(),
        aws.describe_limits()
    );
    cloud.asgs = failures.keep(asgs);
    cloud.balancers = failures.keep(balancers).map(|(balancers, _)| balancers);
    cloud.target_groups = failures.keep(target_groups);
    cloud.limits = failures.keep(limits);
    read_network(aws, controller, kubernetes, &mut cloud, &mut failures).await;
    match controller {
        Ok(controller) => {
            read_owned(aws, controller, &mut cloud, &mut failures).await;
            cloud.health = read_health(aws, controller, &cloud, &mut failures).await;
            probe(aws, controller, &cloud, &mut failures).await;
        }
        Err(why) => {
            (cloud.backend, cloud.references) = (Err(why.clone()), Err(why.clone()));
            (cloud.target_group_tags, cloud.health) = (Err(why.clone()), Err(why.clone()));
        }
    }
    cloud.refreshing = read_refreshing(aws, controller, kubernetes, &cloud, &mut failures).await;
    cloud.failures = failures.0;
    cloud
}

/// Instances, VPC, subnets, and the security groups of the nodes.
async fn read_network(
    aws: &Aws,
    controller: &Seen<Controller>,
    kubernetes: &Kubernetes,
    cloud: &mut Cloud,
    failures: &mut Failures,
) {
    let nodes = match seen(&kubernetes.nodes) {
        Ok(nodes) => nodes,
        Err(why) => {
            (cloud.instances, cloud.vpc) = (Err(why.clone()), Err(why.clone()));
            (cloud.subnets, cloud.node_groups) = (Err(why.clone()), Err(why));
            return;
        }
    };
    let workers = nodes.iter().filter_map(|node| node.worker.as_ref());
    let ids: Vec<InstanceId> = workers.filter_map(|worker| worker.instance.clone().ok()).collect();
    cloud.instances = failures.keep(aws.describe_instances(&ids).await);
    cloud.vpc = seen(&cloud.instances).and_then(|instances| {
        let told = controller.as_ref().ok().and_then(|controller| controller.vpc_id.as_deref());
        let vpcs: BTreeSet<_> = instances.values().map(|instance| instance.vpc.clone()).collect();
        let only = vpcs.first().filter(|_| vpcs.len() == 1).cloned();
        told.map(VpcId::from).or(only).ok_or_else(|| Unseen("the cluster's VPC is not known".into()))
    });
    cloud.subnets = match seen(&cloud.vpc) {
        Ok(vpc) => failures.keep(aws.describe_subnets(vpc).await),
        Err(why) => Err(why),
    };
    cloud.node_groups = match seen(&cloud.instances) {
        Ok(instances) => {
            let ids = instances.values().flat_map(|instance| instance.groups.clone()).collect();
            let groups = failures.keep(aws.describe_groups_by_id(&ids).await);
            groups.map(|groups| groups.into_iter().map(|group| (group.id.clone(), group)).collect())
        }
        Err(why) => Err(why),
    };
}

/// What carries weir's tags, or could.
async fn read_owned(aws: &Aws, controller: &Controller, cloud: &mut Cloud, failures: &mut Failures) {
    let cluster = controller.cluster_name.as_str();
    let groups = failures.keep(aws.describe_groups_of(cluster).await);
    cloud.backend = groups.map(|groups| {
        let backend = groups.into_iter().find(|group| ownership::role(&group.tags) == Some(Role::BackendGroup));
        backend.map(|group| group.id)
    });
    cloud.references = match seen(&cloud.backend) {
        Ok(Some(backend)) => failures.keep(aws.describe_references(&backend.clone()).await),
        Ok(None) => Ok(vec![]),
        Err(why) => Err(why),
    };
    let named: Vec<TargetGroupArn> = seen(&cloud.target_groups)
        .map(|arns| arns.iter().filter(|arn| arn.as_str().contains(":targetgroup/weir-")).cloned().collect())
        .unwrap_or_default();
    let balancers = cloud.balancers.iter().flatten().map(|balancer| balancer.arn.to_string());
    let arns: Vec<_> = balancers.chain(named.iter().map(ToString::to_string)).collect();
    match failures.keep(aws.describe_tags(&arns).await) {
        Ok(mut tags) => {
            for balancer in cloud.balancers.iter_mut().flatten() {
                balancer.tags = tags.remove(balancer.arn.as_str()).unwrap_or_default();
            }
            let tagged = named.into_iter().filter_map(|arn| Some((arn.clone(), tags.remove(arn.as_str())?)));
            cloud.target_group_tags = Ok(tagged.collect());
        }
        Err(why) => cloud.target_group_tags = Err(why),
    }
}

/// How the targets of this cluster's target groups are.
async fn read_health(
    aws: &Aws,
    controller: &Controller,
    cloud: &Cloud,
    failures: &mut Failures,
) -> Seen<BTreeMap<TargetGroupArn, BTreeMap<InstanceId, aws::inquiry::Health>>> {
    let tags = seen(&cloud.target_group_tags)?;
    let ours = tags.iter().filter(|(_, tags)| ownership::is_of_cluster(&controller.cluster_name, tags));
    let ours: Vec<_> = ours.map(|(arn, _)| arn).take(LOOKED_INTO).collect();
    let asked = futures::stream::iter(ours).map(|arn| async move { (arn, aws.describe_health(arn).await) });
    let answers: Vec<_> = asked.buffered(AT_ONCE).collect().await;
    let mut found = BTreeMap::new();
    for (arn, answer) in answers {
        match answer {
            // Deleted in between.
            Err(error) if error.class == Class::Missing => {}
            answer => drop(found.insert(arn.clone(), failures.keep(answer)?)),
        }
    }
    Ok(found)
}

async fn read_refreshing(
    aws: &Aws,
    controller: &Seen<Controller>,
    kubernetes: &Kubernetes,
    cloud: &Cloud,
    failures: &mut Failures,
) -> Seen<BTreeSet<AsgName>> {
    let cluster = controller.as_ref().map(|controller| controller.cluster_name.as_str()).unwrap_or_default();
    let workers = kubernetes.nodes.iter().flatten().filter_map(|node| node.worker.as_ref());
    let nodes: BTreeSet<_> = workers.filter_map(|worker| worker.instance.clone().ok()).collect();
    let asgs = seen(&cloud.asgs)?.iter();
    let of_cluster = asgs.filter(|(_, asg)| asg.is_tagged_for(cluster) || !asg.instances.is_disjoint(&nodes));
    let names: Vec<_> = of_cluster.map(|(name, _)| name.clone()).collect();
    failures.keep(aws.describe_refreshing(&names).await)
}

/// Asks for what the controller may need although nothing needs it now: reads of what does not exist, and dry runs of
/// writes to EC2. The other services have no dry run.
async fn probe(aws: &Aws, controller: &Controller, cloud: &Cloud, failures: &mut Failures) {
    let Identity::Known(caller) = &cloud.identity else { return };
    let arn = |rest: &str| {
        let (partition, region, account) = (caller.partition(), &cloud.region, &caller.account);
        format!("arn:{partition}:elasticloadbalancing:{region}:{account}:{rest}/0123456789abcdef")
    };
    let balancer = LoadBalancerArn::from(arn("loadbalancer/net/weir-doctor"));
    let target_group = TargetGroupArn::from(arn("targetgroup/weir-doctor"));
    let (group, asg) = (SecurityGroupId::from(NO_GROUP), AsgName::from(NO_ASG));
    let instance = [InstanceId::from(NO_INSTANCE)];
    let listener = ListenerArn::from(arn("listener/net/weir-doctor/0123456789abcdef"));
    let names = [balancer.to_string()];
    let lists = BTreeSet::from([NO_PREFIX_LIST.to_owned()]);
    let asked = vec![
        denial(aws.describe_listeners_of(&balancer)),
        denial(aws.describe_balancer_attributes(&balancer)),
        denial(aws.describe_capacity(&balancer)),
        denial(aws.describe_listener_attributes(&listener)),
        denial(aws.describe_certificates(&listener)),
        denial(aws.describe_target_group_attributes(&target_group)),
        denial(aws.describe_health(&target_group)),
        denial(aws.describe_tags(&names)),
        denial(aws.describe_sources(&asg)),
        denial(aws.describe_legacy(&asg)),
        denial(aws.describe_membership(&instance)),
        denial(aws.describe_interfaces_of(&group)),
        denial(aws.describe_prefix_lists(&lists)),
        denial(aws.describe_endpoint_services_of(&balancer)),
    ];
    let denied: Vec<_> = futures::stream::iter(asked).buffered(AT_ONCE).collect().await;
    failures.0.extend(denied.into_iter().flatten());
    probe_groups(aws, controller, cloud, failures).await;
}

/// The denial alone, of a question that is not asked for its answer.
fn denial<'a, T>(asked: impl Future<Output = Result<T, AwsError>> + Send + 'a) -> BoxFuture<'a, Option<AwsError>> {
    async move { asked.await.err().filter(|error| error.class == Class::Denied) }.boxed()
}

/// Writes to security groups.
async fn probe_groups(aws: &Aws, controller: &Controller, cloud: &Cloud, failures: &mut Failures) {
    let tags: Tags = cluster_tags(&controller.cluster_name, Role::BackendGroup);
    // A tag that weir sets, unlike the one by which policies know what is its own.
    let key = ownership::RESOURCE_TAG;
    let groups = nodes_groups(&controller.cluster_name, cloud);
    let mut asked = vec![];
    if let Ok(vpc) = &cloud.vpc {
        asked.push(denial(aws.may_create_group(vpc, &tags)));
    }
    for group in &groups {
        asked.extend([denial(aws.may_authorize(group)), denial(aws.may_revoke(group))]);
    }
    if let Ok(Some(backend)) = &cloud.backend {
        asked.extend([denial(aws.may_tag_group(backend, key)), denial(aws.may_untag_group(backend, key))]);
        asked.push(denial(aws.may_delete_group(backend)));
    }
    let denied: Vec<_> = futures::stream::iter(asked).buffered(AT_ONCE).collect().await;
    failures.0.extend(denied.into_iter().flatten());
}

/// The groups of the nodes that the controller would open.
fn nodes_groups(cluster: &str, cloud: &Cloud) -> BTreeSet<SecurityGroupId> {
    let tags = |id: &SecurityGroupId| {
        cloud.node_groups.as_ref().ok().and_then(|groups| Some(groups.get(id)?.tags.clone())).unwrap_or_default()
    };
    let instances = cloud.instances.iter().flat_map(BTreeMap::values);
    let chosen = instances.filter_map(|instance| {
        let groups = instance.groups.iter().map(|id| (id.clone(), tags(id))).collect();
        choose_node_group(cluster, &groups)
    });
    chosen.map(|(group, _)| group).collect()
}
