//! Pure checks: the API server, the controller's rights, its flags, its leadership, and who gives Services their class.

#![expect(clippy::unnecessary_wraps, reason = "all checks have one shape, whether or not they can lack facts")]

use super::check::{Check, Found, Verdict};
use super::facts::{ApiProblem, Facts, Unseen, seen};
use super::network::names_in_tags;

/// The first Kubernetes with MutatingAdmissionPolicy switched on (admissionregistration.k8s.io/v1).
const WITH_POLICIES: (u32, u32) = (1, 36);
/// A leader renews its Lease every two seconds. Whoever has not for so long, by any sensible clock, is gone.
const STALE: i64 = 60;

/// Whether there is anybody to ask.
pub const API: &[Check<Facts>] = &[
    Check {
        id: "kubernetes-unreachable",
        title: "The API server cannot be reached",
        why: "Without it nothing is known of Services and Nodes, and the controller does nothing.",
        look: unreachable,
    },
    Check {
        id: "kubernetes-unauthorized",
        title: "The API server does not accept these credentials",
        why: "A controller with such credentials sees no Service.",
        look: unauthorized,
    },
];

/// What the controller may do, and how it is started.
pub const RIGHTS: &[Check<Facts>] = &[
    Check {
        id: "cluster-name-unknown",
        title: "Nobody says the cluster's name",
        why: "By its name weir knows what in the account belongs to the cluster.",
        look: name_unknown,
    },
    Check {
        id: "controller-absent",
        title: "weir's controller is not installed",
        why: "Without it no Service gets a load balancer.",
        look: absent,
    },
    Check {
        id: "rbac-missing",
        title: "The controller lacks rights in the cluster",
        why: "What it may not read it does not know; what it may not write nobody sees: no hostname, no Events, no leader.",
        look: rights,
    },
    Check {
        id: "controller-flags",
        title: "The controller's flags make no sense",
        why: "The process ends before it has begun, again and again.",
        look: flags,
    },
    Check {
        id: "controller-down",
        title: "No pod of the controller is available",
        why: "Load balancers go on as they are, but no change of a Service or Node reaches AWS.",
        look: down,
    },
];

/// Who gives Services their class.
pub const ADMISSION: &[Check<Facts>] = &[
    Check {
        id: "kubernetes-too-old",
        title: "The API server has no MutatingAdmissionPolicy",
        why: "`kubectl expose --type=LoadBalancer` sets no class, and a Service without a class is not weir's.",
        look: too_old,
    },
    Check {
        id: "class-policy-missing",
        title: "Nothing gives Services weir's class",
        why: "`kubectl expose --type=LoadBalancer` sets no class, and a Service without a class is not weir's.",
        look: policy,
    },
    Check {
        id: "validation-policy-missing",
        title: "Mistakes in annotations are not refused at once",
        why: "With the policy `kubectl apply` says what is wrong; without it only an Event does, later.",
        look: validation,
    },
];

/// Whether somebody works.
pub const LEADER: &[Check<Facts>] = &[
    Check {
        id: "leader-none",
        title: "No controller is the leader",
        why: "Load balancers go on as they are, but no change of a Service or Node reaches AWS.",
        look: no_leader,
    },
    Check {
        id: "leader-stale",
        title: "The leader has not been heard of for long",
        why: "Load balancers go on as they are, but no change of a Service or Node reaches AWS.",
        look: stale_leader,
    },
];

fn unreachable(facts: &Facts) -> Verdict {
    let found = match &facts.kubernetes.api {
        Err(ApiProblem::NotConfigured(words)) => Found::error(
            format!("there is neither a kubeconfig nor a service account: {words}"),
            "set KUBECONFIG, or run in a pod with a service account token",
        ),
        Err(ApiProblem::Unreachable(words)) => Found::error(
            format!("the API server does not answer: {words}"),
            "look at the address in the kubeconfig, at DNS and at the network in between",
        ),
        _ => return Ok(vec![]),
    };
    Ok(vec![found])
}

fn unauthorized(facts: &Facts) -> Verdict {
    let found = match &facts.kubernetes.api {
        Err(ApiProblem::Unauthorized(words)) => Found::error(
            format!("the API server answers 401: {words}"),
            "renew the token in the kubeconfig; in EKS, look at the access entries (or aws-auth) of this IAM principal",
        ),
        Err(ApiProblem::NotConfigured(_) | ApiProblem::Unreachable(_)) => {
            return Err(Unseen("the API server cannot be reached".into()));
        }
        Ok(_) => return Ok(vec![]),
    };
    Ok(vec![found])
}

fn absent(facts: &Facts) -> Verdict {
    let kubernetes = &facts.kubernetes;
    let has_any = seen(&kubernetes.deployment)?.is_some() || seen(&kubernetes.lease)?.is_some();
    // Whoever runs it by hand, without a Lease, has given it its rights at least.
    if has_any || seen(&kubernetes.forbidden)?.is_empty() {
        return Ok(vec![]);
    }
    let what = "there is no Deployment weir-controller, no Lease of it, and no rights for it in its namespace";
    let found = Found::error(what, "install it (docs/install.md); if it is in another namespace, give --namespace");
    Ok(vec![found.explaining(&["rbac-missing", "leader-none", "service-waiting", "service-deleting"])])
}

fn rights(facts: &Facts) -> Verdict {
    let forbidden = seen(&facts.kubernetes.forbidden)?;
    if forbidden.is_empty() {
        return Ok(vec![]);
    }
    let mut verbs: Vec<(&str, Vec<&str>)> = vec![];
    for (verb, resource) in forbidden.iter().filter_map(|words| words.split_once(' ')) {
        match verbs.iter_mut().find(|(known, _)| *known == resource) {
            Some((_, verbs)) => verbs.push(verb),
            None => verbs.push((resource, vec![verb])),
        }
    }
    let verbs: Vec<_> = verbs.iter().map(|(resource, verbs)| format!("{} {resource}", verbs.join(", "))).collect();
    let what = format!("its ServiceAccount may not {}", verbs.join("; "));
    let remedy = "apply manifests/base/controller/rbac.yaml (or the chart) again, and see that the ClusterRoleBinding and the RoleBinding name the \
                  ServiceAccount that the controller runs as";
    Ok(vec![Found::error(what, remedy).explaining(&[
        "leader-none",
        "leader-stale",
        "service-waiting",
        "service-deleting",
    ])])
}

fn flags(facts: &Facts) -> Verdict {
    let Some(deployment) = seen(&facts.kubernetes.deployment)? else { return Ok(vec![]) };
    let Err(words) = &deployment.settings else { return Ok(vec![]) };
    let what = format!("Deployment {}: {words}", deployment.name);
    let found = Found::error(what, "correct the container's args; `weir controller --help` lists all flags");
    Ok(vec![found.explaining(&[
        "controller-down",
        "leader-none",
        "leader-stale",
        "service-waiting",
        "service-deleting",
    ])])
}

fn down(facts: &Facts) -> Verdict {
    let Some(deployment) = seen(&facts.kubernetes.deployment)? else { return Ok(vec![]) };
    if deployment.available > 0 {
        return Ok(vec![]);
    }
    let mut what = format!(
        "Deployment {}: {} of {} pods are available",
        deployment.name, deployment.available, deployment.desired
    );
    if let Some(words) = &deployment.words {
        what = format!("{what}: {words}");
    }
    let remedy = if deployment.desired == 0 {
        "scale it up".to_owned()
    } else {
        let (namespace, name) = deployment.name.split_once('/').unwrap_or_default();
        format!(
            "see `kubectl -n {namespace} describe pods` and `kubectl -n {namespace} logs deployment/{name} --previous`"
        )
    };
    Ok(vec![Found::error(what, remedy).explaining(&[
        "leader-none",
        "leader-stale",
        "service-waiting",
        "service-deleting",
    ])])
}

fn name_unknown(facts: &Facts) -> Verdict {
    let Err(Unseen(why)) = &facts.controller else { return Ok(vec![]) };
    let names = names_in_tags(facts).unwrap_or_default().into_iter().collect::<Vec<_>>().join(", ");
    let told = if names.is_empty() { String::new() } else { format!("; the nodes' tags name {names}") };
    Ok(vec![Found::error(format!("{why}{told}"), "give --cluster-name, as the controller is given it")])
}

/// The version that is too old, if it is.
fn old_version(facts: &Facts) -> Option<(u32, u32)> {
    facts.kubernetes.api.as_ref().ok().copied().filter(|version| *version < WITH_POLICIES)
}

fn too_old(facts: &Facts) -> Verdict {
    let policy = seen(&facts.kubernetes.policy)?;
    if seen(&facts.controller)?.claim_classless || policy.is_served {
        return Ok(vec![]);
    }
    let what = match old_version(facts) {
        Some((major, minor)) => format!("Kubernetes {major}.{minor} has none; it comes with 1.36"),
        None => "admissionregistration.k8s.io/v1 has no MutatingAdmissionPolicy: it is switched off".to_owned(),
    };
    let remedy = "write spec.loadBalancerClass into the Services; or, if nothing else serves Services without a class, \
                  start the controller with --claim-classless";
    Ok(vec![Found::warning(what, remedy).explaining(&["service-unclaimed"])])
}

fn policy(facts: &Facts) -> Verdict {
    let policy = seen(&facts.kubernetes.policy)?;
    if seen(&facts.controller)?.claim_classless || !policy.is_served {
        return Ok(vec![]);
    }
    let what = match (policy.has_policy, policy.has_binding) {
        (true, true) => return Ok(vec![]),
        (false, _) => "there is no MutatingAdmissionPolicy weir-class",
        (true, false) => {
            "the MutatingAdmissionPolicy weir-class has no MutatingAdmissionPolicyBinding weir-class, so it is not in force"
        }
    };
    let found = Found::warning(
        what,
        "apply manifests/base/policies/class.yaml (or the chart) again, or write spec.loadBalancerClass into the Services",
    );
    Ok(vec![found.explaining(&["service-unclaimed"])])
}

fn validation(facts: &Facts) -> Verdict {
    if seen(&facts.kubernetes.policy)?.validates {
        return Ok(vec![]);
    }
    let what =
        "there is no ValidatingAdmissionPolicy weir-annotations with a ValidatingAdmissionPolicyBinding of that name";
    Ok(vec![Found::note(what, "apply manifests/base/policies/validation.yaml (or the chart) again")])
}

fn no_leader(facts: &Facts) -> Verdict {
    let settings = seen(&facts.controller)?;
    let is_deployed = seen(&facts.kubernetes.deployment)?.is_some();
    let lease = seen(&facts.kubernetes.lease)?;
    if !settings.leader_elect {
        return Ok(vec![]);
    }
    let place = format!("Lease {}/weir-controller", settings.namespace);
    let what = match lease {
        None => format!("there is no {place}: no controller has ever run there"),
        Some(lease) if lease.holder.as_deref().unwrap_or_default().is_empty() => {
            format!("{place} has no holder: the last controller gave it back when it ended")
        }
        Some(_) => return Ok(vec![]),
    };
    let remedy = if is_deployed {
        "see why its pods do not start: `kubectl describe pods` and their logs"
    } else {
        "install the controller; if it runs without --leader-elect or in another namespace, say so with --namespace"
    };
    Ok(vec![Found::error(what, remedy).explaining(&["service-waiting", "service-deleting"])])
}

fn stale_leader(facts: &Facts) -> Verdict {
    let settings = seen(&facts.controller)?;
    let Some(lease) = seen(&facts.kubernetes.lease)?.as_ref().filter(|_| settings.leader_elect) else {
        return Ok(vec![]);
    };
    let Some(holder) = lease.holder.as_deref().filter(|holder| !holder.is_empty()) else { return Ok(vec![]) };
    let age = lease.renewed.map(|renewed| facts.now.duration_since(renewed).as_secs());
    let what = match age {
        Some(age) if age <= STALE => return Ok(vec![]),
        Some(age) => format!("{holder} renewed Lease {}/weir-controller {age} s ago, last", settings.namespace),
        None => format!("{holder} holds Lease {}/weir-controller and has never renewed it", settings.namespace),
    };
    let remedy = format!(
        "look at that pod: it hangs, is cut off from the API server, or is gone and no other replica runs \
         (`kubectl -n {} get pods`)",
        settings.namespace
    );
    Ok(vec![Found::error(what, remedy).explaining(&["service-waiting", "service-deleting"])])
}
