//! EC2: the cluster's network and its security groups.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{
    Filter, IpPermission, IpRange, Ipv6Range, ManagedPrefixList, PrefixListId, Reservation, ResourceType,
    SecurityGroup as SdkGroup, SubnetCidrBlockStateCode, Tag, TagSpecification, UserIdGroupPair,
};
use ipnet::IpNet;

use super::classify::{AwsError, Class};
use super::{Aws, call};
use crate::controller::facts::{PrefixList, Subnet};
use crate::controller::observed::{IngressRule, SecurityGroup, Source};
use crate::model::family::Family;
use crate::model::id::{InstanceId, LoadBalancerArn, SecurityGroupId, SubnetId, VpcId};
use crate::model::ownership::{CLUSTER_TAG, CLUSTER_UID_TAG, Tags, is_of_other_uid};

/// Results on one page of the listings that take a size.
const PAGE: i32 = 1000;
/// Instances in one call of DescribeInstances.
const INSTANCES_PER_CALL: usize = 500;

/// What the description of each rule that weir puts into a group of others begins with.
pub const RULE_MARK: &str = "weir.dev/";

/// A rule of one security group that names another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The group with the rule.
    pub group: SecurityGroupId,
    /// The rule.
    pub rule: IngressRule,
    /// Whether weir made it, by its description.
    pub is_ours: bool,
}

/// An instance's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its VPC.
    pub vpc: VpcId,
    /// Security groups of its primary network interface.
    pub groups: BTreeSet<SecurityGroupId>,
}

impl Aws {
    /// Networks of instances; those that do not exist are left out.
    ///
    /// # Errors
    /// As of DescribeInstances.
    pub async fn describe_instances(
        &self,
        instances: &[InstanceId],
    ) -> Result<BTreeMap<InstanceId, Instance>, AwsError> {
        let mut found = BTreeMap::new();
        for chunk in instances.chunks(INSTANCES_PER_CALL) {
            // By filter, since one unknown id fails a call that names ids.
            let ids = filter("instance-id", chunk.iter().map(InstanceId::as_str));
            found.extend(self.read_instances(vec![ids]).await?);
        }
        Ok(found)
    }

    /// Instances that run, or are about to, and carry one of the tags by which a cluster's are known: that of the cloud
    /// provider, which kOps, eksctl and Karpenter set too; that of managed node groups; that of EKS Auto Mode.
    ///
    /// # Errors
    /// As of DescribeInstances.
    pub async fn describe_running(&self, cluster: &str) -> Result<BTreeSet<InstanceId>, AwsError> {
        let key = format!("kubernetes.io/cluster/{cluster}");
        let marks = [
            filter("tag-key", [key.as_str()]),
            filter("tag:eks:cluster-name", [cluster]),
            filter("tag:eks:eks-cluster-name", [cluster]),
        ];
        let mut found = BTreeSet::new();
        for mark in marks {
            let states = filter("instance-state-name", ["pending", "running"]);
            found.extend(self.read_instances(vec![mark, states]).await?.into_keys());
        }
        Ok(found)
    }

    async fn read_instances(&self, filters: Vec<Filter>) -> Result<BTreeMap<InstanceId, Instance>, AwsError> {
        let mut found = BTreeMap::new();
        let mut token = None;
        loop {
            let filters = Some(filters.clone());
            let request = self.ec2.describe_instances().set_filters(filters).max_results(PAGE).set_next_token(token);
            let page = call!(self.read, "ec2:DescribeInstances", "*", request)?;
            for shown in page.reservations().iter().flat_map(Reservation::instances) {
                let (Some(id), Some(vpc)) = (shown.instance_id(), shown.vpc_id()) else { continue };
                let groups = shown.security_groups().iter();
                let groups = groups.filter_map(|group| Some(group.group_id()?.into())).collect();
                found.insert(id.into(), Instance { vpc: vpc.into(), groups });
            }
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Subnets of a VPC.
    ///
    /// # Errors
    /// As of DescribeSubnets and DescribeRouteTables.
    pub async fn describe_subnets(&self, vpc: &VpcId) -> Result<BTreeMap<SubnetId, Subnet>, AwsError> {
        let in_vpc = filter("vpc-id", [vpc.as_str()]);
        let public = self.describe_public_subnets(&in_vpc).await?;
        let mut found = BTreeMap::new();
        let mut token = None;
        loop {
            let request = self.ec2.describe_subnets().filters(in_vpc.clone()).max_results(PAGE).set_next_token(token);
            let page = call!(self.read, "ec2:DescribeSubnets", vpc.as_str(), request)?;
            for shown in page.subnets() {
                let (Some(id), Some(zone)) = (shown.subnet_id(), shown.availability_zone()) else { continue };
                // `us-east-1a`; Local and Wavelength Zones have longer names.
                let is_plain = zone
                    .strip_prefix(self.region())
                    .is_some_and(|rest| rest.len() == 1 && rest.bytes().all(|letter| letter.is_ascii_lowercase()));
                let v6 = shown.ipv6_cidr_block_association_set().iter().filter(|association| {
                    let state = association.ipv6_cidr_block_state().and_then(|state| state.state());
                    state.is_none_or(|state| *state == SubnetCidrBlockStateCode::Associated)
                });
                let ranges = v6.filter_map(|association| association.ipv6_cidr_block()).chain(shown.cidr_block());
                let subnet = Subnet {
                    zone: zone.into(),
                    ranges: ranges.filter_map(|range| range.parse().ok()).collect(),
                    in_availability_zone: is_plain && shown.outpost_arn().is_none(),
                    free_addresses: shown.available_ip_address_count().unwrap_or_default(),
                    is_public: public.by_subnet.get(id).copied().unwrap_or(public.main),
                    tags: read_tags(shown.tags()),
                };
                found.insert(id.into(), subnet);
            }
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    async fn describe_public_subnets(&self, in_vpc: &Filter) -> Result<Routes, AwsError> {
        let mut routes = Routes::default();
        let mut token = None;
        loop {
            let request =
                self.ec2.describe_route_tables().filters(in_vpc.clone()).max_results(100).set_next_token(token);
            let page = call!(self.read, "ec2:DescribeRouteTables", "*", request)?;
            for table in page.route_tables() {
                let is_public = table
                    .routes()
                    .iter()
                    .any(|route| route.gateway_id().is_some_and(|gateway| gateway.starts_with("igw-")));
                for association in table.associations() {
                    match association.subnet_id() {
                        Some(subnet) => {
                            routes.by_subnet.insert(subnet.to_owned(), is_public);
                        }
                        None => routes.main |= association.main() == Some(true) && is_public,
                    }
                }
            }
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(routes);
            }
        }
    }

    /// Security groups of this cluster, by tag.
    ///
    /// # Errors
    /// As of DescribeSecurityGroups.
    pub async fn describe_groups_of(&self, cluster: &str) -> Result<Vec<SecurityGroup>, AwsError> {
        self.describe_groups(vec![filter(&format!("tag:{CLUSTER_TAG}"), [cluster])]).await
    }

    /// Security groups by id; those that do not exist are left out.
    ///
    /// # Errors
    /// As of DescribeSecurityGroups.
    pub async fn describe_groups_by_id(&self, ids: &BTreeSet<SecurityGroupId>) -> Result<Vec<SecurityGroup>, AwsError> {
        if ids.is_empty() {
            return Ok(vec![]);
        }
        self.describe_groups(vec![filter("group-id", ids.iter().map(SecurityGroupId::as_str))]).await
    }

    /// Security groups of a VPC by id or `Name` tag, with their `Name` tags.
    ///
    /// # Errors
    /// As of DescribeSecurityGroups.
    pub async fn describe_named_groups(
        &self,
        vpc: &VpcId,
        asked: &BTreeSet<String>,
    ) -> Result<BTreeMap<SecurityGroupId, Option<String>>, AwsError> {
        let (ids, names): (Vec<_>, Vec<_>) = asked.iter().map(String::as_str).partition(|text| text.starts_with("sg-"));
        let mut found = BTreeMap::new();
        for (key, values) in [("group-id", ids), ("tag:Name", names)] {
            if values.is_empty() {
                continue;
            }
            let which = vec![filter(key, values), filter("vpc-id", [vpc.as_str()])];
            let groups = self.describe_groups(which).await?;
            found.extend(groups.into_iter().map(|mut group| (group.id, group.tags.remove("Name"))));
        }
        Ok(found)
    }

    /// Prefix lists by id; those that do not exist are left out.
    ///
    /// # Errors
    /// As of DescribeManagedPrefixLists.
    pub async fn describe_prefix_lists(
        &self,
        ids: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, PrefixList>, AwsError> {
        let mut found = BTreeMap::new();
        if ids.is_empty() {
            return Ok(found);
        }
        let by = filter("prefix-list-id", ids.iter().map(String::as_str));
        let mut token = None;
        loop {
            let request =
                self.ec2.describe_managed_prefix_lists().filters(by.clone()).max_results(100).set_next_token(token);
            let page = call!(self.read, "ec2:DescribeManagedPrefixLists", "*", request)?;
            for shown in page.prefix_lists() {
                let Some(id) = shown.prefix_list_id() else { continue };
                let is_v6 = shown.address_family() == Some("IPv6");
                let family = if is_v6 { Family::Ipv6 } else { Family::Ipv4 };
                found.insert(id.to_owned(), PrefixList { family, max_entries: weight(shown) });
            }
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Inbound rules of other security groups that name this one.
    ///
    /// # Errors
    /// As of DescribeSecurityGroups.
    pub async fn describe_references(&self, id: &SecurityGroupId) -> Result<Vec<Reference>, AwsError> {
        let by = filter("ip-permission.group-id", [id.as_str()]);
        let mut found = vec![];
        let mut token = None;
        loop {
            let request =
                self.ec2.describe_security_groups().filters(by.clone()).max_results(PAGE).set_next_token(token);
            let page = call!(self.read, "ec2:DescribeSecurityGroups", id.as_str(), request)?;
            for shown in page.security_groups() {
                let Some(group) = shown.group_id() else { continue };
                for permission in shown.ip_permissions() {
                    for pair in
                        permission.user_id_group_pairs().iter().filter(|pair| pair.group_id() == Some(id.as_str()))
                    {
                        found.push(Reference {
                            group: group.into(),
                            rule: rule(permission, Source::Group(id.clone())),
                            is_ours: pair.description().is_some_and(|text| text.starts_with(RULE_MARK)),
                        });
                    }
                }
            }
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    async fn describe_groups(&self, which: Vec<Filter>) -> Result<Vec<SecurityGroup>, AwsError> {
        let mut found = vec![];
        let mut token = None;
        loop {
            let request = self
                .ec2
                .describe_security_groups()
                .set_filters(Some(which.clone()))
                .max_results(PAGE)
                .set_next_token(token);
            let page = call!(self.read, "ec2:DescribeSecurityGroups", "*", request)?;
            found.extend(page.security_groups().iter().filter_map(group));
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Makes a security group. One of the same name that carries our tags is ours, from an attempt whose answer was
    /// lost.
    ///
    /// # Errors
    /// As of CreateSecurityGroup.
    pub async fn create_group(
        &self,
        name: &str,
        description: &str,
        vpc: &VpcId,
        tags: &Tags,
    ) -> Result<SecurityGroup, AwsError> {
        let specification = tags.iter().fold(
            TagSpecification::builder().resource_type(ResourceType::SecurityGroup),
            |specification, (key, value)| specification.tags(Tag::builder().key(key).value(value).build()),
        );
        let request = self
            .ec2
            .create_security_group()
            .group_name(name)
            .description(ascii(description))
            .vpc_id(vpc.as_str())
            .tag_specifications(specification.build());
        match call!(self.write, "ec2:CreateSecurityGroup", name, request) {
            Ok(answer) => {
                let id = answer.group_id().ok_or_else(|| AwsError::incomplete("ec2:CreateSecurityGroup", name))?;
                Ok(SecurityGroup { id: id.into(), name: name.into(), rules: BTreeSet::new(), tags: tags.clone() })
            }
            Err(error) if error.class == Class::Exists => {
                let existing = self.describe_groups(vec![filter("group-name", [name])]).await?;
                let uid = tags.get(CLUSTER_UID_TAG).map_or("", String::as_str);
                let is_ours = |group: &SecurityGroup| {
                    group.tags.get(CLUSTER_TAG) == tags.get(CLUSTER_TAG) && !is_of_other_uid(uid, &group.tags)
                };
                existing.into_iter().find(is_ours).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Adds inbound rules. Those that are there count as added: AWS refuses a call with one that is, so it is then
    /// made rule by rule.
    ///
    /// # Errors
    /// As of AuthorizeSecurityGroupIngress.
    pub async fn authorize(
        &self,
        id: &SecurityGroupId,
        rules: &BTreeSet<IngressRule>,
        description: &str,
    ) -> Result<(), AwsError> {
        let whole = self.authorize_once(id, rules.iter(), description).await;
        if rules.len() < 2 || !is_class(&whole, Class::Exists) {
            return unless(whole, Class::Exists);
        }
        for rule in rules {
            unless(self.authorize_once(id, [rule], description).await, Class::Exists)?;
        }
        Ok(())
    }

    async fn authorize_once(
        &self,
        id: &SecurityGroupId,
        rules: impl IntoIterator<Item = &IngressRule>,
        description: &str,
    ) -> Result<(), AwsError> {
        let description = ascii(description);
        let permissions = rules.into_iter().map(|rule| permission(rule, Some(&description))).collect();
        let request =
            self.ec2.authorize_security_group_ingress().group_id(id.as_str()).set_ip_permissions(Some(permissions));
        call!(self.write, "ec2:AuthorizeSecurityGroupIngress", id.as_str(), request).map(drop)
    }

    /// Takes inbound rules away. Those that are not there count as taken away.
    ///
    /// # Errors
    /// As of RevokeSecurityGroupIngress.
    pub async fn revoke(&self, id: &SecurityGroupId, rules: &BTreeSet<IngressRule>) -> Result<(), AwsError> {
        let whole = self.revoke_once(id, rules.iter()).await;
        if rules.len() < 2 || !is_class(&whole, Class::Missing) {
            return unless(whole, Class::Missing);
        }
        for rule in rules {
            unless(self.revoke_once(id, [rule]).await, Class::Missing)?;
        }
        Ok(())
    }

    async fn revoke_once(
        &self,
        id: &SecurityGroupId,
        rules: impl IntoIterator<Item = &IngressRule>,
    ) -> Result<(), AwsError> {
        let permissions = rules.into_iter().map(|rule| permission(rule, None)).collect();
        let request =
            self.ec2.revoke_security_group_ingress().group_id(id.as_str()).set_ip_permissions(Some(permissions));
        call!(self.write, "ec2:RevokeSecurityGroupIngress", id.as_str(), request).map(drop)
    }

    /// Deletes a security group; one that is gone is no error.
    ///
    /// # Errors
    /// As of DeleteSecurityGroup; `DependencyViolation` while something uses it.
    pub async fn delete_group(&self, id: &SecurityGroupId) -> Result<(), AwsError> {
        let request = self.ec2.delete_security_group().group_id(id.as_str());
        match call!(self.write, "ec2:DeleteSecurityGroup", id.as_str(), request) {
            Err(error) if error.class != Class::Missing => Err(error),
            _ => Ok(()),
        }
    }

    /// Network interfaces that carry a security group, with what AWS says they are for.
    ///
    /// # Errors
    /// As of DescribeNetworkInterfaces.
    pub async fn describe_interfaces_of(&self, id: &SecurityGroupId) -> Result<Vec<String>, AwsError> {
        let request = self.ec2.describe_network_interfaces().filters(filter("group-id", [id.as_str()]));
        let answer = call!(self.read, "ec2:DescribeNetworkInterfaces", id.as_str(), request)?;
        let interfaces = answer.network_interfaces().iter();
        let sentence = |id: &str, text: &str| if text.is_empty() { id.to_owned() } else { format!("{id} ({text})") };
        Ok(interfaces
            .filter_map(|shown| Some(sentence(shown.network_interface_id()?, shown.description().unwrap_or_default())))
            .collect())
    }

    /// Ids of the VPC endpoint services that offer a load balancer.
    ///
    /// # Errors
    /// As of DescribeVpcEndpointServiceConfigurations.
    pub async fn describe_endpoint_services_of(&self, balancer: &LoadBalancerArn) -> Result<Vec<String>, AwsError> {
        let mut found = vec![];
        let mut token = None;
        loop {
            let request = self.ec2.describe_vpc_endpoint_service_configurations().set_next_token(token);
            let page = call!(self.read, "ec2:DescribeVpcEndpointServiceConfigurations", "*", request)?;
            let services = page.service_configurations().iter();
            let using = services
                .filter(|service| service.network_load_balancer_arns().iter().any(|arn| arn == balancer.as_str()));
            found.extend(using.filter_map(|service| service.service_id().map(str::to_owned)));
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Sets tags of a security group.
    ///
    /// # Errors
    /// As of CreateTags.
    pub async fn tag_group(&self, id: &SecurityGroupId, tags: &Tags) -> Result<(), AwsError> {
        let tags = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let request = self.ec2.create_tags().resources(id.as_str()).set_tags(Some(tags));
        call!(self.write, "ec2:CreateTags", id.as_str(), request).map(drop)
    }

    /// Removes tags of a security group.
    ///
    /// # Errors
    /// As of DeleteTags.
    pub async fn untag_group(&self, id: &SecurityGroupId, keys: &[String]) -> Result<(), AwsError> {
        let tags = keys.iter().map(|key| Tag::builder().key(key).build()).collect();
        let request = self.ec2.delete_tags().resources(id.as_str()).set_tags(Some(tags));
        call!(self.write, "ec2:DeleteTags", id.as_str(), request).map(drop)
    }
}

#[derive(Default)]
struct Routes {
    by_subnet: BTreeMap<String, bool>,
    main: bool,
}

fn is_class(answer: &Result<(), AwsError>, class: Class) -> bool {
    answer.as_ref().is_err_and(|error| error.class == class)
}

/// The answer, with a failure of this class counted as success.
fn unless(answer: Result<(), AwsError>, fine: Class) -> Result<(), AwsError> {
    if is_class(&answer, fine) { Ok(()) } else { answer }
}

/// How many rules a list counts as: its maximum size, or the weight that AWS gives one of its own (VPC user guide,
/// "AWS-managed prefix lists").
fn weight(shown: &ManagedPrefixList) -> usize {
    let most = shown.max_entries().and_then(|most| usize::try_from(most).ok());
    most.unwrap_or_else(|| match shown.prefix_list_name().and_then(|name| name.rsplit('.').next()) {
        Some("origin-facing") => 55,
        Some("route53-healthchecks") => 25,
        Some("vpc-lattice") => 10,
        Some("s3express") => 6,
        Some("groundstation") => 5,
        _ => 1,
    })
}

fn filter<'a>(name: &str, values: impl IntoIterator<Item = &'a str>) -> Filter {
    let values = values.into_iter().map(str::to_owned).collect();
    Filter::builder().name(name).set_values(Some(values)).build()
}

/// EC2 takes a few ASCII characters in descriptions; anything else becomes a dot.
fn ascii(text: &str) -> String {
    let legal = |letter: char| letter.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(letter);
    text.chars().map(|letter| if legal(letter) { letter } else { '.' }).take(255).collect()
}

fn read_tags(shown: &[Tag]) -> Tags {
    shown
        .iter()
        .map(|tag| (tag.key().unwrap_or_default().to_owned(), tag.value().unwrap_or_default().to_owned()))
        .collect()
}

fn group(shown: &SdkGroup) -> Option<SecurityGroup> {
    Some(SecurityGroup {
        id: shown.group_id()?.into(),
        name: shown.group_name()?.into(),
        rules: shown.ip_permissions().iter().flat_map(rules).collect(),
        tags: read_tags(shown.tags()),
    })
}

/// One rule for each source of a permission.
fn rules(shown: &IpPermission) -> Vec<IngressRule> {
    let range = |text: &str| text.parse::<IpNet>().ok().map(Source::Range);
    let v4 = shown.ip_ranges().iter().filter_map(|source| range(source.cidr_ip()?));
    let v6 = shown.ipv6_ranges().iter().filter_map(|source| range(source.cidr_ipv6()?));
    let groups = shown.user_id_group_pairs().iter().filter_map(|pair| Some(Source::Group(pair.group_id()?.into())));
    let lists =
        shown.prefix_list_ids().iter().filter_map(|list| Some(Source::PrefixList(list.prefix_list_id()?.into())));
    v4.chain(v6).chain(groups).chain(lists).map(|source| rule(shown, source)).collect()
}

fn rule(shown: &IpPermission, source: Source) -> IngressRule {
    IngressRule {
        protocol: shown.ip_protocol().unwrap_or("-1").to_owned(),
        from: shown.from_port().unwrap_or(-1),
        to: shown.to_port().unwrap_or(-1),
        source,
    }
}

fn permission(rule: &IngressRule, description: Option<&str>) -> IpPermission {
    let permission = IpPermission::builder().ip_protocol(&rule.protocol);
    // A rule for all protocols has no ports.
    let permission = if rule.protocol == "-1" { permission } else { permission.from_port(rule.from).to_port(rule.to) };
    let description = description.map(str::to_owned);
    match &rule.source {
        Source::Range(IpNet::V4(range)) => {
            permission.ip_ranges(IpRange::builder().cidr_ip(range.to_string()).set_description(description).build())
        }
        Source::Range(IpNet::V6(range)) => permission
            .ipv6_ranges(Ipv6Range::builder().cidr_ipv6(range.to_string()).set_description(description).build()),
        Source::Group(id) => permission
            .user_id_group_pairs(UserIdGroupPair::builder().group_id(id.as_str()).set_description(description).build()),
        Source::PrefixList(id) => {
            permission.prefix_list_ids(PrefixListId::builder().prefix_list_id(id).set_description(description).build())
        }
    }
    .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r29_a_prefix_list_weighs_its_size_and_one_of_awss_own_what_aws_says() {
        for (name, most, expected) in [
            ("office", Some(7), 7),
            ("com.amazonaws.global.cloudfront.origin-facing", None, 55),
            ("com.amazonaws.us-east-1.s3", None, 1),
            ("com.amazonaws.us-east-1.s3express", None, 6),
            ("com.amazonaws.us-east-1.ipv6.route53-healthchecks", None, 25),
        ] {
            let list = ManagedPrefixList::builder().prefix_list_name(name).set_max_entries(most).build();
            assert_eq!(weight(&list), expected, "{name}");
        }
    }
}
