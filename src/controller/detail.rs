//! Reads what no batched call shows: attributes, reservations of capacity, and certificates beside the default ones.
//!
//! Of what this process makes it knows them. After a restart they are unknown: they are read before a plan where a
//! Service asks for something. All of them are read in slow turns, so that what others set is found and put right.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::account::Account;
use super::drift::next;
use super::observed::{Balancer, Listener, TargetGroup};
use crate::aws::classify::{AwsError, Class};
use crate::model::attribute::Attributes;
use crate::model::id::{ListenerArn, LoadBalancerArn, TargetGroupArn};
use crate::model::ownership::{Role, Tags, service_tags, tag_changes};
use crate::model::service::{Protocol, ServiceSpec};
use crate::telemetry::chain;

/// A walk over all details takes so many drift intervals, or more: an hour at five minutes.
const INTERVALS: usize = 12;
/// Turns of the walk in each of them.
const TURNS: u32 = 3;
/// A turn reads no more than so many details, or one for so many load balancers and target groups where that is more.
/// At 100 Services of one port that makes nine an interval, forty with those of the drift check; and what there is to
/// read of them, three details a Service, has been read after 34 intervals: three hours.
const READS: usize = 3;
const RESOURCES_PER_READ: usize = 72;

/// One thing to read, and where it belongs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Attributes of a load balancer.
    Balancer { name: String, arn: LoadBalancerArn },
    /// Capacity reserved for a load balancer.
    Capacity { name: String, arn: LoadBalancerArn },
    /// Attributes of a target group.
    TargetGroup { name: String, arn: TargetGroupArn },
    /// Attributes of a listener.
    Listener { balancer: String, port: u16, arn: ListenerArn },
    /// Tags of a listener.
    Tags { balancer: String, port: u16, arn: ListenerArn },
    /// Certificates of a listener but its default one.
    Certificates { balancer: String, port: u16, arn: ListenerArn },
}

enum Found {
    Attributes(Attributes),
    Capacity(i32),
    Certificates(BTreeSet<String>),
    Tags(Tags),
}

impl Detail {
    /// Of a load balancer: all that there is to read.
    pub fn of_balancer(balancer: &Balancer) -> Vec<Self> {
        let mut details = vec![Self::attributes_of(balancer)];
        // Hardly anybody reserves any: where there was none, nobody asks again.
        if balancer.capacity != Some(0) {
            details.push(Self::capacity_of(balancer));
        }
        for (port, listener) in balancer.listeners.iter().flatten() {
            // They cost a call each, and nobody but us has a use for them: once is enough.
            if listener.tags.is_none() {
                details.push(Self::tags_of_listener(balancer, *port, listener));
            }
            if listener.protocol == Protocol::Tcp.as_str() {
                details.push(Self::attributes_of_listener(balancer, *port, listener));
            } else if listener.protocol == Protocol::Tls.as_str() {
                details.push(Self::certificates_of(balancer, *port, listener));
            }
        }
        details
    }

    /// Of a target group.
    pub fn of_target_group(group: &TargetGroup) -> Self {
        Self::TargetGroup { name: group.name.clone(), arn: group.arn.clone() }
    }

    /// The name under which writes to it are remembered.
    fn subject(&self) -> &str {
        match self {
            Self::Balancer { name, .. } | Self::Capacity { name, .. } | Self::TargetGroup { name, .. } => name,
            Self::Listener { balancer, .. } | Self::Tags { balancer, .. } | Self::Certificates { balancer, .. } => {
                balancer
            }
        }
    }

    fn attributes_of(balancer: &Balancer) -> Self {
        Self::Balancer { name: balancer.name.clone(), arn: balancer.arn.clone() }
    }

    fn capacity_of(balancer: &Balancer) -> Self {
        Self::Capacity { name: balancer.name.clone(), arn: balancer.arn.clone() }
    }

    fn attributes_of_listener(balancer: &Balancer, port: u16, listener: &Listener) -> Self {
        Self::Listener { balancer: balancer.name.clone(), port, arn: listener.arn.clone() }
    }

    fn tags_of_listener(balancer: &Balancer, port: u16, listener: &Listener) -> Self {
        Self::Tags { balancer: balancer.name.clone(), port, arn: listener.arn.clone() }
    }

    fn certificates_of(balancer: &Balancer, port: u16, listener: &Listener) -> Self {
        Self::Certificates { balancer: balancer.name.clone(), port, arn: listener.arn.clone() }
    }

    async fn read(&self, account: &Account) -> Result<Found, AwsError> {
        let aws = &account.aws;
        Ok(match self {
            Self::Balancer { arn, .. } => Found::Attributes(aws.describe_balancer_attributes(arn).await?),
            Self::Capacity { arn, .. } => Found::Capacity(aws.describe_capacity(arn).await?),
            Self::TargetGroup { arn, .. } => Found::Attributes(aws.describe_target_group_attributes(arn).await?),
            Self::Listener { arn, .. } => Found::Attributes(aws.describe_listener_attributes(arn).await?),
            Self::Certificates { arn, .. } => Found::Certificates(aws.describe_certificates(arn).await?),
            Self::Tags { arn, .. } => {
                let found = aws.describe_tags(&[arn.to_string()]).await?;
                Found::Tags(found.into_values().next().unwrap_or_default())
            }
        })
    }

    /// Tags of what it belongs to.
    fn tags(&self, account: &Account) -> Option<Tags> {
        let observed = &account.state().observed;
        match self {
            Self::Balancer { name, .. }
            | Self::Capacity { name, .. }
            | Self::Listener { balancer: name, .. }
            | Self::Tags { balancer: name, .. }
            | Self::Certificates { balancer: name, .. } => Some(observed.balancers.get(name)?.tags.clone()),
            Self::TargetGroup { name, .. } => Some(observed.target_groups.get(name)?.tags.clone()),
        }
    }

    /// Writes into the view what was read, if it is still about the same thing.
    fn record(&self, account: &Account, found: Found) {
        let mut state = account.state();
        let observed = &mut state.observed;
        match (self, found) {
            (Self::Balancer { name, arn }, Found::Attributes(attributes)) => {
                if let Some(balancer) = observed.balancers.get_mut(name).filter(|balancer| balancer.arn == *arn) {
                    balancer.attributes = Some(attributes);
                }
            }
            (Self::Capacity { name, arn }, Found::Capacity(units)) => {
                if let Some(balancer) = observed.balancers.get_mut(name).filter(|balancer| balancer.arn == *arn) {
                    balancer.capacity = Some(units);
                }
            }
            (Self::TargetGroup { name, arn }, Found::Attributes(attributes)) => {
                if let Some(group) = observed.target_groups.get_mut(name).filter(|group| group.arn == *arn) {
                    group.attributes = Some(attributes);
                }
            }
            (
                Self::Listener { balancer, port, arn }
                | Self::Certificates { balancer, port, arn }
                | Self::Tags { balancer, port, arn },
                found,
            ) => {
                let listener = observed.listener_mut(balancer, *port).filter(|listener| listener.arn == *arn);
                match (listener, found) {
                    (Some(listener), Found::Attributes(attributes)) => listener.attributes = Some(attributes),
                    (Some(listener), Found::Certificates(others)) => listener.certificates = Some(others),
                    (Some(listener), Found::Tags(tags)) => listener.tags = Some(tags),
                    (None, _) | (_, Found::Capacity(_)) => {}
                }
            }
            (Self::Balancer { .. } | Self::Capacity { .. } | Self::TargetGroup { .. }, _) => {}
        }
    }
}

/// What is to be read before a Service can be planned: details that it asks for and that are unknown.
fn unknown(account: &Account, spec: &ServiceSpec) -> Vec<Detail> {
    let state = account.state();
    let slice = state.observed.of(&account.policy.cluster, &spec.owner.uid);
    let mut details = vec![];
    for balancer in &slice.balancers {
        if balancer.attributes.is_none() && !spec.attributes.is_empty() {
            details.push(Detail::attributes_of(balancer));
        }
        if balancer.capacity.is_none() && spec.capacity != 0 {
            details.push(Detail::capacity_of(balancer));
        }
        let wanted_tags = service_tags(&account.policy.cluster, &spec.owner, Role::Balancer, &spec.tags);
        let (to_set, to_remove) = tag_changes(&wanted_tags, &balancer.tags);
        let changes_tags = !to_set.is_empty() || !to_remove.is_empty();
        for (port, listener) in balancer.listeners.iter().flatten() {
            let Some(wanted) = spec.ports.get(port) else { continue };
            if listener.tags.is_none() && changes_tags {
                details.push(Detail::tags_of_listener(balancer, *port, listener));
            }
            if listener.attributes.is_none() && !wanted.listener_attributes.is_empty() {
                details.push(Detail::attributes_of_listener(balancer, *port, listener));
            }
            let asks = wanted.tls.as_ref().is_some_and(|tls| tls.certificates.len() > 1);
            if listener.certificates.is_none() && asks {
                details.push(Detail::certificates_of(balancer, *port, listener));
            }
        }
    }
    for group in slice.target_groups.iter().filter(|group| group.attributes.is_none()) {
        if spec.ports.values().any(|port| port.node_port == group.port && !port.attributes.is_empty()) {
            details.push(Detail::of_target_group(group));
        }
    }
    details
}

/// Reads what a Service asks for and what is unknown. Returns what could not be read: it is left alone until it can.
pub async fn learn(account: &Account, spec: &ServiceSpec) -> Vec<AwsError> {
    let details = unknown(account, spec);
    read(account, &details).await
}

/// Reads details into the view. Returns what could not be read.
pub async fn read(account: &Account, details: &[Detail]) -> Vec<AwsError> {
    let mut errors = vec![];
    for detail in details {
        let began = account.state().now();
        match detail.read(account).await {
            // A write of ours to it in between is newer.
            Ok(_) if account.state().is_written_since(detail.subject(), began) => {}
            Ok(found) => detail.record(account, found),
            // Deleted in between; the next listing takes note.
            Err(error) if error.class == Class::Missing => {}
            Err(error) => errors.push(error),
        }
    }
    errors
}

/// Everything there is to read.
fn all(account: &Account) -> BTreeSet<Detail> {
    let state = account.state();
    let of_balancers = state.observed.balancers.values().flat_map(Detail::of_balancer);
    of_balancers.chain(state.observed.target_groups.values().map(Detail::of_target_group)).collect()
}

/// How many of all details a turn reads, where there are so many load balancers and target groups.
fn share(details: usize, resources: usize) -> usize {
    let most = READS.max(resources.div_ceil(RESOURCES_PER_READ));
    most.min(details.div_ceil(INTERVALS * TURNS as usize))
}

/// Reads all details again and again, a few at a time, and has their owners looked at.
pub async fn walk(account: Arc<Account>, drift_interval: Duration) {
    let mut stands = None;
    loop {
        tokio::time::sleep(drift_interval / TURNS).await;
        if account.fence().is_err() {
            continue;
        }
        let resources = {
            let observed = &account.state().observed;
            observed.balancers.len() + observed.target_groups.len()
        };
        let all = all(&account);
        let turn = next(&all, &mut stands, share(all.len(), resources));
        for error in read(&account, &turn).await {
            tracing::warn!(error = %chain(&error), "cannot read attributes or certificates");
        }
        let owners: BTreeSet<_> = turn.iter().filter_map(|detail| detail.tags(&account)).collect();
        account.wake_owners(&owners.into_iter().collect::<Vec<_>>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_services_cost_nine_reads_an_interval_and_none_costs_nothing() {
        let an_interval = |services: usize| TURNS as usize * share(3 * services, 2 * services);
        assert_eq!([0, 1, 20, 36, 100, 1000].map(an_interval), [0, 3, 6, 9, 9, 84]);
        // A new process has more to read, and is in no greater hurry.
        assert_eq!(TURNS as usize * share(500, 200), 9);
    }
}
