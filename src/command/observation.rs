//! What a command reads: the cluster's Services and nodes, and the account through the controller's own reader.

use std::collections::BTreeSet;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::Api;
use kube::api::ListParams;

use crate::aws::Aws;
use crate::aws::classify::{AwsError, Class};
use crate::cluster::lease::Claim;
use crate::cluster::node::{read_workers, region_of, trim_node};
use crate::controller::account::Account;
use crate::controller::desired::Policy;
use crate::controller::detail::{self, Detail};
use crate::controller::rehearsal::Rehearsal;
use crate::controller::{drift, targets};
use crate::metrics::Metrics;
use crate::model::id::{TargetGroupArn, VpcId};
use crate::model::ownership;

/// A cluster's nodes, as far as weir reads them.
///
/// # Errors
/// They cannot be listed.
pub async fn list_nodes(client: &kube::Client) -> anyhow::Result<Vec<Node>> {
    let list = Api::<Node>::all(client.clone()).list(&ListParams::default()).await;
    let mut nodes = list.context("cannot list Nodes")?.items;
    nodes.iter_mut().for_each(trim_node);
    Ok(nodes)
}

/// All of its Services.
///
/// # Errors
/// They cannot be listed.
pub async fn list_services(client: &kube::Client) -> anyhow::Result<Vec<Service>> {
    let list = Api::<Service>::all(client.clone()).list(&ListParams::default()).await;
    Ok(list.context("cannot list Services")?.items)
}

/// Which account is read, and for which cluster.
#[derive(Debug)]
pub struct Reading<'a> {
    /// The Region, if it is given.
    pub region: Option<&'a str>,
    /// The VPC, if it is given.
    pub vpc: Option<VpcId>,
    /// The operator's decisions.
    pub policy: Policy,
    /// The cluster's nodes.
    pub nodes: &'a [Node],
}

/// The account, read but for what AWS shows only one by one, and without the network. Whether it may be written to is
/// for the claim to say.
///
/// # Errors
/// What could not be read.
pub async fn observe(reading: Reading<'_>, claim: Claim) -> anyhow::Result<Account> {
    let region = reading.region.map(str::to_owned).or_else(|| region_of(reading.nodes));
    let aws = Aws::connect(region, &Metrics::default(), &claim).await?;
    // Nobody waits to be woken.
    let (account, _) = Account::new(aws, reading.policy, reading.vpc, claim);
    account.state().workers = read_workers(reading.nodes);
    drift::observe(&account, &mut drift::Rotation::default()).await.context("cannot read the account")?;
    Ok(account)
}

/// Reads of some Services what AWS shows only one by one: attributes, certificates, targets. Returns what could not be
/// read.
pub async fn read_closely(account: &Account, is_meant: impl Fn(&str) -> bool) -> Vec<AwsError> {
    let (details, groups): (Vec<_>, BTreeSet<_>) = {
        let state = account.state();
        let cluster = &account.policy.cluster;
        let theirs = |tags| ownership::owner(cluster, tags).is_some_and(|owner| is_meant(&owner.uid));
        let balancers = state.observed.balancers.values().filter(|balancer| theirs(&balancer.tags));
        let groups: Vec<_> = state.observed.target_groups.values().filter(|group| theirs(&group.tags)).collect();
        let details = balancers.flat_map(Detail::of_balancer);
        let details = details.chain(groups.iter().map(|group| Detail::of_target_group(group))).collect();
        (details, groups.into_iter().map(|group| group.arn.clone()).collect())
    };
    let mut errors = detail::read(account, &details).await;
    errors.extend(read_targets(account, &groups).await);
    errors
}

async fn read_targets(account: &Account, groups: &BTreeSet<TargetGroupArn>) -> Vec<AwsError> {
    let mut errors = vec![];
    for arn in groups {
        match account.aws.describe_targets(arn).await {
            // The Auto Scaling groups were read before, so that an instance launched in between may look like a
            // stranger for once. Nothing is done about it here.
            Ok(listed) => account.state().record_targets(&account.policy.cluster, arn, &listed, true),
            // Deleted in between.
            Err(error) if error.class == Class::Missing => {}
            Err(error) => errors.push(error),
        }
    }
    errors
}

/// Reads what a rehearsal could not decide without. Returns what could not be read.
pub async fn find_out(account: &Account, rehearsal: &Rehearsal) -> Vec<AwsError> {
    let instances: Vec<_> = rehearsal.unresolved.iter().cloned().collect();
    let mut errors = vec![];
    if !instances.is_empty() {
        errors.extend(targets::learn_membership(account, &instances).await.err());
    }
    errors.extend(read_targets(account, &rehearsal.unread).await);
    errors
}
