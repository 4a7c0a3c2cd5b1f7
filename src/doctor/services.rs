//! Pure checks: Services that wait, are refused, or are nobody's.

use super::check::{Check, Found, Verdict};
use super::facts::{Facts, ServiceSeen, Told, Unseen, seen};
use super::identity::usable;
use crate::controller::report;
use crate::model::ownership::is_of_cluster;
use crate::model::service::{FINALIZER, Scheme};
use crate::settings::Controller;

/// Finalizers by which others show that a load balancer is theirs: the cloud controller, and the AWS Load Balancer
/// Controller.
const OTHERS: [&str; 2] = ["service.kubernetes.io/load-balancer-cleanup", "service.k8s.aws/resources"];

/// All of them.
pub const CHECKS: &[Check<Facts>] = &[
    Check {
        id: "service-unclaimed",
        title: "Nobody serves a Service without a class",
        why: "It stays `<pending>` for ever, and nobody says why.",
        look: unclaimed,
    },
    Check {
        id: "service-class-unknown",
        title: "A Service has a class that nobody serves",
        why: "It stays `<pending>` for ever, and nobody says why.",
        look: unknown_class,
    },
    Check {
        id: "service-refused",
        title: "A Service cannot be served as it is written",
        why: "It keeps what it has; what was changed has no effect, and a new one gets no load balancer.",
        look: refused,
    },
    Check {
        id: "service-contested",
        title: "Somebody else undoes what weir writes",
        why: "Two programs that undo each other cost calls, and connections; weir leaves it alone for longer and longer.",
        look: contested,
    },
    Check {
        id: "service-waiting",
        title: "A Service waits for its load balancer for long",
        why: "Nobody reaches it from outside.",
        look: waiting,
    },
    Check {
        id: "service-deleting",
        title: "A Service waits for its deletion for long",
        why: "Its load balancer may still be there and cost money, and its namespace cannot go.",
        look: deleting,
    },
    Check {
        id: "service-no-healthy-target",
        title: "A Service has no healthy target",
        why: "A load balancer without a healthy target sends connections to all of them, or refuses them.",
        look: unhealthy,
    },
    Check {
        id: "service-hairpin",
        title: "Pods reach an internal load balancer now and then only",
        why: "The client's address is kept, so a connection that comes back to the node it began on has one address at both \
              ends, and AWS drops it. Clients outside the cluster do not notice.",
        look: hairpin,
    },
];

/// Names of the first few.
pub fn names(services: &[&ServiceSeen]) -> String {
    let few: Vec<_> = services.iter().take(5).map(|service| service.key.to_string()).collect();
    let more = if services.len() > 5 { format!(" and {} more", services.len() - 5) } else { String::new() };
    format!("{}{more}", few.join(", "))
}

/// The finalizer by which somebody else shows that it looks after a Service.
pub fn claimed_by_others(service: &ServiceSeen) -> Option<&'static str> {
    OTHERS.into_iter().find(|finalizer| service.finalizers.iter().any(|each| each == finalizer))
}

fn is_old(service: &ServiceSeen, facts: &Facts) -> bool {
    facts.now.duration_since(service.created).unsigned_abs() >= facts.patience
}

/// Whether nobody has done anything for a Service for long.
fn is_untouched(service: &ServiceSeen, facts: &Facts) -> bool {
    service.is_balancer
        && service.address.is_none()
        && service.deleted.is_none()
        && claimed_by_others(service).is_none()
        && is_old(service, facts)
}

fn is_unclaimed(service: &ServiceSeen, settings: &Controller, facts: &Facts) -> bool {
    service.class.is_none() && !settings.claim_classless && is_untouched(service, facts)
}

fn unclaimed(facts: &Facts) -> Verdict {
    let settings = seen(&facts.controller)?;
    let services = seen(&facts.kubernetes.services)?.iter();
    let unclaimed: Vec<_> = services.filter(|service| is_unclaimed(service, settings, facts)).collect();
    if unclaimed.is_empty() {
        return Ok(vec![]);
    }
    let what = format!("no spec.loadBalancerClass, and no address from anybody: Service {}", names(&unclaimed));
    let remedy = format!(
        "the class can be set only when a Service becomes a LoadBalancer: make them again with spec.loadBalancerClass: {}, \
         or change their type to ClusterIP and, with the class, back",
        settings.load_balancer_class
    );
    Ok(vec![Found::error(what, remedy)])
}

fn unknown_class(facts: &Facts) -> Verdict {
    let ours = &seen(&facts.controller)?.load_balancer_class;
    let services = seen(&facts.kubernetes.services)?.iter();
    let others = services.filter(|service| is_untouched(service, facts)).filter_map(|service| {
        let class = service.class.as_ref().filter(|class| *class != ours)?;
        let what = format!(
            "Service {} has the class {class}, which is not weir's ({ours}), and nobody has given it an address",
            service.key
        );
        Some(Found::warning(what, "if weir is to serve it, make it again with weir's class: it cannot be changed"))
    });
    Ok(others.collect())
}

/// The last thing that the controller said of a Service since it was well.
fn last_word<'a>(facts: &'a Facts, service: &ServiceSeen) -> Option<&'a Told> {
    facts.told(&service.uid).ok()?.pop()
}

fn refused(facts: &Facts) -> Verdict {
    let mut found = vec![];
    for service in facts.ours()?.filter(|service| service.deleted.is_none()) {
        let told = || {
            last_word(facts, service).filter(|told| told.reason == report::INVALID.name()).map(|told| told.note.clone())
        };
        let words = if service.problems.is_empty() { told() } else { Some(service.problems.join("; ")) };
        let tell = |words| {
            Found::error(format!("Service {}: {words}", service.key), "correct the Service; it is tried again at once")
        };
        found.extend(words.map(tell).map(|found| found.explaining(&["service-waiting"])));
    }
    Ok(found)
}

fn contested(facts: &Facts) -> Verdict {
    let tell = |service: &ServiceSeen| {
        let told = facts.told(&service.uid).ok()?.into_iter().rfind(|told| told.reason == report::CONTESTED.name())?;
        let remedy = "find out who it is: Terraform, another controller, or another cluster of the same name";
        Some(Found::warning(format!("Service {}: {}", service.key, told.note), remedy))
    };
    seen(&facts.kubernetes.told)?;
    Ok(facts.ours()?.filter_map(tell).collect())
}

/// What the controller said last, for the end of a sentence.
fn said(facts: &Facts, service: &ServiceSeen) -> String {
    match (last_word(facts, service), &facts.kubernetes.told) {
        (Some(told), _) => format!("the controller's last word is {}: {}", told.reason, told.note),
        (None, Ok(_)) => "the controller has said nothing of it within the last hour or so".into(),
        (None, Err(Unseen(why))) => format!("its Events could not be read ({why})"),
    }
}

fn waiting(facts: &Facts) -> Verdict {
    let ours = facts.ours()?.filter(|service| service.deleted.is_none() && service.address.is_none());
    let tell = |service: &ServiceSeen| {
        let minutes = facts.now.duration_since(service.created).as_mins();
        let what = format!("Service {} has waited for {minutes} minutes; {}", service.key, said(facts, service));
        let remedy = format!("see what else was found, `weir status {}`, and the controller's log", service.key);
        Found::error(what, remedy)
    };
    Ok(ours.filter(|service| is_old(service, facts)).map(tell).collect())
}

fn deleting(facts: &Facts) -> Verdict {
    let services = seen(&facts.kubernetes.services)?.iter();
    let has_ours = |service: &&ServiceSeen| service.finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    let tell = |service: &ServiceSeen| {
        let since = facts.now.duration_since(service.deleted?);
        if since.unsigned_abs() < facts.patience {
            return None;
        }
        let what = format!(
            "Service {} is being deleted since {} minutes; {}",
            service.key,
            since.as_mins(),
            said(facts, service)
        );
        let remedy = "see what else was found, and the controller's log. Do not take the finalizer off by hand: the load \
                      balancer would stay";
        Some(Found::error(what, remedy))
    };
    Ok(services.filter(has_ours).filter_map(tell).collect())
}

fn hairpin(facts: &Facts) -> Verdict {
    let default = seen(&facts.controller)?.default_scheme;
    let is_internal = |service: &ServiceSeen| service.scheme.unwrap_or(default) == Scheme::Internal;
    let hairpins: Vec<_> =
        facts.ours()?.filter(|service| is_internal(service) && service.keeps_client_address).collect();
    if hairpins.is_empty() {
        return Ok(vec![]);
    }
    let what = format!("internal, with the client's address kept: Service {}", names(&hairpins));
    let remedy = "if pods of the cluster use them: the annotation aws-load-balancer-target-group-attributes with \
                  preserve_client_ip.enabled=false, or let them use the ClusterIP";
    Ok(vec![Found::note(what, remedy)])
}

fn unhealthy(facts: &Facts) -> Verdict {
    usable(facts)?;
    let health = seen(&facts.cloud.health)?;
    let tags = seen(&facts.cloud.target_group_tags)?;
    let mut found = vec![];
    for (arn, targets) in health {
        let is_sick = |state: &str| matches!(state, "unhealthy" | "unavailable");
        if targets.is_empty() || !targets.values().all(|health| is_sick(&health.state)) {
            continue;
        }
        let service =
            tags.get(arn).and_then(|tags| tags.get(crate::model::ownership::SERVICE_TAG)).map_or("?", String::as_str);
        let reasons: std::collections::BTreeSet<_> =
            targets.values().filter_map(|health| health.reason.as_deref()).collect();
        let reasons = reasons.into_iter().collect::<Vec<_>>().join("; ");
        let what = format!("Service {service}: all {} targets of {arn} are unhealthy ({reasons})", targets.len());
        let remedy = "on a node, run `weir doctor node` and ask the health port: curl -i http://localhost:10256/healthz; \
                      under externalTrafficPolicy Local only nodes with a ready pod are healthy";
        found.push(Found::error(what, remedy));
    }
    let cluster = facts.cluster()?;
    let ours = tags.values().filter(|tags| is_of_cluster(cluster, tags)).count();
    if found.is_empty() && health.len() < ours {
        let seen = health.len();
        return Err(Unseen(format!("{seen} of {ours} target groups were looked into; their targets are well")));
    }
    Ok(found)
}
