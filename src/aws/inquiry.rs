//! What only the commands for people ask AWS: who we are, what we may do, how targets are, and what limits there are.
//!
//! Nothing here changes anything. Whether a write to EC2 is allowed is asked with its own dry run.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_autoscaling::types::InstanceRefreshStatus;
use aws_sdk_ec2::types::{IpPermission, ResourceType, Tag, TagSpecification, UserIdGroupPair};
use aws_sdk_elasticloadbalancingv2::types::TargetHealthReasonEnum;

use super::classify::{AwsError, Class};
use super::{Aws, call};
use crate::model::id::{AsgName, InstanceId, SecurityGroupId, TargetGroupArn, VpcId};
use crate::model::ownership::Tags;

/// Largest page of the listings (ELB API).
const PAGE: i32 = 400;

/// Whose credentials these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Twelve digits.
    pub account: String,
    /// ARN of the user or of the role's session.
    pub arn: String,
}

impl Caller {
    /// `aws`, `aws-cn` or `aws-us-gov`.
    pub fn partition(&self) -> &str {
        self.arn.split(':').nth(1).unwrap_or("aws")
    }
}

/// What a load balancer says of a target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Health {
    /// `healthy`, `unhealthy`, `initial`, `draining`, `unused`, `unavailable` (ELB API, `TargetHealth`).
    pub state: String,
    /// AWS's code and words, unless it is healthy.
    pub reason: Option<String>,
}

impl Aws {
    /// Whose credentials these are. Needs no permission.
    ///
    /// # Errors
    /// As of GetCallerIdentity.
    pub async fn describe_caller(&self) -> Result<Caller, AwsError> {
        let request = self.sts.get_caller_identity();
        let answer = call!(self.read, "sts:GetCallerIdentity", "*", request)?;
        match (answer.account(), answer.arn()) {
            (Some(account), Some(arn)) => Ok(Caller { account: account.to_owned(), arn: arn.to_owned() }),
            _ => Err(AwsError::incomplete("sts:GetCallerIdentity", "*")),
        }
    }

    /// How the targets of a target group are.
    ///
    /// # Errors
    /// As of DescribeTargetHealth.
    pub async fn describe_health(&self, arn: &TargetGroupArn) -> Result<BTreeMap<InstanceId, Health>, AwsError> {
        let request = self.elb.describe_target_health().target_group_arn(arn.as_str());
        let answer = call!(self.read, "elasticloadbalancing:DescribeTargetHealth", arn.as_str(), request)?;
        let described = answer.target_health_descriptions().iter().filter_map(|description| {
            let health = description.target_health()?;
            let words = [health.reason().map(TargetHealthReasonEnum::as_str), health.description()];
            let words: Vec<_> = words.into_iter().flatten().filter(|words| !words.is_empty()).collect();
            let reason = (!words.is_empty()).then(|| words.join(": "));
            let state = health.state()?.as_str().to_owned();
            Some((description.target()?.id()?.into(), Health { state, reason }))
        });
        Ok(described.collect())
    }

    /// Every target group of the account in this Region, of any type.
    ///
    /// # Errors
    /// As of DescribeTargetGroups.
    pub async fn describe_target_group_arns(&self) -> Result<BTreeSet<TargetGroupArn>, AwsError> {
        let mut found = BTreeSet::new();
        let mut marker = None;
        loop {
            let request = self.elb.describe_target_groups().page_size(PAGE).set_marker(marker);
            let page = call!(self.read, "elasticloadbalancing:DescribeTargetGroups", "*", request)?;
            found.extend(page.target_groups().iter().filter_map(|group| Some(group.target_group_arn()?.into())));
            marker = page.next_marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                return Ok(found);
            }
        }
    }

    /// Limits of the account in this Region, by AWS's names for them.
    ///
    /// # Errors
    /// As of DescribeAccountLimits.
    pub async fn describe_limits(&self) -> Result<BTreeMap<String, usize>, AwsError> {
        let mut found = BTreeMap::new();
        let mut marker = None;
        loop {
            let request = self.elb.describe_account_limits().page_size(PAGE).set_marker(marker);
            let page = call!(self.read, "elasticloadbalancing:DescribeAccountLimits", "*", request)?;
            found.extend(
                page.limits().iter().filter_map(|limit| Some((limit.name()?.to_owned(), limit.max()?.parse().ok()?))),
            );
            marker = page.next_marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                return Ok(found);
            }
        }
    }

    /// Those of the Auto Scaling groups that replace their instances just now. The newest refreshes come first.
    ///
    /// # Errors
    /// As of DescribeInstanceRefreshes.
    pub async fn describe_refreshing(&self, asgs: &[AsgName]) -> Result<BTreeSet<AsgName>, AwsError> {
        use InstanceRefreshStatus::{Cancelling, InProgress, Pending, RollbackInProgress};
        let mut found = BTreeSet::new();
        for asg in asgs {
            let request =
                self.autoscaling.describe_instance_refreshes().auto_scaling_group_name(asg.as_str()).max_records(10);
            let answer = call!(self.read, "autoscaling:DescribeInstanceRefreshes", asg.as_str(), request)?;
            let goes_on = |status: &InstanceRefreshStatus| {
                matches!(status, Pending | InProgress | Cancelling | RollbackInProgress)
            };
            if answer.instance_refreshes().iter().any(|refresh| refresh.status().is_some_and(goes_on)) {
                found.insert(asg.clone());
            }
        }
        Ok(found)
    }

    /// Whether a security group with these tags could be made.
    ///
    /// # Errors
    /// The denial.
    pub async fn may_create_group(&self, vpc: &VpcId, tags: &Tags) -> Result<(), AwsError> {
        let specification = tags.iter().fold(
            TagSpecification::builder().resource_type(ResourceType::SecurityGroup),
            |specification, (key, value)| specification.tags(Tag::builder().key(key).value(value).build()),
        );
        let request = self
            .ec2
            .create_security_group()
            .dry_run(true)
            .group_name("weir-doctor")
            .description("Asks whether it could be made")
            .vpc_id(vpc.as_str())
            .tag_specifications(specification.build());
        unless_denied(call!(self.write, "ec2:CreateSecurityGroup", vpc.as_str(), request))
    }

    /// Whether a rule could be added to a security group.
    ///
    /// # Errors
    /// The denial.
    pub async fn may_authorize(&self, id: &SecurityGroupId) -> Result<(), AwsError> {
        let request = self.ec2.authorize_security_group_ingress().dry_run(true).group_id(id.as_str());
        let request = request.ip_permissions(any_rule(id));
        unless_denied(call!(self.write, "ec2:AuthorizeSecurityGroupIngress", id.as_str(), request))
    }

    /// Whether a rule could be taken out of a security group.
    ///
    /// # Errors
    /// The denial.
    pub async fn may_revoke(&self, id: &SecurityGroupId) -> Result<(), AwsError> {
        let request = self.ec2.revoke_security_group_ingress().dry_run(true).group_id(id.as_str());
        let request = request.ip_permissions(any_rule(id));
        unless_denied(call!(self.write, "ec2:RevokeSecurityGroupIngress", id.as_str(), request))
    }

    /// Whether a security group could be deleted.
    ///
    /// # Errors
    /// The denial.
    pub async fn may_delete_group(&self, id: &SecurityGroupId) -> Result<(), AwsError> {
        let request = self.ec2.delete_security_group().dry_run(true).group_id(id.as_str());
        unless_denied(call!(self.write, "ec2:DeleteSecurityGroup", id.as_str(), request))
    }

    /// Whether a tag of a security group could be set.
    ///
    /// # Errors
    /// The denial.
    pub async fn may_tag_group(&self, id: &SecurityGroupId, key: &str) -> Result<(), AwsError> {
        let tag = Tag::builder().key(key).value("").build();
        let request = self.ec2.create_tags().dry_run(true).resources(id.as_str()).tags(tag);
        unless_denied(call!(self.write, "ec2:CreateTags", id.as_str(), request))
    }

    /// Whether a tag of a security group could be removed.
    ///
    /// # Errors
    /// The denial.
    pub async fn may_untag_group(&self, id: &SecurityGroupId, key: &str) -> Result<(), AwsError> {
        let tag = Tag::builder().key(key).build();
        let request = self.ec2.delete_tags().dry_run(true).resources(id.as_str()).tags(tag);
        unless_denied(call!(self.write, "ec2:DeleteTags", id.as_str(), request))
    }
}

/// EC2 looks at permissions before anything else, so whatever but a denial comes back means that there is none. The
/// answer to an allowed dry run is an error too.
fn unless_denied<T>(answer: Result<T, AwsError>) -> Result<(), AwsError> {
    match answer {
        Err(error) if error.class == Class::Denied => Err(error),
        _ => Ok(()),
    }
}

/// A rule by which a group would admit itself.
fn any_rule(id: &SecurityGroupId) -> IpPermission {
    let pair = UserIdGroupPair::builder().group_id(id.as_str()).build();
    IpPermission::builder().ip_protocol("tcp").from_port(1).to_port(1).user_id_group_pairs(pair).build()
}
