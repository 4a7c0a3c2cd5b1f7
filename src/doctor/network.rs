//! Pure checks: the cluster's name and nodes, its VPC and subnets, and the security groups of its nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::check::{Check, Found, Verdict};
use super::facts::{Facts, NodeSeen, Seen, seen};
use super::identity::usable;
use crate::controller::desired::node_rules;
use crate::controller::facts::{self as controller, NodeGroups, Subnet, Unfit, choose_node_group, judge_subnets};
use crate::controller::observed::{IngressRule, SecurityGroup, Source};
use crate::model::id::{SecurityGroupId, SubnetId};
use crate::model::ownership::{self, CLUSTER_TAG, CLUSTER_UID_TAG, Tags};
use crate::model::service::{AddressType, Scheme};

/// Inbound rules of one security group, unless the quota was raised (VPC quotas).
const RULES: usize = 60;
/// From this many on, a group is nearly full.
const MANY_RULES: usize = 54;
/// What tags of clusters begin with.
const CLUSTER_KEY: &str = "kubernetes.io/cluster/";

/// All of them.
pub const CHECKS: &[Check<Facts>] = &[
    Check {
        id: "cluster-name-other",
        title: "The cluster has another name",
        why: "By its name weir finds the cluster's subnets and Auto Scaling groups, and marks what it makes.",
        look: other_name,
    },
    Check {
        id: "cluster-renamed",
        title: "Load balancers of this cluster carry another name",
        why: "weir looks after what carries its cluster's name alone: these are left behind, and cost money.",
        look: renamed,
    },
    Check {
        id: "cluster-twin",
        title: "Another cluster has the same name",
        why: "Two clusters of one name cannot tell their subnets and Auto Scaling groups apart.",
        look: twin,
    },
    Check {
        id: "node-none",
        title: "No node can be a target",
        why: "A load balancer without targets answers nobody.",
        look: no_node,
    },
    Check {
        id: "node-provider-id",
        title: "Nodes do not name their instance",
        why: "An instance that is not known cannot be made a target, nor can its network be read.",
        look: provider_ids,
    },
    Check {
        id: "vpc-unknown",
        title: "The cluster's VPC is not known",
        why: "Load balancers are made in the VPC of the nodes.",
        look: no_vpc,
    },
    Check {
        id: "subnet-role",
        title: "Subnets lack the tag of their role",
        why: "Where one subnet of the VPC carries the tag of a role, only those that carry it are used.",
        look: |facts| subnets(facts, |unfit| matches!(unfit, Unfit::NoRole(_))),
    },
    Check {
        id: "subnet-route",
        title: "Subnets have the wrong route",
        why: "Without role tags, an internet-facing load balancer needs a route to an internet gateway, an internal one none.",
        look: |facts| subnets(facts, |unfit| matches!(unfit, Unfit::Route { .. })),
    },
    Check {
        id: "subnet-other-cluster",
        title: "Subnets are tagged for another cluster",
        why: "A subnet that is tagged for clusters is used by these alone.",
        look: |facts| subnets(facts, |unfit| unfit == Unfit::OtherCluster),
    },
    Check {
        id: "subnet-zone",
        title: "Subnets are in no Availability Zone",
        why: "Network Load Balancers of weir stand in Availability Zones, not in Local or Wavelength Zones or on Outposts.",
        look: |facts| subnets(facts, |unfit| unfit == Unfit::Zone),
    },
    Check {
        id: "subnet-no-ipv6",
        title: "Subnets have no IPv6 range",
        why: "A dualstack load balancer needs one in each of its subnets.",
        look: |facts| subnets(facts, |unfit| unfit == Unfit::NoIpv6),
    },
    Check {
        id: "subnet-full",
        title: "Subnets have too few free addresses",
        why: "AWS asks for eight free addresses in each subnet of a load balancer.",
        look: |facts| subnets(facts, |unfit| matches!(unfit, Unfit::Full(_))),
    },
    Check {
        id: "subnet-none",
        title: "No subnet can take a load balancer",
        why: "Without a subnet there is no load balancer.",
        look: no_subnet,
    },
    Check {
        id: "node-group-ambiguous",
        title: "Nodes carry several security groups",
        why: "weir opens one of them to the load balancers; the wrong choice is harmless, but others may expect another one.",
        look: ambiguous_group,
    },
    Check {
        id: "node-group-untagged",
        title: "The nodes' security group is not tagged for the cluster",
        why: "A policy such as ours allows rules in security groups with the cluster's tag alone.",
        look: untagged_group,
    },
    Check {
        id: "security-group-full",
        title: "A security group has no room for rules",
        why: "AWS takes 60 inbound rules in a group, unless the quota was raised; weir needs up to three.",
        look: full_group,
    },
    Check {
        id: "node-group-closed",
        title: "The nodes do not let the load balancers in",
        why: "Health checks and connections from the load balancers are dropped: every target is unhealthy.",
        look: closed_group,
    },
];

fn clusters_in(tags: &Tags) -> impl Iterator<Item = &str> {
    tags.keys().filter_map(|key| key.strip_prefix(CLUSTER_KEY))
}

/// Names of clusters that the nodes' subnets, security groups and Auto Scaling groups are tagged for.
///
/// # Errors
/// Nodes or Auto Scaling groups could not be read.
pub fn names_in_tags(facts: &Facts) -> Seen<BTreeSet<String>> {
    let ours = facts.instances()?;
    let asgs = seen(&facts.cloud.asgs)?.values();
    let asgs = asgs.filter(|asg| asg.instances.iter().any(|instance| ours.contains(instance)));
    let mut tags: Vec<&Tags> = asgs.map(|asg| &asg.tags).collect();
    tags.extend(facts.cloud.node_groups.iter().flat_map(BTreeMap::values).map(|group| &group.tags));
    tags.extend(facts.cloud.subnets.iter().flat_map(BTreeMap::values).map(|subnet| &subnet.tags));
    Ok(tags.into_iter().flat_map(clusters_in).map(str::to_owned).collect())
}

fn other_name(facts: &Facts) -> Verdict {
    let name = facts.cluster()?;
    let explains: &'static [&'static str] =
        &["subnet-other-cluster", "subnet-none", "node-group-untagged", "asg-untagged", "service-waiting"];
    let deployed = facts.kubernetes.deployment.as_ref().ok().and_then(Option::as_ref);
    let deployed = deployed.and_then(|deployment| deployment.settings.as_ref().ok());
    if let Some(deployed) = deployed.filter(|deployed| deployed.cluster_name != name) {
        let what = format!(
            "the controller was started with --cluster-name={}, this command with {name}",
            deployed.cluster_name
        );
        return Ok(vec![Found::error(what, "leave --cluster-name away, or give both the same").explaining(explains)]);
    }
    usable(facts)?;
    let names = names_in_tags(facts)?;
    if names.is_empty() || names.contains(name) {
        return Ok(vec![]);
    }
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    let what = format!("nothing of the nodes is tagged {CLUSTER_KEY}{name}; their tags name {names}");
    let remedy = "give the controller --cluster-name as the cluster is called in EKS, before there are Services";
    Ok(vec![Found::error(what, remedy).explaining(explains)])
}

fn renamed(facts: &Facts) -> Verdict {
    let (name, uid) = (facts.cluster()?, seen(&facts.kubernetes.uid)?);
    let others = tagged(facts, |tags| tags.get(CLUSTER_UID_TAG) == Some(uid) && !ownership::is_of_cluster(name, tags))?;
    let Some((_, tags)) = others.first() else { return Ok(vec![]) };
    let old = tags.get(CLUSTER_TAG).map_or("none", String::as_str);
    let what =
        format!("{} carry {CLUSTER_TAG}={old}, this cluster is called {name}: {}", count(others.len()), list(&others));
    let remedy =
        format!("start a controller with --cluster-name={old} and delete its Services, or delete these by hand");
    Ok(vec![Found::warning(what, remedy)])
}

fn twin(facts: &Facts) -> Verdict {
    let (name, uid) = (facts.cluster()?, seen(&facts.kubernetes.uid)?);
    let is_twin = |tags: &Tags| ownership::is_of_cluster(name, tags) && ownership::is_of_other_uid(uid, tags);
    let others = tagged(facts, is_twin)?;
    if others.is_empty() {
        return Ok(vec![]);
    }
    let what =
        format!("{} are tagged for a cluster {name} that is not this one: {}", count(others.len()), list(&others));
    let remedy =
        "give one of the clusters another --cluster-name; or, if that cluster is gone, delete what is left of it";
    Ok(vec![Found::warning(what, remedy)])
}

/// Load balancers and target groups with such tags.
fn tagged(facts: &Facts, wanted: impl Fn(&Tags) -> bool) -> Seen<Vec<(&str, &Tags)>> {
    let balancers = seen(&facts.cloud.balancers)?.iter().map(|balancer| (balancer.name.as_str(), &balancer.tags));
    let groups = seen(&facts.cloud.target_group_tags)?.iter().map(|(arn, tags)| (arn.as_str(), tags));
    Ok(balancers.chain(groups).filter(|(_, tags)| wanted(tags)).collect())
}

fn count(number: usize) -> String {
    format!("some load balancers and target groups ({number})")
}

/// The first few.
fn list(resources: &[(&str, &Tags)]) -> String {
    let few: Vec<_> = resources.iter().take(3).map(|(name, _)| *name).collect();
    let more = if resources.len() > 3 { ", …" } else { "" };
    format!("{}{more}", few.join(", "))
}

fn no_node(facts: &Facts) -> Verdict {
    let nodes = seen(&facts.kubernetes.nodes)?;
    let workers: Vec<_> = facts.workers()?.collect();
    if workers.iter().any(|worker| worker.eligible) {
        return Ok(vec![]);
    }
    let what = match (nodes.len(), workers.len()) {
        (0, _) => "the cluster has no node".to_owned(),
        (all, 0) => format!("all {all} nodes are Fargate's"),
        (all, _) => format!(
            "all {all} nodes are kept out by a label (node.kubernetes.io/exclude-from-external-load-balancers) or are \
             control-plane or Fargate nodes"
        ),
    };
    let found = Found::error(what, "add worker nodes, or take the label off");
    Ok(vec![found.explaining(&["vpc-unknown", "service-no-healthy-target", "service-waiting"])])
}

fn provider_ids(facts: &Facts) -> Verdict {
    let bad: Vec<_> = facts
        .workers()?
        .filter_map(|worker| Some(format!("Node {}: {}", worker.name, worker.instance.as_ref().err()?)))
        .collect();
    let Some(first) = bad.first() else { return Ok(vec![]) };
    let more = if bad.len() > 1 { format!(" (and {} more Nodes)", bad.len() - 1) } else { String::new() };
    let remedy = "the cloud controller sets it when the node joins; a node without it joined while that was down, or its \
                  kubelet runs without --cloud-provider=external: delete the Node object and restart its kubelet";
    let what = format!("{first}{more}");
    let all_are = !facts.workers()?.any(|worker| worker.instance.is_ok());
    let found = if all_are { Found::error(what, remedy) } else { Found::warning(what, remedy) };
    Ok(vec![found.explaining(&["vpc-unknown"])])
}

fn no_vpc(facts: &Facts) -> Verdict {
    usable(facts)?;
    if facts.cloud.vpc.is_ok() {
        return Ok(vec![]);
    }
    let vpcs: BTreeSet<_> = seen(&facts.cloud.instances)?.values().map(|instance| instance.vpc.as_str()).collect();
    let what = if vpcs.len() > 1 {
        format!("the nodes are in several VPCs: {}", vpcs.into_iter().collect::<Vec<_>>().join(", "))
    } else {
        "no Node names an instance that exists in this account and Region".to_owned()
    };
    Ok(vec![Found::error(what, "give the controller --vpc-id").explaining(&["service-waiting"])])
}

/// The network as the controller would see it.
fn network(facts: &Facts) -> Seen<controller::Facts> {
    usable(facts)?;
    Ok(controller::Facts {
        vpc: seen(&facts.cloud.vpc)?.clone(),
        subnets: seen(&facts.cloud.subnets)?.clone(),
        node_groups: NodeGroups::default(),
        groups: BTreeMap::new(),
        prefix_lists: BTreeMap::new(),
    })
}

/// What load balancers of this cluster have, or would have: schemes, and IP families of clients. Services that name their
/// subnets are none of this.
fn kinds(facts: &Facts) -> Seen<BTreeSet<(Scheme, AddressType)>> {
    let default = seen(&facts.controller)?.default_scheme;
    let asked = facts.ours().into_iter().flatten().filter(|service| !service.names_subnets);
    let asked = asked.map(|service| (service.scheme.unwrap_or(default), service.address_type));
    Ok(asked.chain([(default, AddressType::Ipv4)]).collect())
}

/// Zones with nodes.
fn zones(nodes: &[NodeSeen]) -> BTreeSet<&str> {
    nodes.iter().filter(|node| node.worker.is_some()).filter_map(|node| node.zone.as_deref()).collect()
}

type Judged<'a> = BTreeMap<&'a SubnetId, (&'a Subnet, Option<Unfit>)>;

/// In zones with nodes that no load balancer can stand in: the subnets that come closest to taking one, if this is what
/// they lack.
fn subnets(facts: &Facts, is_meant: impl Fn(Unfit) -> bool) -> Verdict {
    let network = network(facts)?;
    let zones = zones(seen(&facts.kubernetes.nodes)?);
    let mut found = vec![];
    for (scheme, address_type) in kinds(facts)? {
        let judged = judge_subnets(facts.cluster()?, scheme, address_type, &network);
        let is_usable = judged.values().any(|(_, unfit)| unfit.is_none());
        let lacking: Vec<_> =
            zones.iter().flat_map(|zone| nearest(&judged, zone)).filter(|(_, unfit)| is_meant(*unfit)).collect();
        if lacking.is_empty() {
            continue;
        }
        let list: Vec<_> = lacking
            .iter()
            .map(|(id, unfit)| Some(format!("{id} ({}) {unfit}", judged.get(id)?.0.zone)))
            .map(Option::unwrap_or_default)
            .collect();
        let what =
            format!("for {scheme} load balancers, there is no subnet in some zones with nodes: {}", list.join("; "));
        let remedy = remedy(facts.cluster()?, lacking[0].1);
        found.push(if is_usable {
            Found::warning(format!("{what}. Nodes there get no traffic unless cross-zone load balancing is on"), remedy)
        } else {
            Found::error(what, remedy).explaining(&["subnet-none", "service-waiting"])
        });
    }
    Ok(found)
}

/// Subnets of a zone that come closest to taking a load balancer; none if one takes it.
fn nearest<'a>(judged: &Judged<'a>, zone: &str) -> Vec<(&'a SubnetId, Unfit)> {
    let there = judged.iter().filter(|(_, (subnet, _))| subnet.zone.as_str() == zone);
    let unfit: Option<Vec<_>> = there.map(|(id, (_, unfit))| Some((*id, (*unfit)?))).collect();
    let unfit = unfit.unwrap_or_default();
    let rank = |unfit: Unfit| std::mem::discriminant(&unfit);
    let Some(best) = unfit.iter().map(|(_, unfit)| *unfit).max() else { return vec![] };
    unfit.into_iter().filter(|(_, unfit)| rank(*unfit) == rank(best)).collect()
}

fn remedy(cluster: &str, unfit: Unfit) -> String {
    match unfit {
        Unfit::NoRole(role) => format!("tag the subnets {role}=1"),
        Unfit::Route { is_public: false } => {
            "tag the public subnets kubernetes.io/role/elb=1, or route them to an internet gateway".into()
        }
        Unfit::Route { is_public: true } => "tag the private subnets kubernetes.io/role/internal-elb=1".into(),
        Unfit::OtherCluster => {
            format!("tag the subnets {CLUSTER_KEY}{cluster}=shared, or see whether --cluster-name is right")
        }
        Unfit::NoIpv6 => {
            "give the subnets IPv6 CIDR blocks, or take the annotation aws-load-balancer-ip-address-type off".into()
        }
        Unfit::Zone => "add a subnet in an Availability Zone".into(),
        Unfit::Full(_) => {
            "free addresses there (network interfaces of what is gone), or add a subnet to the zone".into()
        }
    }
}

fn no_subnet(facts: &Facts) -> Verdict {
    let network = network(facts)?;
    let cluster = facts.cluster()?;
    let mut found = vec![];
    for (scheme, address_type) in kinds(facts)? {
        if let Err(sentence) = controller::discover_subnets(cluster, scheme, address_type, &network) {
            let remedy = "see the findings about subnets, or name subnets in the annotation aws-load-balancer-subnets";
            found.push(Found::error(sentence, remedy).explaining(&["service-waiting"]));
        }
    }
    Ok(found)
}

/// The group that was chosen for each way the nodes are set up, and what there is to say of the choice.
fn chosen(facts: &Facts) -> Seen<(BTreeSet<SecurityGroupId>, BTreeSet<String>)> {
    usable(facts)?;
    let cluster = facts.cluster()?;
    let known = seen(&facts.cloud.node_groups)?;
    let (mut chosen, mut warnings) = (BTreeSet::new(), BTreeSet::new());
    for instance in seen(&facts.cloud.instances)?.values() {
        let tags = |id: &SecurityGroupId| known.get(id).map(|group| group.tags.clone()).unwrap_or_default();
        let groups = instance.groups.iter().map(|id| (id.clone(), tags(id))).collect();
        if let Some((group, warning)) = choose_node_group(cluster, &groups) {
            chosen.insert(group);
            warnings.extend(warning);
        }
    }
    Ok((chosen, warnings))
}

fn ambiguous_group(facts: &Facts) -> Verdict {
    let (_, warnings) = chosen(facts)?;
    let cluster = facts.cluster()?;
    let remedy = format!("tag one of them {CLUSTER_KEY}{cluster}=owned, and take that tag off the others");
    Ok(warnings.into_iter().map(|what| Found::warning(what, remedy.clone())).collect())
}

fn untagged_group(facts: &Facts) -> Verdict {
    let (chosen, _) = chosen(facts)?;
    let key = format!("{CLUSTER_KEY}{}", facts.cluster()?);
    let known = seen(&facts.cloud.node_groups)?;
    let untagged: Vec<_> = chosen
        .iter()
        .filter(|id| known.get(*id).is_some_and(|group| !group.tags.contains_key(&key)))
        .map(SecurityGroupId::as_str)
        .collect();
    if untagged.is_empty() {
        return Ok(vec![]);
    }
    let what = format!("{} carries no tag {key}", untagged.join(", "));
    Ok(vec![Found::warning(what, format!("tag it {key}=owned")).explaining(&["node-group-closed"])])
}

/// Rules that a group of the nodes lacks, whatever other rules let in.
fn lacking(facts: &Facts, group: &SecurityGroup) -> Seen<BTreeSet<IngressRule>> {
    let settings = seen(&facts.controller)?;
    let policy = settings.policy(String::new());
    // Before the first Service there is no such group; the rules take as much room all the same.
    let backend = seen(&facts.cloud.backend)?.clone().unwrap_or_else(|| "sg-none".into());
    let references = seen(&facts.cloud.references)?;
    let there: BTreeSet<_> =
        references.iter().filter(|each| each.group == group.id).map(|each| each.rule.clone()).collect();
    Ok(node_rules(&policy, &backend).difference(&there).cloned().collect())
}

/// Whether some other rule lets in what this one would.
fn is_admitted(wanted: &IngressRule, group: &SecurityGroup) -> bool {
    group.rules.iter().any(|rule| {
        let anyone = matches!(&rule.source, Source::Range(range) if range.prefix_len() == 0 && range.addr().is_ipv4());
        let all = rule.protocol == "-1";
        let ports = all || (rule.protocol == wanted.protocol && rule.from <= wanted.from && rule.to >= wanted.to);
        ports && (anyone || rule.source == wanted.source)
    })
}

fn groups_of_nodes(facts: &Facts) -> Seen<Vec<&SecurityGroup>> {
    let (chosen, _) = chosen(facts)?;
    let known = seen(&facts.cloud.node_groups)?;
    Ok(chosen.iter().filter_map(|id| known.get(id)).collect())
}

fn full_group(facts: &Facts) -> Verdict {
    let mut found = vec![];
    for group in groups_of_nodes(facts)? {
        let (there, lacking) = (group.rules.len(), lacking(facts, group)?.len());
        let what = format!("{} ({}) has {there} inbound rules", group.id, group.name);
        let remedy = "merge or remove rules, or have the quota \"Inbound or outbound rules per security group\" raised";
        // With more, the quota was raised.
        if there > RULES {
            continue;
        }
        if there + lacking > RULES {
            let what = format!("{what}, and {lacking} more are needed");
            found.push(Found::error(what, remedy).explaining(&["node-group-closed", "service-waiting"]));
        } else if there >= MANY_RULES {
            found.push(Found::warning(format!("{what} of {RULES}"), remedy));
        }
    }
    Ok(found)
}

fn closed_group(facts: &Facts) -> Verdict {
    let groups = groups_of_nodes(facts)?;
    if seen(&facts.cloud.backend)?.is_none() {
        return Ok(vec![]);
    }
    let mut found = vec![];
    for group in groups {
        let lacking: Vec<_> = lacking(facts, group)?.into_iter().filter(|rule| !is_admitted(rule, group)).collect();
        if lacking.is_empty() {
            continue;
        }
        let rules = lacking.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let what = format!("{} ({}) lacks {rules}", group.id, group.name);
        let remedy = "the controller adds them at its next drift check, if it may: see findings about permissions, and who \
                      takes them away (Terraform with inline rules, say)";
        found.push(Found::error(what, remedy).explaining(&["service-no-healthy-target"]));
    }
    Ok(found)
}
