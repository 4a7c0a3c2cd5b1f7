//! Reads the whole account in a handful of paginated describes, and puts the view right.
//!
//! For 100 Services with one port each: load balancers 1 call, target groups 1, tags 10, listeners 5, security groups
//! 2, Auto Scaling groups 1, subnets and routes 2, instances 1, and a few of the slow rotation over what AWS shows only
//! one by one: 31 in all. The walk of [`detail`](super::detail) makes them 40 an interval.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::account::Account;
use super::facts::{Asked, Facts, PrefixList};
use super::observed::{Balancer, Listener, Observed};
use crate::aws::classify::{AwsError, Class};
use crate::model::id::{InstanceId, LoadBalancerArn, SecurityGroupId, TargetGroupArn, VpcId};
use crate::model::name;
use crate::model::ownership::{self, CLUSTER_UID_TAG, Tags};
use crate::model::service::ServiceSpec;
use crate::telemetry::chain;

/// Load balancers and target groups that one check reads one by one, in turn: listeners that others added, and targets.
const ROTATION: usize = 4;
/// Listeners read in one call.
const LISTENERS_PER_CALL: usize = 20;

/// Where the slow rotation stands.
#[derive(Debug, Default)]
pub struct Rotation {
    balancer: Option<LoadBalancerArn>,
    target_group: Option<TargetGroupArn>,
}

/// Why the network could not be read.
#[derive(Debug, thiserror::Error)]
enum NetworkError {
    /// AWS refused a read.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// The VPC is not known.
    #[error("cannot find the cluster's VPC: {0}; set --vpc-id")]
    NoVpc(String),
}

/// One check. Returns whether another should follow soon, because something was missed for the first time.
///
/// # Errors
/// What could not be read; the view is then as it was. A network that cannot be read is no error here: it is told to
/// the Services that need it.
pub async fn check(account: &Account, rotation: &mut Rotation) -> Result<bool, AwsError> {
    let again = observe(account, rotation).await?;
    warn_of_twins(&account.state().observed.twins);
    read_network(account).await;
    account.placement.notify_one();
    Ok(again)
}

/// Reads all that batched calls show of load balancers, target groups, listeners, security groups and Auto Scaling
/// groups, and what is in turn. Returns whether another reading should follow soon.
///
/// # Errors
/// What could not be read; the view is then as it was.
pub async fn observe(account: &Account, rotation: &mut Rotation) -> Result<bool, AwsError> {
    // Targets before groups: an instance in neither must not be one that was launched in between.
    let listings = read_targets(account, rotation).await;
    let began = account.state().now();
    let fresh = read(account, rotation).await?;
    let mut state = account.state();
    let again = state.merge(fresh, began, Instant::now());
    for (arn, listed) in listings.iter().filter(|_| state.now() == began).collect::<Vec<_>>() {
        state.record_targets(&account.policy.cluster, arn, listed, true);
    }
    Ok(again)
}

/// Reads the network. What could not be read is told to the Services that need it.
pub async fn read_network(account: &Account) {
    let network = refresh_network(account).await;
    if let Err(error) = &network {
        tracing::warn!(error = %chain(error), "cannot read the network");
    }
    let mut state = account.state();
    state.network_read = Some(Instant::now());
    state.network_problem = network.err().map(|error| error.to_string());
}

/// Targets of the target groups whose turn it is. What cannot be read comes with a later turn.
async fn read_targets(account: &Account, rotation: &mut Rotation) -> BTreeMap<TargetGroupArn, BTreeSet<InstanceId>> {
    let groups: BTreeSet<_> = account.state().observed.target_groups.values().map(|group| group.arn.clone()).collect();
    let mut listings = BTreeMap::new();
    for arn in next(&groups, &mut rotation.target_group, ROTATION) {
        match account.aws.describe_targets(&arn).await {
            Ok(listed) => drop(listings.insert(arn, listed)),
            // Deleted in between; the listing that follows takes note.
            Err(error) if error.class == Class::Missing => {}
            Err(error) => tracing::warn!(error = %chain(&error), "cannot read targets"),
        }
    }
    listings
}

/// The next few after where the rotation stands.
pub fn next<K: Ord + Clone>(all: &BTreeSet<K>, stands: &mut Option<K>, count: usize) -> Vec<K> {
    let after = |key: &&K| stands.as_ref().is_none_or(|last| *key > last);
    let mut chosen: Vec<_> = all.iter().filter(after).take(count).cloned().collect();
    if chosen.len() < count {
        let more = all.iter().filter(|key| !chosen.contains(key)).take(count - chosen.len());
        let more: Vec<_> = more.cloned().collect();
        chosen.extend(more);
    }
    *stands = chosen.last().cloned();
    chosen
}

/// What belongs to another cluster of the same name. It is as foreign as anything else in the account.
struct Twins<'a> {
    uid: &'a str,
    resources: BTreeMap<String, String>,
}

impl Twins<'_> {
    /// Whether a resource with these tags is another cluster's.
    fn claim(&mut self, resource: &str, tags: &Tags) -> bool {
        let uid = tags.get(CLUSTER_UID_TAG).filter(|_| ownership::is_of_other_uid(self.uid, tags));
        self.resources.extend(uid.map(|uid| (resource.to_owned(), uid.clone())));
        uid.is_some()
    }
}

fn warn_of_twins(twins: &BTreeMap<String, String>) {
    if let Some(one) = twins.keys().next() {
        tracing::warn!(
            count = twins.len(),
            one,
            "another cluster has this one's name: what it owns is left alone. Give one of them another --cluster-name"
        );
    }
}

async fn read(account: &Account, rotation: &mut Rotation) -> Result<Observed, AwsError> {
    let aws = &account.aws;
    let cluster = &account.policy.cluster;
    let mut fresh = Observed::default();
    let mut twins = Twins { uid: &account.policy.cluster_uid, resources: BTreeMap::new() };

    let prefix = name::cluster_prefix(cluster);
    let target_groups = aws.describe_target_groups().await?;
    let target_groups: Vec<_> = target_groups.into_iter().filter(|group| group.name.starts_with(&prefix)).collect();
    fresh.listed = target_groups.iter().map(|group| group.arn.clone()).collect();
    let (balancers, of_other_types) = aws.describe_balancers().await?;
    fresh.foreign_balancers = of_other_types;

    let now = Instant::now();
    let (foreign, candidates): (Vec<_>, Vec<_>) = {
        let state = account.state();
        balancers.into_iter().partition(|balancer| state.is_foreign(&balancer.arn, now))
    };
    let arns = candidates.iter().map(|balancer| balancer.arn.to_string());
    let arns: Vec<_> = arns.chain(target_groups.iter().map(|group| group.arn.to_string())).collect();
    let mut tags = aws.describe_tags(&arns).await?;

    for mut group in target_groups {
        // A name of ours without our tags is somebody else's.
        let Some(tags) = tags.remove(group.arn.as_str()) else { continue };
        if ownership::is_of_cluster(cluster, &tags) && !twins.claim(group.arn.as_str(), &tags) {
            group.tags = tags;
            fresh.target_groups.insert(group.name.clone(), group);
        }
    }
    fresh.foreign_balancers.extend(foreign.into_iter().map(|balancer| (balancer.name, balancer.arn)));
    let mut ours = vec![];
    for mut balancer in candidates {
        let Some(tags) = tags.remove(balancer.arn.as_str()) else { continue };
        if ownership::is_of_cluster(cluster, &tags) && !twins.claim(balancer.arn.as_str(), &tags) {
            balancer.tags = tags;
            ours.push(balancer);
        } else {
            account.state().note_foreign(&balancer, &prefix, now);
            fresh.foreign_balancers.insert(balancer.name, balancer.arn);
        }
    }
    let all: BTreeSet<_> = ours.iter().map(|balancer| balancer.arn.clone()).collect();
    read_listeners(account, &mut ours, &next(&all, &mut rotation.balancer, ROTATION)).await?;
    fresh.balancers.extend(ours.into_iter().map(|balancer| (balancer.name.clone(), balancer)));

    let groups = aws.describe_groups_of(cluster).await?;
    let groups = groups.into_iter().filter(|group| !twins.claim(group.id.as_str(), &group.tags));
    fresh.groups.extend(groups.map(|group| (group.name.clone(), group)));
    fresh.twins = twins.resources;
    if let Some(backend) = fresh.backend_group(cluster).map(|group| group.id.clone()) {
        for reference in aws.describe_references(&backend).await?.into_iter().filter(|reference| reference.is_ours) {
            fresh.node_rules.entry(reference.group).or_default().insert(reference.rule);
        }
    }
    fresh.asgs = aws.describe_asgs().await?;
    Ok(fresh)
}

/// Reads listeners: known ones by ARN, twenty in a call; all of a load balancer one by one where none is known, where one
/// is gone, and for those whose turn it is.
async fn read_listeners(
    account: &Account,
    balancers: &mut [Balancer],
    in_turn: &[LoadBalancerArn],
) -> Result<(), AwsError> {
    let known: BTreeMap<_, _> = {
        let state = account.state();
        let of = |balancer: &Balancer| {
            let seen = state.observed.balancers.get(&balancer.name).filter(|seen| seen.arn == balancer.arn)?;
            seen.listeners.clone().filter(|listeners| !listeners.is_empty())
        };
        balancers.iter().filter_map(|balancer| Some((balancer.arn.clone(), of(balancer)?))).collect()
    };
    let mut by_arn: BTreeMap<_, (u16, Listener)> = BTreeMap::new();
    let listed: Vec<_> = known
        .iter()
        .filter(|(balancer, _)| !in_turn.contains(balancer))
        .flat_map(|(_, listeners)| listeners.values().map(|listener| listener.arn.clone()))
        .collect();
    for chunk in listed.chunks(LISTENERS_PER_CALL) {
        by_arn.extend(account.aws.describe_listeners(chunk).await?.unwrap_or_default());
    }
    for balancer in balancers {
        let listeners = known.get(&balancer.arn).filter(|_| !in_turn.contains(&balancer.arn));
        let again: Option<BTreeMap<_, _>> = listeners
            .and_then(|listeners| {
                listeners.values().map(|listener| by_arn.get(&listener.arn).cloned()).collect::<Option<Vec<_>>>()
            })
            .map(|list| list.into_iter().collect());
        balancer.listeners = match again {
            Some(listeners) => Some(listeners),
            None => match account.aws.describe_listeners_of(&balancer.arn).await {
                Ok(listeners) => Some(listeners),
                Err(error) if error.class == Class::Missing => None,
                Err(error) => return Err(error),
            },
        };
    }
    Ok(())
}

/// Reads subnets, what Services name, and the security groups of the nodes.
async fn refresh_network(account: &Account) -> Result<(), NetworkError> {
    let instances: Vec<InstanceId> = {
        let state = account.state();
        state.workers.values().filter_map(|worker| worker.instance.clone().ok()).collect()
    };
    let networks = account.aws.describe_instances(&instances).await?;
    learn_networks(account, networks, true).await?;
    let subnets_of = vpc(account)?;
    let subnets = account.aws.describe_subnets(&subnets_of).await?;
    let asked = std::mem::take(&mut account.state().asked);
    let named = read_named(account, &subnets_of, &asked).await;
    let mut state = account.state();
    let node_groups = state.node_groups(&account.policy.cluster);
    let (groups, prefix_lists) = match (named, &state.facts) {
        (Ok(named), _) => named,
        (Err(error), known) => {
            // Of a few Services' concern: what was known of it stays, and the next of them to be looked at asks again.
            tracing::warn!(error = %chain(&error), "cannot read what Services name");
            known.as_ref().map(|known| (known.groups.clone(), known.prefix_lists.clone())).unwrap_or_default()
        }
    };
    state.facts = Some(Facts { vpc: subnets_of, subnets, node_groups, groups, prefix_lists });
    Ok(())
}

type Named = (BTreeMap<SecurityGroupId, Option<String>>, BTreeMap<String, PrefixList>);

async fn read_named(account: &Account, vpc: &VpcId, asked: &Asked) -> Result<Named, AwsError> {
    let groups = account.aws.describe_named_groups(vpc, &asked.groups).await?;
    Ok((groups, account.aws.describe_prefix_lists(&asked.prefix_lists).await?))
}

/// Reads what a Service names and nobody has looked up yet.
///
/// # Errors
/// As of DescribeSecurityGroups and DescribeManagedPrefixLists.
pub async fn learn_named(account: &Account, spec: &ServiceSpec) -> Result<(), AwsError> {
    let (vpc, lacking) = {
        let mut state = account.state();
        state.asked.groups.extend(spec.access.groups.iter().cloned());
        state.asked.prefix_lists.extend(spec.access.prefix_lists.iter().cloned());
        let Some(facts) = &state.facts else { return Ok(()) };
        (facts.vpc.clone(), facts.lacks(spec))
    };
    if lacking == Asked::default() {
        return Ok(());
    }
    let (groups, prefix_lists) = read_named(account, &vpc, &lacking).await?;
    if let Some(facts) = &mut account.state().facts {
        facts.groups.extend(groups);
        facts.prefix_lists.extend(prefix_lists);
    }
    Ok(())
}

/// Takes over the networks of instances, and reads the tags of their groups where there is a choice between several.
///
/// # Errors
/// As of DescribeSecurityGroups.
pub async fn learn_networks(
    account: &Account,
    networks: BTreeMap<InstanceId, crate::aws::ec2::Instance>,
    is_complete: bool,
) -> Result<(), AwsError> {
    let choices: BTreeSet<_> = networks
        .values()
        .filter(|network| network.groups.len() > 1)
        .flat_map(|network| network.groups.clone())
        .collect();
    let tagged = account.aws.describe_groups_by_id(&choices).await?;
    let mut state = account.state();
    if is_complete {
        state.instances.clear();
    }
    state.instances.extend(networks);
    state.group_tags.extend(tagged.into_iter().map(|group| (group.id, group.tags)));
    let node_groups = state.node_groups(&account.policy.cluster);
    if let Some(facts) = &mut state.facts
        && facts.node_groups != node_groups
    {
        facts.node_groups = node_groups;
        if !is_complete {
            // Their rules are made by the check.
            account.recheck.notify_one();
        }
    }
    Ok(())
}

fn vpc(account: &Account) -> Result<VpcId, NetworkError> {
    if let Some(vpc) = &account.vpc {
        return Ok(vpc.clone());
    }
    let state = account.state();
    let vpcs: BTreeSet<_> = state.instances.values().map(|instance| instance.vpc.clone()).collect();
    let known = state.facts.as_ref().map(|facts| facts.vpc.clone());
    match (vpcs.len(), vpcs.into_iter().next(), known) {
        (1, Some(only), _) => Ok(only),
        (0, _, Some(known)) => Ok(known),
        (0, _, None) if state.workers.is_empty() => Err(NetworkError::NoVpc("the cluster has no node".into())),
        (0, _, None) => {
            Err(NetworkError::NoVpc("no node's spec.providerID names an instance of this account and Region".into()))
        }
        _ => Err(NetworkError::NoVpc("the nodes are in several VPCs".into())),
    }
}
