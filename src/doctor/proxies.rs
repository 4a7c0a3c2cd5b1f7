//! Pure checks: who else claims Services or forwards for them.

use super::check::{Check, Found, Verdict};
use super::facts::{Facts, seen};
use super::services::{claimed_by_others, names};
use crate::settings::NodeMode;

/// kube-proxy's health port.
const KUBE_PROXY_HEALTH: u16 = 10256;

/// All of them.
pub const CHECKS: &[Check<Facts>] = &[
    Check {
        id: "lbc-same-class",
        title: "The AWS Load Balancer Controller claims weir's class",
        why: "Two controllers for one Service make two load balancers and undo each other's rules.",
        look: same_class,
    },
    Check {
        id: "lbc-webhook-dead",
        title: "A webhook of the AWS Load Balancer Controller stands in the way",
        why: "While nobody answers it, no Service can be created in the cluster.",
        look: dead_webhook,
    },
    Check {
        id: "lbc-webhook",
        title: "The AWS Load Balancer Controller gives Services its own class",
        why: "A Service without a class then gets that controller's, and is not weir's.",
        look: webhook,
    },
    Check {
        id: "service-claimed-twice",
        title: "Another controller has laid hands on Services of weir's",
        why: "Two controllers for one Service make two load balancers, and either takes the other's address out of the status.",
        look: twice,
    },
    Check {
        id: "kube-proxy-beside-replace",
        title: "kube-proxy runs where weir node replaces it",
        why: "Both answer at the same health port, and Services that are gone live on in kube-proxy's rules.",
        look: kube_proxy,
    },
    Check {
        id: "health-port-shared",
        title: "weir node and kube-proxy ask for the same health port",
        why: "Whichever starts last cannot listen, and does not start.",
        look: health_port,
    },
    Check {
        id: "node-flags",
        title: "The flags of weir node make no sense",
        why: "The process ends before it has begun, on every node.",
        look: flags,
    },
];

fn same_class(facts: &Facts) -> Verdict {
    let class = &seen(&facts.controller)?.load_balancer_class;
    let lbc = seen(&facts.kubernetes.lbc)?;
    let same = lbc.deployments.iter().filter(|(_, theirs, _)| theirs == class);
    let tell = |(name, _, _): &(String, String, i32)| {
        Found::error(
            format!("Deployment {name} runs with --load-balancer-class={class}"),
            "give it its own class back (service.k8s.aws/nlb)",
        )
    };
    Ok(same.map(tell).collect())
}

fn dead_webhook(facts: &Facts) -> Verdict {
    let lbc = seen(&facts.kubernetes.lbc)?;
    let answers = lbc.deployments.iter().any(|(_, _, available)| *available > 0);
    let Some(webhook) = lbc.webhook.as_ref().filter(|webhook| webhook.is_needed && !answers) else {
        return Ok(vec![]);
    };
    let what = format!("{} asks a controller that has no pod available", webhook.name);
    let remedy = "bring that controller up; or, if it is gone, delete its MutatingWebhookConfiguration";
    Ok(vec![Found::error(what, remedy)])
}

fn webhook(facts: &Facts) -> Verdict {
    let lbc = seen(&facts.kubernetes.lbc)?;
    let Some(webhook) = &lbc.webhook else { return Ok(vec![]) };
    // Policies are asked before webhooks, and a class that is set is left alone.
    let ours_comes_first = facts.kubernetes.policy.as_ref().is_ok_and(|policy| policy.has_policy && policy.has_binding);
    let what = format!("{} sets spec.loadBalancerClass of Services that have none", webhook.name);
    let remedy = "switch it off there (enableServiceMutatorWebhook: false), or write weir's class into the Services";
    Ok(vec![if ours_comes_first { Found::note(what, remedy) } else { Found::warning(what, remedy) }])
}

fn twice(facts: &Facts) -> Verdict {
    let twice: Vec<_> = facts.ours()?.filter(|service| claimed_by_others(service).is_some()).collect();
    let Some(finalizer) = twice.first().and_then(|service| claimed_by_others(service)) else { return Ok(vec![]) };
    let what = format!("with the finalizer {finalizer} of another controller: Service {}", names(&twice));
    let remedy = "see who that is: with --claim-classless nothing else may serve Services without a class; the cloud \
                  controller does unless they have one";
    Ok(vec![Found::error(what, remedy)])
}

fn kube_proxy(facts: &Facts) -> Verdict {
    let proxies = seen(&facts.kubernetes.proxies)?;
    let (Some(Ok(node)), Some(nodes)) = (&proxies.weir, proxies.kube_proxy.filter(|nodes| *nodes > 0)) else {
        return Ok(vec![]);
    };
    if node.mode == NodeMode::Beside {
        return Ok(vec![]);
    }
    let what = format!("DaemonSet kube-system/kube-proxy wants {nodes} nodes, and weir-node runs with --mode=replace");
    let remedy = "remove kube-proxy (in EKS: delete the add-on), then run `kube-proxy --cleanup` or reboot each node; or run \
                  weir-node with --mode=beside";
    Ok(vec![Found::error(what, remedy)])
}

fn health_port(facts: &Facts) -> Verdict {
    let proxies = seen(&facts.kubernetes.proxies)?;
    let (Some(Ok(node)), Some(_)) = (&proxies.weir, proxies.kube_proxy.filter(|nodes| *nodes > 0)) else {
        return Ok(vec![]);
    };
    if node.mode == NodeMode::Replace || node.healthz_address.port() != KUBE_PROXY_HEALTH {
        return Ok(vec![]);
    }
    let what = format!(
        "weir-node runs with --mode=beside and --healthz-address={}, which is kube-proxy's",
        node.healthz_address
    );
    Ok(vec![Found::error(what, "give weir-node another --healthz-address, such as 0.0.0.0:20256")])
}

fn flags(facts: &Facts) -> Verdict {
    let proxies = seen(&facts.kubernetes.proxies)?;
    let Some(Err(words)) = &proxies.weir else { return Ok(vec![]) };
    Ok(vec![Found::error(
        format!("DaemonSet weir-node: {words}"),
        "correct the container's args; `weir node --help` lists all flags",
    )])
}
