//! Pure checks: the traps of Auto Scaling groups, and quotas.

use std::collections::{BTreeMap, BTreeSet};

use super::check::{Check, Found, Verdict};
use super::facts::{Facts, Seen, seen};
use super::identity::usable;
use crate::aws::classify::Class;
use crate::controller::observed::Asg;
use crate::controller::placement::SLOTS;
use crate::model::id::{AsgName, TargetGroupArn};
use crate::model::name;

/// Of a limit, in percent: from here on it is worth a word.
const NEAR: usize = 90;

/// All of them.
pub const CHECKS: &[Check<Facts>] = &[
    Check {
        id: "asg-ghost",
        title: "An Auto Scaling group lists a target group that does not exist",
        why: "Such an Auto Scaling group launches no instance any more.",
        look: ghosts,
    },
    Check {
        id: "asg-elb-health",
        title: "An Auto Scaling group checks health by ELB",
        why: "It would terminate every node that a broken Service makes unhealthy. weir attaches nothing to it and registers \
              its nodes one by one, a call for each node and target group.",
        look: elb_health,
    },
    Check {
        id: "asg-add-suspended",
        title: "An Auto Scaling group does not register new instances",
        why: "With AddToLoadBalancer suspended, attached target groups get no new node; weir registers these one by one.",
        look: suspended,
    },
    Check {
        id: "asg-full",
        title: "An Auto Scaling group has no free slot for target groups",
        why: "AWS allows 50 target groups and no more. For Services beyond them weir registers nodes one by one, a call for \
              each node and target group.",
        look: full,
    },
    Check {
        id: "asg-refresh",
        title: "An Auto Scaling group is replacing its instances",
        why: "During an instance refresh it takes no target group. New Services get its nodes one by one until it ends.",
        look: refreshing,
    },
    Check {
        id: "asg-untagged",
        title: "An Auto Scaling group with nodes is not tagged for the cluster",
        why: "A policy such as ours allows attachments to groups with the cluster's tag alone, and without nodes it is not \
              known to be the cluster's.",
        look: untagged,
    },
    Check {
        id: "quota",
        title: "A quota of the account is used up, or nearly so",
        why: "Beyond a quota AWS makes nothing: new Services get no load balancer, or too few targets.",
        look: quotas,
    },
];

/// Auto Scaling groups of the cluster: with a node in them, or tagged for it.
fn of_cluster(facts: &Facts) -> Seen<Vec<(&AsgName, &Asg)>> {
    usable(facts)?;
    let (cluster, ours) = (facts.cluster()?, facts.instances()?);
    let asgs = seen(&facts.cloud.asgs)?.iter();
    let is_of_cluster =
        |asg: &Asg| asg.is_tagged_for(cluster) || asg.instances.iter().any(|instance| ours.contains(instance));
    Ok(asgs.filter(|(_, asg)| !asg.deleting && is_of_cluster(asg)).collect())
}

/// One finding for each group that is so.
fn each(facts: &Facts, is_so: impl Fn(&Asg) -> bool, tell: impl Fn(&AsgName, &Asg) -> Found) -> Verdict {
    Ok(of_cluster(facts)?.into_iter().filter(|(_, asg)| is_so(asg)).map(|(name, asg)| tell(name, asg)).collect())
}

fn ghosts(facts: &Facts) -> Verdict {
    let there = seen(&facts.cloud.target_groups)?;
    let mark = format!(":targetgroup/{}", name::cluster_prefix(facts.cluster()?));
    let of_cluster: BTreeSet<_> = of_cluster(facts)?.into_iter().map(|(name, _)| name).collect();
    let mut found = vec![];
    for (name, asg) in seen(&facts.cloud.asgs)? {
        let listed = listed(asg).filter(|arn| !there.contains(*arn));
        let listed: Vec<_> = listed.filter(|arn| of_cluster.contains(name) || arn.as_str().contains(&mark)).collect();
        let Some(first) = listed.first() else { continue };
        let all = listed.iter().map(|arn| arn.as_str()).collect::<Vec<_>>().join(", ");
        let ours = if listed.iter().all(|arn| arn.as_str().contains(&mark)) {
            "; the controller does so by itself when it runs"
        } else {
            ""
        };
        let remedy = format!(
            "aws autoscaling {} --auto-scaling-group-name {name} {}{ours}",
            if asg.legacy.contains_key(*first) {
                "detach-load-balancer-target-groups"
            } else {
                "detach-traffic-sources"
            },
            if asg.legacy.contains_key(*first) {
                format!("--target-group-arns {first}")
            } else {
                format!("--traffic-sources Identifier={first}")
            },
        );
        found.push(Found::error(format!("Auto Scaling group {name} lists {all}"), remedy));
    }
    Ok(found)
}

fn elb_health(facts: &Facts) -> Verdict {
    each(
        facts,
        |asg| asg.elb_health,
        |name, _| {
            let remedy = format!(
                "aws autoscaling update-auto-scaling-group --auto-scaling-group-name {name} --health-check-type EC2"
            );
            Found::warning(format!("Auto Scaling group {name} has a health check type with ELB in it"), remedy)
        },
    )
}

fn suspended(facts: &Facts) -> Verdict {
    each(
        facts,
        |asg| asg.add_suspended,
        |name, _| {
            let remedy = format!(
                "aws autoscaling resume-processes --auto-scaling-group-name {name} --scaling-processes AddToLoadBalancer"
            );
            Found::warning(format!("Auto Scaling group {name} has the process AddToLoadBalancer suspended"), remedy)
        },
    )
}

fn full(facts: &Facts) -> Verdict {
    let ours = name::cluster_prefix(facts.cluster()?);
    let mark = format!(":targetgroup/{ours}");
    let used = |asg: &Asg| asg.sources.len() + asg.legacy.len();
    each(
        facts,
        |asg| used(asg) * 100 >= SLOTS * NEAR,
        |name, asg| {
            let foreign = listed(asg).filter(|arn| !arn.as_str().contains(&mark)).count();
            let what = format!(
                "Auto Scaling group {name} has {} of {SLOTS} target groups, {foreign} of them not weir's",
                used(asg)
            );
            let remedy = "spread the nodes over more Auto Scaling groups, use fewer ports, or leave it: weir registers nodes itself";
            if used(asg) >= SLOTS { Found::warning(what, remedy) } else { Found::note(what, remedy) }
        },
    )
}

fn refreshing(facts: &Facts) -> Verdict {
    let refreshing = seen(&facts.cloud.refreshing)?;
    let of_cluster: BTreeSet<_> = of_cluster(facts)?.into_iter().map(|(name, _)| name).collect();
    let those = refreshing.iter().filter(|name| of_cluster.contains(name));
    let tell = |name: &AsgName| {
        Found::note(format!("Auto Scaling group {name} is in an instance refresh"), "wait until it ends")
    };
    Ok(those.map(tell).collect())
}

fn untagged(facts: &Facts) -> Verdict {
    let cluster = facts.cluster()?;
    each(
        facts,
        |asg| !asg.is_tagged_for(cluster),
        |name, _| {
            let key = format!("kubernetes.io/cluster/{cluster}");
            let what = format!(
                "Auto Scaling group {name} has nodes of the cluster and carries neither {key} nor eks:cluster-name={cluster}"
            );
            Found::warning(what, format!("tag it {key}=owned"))
        },
    )
}

fn quotas(facts: &Facts) -> Verdict {
    usable(facts)?;
    let mut found: Vec<_> = counted(facts).into_iter().flatten().collect();
    found.extend(exceeded(facts));
    // Nothing counted, nothing told: that is no answer.
    if found.is_empty() {
        seen(&facts.cloud.limits)?;
    }
    Ok(found)
}

/// What can be counted against a limit that AWS tells.
fn counted(facts: &Facts) -> Seen<Vec<Found>> {
    let limits = seen(&facts.cloud.limits)?;
    let balancers = seen(&facts.cloud.balancers)?.len();
    let target_groups = seen(&facts.cloud.target_groups)?.len();
    let mut found = vec![];
    for (limit, used, what) in [
        ("network-load-balancers", balancers, "Network Load Balancers in the Region"),
        ("target-groups", target_groups, "target groups in the Region"),
    ] {
        found.extend(limits.get(limit).and_then(|max| fill(limit, used, *max, what)));
    }
    if let Some(max) = limits.get("targets-per-availability-zone-per-network-load-balancer") {
        found.extend(targets(facts, *max)?);
    }
    Ok(found)
}

fn fill(limit: &str, used: usize, max: usize, what: &str) -> Option<Found> {
    if used * 100 < max * NEAR {
        return None;
    }
    let sentence = format!("{used} of {max} {what} (quota {limit})");
    let remedy = "have the quota raised in Service Quotas, or delete what is not needed";
    Some(if used >= max {
        Found::error(sentence, remedy).explaining(&["service-waiting"])
    } else {
        Found::warning(sentence, remedy)
    })
}

/// Each node counts once for each listener, zone by zone.
fn targets(facts: &Facts, max: usize) -> Seen<Vec<Found>> {
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for node in seen(&facts.kubernetes.nodes)? {
        let is_target = node.worker.as_ref().is_some_and(|worker| worker.eligible);
        if let Some(zone) = node.zone.as_deref().filter(|_| is_target) {
            *nodes.entry(zone).or_default() += 1;
        }
    }
    let mut found = vec![];
    for service in facts.ours()? {
        for (zone, count) in &nodes {
            let what =
                format!("targets of Service {} in {zone}, {} ports × {count} nodes", service.key, service.listeners);
            found.extend(fill(
                "targets-per-availability-zone-per-network-load-balancer",
                service.listeners * count,
                max,
                &what,
            ));
        }
    }
    Ok(found)
}

/// Quotas that AWS named when it refused something.
fn exceeded(facts: &Facts) -> Vec<Found> {
    let told = facts.ours().into_iter().flatten().filter_map(|service| {
        let told = facts.told(&service.uid).ok()?;
        let last = told.into_iter().rev().find(|told| told.reason == Class::Quota.reason().name())?;
        Some(format!("Service {}: {}", service.key, last.note))
    });
    let remedy = "have the quota raised in Service Quotas, or use less";
    told.map(|what| Found::error(what, remedy).explaining(&["service-waiting"])).collect()
}

/// Target groups of an Auto Scaling group, attached by either family of calls.
fn listed(asg: &Asg) -> impl Iterator<Item = &TargetGroupArn> {
    asg.sources.keys().chain(asg.legacy.keys())
}
