//! Elastic Load Balancing: load balancers, target groups, listeners, tags, targets.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_elasticloadbalancingv2::types::{
    Action, ActionTypeEnum, AvailabilityZone, Certificate, EnablePrefixForIpv6SourceNatEnum,
    EnforceSecurityGroupInboundRulesOnPrivateLinkTrafficEnum as PrivateLinkEnum, IpAddressType,
    Listener as SdkListener, ListenerAttribute, LoadBalancer, LoadBalancerAttribute, LoadBalancerSchemeEnum,
    LoadBalancerStateEnum, LoadBalancerTypeEnum, Matcher, MinimumLoadBalancerCapacity, ProtocolEnum, SubnetMapping,
    Tag, TargetDescription, TargetGroup as SdkTargetGroup, TargetGroupAttribute, TargetGroupIpAddressTypeEnum,
    TargetHealthStateEnum, TargetTypeEnum,
};

use super::classify::{AwsError, Class};
use super::{Aws, call};
use crate::controller::desired::{DesiredBalancer, DesiredTargetGroup};
use crate::controller::observed::{Balancer, BalancerState, HealthCheck, Intent, Listener, Mapping, TargetGroup};
use crate::model::attribute::Attributes;
use crate::model::family::Family;
use crate::model::id::{InstanceId, ListenerArn, LoadBalancerArn, SecurityGroupId, TargetGroupArn, VpcId, Zone};
use crate::model::node::Labels;
use crate::model::ownership::Tags;
use crate::model::service::{AddressType, Protocol, Scheme, Tls};

/// Largest page of the listings (ELB API).
const PAGE: i32 = 400;
/// ARNs in one call of DescribeTags, DescribeLoadBalancers and DescribeListeners.
const ARNS_PER_CALL: usize = 20;
/// Targets in one registration. The AWS Load Balancer Controller uses 200; a call fails as a whole.
const TARGETS_PER_CALL: usize = 200;

/// What AWS says of a request to register targets.
#[derive(Debug, Default)]
pub struct Registration {
    /// Instances that are registered now.
    pub registered: BTreeSet<InstanceId>,
    /// Instances that AWS does not take, and its words.
    pub unfit: BTreeMap<InstanceId, String>,
    /// What AWS says where a quota keeps it from taking the rest.
    pub full: Option<AwsError>,
}

impl Aws {
    /// All Network Load Balancers of the account in this Region, without tags and listeners, and the names that load
    /// balancers of other types hold.
    ///
    /// # Errors
    /// As of DescribeLoadBalancers.
    pub async fn describe_balancers(&self) -> Result<(Vec<Balancer>, BTreeMap<String, LoadBalancerArn>), AwsError> {
        let (mut found, mut others) = (vec![], BTreeMap::new());
        let mut marker = None;
        loop {
            let request = self.elb.describe_load_balancers().page_size(PAGE).set_marker(marker);
            let page = call!(self.read, "elasticloadbalancing:DescribeLoadBalancers", "*", request)?;
            for shown in page.load_balancers() {
                match (balancer(shown), shown.load_balancer_name(), shown.load_balancer_arn()) {
                    (Some(balancer), ..) => found.push(balancer),
                    (None, Some(name), Some(arn)) => drop(others.insert(name.to_owned(), arn.into())),
                    _ => {}
                }
            }
            marker = page.next_marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                return Ok((found, others));
            }
        }
    }

    /// The load balancers with these ARNs that still exist.
    ///
    /// # Errors
    /// As of DescribeLoadBalancers.
    pub async fn describe_balancers_by_arn(&self, arns: &[LoadBalancerArn]) -> Result<Vec<Balancer>, AwsError> {
        let mut found = vec![];
        for chunk in arns.chunks(ARNS_PER_CALL) {
            let names = chunk.iter().map(ToString::to_string).collect();
            let request = self.elb.describe_load_balancers().set_load_balancer_arns(Some(names));
            let answer = call!(self.read, "elasticloadbalancing:DescribeLoadBalancers", "*", request);
            match answer {
                Ok(page) => found.extend(page.load_balancers().iter().filter_map(balancer)),
                // One that is gone fails the whole call; a full listing tells which.
                Err(error) if error.class == Class::Missing => {
                    let (all, _) = self.describe_balancers().await?;
                    found.extend(all.into_iter().filter(|balancer| chunk.contains(&balancer.arn)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// All instance target groups of the account in this Region, without tags.
    ///
    /// # Errors
    /// As of DescribeTargetGroups.
    pub async fn describe_target_groups(&self) -> Result<Vec<TargetGroup>, AwsError> {
        let mut found = vec![];
        let mut marker = None;
        loop {
            let request = self.elb.describe_target_groups().page_size(PAGE).set_marker(marker);
            let page = call!(self.read, "elasticloadbalancing:DescribeTargetGroups", "*", request)?;
            found.extend(page.target_groups().iter().filter_map(target_group));
            marker = page.next_marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                return Ok(found);
            }
        }
    }

    /// Tags of each of these ARNs that still exists.
    ///
    /// # Errors
    /// As of DescribeTags.
    pub async fn describe_tags(&self, arns: &[String]) -> Result<BTreeMap<String, Tags>, AwsError> {
        let mut found = BTreeMap::new();
        let mut chunks: Vec<&[String]> = arns.chunks(ARNS_PER_CALL).collect();
        while let Some(chunk) = chunks.pop() {
            let request = self.elb.describe_tags().set_resource_arns(Some(chunk.to_vec()));
            match call!(self.read, "elasticloadbalancing:DescribeTags", "*", request) {
                Ok(answer) => {
                    for description in answer.tag_descriptions() {
                        let Some(arn) = description.resource_arn() else { continue };
                        found.insert(arn.to_owned(), read_tags(description.tags()));
                    }
                }
                // One that is gone fails the whole call.
                Err(error) if error.class == Class::Missing => {
                    if chunk.len() > 1 {
                        let (left, right) = chunk.split_at(chunk.len() / 2);
                        chunks.extend([left, right]);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// All listeners of a load balancer, by port.
    ///
    /// # Errors
    /// As of DescribeListeners.
    pub async fn describe_listeners_of(&self, arn: &LoadBalancerArn) -> Result<BTreeMap<u16, Listener>, AwsError> {
        let mut found = BTreeMap::new();
        let mut marker = None;
        loop {
            let request = self.elb.describe_listeners().load_balancer_arn(arn.as_str()).set_marker(marker);
            let page = call!(self.read, "elasticloadbalancing:DescribeListeners", arn.as_str(), request)?;
            found.extend(page.listeners().iter().filter_map(listener));
            marker = page.next_marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                return Ok(found);
            }
        }
    }

    /// Listeners by ARN: many load balancers' in one call. `None` if one of them is gone.
    ///
    /// # Errors
    /// As of DescribeListeners.
    pub async fn describe_listeners(
        &self,
        arns: &[ListenerArn],
    ) -> Result<Option<BTreeMap<ListenerArn, (u16, Listener)>>, AwsError> {
        debug_assert!(arns.len() <= ARNS_PER_CALL);
        let names = arns.iter().map(ToString::to_string).collect();
        let request = self.elb.describe_listeners().set_listener_arns(Some(names));
        match call!(self.read, "elasticloadbalancing:DescribeListeners", "*", request) {
            Ok(answer) => {
                let found = answer.listeners().iter().filter_map(listener);
                Ok(Some(found.map(|(port, listener)| (listener.arn.clone(), (port, listener))).collect()))
            }
            Err(error) if error.class == Class::Missing => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Instances registered with a target group. Those that are draining have left.
    ///
    /// # Errors
    /// As of DescribeTargetHealth.
    pub async fn describe_targets(&self, arn: &TargetGroupArn) -> Result<BTreeSet<InstanceId>, AwsError> {
        let request = self.elb.describe_target_health().target_group_arn(arn.as_str());
        let answer = call!(self.read, "elasticloadbalancing:DescribeTargetHealth", arn.as_str(), request)?;
        let staying = answer.target_health_descriptions().iter().filter(|description| {
            description.target_health().and_then(|health| health.state()) != Some(&TargetHealthStateEnum::Draining)
        });
        Ok(staying.filter_map(|description| Some(description.target()?.id()?.into())).collect())
    }

    /// Makes a Network Load Balancer. Made again with the same settings, AWS answers with the one that exists; the
    /// frontend group among them is the Service's own, so that can only be the Service's.
    ///
    /// # Errors
    /// As of CreateLoadBalancer.
    pub async fn create_balancer(
        &self,
        desired: &DesiredBalancer,
        groups: &[SecurityGroupId],
    ) -> Result<Balancer, AwsError> {
        let action = "elasticloadbalancing:CreateLoadBalancer";
        let name = desired.name.as_str();
        let request = self
            .elb
            .create_load_balancer()
            .name(name)
            .r#type(LoadBalancerTypeEnum::Network)
            .scheme(match desired.scheme {
                Scheme::Internal => LoadBalancerSchemeEnum::Internal,
                Scheme::InternetFacing => LoadBalancerSchemeEnum::InternetFacing,
            })
            .ip_address_type(address_type(desired.address_type))
            .set_enable_prefix_for_ipv6_source_nat(desired.source_nat.then(|| source_nat(true)))
            .set_subnet_mappings(Some(desired.subnets.values().map(mapping).collect()))
            .set_security_groups(Some(groups.iter().map(ToString::to_string).collect()))
            .set_tags(Some(write_tags(&desired.tags)));
        let answer = call!(self.write, "elasticloadbalancing:CreateLoadBalancer", name, request)?;
        let made = answer.load_balancers().first().and_then(balancer);
        let mut made = made.ok_or_else(|| AwsError::incomplete(action, name))?;
        made.tags = desired.tags.clone();
        // What the answer does not show yet, and is known to be so.
        made.subnets = desired.subnets.clone();
        made.capacity = Some(0);
        made.listeners = Some(BTreeMap::new());
        made.attributes = Some(Attributes::new());
        Ok(made)
    }

    /// Sets the security groups of a load balancer, and whether their inbound rules hold for PrivateLink.
    ///
    /// # Errors
    /// As of SetSecurityGroups.
    pub async fn set_groups(
        &self,
        arn: &LoadBalancerArn,
        groups: &[SecurityGroupId],
        rules_on_private_link: bool,
    ) -> Result<(), AwsError> {
        let ids = groups.iter().map(ToString::to_string).collect();
        let enforce = if rules_on_private_link { PrivateLinkEnum::On } else { PrivateLinkEnum::Off };
        let request = self
            .elb
            .set_security_groups()
            .load_balancer_arn(arn.as_str())
            .set_security_groups(Some(ids))
            .enforce_security_group_inbound_rules_on_private_link_traffic(enforce);
        call!(self.write, "elasticloadbalancing:SetSecurityGroups", arn.as_str(), request).map(drop)
    }

    /// Sets the IP families of a load balancer's clients.
    ///
    /// # Errors
    /// As of SetIpAddressType.
    pub async fn set_address_type(&self, arn: &LoadBalancerArn, wanted: AddressType) -> Result<(), AwsError> {
        let request =
            self.elb.set_ip_address_type().load_balancer_arn(arn.as_str()).ip_address_type(address_type(wanted));
        call!(self.write, "elasticloadbalancing:SetIpAddressType", arn.as_str(), request).map(drop)
    }

    /// Reserves capacity units for a load balancer; 0 ends a reservation.
    ///
    /// # Errors
    /// As of ModifyCapacityReservation.
    pub async fn reserve_capacity(&self, arn: &LoadBalancerArn, units: i32) -> Result<(), AwsError> {
        let request = self.elb.modify_capacity_reservation().load_balancer_arn(arn.as_str());
        let request = if units == 0 {
            request.reset_capacity_reservation(true)
        } else {
            let capacity = MinimumLoadBalancerCapacity::builder().capacity_units(units).build();
            request.minimum_load_balancer_capacity(capacity)
        };
        call!(self.write, "elasticloadbalancing:ModifyCapacityReservation", arn.as_str(), request).map(drop)
    }

    /// Capacity units that are reserved for a load balancer.
    ///
    /// # Errors
    /// As of DescribeCapacityReservation.
    pub async fn describe_capacity(&self, arn: &LoadBalancerArn) -> Result<i32, AwsError> {
        let request = self.elb.describe_capacity_reservation().load_balancer_arn(arn.as_str());
        let answer = call!(self.read, "elasticloadbalancing:DescribeCapacityReservation", arn.as_str(), request)?;
        Ok(answer
            .minimum_load_balancer_capacity()
            .and_then(MinimumLoadBalancerCapacity::capacity_units)
            .unwrap_or_default())
    }

    /// Sets the subnets of a load balancer and the addresses there, and what else is given.
    ///
    /// # Errors
    /// As of SetSubnets.
    pub async fn set_subnets(
        &self,
        arn: &LoadBalancerArn,
        subnets: &BTreeMap<Zone, Mapping>,
        wanted_type: Option<AddressType>,
        wanted_source_nat: Option<bool>,
    ) -> Result<(), AwsError> {
        let request = self
            .elb
            .set_subnets()
            .load_balancer_arn(arn.as_str())
            .set_subnet_mappings(Some(subnets.values().map(mapping).collect()))
            .set_ip_address_type(wanted_type.map(address_type))
            .set_enable_prefix_for_ipv6_source_nat(wanted_source_nat.map(source_nat));
        call!(self.write, "elasticloadbalancing:SetSubnets", arn.as_str(), request).map(drop)
    }

    /// Deletes a load balancer; one that is gone is no error.
    ///
    /// # Errors
    /// As of DeleteLoadBalancer.
    pub async fn delete_balancer(&self, arn: &LoadBalancerArn) -> Result<(), AwsError> {
        let request = self.elb.delete_load_balancer().load_balancer_arn(arn.as_str());
        gone(call!(self.write, "elasticloadbalancing:DeleteLoadBalancer", arn.as_str(), request).map(drop))
    }

    /// Makes a target group of instances.
    ///
    /// # Errors
    /// As of CreateTargetGroup.
    pub async fn create_target_group(&self, desired: &DesiredTargetGroup) -> Result<TargetGroup, AwsError> {
        let action = "elasticloadbalancing:CreateTargetGroup";
        let health = &desired.health;
        let request = self
            .elb
            .create_target_group()
            .name(&desired.name)
            .protocol(protocol(desired.protocol))
            .port(desired.port.into())
            .vpc_id(desired.vpc.as_str())
            .target_type(TargetTypeEnum::Instance)
            .set_ip_address_type((desired.family == Family::Ipv6).then_some(TargetGroupIpAddressTypeEnum::Ipv6))
            .health_check_protocol(ProtocolEnum::from(health.protocol.as_str()))
            .health_check_port(&health.port)
            .set_health_check_path(health.path.clone())
            .health_check_interval_seconds(health.interval)
            .health_check_timeout_seconds(health.timeout)
            .healthy_threshold_count(health.healthy)
            .unhealthy_threshold_count(health.unhealthy)
            .set_matcher(health.codes.as_ref().map(|codes| Matcher::builder().http_code(codes).build()))
            .set_tags(Some(write_tags(&desired.tags)));
        let answer = call!(self.write, "elasticloadbalancing:CreateTargetGroup", desired.name.as_str(), request)?;
        let made = answer.target_groups().first().and_then(target_group);
        let mut made = made.ok_or_else(|| AwsError::incomplete(action, desired.name.as_str()))?;
        made.tags = desired.tags.clone();
        made.attributes = Some(Attributes::new());
        made.intent = Intent::Serve;
        made.nodes = desired.nodes.clone();
        Ok(made)
    }

    /// Changes a health check, all of it in one call.
    ///
    /// # Errors
    /// As of ModifyTargetGroup.
    pub async fn modify_health_check(&self, arn: &TargetGroupArn, health: &HealthCheck) -> Result<(), AwsError> {
        let request = self
            .elb
            .modify_target_group()
            .target_group_arn(arn.as_str())
            .health_check_protocol(ProtocolEnum::from(health.protocol.as_str()))
            .health_check_port(&health.port)
            .set_health_check_path(health.path.clone())
            .health_check_interval_seconds(health.interval)
            .health_check_timeout_seconds(health.timeout)
            .healthy_threshold_count(health.healthy)
            .unhealthy_threshold_count(health.unhealthy)
            .set_matcher(health.codes.as_ref().map(|codes| Matcher::builder().http_code(codes).build()));
        call!(self.write, "elasticloadbalancing:ModifyTargetGroup", arn.as_str(), request).map(drop)
    }

    /// Deletes a target group; one that is gone is no error.
    ///
    /// # Errors
    /// As of DeleteTargetGroup.
    pub async fn delete_target_group(&self, arn: &TargetGroupArn) -> Result<(), AwsError> {
        let request = self.elb.delete_target_group().target_group_arn(arn.as_str());
        gone(call!(self.write, "elasticloadbalancing:DeleteTargetGroup", arn.as_str(), request).map(drop))
    }

    /// Makes a listener that forwards to a target group.
    ///
    /// # Errors
    /// As of CreateListener.
    pub async fn create_listener(
        &self,
        balancer: &LoadBalancerArn,
        port: u16,
        transport: Protocol,
        tls: Option<&Tls>,
        target_group: &TargetGroupArn,
        tags: &Tags,
    ) -> Result<Listener, AwsError> {
        let request = self
            .elb
            .create_listener()
            .load_balancer_arn(balancer.as_str())
            .port(port.into())
            .protocol(protocol(transport))
            .set_certificates(tls.map(default_certificate))
            .set_ssl_policy(tls.map(|tls| tls.policy.clone()))
            .set_alpn_policy(tls.and_then(|tls| tls.alpn.clone()).map(|alpn| vec![alpn]))
            .default_actions(forward(target_group))
            .set_tags(Some(write_tags(tags)));
        let answer = call!(self.write, "elasticloadbalancing:CreateListener", balancer.as_str(), request)?;
        let made = answer.listeners().first().and_then(listener).map(|(_, listener)| listener);
        let made =
            made.ok_or_else(|| AwsError::incomplete("elasticloadbalancing:CreateListener", balancer.as_str()))?;
        // Nothing else can have been set yet.
        let (certificates, attributes) = (Some(BTreeSet::new()), Some(Attributes::new()));
        Ok(Listener { certificates, attributes, tags: Some(tags.clone()), ..made })
    }

    /// Changes a listener, all of it in one call.
    ///
    /// # Errors
    /// As of ModifyListener.
    pub async fn modify_listener(
        &self,
        arn: &ListenerArn,
        transport: Protocol,
        tls: Option<&Tls>,
        target_group: &TargetGroupArn,
    ) -> Result<Listener, AwsError> {
        // A policy that is left out stays, so that none must be said (ELB API, `AlpnPolicy`).
        let alpn = tls.map(|tls| vec![tls.alpn.clone().unwrap_or_else(|| NO_ALPN.to_owned())]);
        let request = self
            .elb
            .modify_listener()
            .listener_arn(arn.as_str())
            .protocol(protocol(transport))
            .set_certificates(tls.map(default_certificate))
            .set_ssl_policy(tls.map(|tls| tls.policy.clone()))
            .set_alpn_policy(alpn)
            .default_actions(forward(target_group));
        call!(self.write, "elasticloadbalancing:ModifyListener", arn.as_str(), request)?;
        Ok(Listener {
            arn: arn.clone(),
            protocol: transport.as_str().into(),
            target_group: Some(target_group.clone()),
            certificate: tls.and_then(|tls| tls.certificates.first().cloned()),
            policy: tls.map(|tls| tls.policy.clone()),
            alpn: tls.and_then(|tls| tls.alpn.clone()),
            certificates: None,
            tags: None,
            attributes: None,
        })
    }

    /// Adds a certificate to the list of a TLS listener. AWS takes one a call (`AddListenerCertificates`).
    ///
    /// # Errors
    /// As of AddListenerCertificates.
    pub async fn add_certificate(&self, arn: &ListenerArn, added: &String) -> Result<(), AwsError> {
        let request = self.elb.add_listener_certificates().listener_arn(arn.as_str()).certificates(certificate(added));
        call!(self.write, "elasticloadbalancing:AddListenerCertificates", arn.as_str(), request).map(drop)
    }

    /// Takes a certificate out of the list of a TLS listener. AWS takes one a call (`RemoveListenerCertificates`).
    ///
    /// # Errors
    /// As of RemoveListenerCertificates.
    pub async fn remove_certificate(&self, arn: &ListenerArn, removed: &String) -> Result<(), AwsError> {
        let request =
            self.elb.remove_listener_certificates().listener_arn(arn.as_str()).certificates(certificate(removed));
        call!(self.write, "elasticloadbalancing:RemoveListenerCertificates", arn.as_str(), request).map(drop)
    }

    /// Certificates in the list of a TLS listener; its default one need not be among them.
    ///
    /// # Errors
    /// As of DescribeListenerCertificates.
    pub async fn describe_certificates(&self, arn: &ListenerArn) -> Result<BTreeSet<String>, AwsError> {
        let mut found = BTreeSet::new();
        let mut marker = None;
        loop {
            let request = self.elb.describe_listener_certificates().listener_arn(arn.as_str()).set_marker(marker);
            let page = call!(self.read, "elasticloadbalancing:DescribeListenerCertificates", arn.as_str(), request)?;
            let others = page.certificates().iter().filter(|shown| shown.is_default() != Some(true));
            found.extend(others.filter_map(|shown| shown.certificate_arn().map(str::to_owned)));
            marker = page.next_marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                return Ok(found);
            }
        }
    }

    /// Attributes of a load balancer.
    ///
    /// # Errors
    /// As of DescribeLoadBalancerAttributes.
    pub async fn describe_balancer_attributes(&self, arn: &LoadBalancerArn) -> Result<Attributes, AwsError> {
        let request = self.elb.describe_load_balancer_attributes().load_balancer_arn(arn.as_str());
        let answer = call!(self.read, "elasticloadbalancing:DescribeLoadBalancerAttributes", arn.as_str(), request)?;
        Ok(pairs(answer.attributes().iter().map(|shown| (shown.key(), shown.value()))))
    }

    /// Attributes of a target group.
    ///
    /// # Errors
    /// As of DescribeTargetGroupAttributes.
    pub async fn describe_target_group_attributes(&self, arn: &TargetGroupArn) -> Result<Attributes, AwsError> {
        let request = self.elb.describe_target_group_attributes().target_group_arn(arn.as_str());
        let answer = call!(self.read, "elasticloadbalancing:DescribeTargetGroupAttributes", arn.as_str(), request)?;
        Ok(pairs(answer.attributes().iter().map(|shown| (shown.key(), shown.value()))))
    }

    /// Attributes of a listener.
    ///
    /// # Errors
    /// As of DescribeListenerAttributes.
    pub async fn describe_listener_attributes(&self, arn: &ListenerArn) -> Result<Attributes, AwsError> {
        let request = self.elb.describe_listener_attributes().listener_arn(arn.as_str());
        let answer = call!(self.read, "elasticloadbalancing:DescribeListenerAttributes", arn.as_str(), request)?;
        Ok(pairs(answer.attributes().iter().map(|shown| (shown.key(), shown.value()))))
    }

    /// Sets attributes of a load balancer.
    ///
    /// # Errors
    /// As of ModifyLoadBalancerAttributes.
    pub async fn modify_balancer_attributes(
        &self,
        arn: &LoadBalancerArn,
        attributes: &Attributes,
    ) -> Result<(), AwsError> {
        let list = attributes.iter().map(|(k, v)| LoadBalancerAttribute::builder().key(k).value(v).build()).collect();
        let request = self.elb.modify_load_balancer_attributes().load_balancer_arn(arn.as_str());
        let request = request.set_attributes(Some(list));
        call!(self.write, "elasticloadbalancing:ModifyLoadBalancerAttributes", arn.as_str(), request).map(drop)
    }

    /// Sets attributes of a target group.
    ///
    /// # Errors
    /// As of ModifyTargetGroupAttributes.
    pub async fn modify_target_group_attributes(
        &self,
        arn: &TargetGroupArn,
        attributes: &Attributes,
    ) -> Result<(), AwsError> {
        let list = attributes.iter().map(|(k, v)| TargetGroupAttribute::builder().key(k).value(v).build()).collect();
        let request = self.elb.modify_target_group_attributes().target_group_arn(arn.as_str());
        let request = request.set_attributes(Some(list));
        call!(self.write, "elasticloadbalancing:ModifyTargetGroupAttributes", arn.as_str(), request).map(drop)
    }

    /// Sets attributes of a listener.
    ///
    /// # Errors
    /// As of ModifyListenerAttributes.
    pub async fn modify_listener_attributes(&self, arn: &ListenerArn, attributes: &Attributes) -> Result<(), AwsError> {
        let list = attributes.iter().map(|(k, v)| ListenerAttribute::builder().key(k).value(v).build()).collect();
        let request = self.elb.modify_listener_attributes().listener_arn(arn.as_str()).set_attributes(Some(list));
        call!(self.write, "elasticloadbalancing:ModifyListenerAttributes", arn.as_str(), request).map(drop)
    }

    /// Deletes a listener; one that is gone is no error.
    ///
    /// # Errors
    /// As of DeleteListener.
    pub async fn delete_listener(&self, arn: &ListenerArn) -> Result<(), AwsError> {
        let request = self.elb.delete_listener().listener_arn(arn.as_str());
        gone(call!(self.write, "elasticloadbalancing:DeleteListener", arn.as_str(), request).map(drop))
    }

    /// Sets tags of a load balancer or target group.
    ///
    /// # Errors
    /// As of AddTags.
    pub async fn add_tags(&self, arn: &str, tags: &Tags) -> Result<(), AwsError> {
        let request = self.elb.add_tags().resource_arns(arn).set_tags(Some(write_tags(tags)));
        call!(self.write, "elasticloadbalancing:AddTags", arn, request).map(drop)
    }

    /// Removes tags of a load balancer or target group.
    ///
    /// # Errors
    /// As of RemoveTags.
    pub async fn remove_tags(&self, arn: &str, keys: &[String]) -> Result<(), AwsError> {
        let request = self.elb.remove_tags().resource_arns(arn).set_tag_keys(Some(keys.to_vec()));
        call!(self.write, "elasticloadbalancing:RemoveTags", arn, request).map(drop)
    }

    /// Registers instances on the target group's own port. AWS refuses a whole call for one bad instance and names it;
    /// the others are tried again without it (LBC#87).
    ///
    /// # Errors
    /// As of RegisterTargets, for anything but instances that AWS does not take.
    pub async fn register(
        &self,
        arn: &TargetGroupArn,
        instances: &BTreeSet<InstanceId>,
    ) -> Result<Registration, AwsError> {
        let mut outcome = Registration::default();
        let all: Vec<_> = instances.iter().cloned().collect();
        let mut chunks: Vec<Vec<InstanceId>> = all.chunks(TARGETS_PER_CALL).map(<[_]>::to_vec).collect();
        while let Some(mut chunk) = chunks.pop() {
            let targets = chunk.iter().map(target).collect();
            let request = self.elb.register_targets().target_group_arn(arn.as_str()).set_targets(Some(targets));
            match call!(self.targets, "elasticloadbalancing:RegisterTargets", arn.as_str(), request) {
                Ok(_) => outcome.registered.extend(chunk),
                Err(error) if error.code == "InvalidTarget" => {
                    let named = |instance: &InstanceId| error.message.contains(instance.as_str());
                    let (bad, good): (Vec<_>, Vec<_>) = chunk.drain(..).partition(named);
                    if bad.is_empty() && good.len() > 1 {
                        // AWS did not say which: halve until it is clear.
                        let middle = good.len() / 2;
                        chunks.extend([good[..middle].to_vec(), good[middle..].to_vec()]);
                        continue;
                    }
                    let (bad, good) = if bad.is_empty() { (good, vec![]) } else { (bad, good) };
                    outcome.unfit.extend(bad.into_iter().map(|instance| (instance, error.message.clone())));
                    if !good.is_empty() {
                        chunks.push(good);
                    }
                }
                Err(error) if error.code == "TooManyTargets" => {
                    // As many as there is room for.
                    if chunk.len() == 1 {
                        outcome.full = Some(error);
                        break;
                    }
                    let rest = chunk.split_off(chunk.len() / 2);
                    chunks.extend([rest, chunk]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(outcome)
    }

    /// Deregisters instances; one that is not registered is no error.
    ///
    /// # Errors
    /// As of DeregisterTargets.
    pub async fn deregister(&self, arn: &TargetGroupArn, instances: &BTreeSet<InstanceId>) -> Result<(), AwsError> {
        let all: Vec<_> = instances.iter().collect();
        for chunk in all.chunks(TARGETS_PER_CALL) {
            let targets = chunk.iter().copied().map(target).collect();
            let request = self.elb.deregister_targets().target_group_arn(arn.as_str()).set_targets(Some(targets));
            gone(call!(self.targets, "elasticloadbalancing:DeregisterTargets", arn.as_str(), request).map(drop))?;
        }
        Ok(())
    }
}

fn gone(answer: Result<(), AwsError>) -> Result<(), AwsError> {
    match answer {
        Err(error) if error.class == Class::Missing => Ok(()),
        other => other,
    }
}

fn balancer(shown: &LoadBalancer) -> Option<Balancer> {
    if shown.r#type() != Some(&LoadBalancerTypeEnum::Network) {
        return None;
    }
    let state = match shown.state() {
        Some(state) => match state.code() {
            Some(LoadBalancerStateEnum::Active | LoadBalancerStateEnum::ActiveImpaired) => BalancerState::Active,
            Some(LoadBalancerStateEnum::Failed) => BalancerState::Failed(state.reason().unwrap_or_default().into()),
            _ => BalancerState::Provisioning,
        },
        None => BalancerState::Provisioning,
    };
    let zones = shown.availability_zones().iter();
    Some(Balancer {
        arn: shown.load_balancer_arn()?.into(),
        name: shown.load_balancer_name()?.into(),
        dns_name: shown.dns_name()?.into(),
        scheme: match shown.scheme()? {
            LoadBalancerSchemeEnum::Internal => Scheme::Internal,
            _ => Scheme::InternetFacing,
        },
        address_type: match shown.ip_address_type() {
            Some(IpAddressType::Dualstack) => AddressType::Dualstack,
            _ => AddressType::Ipv4,
        },
        state,
        subnets: zones.filter_map(|zone| Some((zone.zone_name()?.into(), shown_mapping(zone)?))).collect(),
        source_nat: shown.enable_prefix_for_ipv6_source_nat() == Some(&EnablePrefixForIpv6SourceNatEnum::On),
        groups: shown.security_groups().iter().map(SecurityGroupId::from).collect(),
        rules_on_private_link: shown.enforce_security_group_inbound_rules_on_private_link_traffic() != Some("off"),
        capacity: None,
        tags: Tags::new(),
        listeners: None,
        attributes: None,
    })
}

fn target_group(shown: &SdkTargetGroup) -> Option<TargetGroup> {
    if shown.target_type() != Some(&TargetTypeEnum::Instance) {
        return None;
    }
    // A check by connecting alone has neither, whatever was set before.
    let requests = shown.health_check_protocol() != Some(&ProtocolEnum::Tcp);
    Some(TargetGroup {
        arn: shown.target_group_arn()?.into(),
        name: shown.target_group_name()?.into(),
        protocol: shown.protocol()?.as_str().into(),
        port: u16::try_from(shown.port()?).ok()?,
        vpc: VpcId::from(shown.vpc_id()?),
        health: HealthCheck {
            protocol: shown.health_check_protocol().map(|protocol| protocol.as_str().into()).unwrap_or_default(),
            port: shown.health_check_port().unwrap_or_default().into(),
            path: shown.health_check_path().filter(|_| requests).map(Into::into),
            interval: shown.health_check_interval_seconds().unwrap_or_default(),
            timeout: shown.health_check_timeout_seconds().unwrap_or_default(),
            healthy: shown.healthy_threshold_count().unwrap_or_default(),
            unhealthy: shown.unhealthy_threshold_count().unwrap_or_default(),
            codes: shown.matcher().filter(|_| requests).and_then(|matcher| matcher.http_code()).map(Into::into),
        },
        tags: Tags::new(),
        attributes: None,
        intent: Intent::Undecided,
        nodes: Labels::new(),
        served: false,
    })
}

fn listener(shown: &SdkListener) -> Option<(u16, Listener)> {
    let port = u16::try_from(shown.port()?).ok()?;
    let target_group = match shown.default_actions() {
        [action] => action.target_group_arn().map(TargetGroupArn::from).or_else(|| {
            match action.forward_config()?.target_groups() {
                [only] => only.target_group_arn().map(TargetGroupArn::from),
                _ => None,
            }
        }),
        _ => None,
    };
    let is_tls = shown.protocol() == Some(&ProtocolEnum::Tls);
    let listener = Listener {
        arn: shown.listener_arn()?.into(),
        protocol: shown.protocol()?.as_str().into(),
        target_group,
        certificate: shown.certificates().first().and_then(|shown| shown.certificate_arn().map(str::to_owned)),
        policy: shown.ssl_policy().filter(|_| is_tls).map(str::to_owned),
        alpn: shown.alpn_policy().iter().find(|policy| *policy != NO_ALPN).cloned(),
        // Only TLS has any.
        certificates: (!is_tls).then(BTreeSet::new),
        tags: None,
        attributes: None,
    };
    Some((port, listener))
}

/// The ALPN policy of a listener that negotiates none.
const NO_ALPN: &str = "None";

fn certificate(arn: &String) -> Certificate {
    Certificate::builder().certificate_arn(arn).build()
}

fn default_certificate(tls: &Tls) -> Vec<Certificate> {
    tls.certificates.first().map(certificate).into_iter().collect()
}

fn pairs<'a>(shown: impl Iterator<Item = (Option<&'a str>, Option<&'a str>)>) -> Attributes {
    shown.filter_map(|(key, value)| Some((key?.to_owned(), value.unwrap_or_default().to_owned()))).collect()
}

fn forward(target_group: &TargetGroupArn) -> Action {
    Action::builder().r#type(ActionTypeEnum::Forward).target_group_arn(target_group.as_str()).build()
}

fn protocol(protocol: Protocol) -> ProtocolEnum {
    match protocol {
        Protocol::Tcp => ProtocolEnum::Tcp,
        Protocol::Udp => ProtocolEnum::Udp,
        Protocol::TcpUdp => ProtocolEnum::TcpUdp,
        Protocol::Tls => ProtocolEnum::Tls,
    }
}

fn address_type(address_type: AddressType) -> IpAddressType {
    match address_type {
        AddressType::Ipv4 => IpAddressType::Ipv4,
        AddressType::Dualstack => IpAddressType::Dualstack,
    }
}

const fn source_nat(on: bool) -> EnablePrefixForIpv6SourceNatEnum {
    if on { EnablePrefixForIpv6SourceNatEnum::On } else { EnablePrefixForIpv6SourceNatEnum::Off }
}

fn mapping(wanted: &Mapping) -> SubnetMapping {
    SubnetMapping::builder()
        .subnet_id(wanted.subnet.as_str())
        .set_allocation_id(wanted.allocation.clone())
        .set_private_ipv4_address(wanted.private_ipv4.map(|address| address.to_string()))
        .set_ipv6_address(wanted.ipv6.map(|address| address.to_string()))
        .set_source_nat_ipv6_prefix(wanted.source_nat_prefix.map(|prefix| prefix.to_string()))
        .build()
}

fn shown_mapping(zone: &AvailabilityZone) -> Option<Mapping> {
    let addresses = zone.load_balancer_addresses();
    Some(Mapping {
        subnet: zone.subnet_id()?.into(),
        allocation: addresses.iter().find_map(|shown| shown.allocation_id().map(str::to_owned)),
        private_ipv4: addresses.iter().find_map(|shown| shown.private_ipv4_address()?.parse().ok()),
        ipv6: addresses.iter().find_map(|shown| shown.ipv6_address()?.parse().ok()),
        source_nat_prefix: zone.source_nat_ipv6_prefixes().iter().find_map(|shown| shown.parse().ok()),
    })
}

fn target(instance: &InstanceId) -> TargetDescription {
    TargetDescription::builder().id(instance.as_str()).build()
}

fn read_tags(shown: &[Tag]) -> Tags {
    shown
        .iter()
        .map(|tag| (tag.key().unwrap_or_default().to_owned(), tag.value().unwrap_or_default().to_owned()))
        .collect()
}

fn write_tags(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}
