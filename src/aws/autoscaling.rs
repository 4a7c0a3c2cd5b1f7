//! Auto Scaling: groups, their members and their traffic sources.

use std::collections::BTreeMap;

use aws_sdk_autoscaling::types::{AutoScalingGroup, TrafficSourceIdentifier};

use super::classify::AwsError;
use super::{Aws, call};
use crate::controller::observed::{Asg, SourceState};
use crate::model::id::{AsgName, InstanceId, TargetGroupArn};

/// Groups on one page (Auto Scaling API).
const GROUPS_PER_PAGE: i32 = 100;
/// Instances in one call of DescribeAutoScalingInstances.
const INSTANCES_PER_CALL: usize = 50;
/// Traffic sources in one attach or detach, and on one page.
pub const SOURCES_PER_CALL: usize = 10;
const SOURCES_PER_PAGE: i32 = 50;
/// The type of a traffic source that is a target group.
const TARGET_GROUP: &str = "elbv2";

impl Aws {
    /// All Auto Scaling groups of the account in this Region. All, because a group that no longer carries the cluster's
    /// tag can still hold a target group of ours, and only a listing finds it.
    ///
    /// # Errors
    /// As of DescribeAutoScalingGroups.
    pub async fn describe_asgs(&self) -> Result<BTreeMap<AsgName, Asg>, AwsError> {
        let mut found = BTreeMap::new();
        let mut token = None;
        loop {
            let request =
                self.autoscaling.describe_auto_scaling_groups().max_records(GROUPS_PER_PAGE).set_next_token(token);
            let page = call!(self.read, "autoscaling:DescribeAutoScalingGroups", "*", request)?;
            found.extend(page.auto_scaling_groups().iter().filter_map(asg));
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// The group of each instance; `None` for one that is in no group.
    ///
    /// # Errors
    /// As of DescribeAutoScalingInstances.
    pub async fn describe_membership(
        &self,
        instances: &[InstanceId],
    ) -> Result<BTreeMap<InstanceId, Option<AsgName>>, AwsError> {
        let mut found: BTreeMap<_, _> = instances.iter().map(|instance| (instance.clone(), None)).collect();
        for chunk in instances.chunks(INSTANCES_PER_CALL) {
            let ids = chunk.iter().map(ToString::to_string).collect();
            let request = self.autoscaling.describe_auto_scaling_instances().set_instance_ids(Some(ids));
            let answer = call!(self.read, "autoscaling:DescribeAutoScalingInstances", "*", request)?;
            for member in answer.auto_scaling_instances() {
                if let (Some(instance), Some(group)) = (member.instance_id(), member.auto_scaling_group_name()) {
                    found.insert(instance.into(), Some(group.into()));
                }
            }
        }
        Ok(found)
    }

    /// Traffic sources of a group, with their states.
    ///
    /// # Errors
    /// As of DescribeTrafficSources.
    pub async fn describe_sources(&self, asg: &AsgName) -> Result<BTreeMap<TargetGroupArn, SourceState>, AwsError> {
        let mut found = BTreeMap::new();
        let mut token = None;
        loop {
            let request = self
                .autoscaling
                .describe_traffic_sources()
                .auto_scaling_group_name(asg.as_str())
                .traffic_source_type(TARGET_GROUP)
                .max_records(SOURCES_PER_PAGE)
                .set_next_token(token);
            let page = call!(self.read, "autoscaling:DescribeTrafficSources", asg.as_str(), request)?;
            for source in page.traffic_sources() {
                if let Some(arn) = source.identifier() {
                    found.insert(arn.into(), state(source.state()));
                }
            }
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Target groups that the older calls attached to a group, with their states.
    ///
    /// # Errors
    /// As of DescribeLoadBalancerTargetGroups.
    pub async fn describe_legacy(&self, asg: &AsgName) -> Result<BTreeMap<TargetGroupArn, SourceState>, AwsError> {
        let mut found = BTreeMap::new();
        let mut token = None;
        loop {
            let request = self
                .autoscaling
                .describe_load_balancer_target_groups()
                .auto_scaling_group_name(asg.as_str())
                .max_records(SOURCES_PER_PAGE)
                .set_next_token(token);
            let page = call!(self.read, "autoscaling:DescribeLoadBalancerTargetGroups", asg.as_str(), request)?;
            for group in page.load_balancer_target_groups() {
                if let Some(arn) = group.load_balancer_target_group_arn() {
                    found.insert(arn.into(), state(group.state()));
                }
            }
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Attaches target groups, [`SOURCES_PER_CALL`] at most.
    ///
    /// # Errors
    /// As of AttachTrafficSources.
    pub async fn attach(&self, asg: &AsgName, groups: &[TargetGroupArn]) -> Result<(), AwsError> {
        let request = self
            .autoscaling
            .attach_traffic_sources()
            .auto_scaling_group_name(asg.as_str())
            .set_traffic_sources(Some(groups.iter().map(identifier).collect()));
        call!(self.write, "autoscaling:AttachTrafficSources", asg.as_str(), request).map(drop)
    }

    /// Detaches target groups, [`SOURCES_PER_CALL`] at most.
    ///
    /// # Errors
    /// As of DetachTrafficSources.
    pub async fn detach(&self, asg: &AsgName, groups: &[TargetGroupArn]) -> Result<(), AwsError> {
        let request = self
            .autoscaling
            .detach_traffic_sources()
            .auto_scaling_group_name(asg.as_str())
            .set_traffic_sources(Some(groups.iter().map(identifier).collect()));
        call!(self.write, "autoscaling:DetachTrafficSources", asg.as_str(), request).map(drop)
    }

    /// Detaches target groups that the older calls attached, [`SOURCES_PER_CALL`] at most.
    ///
    /// # Errors
    /// As of DetachLoadBalancerTargetGroups.
    pub async fn detach_legacy(&self, asg: &AsgName, groups: &[TargetGroupArn]) -> Result<(), AwsError> {
        let arns = groups.iter().map(ToString::to_string).collect();
        let request = self
            .autoscaling
            .detach_load_balancer_target_groups()
            .auto_scaling_group_name(asg.as_str())
            .set_target_group_arns(Some(arns));
        call!(self.write, "autoscaling:DetachLoadBalancerTargetGroups", asg.as_str(), request).map(drop)
    }
}

/// A state of either family of calls; both use the same words.
fn state(shown: Option<&str>) -> SourceState {
    match shown {
        Some("Adding") => SourceState::Adding,
        Some("Removing" | "Removed") => SourceState::Removing,
        _ => SourceState::Added,
    }
}

fn identifier(arn: &TargetGroupArn) -> TrafficSourceIdentifier {
    TrafficSourceIdentifier::builder().identifier(arn.as_str()).r#type(TARGET_GROUP).build()
}

fn asg(shown: &AutoScalingGroup) -> Option<(AsgName, Asg)> {
    let health = shown.health_check_type().unwrap_or_default();
    let tags = shown.tags().iter();
    let sources =
        shown.traffic_sources().iter().filter(|source| source.r#type().is_none_or(|kind| kind == TARGET_GROUP));
    let group = Asg {
        tags: tags
            .filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())))
            .collect(),
        elb_health: health.split(',').any(|kind| kind.trim().eq_ignore_ascii_case("ELB")),
        add_suspended: shown
            .suspended_processes()
            .iter()
            .any(|process| process.process_name() == Some("AddToLoadBalancer")),
        // Only a group that is being deleted has a status.
        deleting: shown.status().is_some_and(|status| !status.is_empty()),
        instances: shown.instances().iter().filter_map(|member| Some(member.instance_id()?.into())).collect(),
        // The listing has no states: what is on it counts as added until the states are read.
        sources: sources.filter_map(|source| Some((source.identifier()?.into(), SourceState::Added))).collect(),
        legacy: shown.target_group_arns().iter().map(|arn| (arn.into(), SourceState::Added)).collect(),
    };
    Some((shown.auto_scaling_group_name()?.into(), group))
}
