//! One step of a plan → calls to AWS → the view. Resolves names, asks the fence, decides nothing.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};

use super::account::{Account, State, StepError};
use super::observed::{Carried, Outcome};
use super::plan::{AttributesOf, Resource, Step};
use crate::aws::classify::{AwsError, BUCKET, Class};
use crate::aws::ec2::RULE_MARK;
use crate::model::attribute::Attributes;
use crate::model::id::{ListenerArn, LoadBalancerArn, SecurityGroupId, TargetGroupArn};

/// A target group stays in use for a few seconds after its listener went (LBC#3037).
const RELEASE_OF_TARGET_GROUP: Duration = Duration::from_secs(1);
const RELEASE_TRIES: usize = 8;

/// Takes one step.
///
/// # Errors
/// Why it did not happen. Whether it took effect in AWS is then unknown to the view.
pub async fn apply(account: &Account, step: &Step) -> Result<(), StepError> {
    if step.is_write() {
        account.fence()?;
        tracing::info!(%step, "applying");
    }
    let outcome = take(account, step).await?;
    account.state().record(step, outcome);
    match step {
        Step::CreateTargetGroup(_) | Step::Intend { .. } | Step::Select { .. } => account.placement.notify_one(),
        Step::CreateBalancer(_) => account.provisioning.notify_one(),
        _ => {}
    }
    Ok(())
}

#[expect(clippy::too_many_lines, reason = "one arm for each kind of step, and nothing else")]
async fn take(account: &Account, step: &Step) -> Result<Outcome, StepError> {
    let aws = &account.aws;
    match step {
        Step::CreateGroup { name, description, tags } => {
            let vpc = account.state().facts.as_ref().map(|facts| facts.vpc.clone());
            let vpc = vpc.ok_or_else(|| StepError::Gone("the VPC".into()))?;
            Ok(Outcome::Group(aws.create_group(name, description, &vpc, tags).await?))
        }
        Step::Authorize { group, rules } => {
            let id = group_id(&account.state(), group)?;
            aws.authorize(&id, rules, &mark(account, "source ranges")).await?;
            Ok(Outcome::Done)
        }
        Step::Revoke { group, rules } => {
            let id = group_id(&account.state(), group)?;
            aws.revoke(&id, rules).await?;
            Ok(Outcome::Done)
        }
        Step::AuthorizeNodes { group, rules } => {
            aws.authorize(group, rules, &mark(account, "load balancers to nodes")).await?;
            Ok(Outcome::Done)
        }
        Step::RevokeNodes { group, rules } => {
            aws.revoke(group, rules).await?;
            Ok(Outcome::Done)
        }
        Step::DeleteGroup { name, .. } => {
            let id = group_id(&account.state(), name)?;
            delete_group(account, &id).await?;
            Ok(Outcome::Done)
        }
        Step::CreateBalancer(desired) => {
            let ids = group_ids(&account.state(), &desired.groups)?;
            Ok(Outcome::Balancer(aws.create_balancer(desired, &ids).await?))
        }
        Step::SetGroups { balancer, groups, rules_on_private_link } => {
            let (arn, ids) = {
                let state = account.state();
                (balancer_arn(&state, balancer)?, group_ids(&state, groups)?)
            };
            aws.set_groups(&arn, &ids, *rules_on_private_link).await?;
            Ok(Outcome::Done)
        }
        Step::SetAddressType { balancer, address_type } => {
            let arn = balancer_arn(&account.state(), balancer)?;
            aws.set_address_type(&arn, *address_type).await?;
            Ok(Outcome::Done)
        }
        Step::SetSubnets { balancer, subnets, address_type, source_nat } => {
            let arn = balancer_arn(&account.state(), balancer)?;
            aws.set_subnets(&arn, subnets, *address_type, *source_nat).await?;
            Ok(Outcome::Done)
        }
        Step::ReserveCapacity { balancer, units } => {
            let arn = balancer_arn(&account.state(), balancer)?;
            aws.reserve_capacity(&arn, *units).await?;
            Ok(Outcome::Done)
        }
        Step::DeleteBalancer { name, .. } => {
            let arn = balancer_arn(&account.state(), name)?;
            delete_balancer(account, &arn).await?;
            Ok(Outcome::Done)
        }
        Step::CreateTargetGroup(desired) => Ok(Outcome::TargetGroup(aws.create_target_group(desired).await?)),
        Step::ModifyHealthCheck { target_group, health } => {
            let arn = target_group_arn(&account.state(), target_group)?;
            aws.modify_health_check(&arn, health).await?;
            Ok(Outcome::Done)
        }
        Step::Intend { .. } | Step::Select { .. } => Ok(Outcome::Done),
        Step::DeleteTargetGroup { name, .. } => {
            let arn = target_group_arn(&account.state(), name)?;
            let wait = ExponentialBuilder::default()
                .with_min_delay(RELEASE_OF_TARGET_GROUP)
                .with_max_delay(RELEASE_OF_TARGET_GROUP * 2)
                .with_max_times(RELEASE_TRIES);
            let delete = || aws.delete_target_group(&arn);
            delete.retry(wait).when(|error: &AwsError| error.class == Class::Conflict).await?;
            Ok(Outcome::Done)
        }
        Step::CreateListener { balancer, port, protocol, tls, target_group, tags } => {
            let (balancer, target_group) = {
                let state = account.state();
                (balancer_arn(&state, balancer)?, target_group_arn(&state, target_group)?)
            };
            let made = aws.create_listener(&balancer, *port, *protocol, tls.as_ref(), &target_group, tags).await?;
            Ok(Outcome::Listener(made))
        }
        Step::ModifyListener { balancer, port, protocol, tls, target_group } => {
            let (listener, target_group) = {
                let state = account.state();
                (listener_arn(&state, balancer, *port)?, target_group_arn(&state, target_group)?)
            };
            Ok(Outcome::Listener(aws.modify_listener(&listener, *protocol, tls.as_ref(), &target_group).await?))
        }
        Step::AddCertificate { balancer, port, certificate } => {
            let arn = listener_arn(&account.state(), balancer, *port)?;
            aws.add_certificate(&arn, certificate).await?;
            Ok(Outcome::Done)
        }
        Step::RemoveCertificate { balancer, port, certificate } => {
            let arn = listener_arn(&account.state(), balancer, *port)?;
            aws.remove_certificate(&arn, certificate).await?;
            Ok(Outcome::Done)
        }
        Step::ModifyAttributes { of, attributes } => {
            modify_attributes(account, of, attributes).await?;
            Ok(Outcome::Done)
        }
        Step::DeleteListener { balancer, port, .. } => {
            let arn = listener_arn(&account.state(), balancer, *port)?;
            aws.delete_listener(&arn).await?;
            Ok(Outcome::Done)
        }
        Step::Tag { resource, tags } => {
            let tagged = arn_of(&account.state(), resource)?;
            match tagged {
                Tagged::Elb(arn) => aws.add_tags(&arn, tags).await?,
                Tagged::Group(id) => aws.tag_group(&id, tags).await?,
            }
            Ok(Outcome::Done)
        }
        Step::Untag { resource, keys } => {
            let tagged = arn_of(&account.state(), resource)?;
            match tagged {
                Tagged::Elb(arn) => aws.remove_tags(&arn, keys).await?,
                Tagged::Group(id) => aws.untag_group(&id, keys).await?,
            }
            Ok(Outcome::Done)
        }
    }
}

async fn modify_attributes(account: &Account, of: &AttributesOf, attributes: &Attributes) -> Result<(), StepError> {
    let aws = &account.aws;
    match of {
        AttributesOf::Balancer(name) => {
            let arn = balancer_arn(&account.state(), name)?;
            let known = account.state().observed.balancers.get(name).and_then(|known| known.attributes.clone());
            let refusal = aws.modify_balancer_attributes(&arn, attributes).await;
            refusal.map_err(|error| about_bucket(error, attributes, &known.unwrap_or_default()))?;
        }
        AttributesOf::TargetGroup(name) => {
            let arn = target_group_arn(&account.state(), name)?;
            aws.modify_target_group_attributes(&arn, attributes).await?;
        }
        AttributesOf::Listener(balancer, port) => {
            let arn = listener_arn(&account.state(), balancer, *port)?;
            aws.modify_listener_attributes(&arn, attributes).await?;
        }
    }
    Ok(())
}

/// Names the bucket where that is what AWS refuses.
fn about_bucket(error: AwsError, attributes: &Attributes, known: &Attributes) -> AwsError {
    const NAME: &str = "access_logs.s3.bucket";
    let sets_logs = attributes.keys().any(|key| key.starts_with("access_logs."));
    match attributes.get(NAME).or_else(|| known.get(NAME)) {
        Some(bucket) if sets_logs && error.code == "InvalidConfigurationRequest" => {
            AwsError { resource: format!("{BUCKET}{bucket}"), ..error }
        }
        _ => error,
    }
}

/// Deletes a load balancer of ours. Where endpoint services keep it, they are named.
async fn delete_balancer(account: &Account, arn: &LoadBalancerArn) -> Result<(), StepError> {
    let refusal = match account.aws.delete_balancer(arn).await {
        Err(error) if error.code == "ResourceInUse" => error,
        other => return Ok(other?),
    };
    // Only words: a read that is denied is told beside the refusal, and does not hide it.
    let user = match account.aws.describe_endpoint_services_of(arn).await {
        Ok(services) if services.is_empty() => return Err(refusal.into()),
        Ok(services) => format!("VPC endpoint service {} uses it", services.join(", ")),
        Err(unread) => format!("what uses it cannot be read: {unread}"),
    };
    Err(AwsError { message: format!("{}: {user}", refusal.message), ..refusal }.into())
}

/// Deletes a group of ours. Where something uses it, rules that carry our mark go first; anything else is named.
async fn delete_group(account: &Account, id: &SecurityGroupId) -> Result<(), StepError> {
    let refusal = match account.aws.delete_group(id).await {
        Err(error) if error.code == "DependencyViolation" => error,
        other => return Ok(other?),
    };
    let references = account.aws.describe_references(id).await?;
    let (ours, others): (Vec<_>, Vec<_>) = references.into_iter().partition(|reference| reference.is_ours);
    if !ours.is_empty() {
        for reference in &ours {
            account.fence()?;
            account.aws.revoke(&reference.group, &[reference.rule.clone()].into()).await?;
        }
        if others.is_empty() {
            account.fence()?;
            return Ok(account.aws.delete_group(id).await?);
        }
    }
    let mut blockers: Vec<_> =
        others.iter().map(|reference| format!("the rule {} of {}", reference.rule, reference.group)).collect();
    // Only words: a read that is denied is told beside the refusal, and does not hide it.
    match account.aws.describe_interfaces_of(id).await {
        Ok(interfaces) => blockers.extend(interfaces.iter().map(|text| format!("network interface {text}"))),
        Err(unread) => blockers.push(format!("something that cannot be read ({unread})")),
    }
    let still = if blockers.is_empty() { "something".to_owned() } else { blockers.join(", ") };
    Err(AwsError { message: format!("{still} still uses it"), ..refusal }.into())
}

/// The description of a rule of ours.
fn mark(account: &Account, purpose: &str) -> String {
    format!("{RULE_MARK}cluster={}: {purpose}", account.policy.cluster)
}

fn balancer_arn(state: &State, name: &str) -> Result<LoadBalancerArn, StepError> {
    let found = state.observed.balancers.get(name).map(|balancer| balancer.arn.clone());
    found.ok_or_else(|| StepError::Gone(format!("load balancer {name}")))
}

fn target_group_arn(state: &State, name: &str) -> Result<TargetGroupArn, StepError> {
    let found = state.observed.target_groups.get(name).map(|group| group.arn.clone());
    found.ok_or_else(|| StepError::Gone(format!("target group {name}")))
}

fn listener_arn(state: &State, balancer: &str, port: u16) -> Result<ListenerArn, StepError> {
    let listeners = state.observed.balancers.get(balancer).and_then(|balancer| balancer.listeners.as_ref());
    let found = listeners.and_then(|listeners| listeners.get(&port)).map(|listener| listener.arn.clone());
    found.ok_or_else(|| StepError::Gone(format!("listener {port} of load balancer {balancer}")))
}

fn group_id(state: &State, name: &str) -> Result<SecurityGroupId, StepError> {
    let found = state.observed.groups.get(name).map(|group| group.id.clone());
    found.ok_or_else(|| StepError::Gone(format!("security group {name}")))
}

fn group_ids(state: &State, groups: &[Carried]) -> Result<Vec<SecurityGroupId>, StepError> {
    let id =
        |group: &Carried| state.observed.id_of(group).ok_or_else(|| StepError::Gone(format!("security group {group}")));
    groups.iter().map(id).collect()
}

enum Tagged {
    Elb(String),
    Group(SecurityGroupId),
}

fn arn_of(state: &State, resource: &Resource) -> Result<Tagged, StepError> {
    match resource {
        Resource::Balancer(name) => Ok(Tagged::Elb(balancer_arn(state, name)?.to_string())),
        Resource::TargetGroup(name) => Ok(Tagged::Elb(target_group_arn(state, name)?.to_string())),
        Resource::Listener(balancer, port) => Ok(Tagged::Elb(listener_arn(state, balancer, *port)?.to_string())),
        Resource::Group(name) => Ok(Tagged::Group(group_id(state, name)?)),
    }
}
