//! Pure checks: who we are to AWS, whether it is the right account and Region, and what we may do there.

#![expect(clippy::unnecessary_wraps, reason = "all checks have one shape, whether or not they can lack facts")]

use std::collections::{BTreeMap, BTreeSet};

use super::check::{Check, Found, Verdict};
use super::facts::{Facts, Identity, NoCredentials, ServiceSeen, Unseen, seen};
use crate::aws::classify::{AwsError, Class};

/// AWS takes requests that are up to five minutes off (SigV4).
const SKEW_ALLOWED: i64 = 300;
/// From here on a clock is worth a word.
const SKEW_NOTED: i64 = 60;
/// What no call to AWS works without.
const EVERYTHING: &[&str] = &["service-waiting", "service-deleting"];

/// All of them.
pub const CHECKS: &[Check<Facts>] = &[
    Check {
        id: "clock-skew",
        title: "This host's clock is wrong",
        why: "AWS refuses requests that are signed more than five minutes early or late.",
        look: clock,
    },
    Check {
        id: "credentials-missing",
        title: "There are no AWS credentials",
        why: "No call to AWS can be made.",
        look: missing,
    },
    Check {
        id: "credentials-expired",
        title: "The AWS credentials have expired",
        why: "AWS refuses every call.",
        look: expired,
    },
    Check {
        id: "credentials-invalid",
        title: "AWS does not accept the credentials",
        why: "AWS refuses every call.",
        look: invalid,
    },
    Check {
        id: "region-unknown",
        title: "The AWS Region is not known",
        why: "Every call to AWS goes to a Region.",
        look: no_region,
    },
    Check {
        id: "aws-unreachable",
        title: "AWS does not answer",
        why: "Without its answers nothing in the account can be seen or changed.",
        look: unreachable,
    },
    Check {
        id: "region-wrong",
        title: "The nodes are in another Region",
        why: "Load balancers would be made where no node is, or none at all.",
        look: wrong_region,
    },
    Check {
        id: "account-wrong",
        title: "The nodes are not in this account",
        why: "Load balancers would be made in an account that the nodes are not in, or none at all.",
        look: wrong_account,
    },
    Check {
        id: "permission-denied",
        title: "AWS denies a permission",
        why: "What the controller may not do in AWS stays undone.",
        look: denied,
    },
];

/// What kind of trouble with credentials an error of AWS is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Clock,
    Expired,
    Invalid,
}

/// By AWS's code (each service has its own), and where one code means two things by its words.
fn trouble(error: &AwsError) -> Option<Trouble> {
    match error.code.as_str() {
        "RequestTimeTooSkewed" | "RequestInTheFuture" => Some(Trouble::Clock),
        "SignatureDoesNotMatch" | "InvalidSignatureException" => {
            let by_clock = ["Signature expired", "Signature not yet current"];
            let is_clock = by_clock.iter().any(|words| error.message.contains(words));
            Some(if is_clock { Trouble::Clock } else { Trouble::Invalid })
        }
        // EC2's word for a session that has ended, and for a request that is old.
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => Some(Trouble::Expired),
        "InvalidAccessKeyId" | "MissingAuthenticationToken" => Some(Trouble::Invalid),
        _ if error.class == Class::Unauthenticated => Some(Trouble::Invalid),
        _ => None,
    }
}

fn refusals(facts: &Facts) -> impl Iterator<Item = &AwsError> {
    let of_identity = match &facts.cloud.identity {
        Identity::Refused(error) => Some(error),
        _ => None,
    };
    of_identity.into_iter().chain(&facts.cloud.failures)
}

fn troubled(facts: &Facts, with: Trouble) -> Option<&AwsError> {
    refusals(facts).find(|error| trouble(error) == Some(with))
}

/// Whether AWS can be asked at all with what we have.
///
/// # Errors
/// Why it cannot.
pub fn usable(facts: &Facts) -> Result<(), Unseen> {
    let why = match &facts.cloud.identity {
        Identity::Nobody(_) => "there are no usable AWS credentials",
        Identity::Refused(error) if trouble(error).is_some() => "AWS does not accept the credentials",
        Identity::Refused(error) if error.class == Class::Denied => {
            "AWS does not let these credentials ask whose they are"
        }
        Identity::Refused(_) => "AWS does not answer",
        Identity::NoRegion => "the AWS Region is not known",
        Identity::NoTrust(_) => "there are no CA certificates",
        Identity::Known(_) => return Ok(()),
    };
    Err(Unseen(why.into()))
}

fn clock(facts: &Facts) -> Verdict {
    let ahead = facts.kubernetes.ahead.map(|ahead| ahead.as_secs());
    let measured = ahead.filter(|ahead| ahead.abs() > SKEW_NOTED).map(|ahead| {
        let direction = if ahead > 0 { "ahead of" } else { "behind" };
        format!("{} s {direction} the API server's", ahead.abs())
    });
    let remedy = "set the clock: chronyd or systemd-timesyncd on the node, with 169.254.169.123 as its source";
    let found = match (troubled(facts, Trouble::Clock), measured) {
        (Some(error), measured) => {
            let measured = measured.map(|words| format!(" It is {words}.")).unwrap_or_default();
            Found::error(format!("AWS finds the time of a request wrong ({}).{measured}", words_of(error)), remedy)
        }
        (None, Some(words)) if ahead.is_some_and(|ahead| ahead.abs() > SKEW_ALLOWED) => {
            Found::error(format!("it is {words}"), remedy)
        }
        (None, Some(words)) => Found::warning(format!("it is {words}"), remedy),
        (None, None) => return Ok(vec![]),
    };
    Ok(vec![found.explaining(&["credentials-expired", "credentials-invalid", "service-waiting", "service-deleting"])])
}

fn words_of(error: &AwsError) -> String {
    if error.message.is_empty() || error.message == error.code {
        format!("{} on {}", error.code, error.action)
    } else {
        format!("{} on {}: {}", error.code, error.action, error.message)
    }
}

fn missing(facts: &Facts) -> Verdict {
    let Identity::Nobody(NoCredentials::Missing(words)) = &facts.cloud.identity else { return Ok(vec![]) };
    let remedy = "in a pod: annotate the ServiceAccount with eks.amazonaws.com/role-arn (IRSA) or make an EKS Pod Identity \
                  association for it, and start the pod anew; elsewhere: AWS_PROFILE, or AWS_ACCESS_KEY_ID with its secret";
    Ok(vec![Found::error(words.clone(), remedy).explaining(EVERYTHING)])
}

fn expired(facts: &Facts) -> Verdict {
    let words = match &facts.cloud.identity {
        Identity::Nobody(NoCredentials::Expired(words)) => words.clone(),
        _ => match troubled(facts, Trouble::Expired) {
            Some(error) => words_of(error),
            None => return Ok(vec![]),
        },
    };
    let remedy = "log in again, or start the pod anew; in a pod, see that its token file is written anew by the kubelet \
                  (AWS_WEB_IDENTITY_TOKEN_FILE)";
    Ok(vec![Found::error(words, remedy).explaining(EVERYTHING)])
}

fn invalid(facts: &Facts) -> Verdict {
    let words = match &facts.cloud.identity {
        Identity::Nobody(NoCredentials::Refused(words)) => words.clone(),
        _ => match (troubled(facts, Trouble::Invalid), told(facts, Class::Unauthenticated)) {
            (Some(error), _) => words_of(error),
            // Ours are good; the controller has its own.
            (None, Some(told)) => format!("the controller has no valid ones. {told}"),
            (None, None) => return Ok(vec![]),
        },
    };
    let remedy = "look at the access key, or at the role: that it exists, and that its trust policy names this cluster's \
                  OIDC provider and the ServiceAccount";
    Ok(vec![Found::error(words, remedy).explaining(EVERYTHING)])
}

fn no_region(facts: &Facts) -> Verdict {
    if facts.cloud.identity != Identity::NoRegion {
        return Ok(vec![]);
    }
    let what = "neither --region, AWS_REGION nor a Node's label topology.kubernetes.io/region tells it";
    Ok(vec![Found::error(what, "set AWS_REGION").explaining(EVERYTHING)])
}

fn unreachable(facts: &Facts) -> Verdict {
    if let Identity::NoTrust(why) = &facts.cloud.identity {
        let remedy = "weir's images have CA certificates; look at what is mounted over /etc/ssl, and at SSL_CERT_FILE";
        return Ok(vec![Found::error(why.clone(), remedy).explaining(EVERYTHING)]);
    }
    let silent = |error: &&AwsError| error.class == Class::Transient && trouble(error).is_none();
    let Some(error) = refusals(facts).find(silent) else {
        return usable(facts).map(|()| vec![]);
    };
    let what =
        format!("{} in {} got no good answer ({}: {})", error.action, facts.cloud.region, error.code, error.message);
    let remedy = "look at the Region's name, at DNS, at the way out (NAT gateway, or VPC endpoints for ec2, \
                  elasticloadbalancing, autoscaling and sts), and at AWS_ENDPOINT_URL";
    Ok(vec![Found::error(what, remedy).explaining(EVERYTHING)])
}

fn wrong_region(facts: &Facts) -> Verdict {
    usable(facts)?;
    let nodes = seen(&facts.kubernetes.nodes)?;
    let regions: BTreeSet<_> = nodes.iter().filter_map(|node| node.region.as_deref()).collect();
    let ours = facts.cloud.region.as_str();
    if regions.is_empty() || regions.contains(ours) {
        return Ok(vec![]);
    }
    let regions = regions.into_iter().collect::<Vec<_>>().join(", ");
    let what = format!("calls go to {ours}, the Nodes say {regions}");
    let found = Found::error(what, "give --region or AWS_REGION the Region of the nodes");
    Ok(vec![found.explaining(&["account-wrong", "vpc-unknown", "service-waiting", "service-deleting"])])
}

fn wrong_account(facts: &Facts) -> Verdict {
    usable(facts)?;
    let wanted = facts.instances()?;
    let there = seen(&facts.cloud.instances)?;
    if wanted.is_empty() || wanted.iter().any(|instance| there.contains_key(*instance)) {
        return Ok(vec![]);
    }
    let who = match &facts.cloud.identity {
        Identity::Known(caller) => format!("account {} ({})", caller.account, caller.arn),
        _ => "this account".to_owned(),
    };
    let some = wanted.iter().take(3).map(|instance| instance.as_str()).collect::<Vec<_>>().join(", ");
    let what = format!(
        "none of the {} instances that Nodes name exists in {who}, Region {}: {some}",
        wanted.len(),
        facts.cloud.region
    );
    let found = Found::error(what, "use credentials of the account that the nodes are in");
    Ok(vec![found.explaining(&["vpc-unknown", "service-waiting", "service-deleting"])])
}

fn denied(facts: &Facts) -> Verdict {
    let denied: Vec<_> = refusals(facts)
        .filter(|error| error.class == Class::Denied && trouble(error).is_none())
        .filter(|error| !is_optional(error.action))
        .collect();
    let mut found = vec![];
    if !denied.is_empty() {
        let mut actions: BTreeMap<&str, String> = BTreeMap::new();
        for error in &denied {
            actions.entry(error.action).or_insert_with(|| asked(error));
        }
        let who = match &facts.cloud.identity {
            Identity::Known(caller) => caller.arn.as_str(),
            _ => "this identity",
        };
        let what = format!(
            "{who} may not: {}; in AWS's words: {}",
            actions.into_values().collect::<Vec<_>>().join(", "),
            denied.first().map(|error| error.message.as_str()).unwrap_or_default()
        );
        let mut remedy =
            "allow it in the role's policy; a service control policy or a permissions boundary may deny it too"
                .to_owned();
        if let Some(group) = untagged_node_group(facts, &denied) {
            let cluster = facts.cluster()?;
            remedy =
                format!("{remedy}. Where the policy asks for the tag kubernetes.io/cluster/{cluster}, tag {group}");
        }
        found.push(Found::error(what, remedy).explaining(EVERYTHING));
    }
    // Writes to ELB and Auto Scaling have no dry run: the controller's own Events tell.
    found.extend(denials_told(facts));
    if found.is_empty() { usable(facts).map(|()| found) } else { Ok(found) }
}

/// What was denied; a read knows no narrower permission than everything.
fn asked(error: &AwsError) -> String {
    if error.action.contains(":Describe") {
        error.action.to_owned()
    } else {
        format!("{} on {}", error.action, error.resource)
    }
}

/// Whether only the doctor asks for it.
fn is_optional(action: &str) -> bool {
    ["elasticloadbalancing:DescribeAccountLimits", "autoscaling:DescribeInstanceRefreshes"].contains(&action)
}

/// A security group on the nodes that a denial is about and that carries no tag of the cluster.
fn untagged_node_group<'a>(facts: &Facts, denied: &[&'a AwsError]) -> Option<&'a str> {
    let groups = facts.cloud.node_groups.as_ref().ok()?;
    let key = format!("kubernetes.io/cluster/{}", facts.cluster().ok()?);
    let is_untagged = |id: &str| groups.values().any(|group| group.id.as_str() == id && !group.tags.contains_key(&key));
    denied.iter().map(|error| error.resource.as_str()).find(|resource| is_untagged(resource))
}

fn denials_told(facts: &Facts) -> Option<Found> {
    let what = format!("the controller was denied something. {}", told(facts, Class::Denied)?);
    let remedy = "allow the action that is named in the policy of the controller's role";
    Some(Found::error(what, remedy).explaining(EVERYTHING))
}

/// What the controller said of failures of this class that are not over.
fn told(facts: &Facts, class: Class) -> Option<String> {
    let of = |service: &ServiceSeen| {
        let told = facts.told(&service.uid).ok()?;
        let last = told.into_iter().rev().find(|told| told.reason == class.reason().name())?;
        Some(format!("Service {}: {}", service.key, last.note))
    };
    let notes: Vec<_> = facts.ours().ok()?.filter_map(of).collect();
    let more = if notes.len() > 1 { format!(" (and {} more Services)", notes.len() - 1) } else { String::new() };
    Some(format!("{}{more}", notes.first()?))
}
