//! Leadership by a Lease: pure [`decide`], and the thin loop that publishes the claim.
//!
//! The claim ends here before it ends for others: the deadline is counted from before the write that renewed it, by the
//! monotonic clock, and writes look at it one by one. Others take over only after they have watched an unchanged Lease
//! for its whole duration by their own clock, so skewed clocks do no harm.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::telemetry::chain;

/// How long a leader that is not heard of stays leader.
const DURATION: Duration = Duration::from_secs(15);
/// The leader gives up this long before others may take over.
const MARGIN: Duration = Duration::from_secs(5);
/// Time between two looks at the Lease.
const PERIOD: Duration = Duration::from_secs(2);
/// Name of the Lease.
const NAME: &str = "weir-controller";

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write our name into it, anew.
    Acquire,
    /// Write the time of renewal.
    Renew,
    /// Somebody else holds it.
    Wait,
}

/// Decides. `unchanged_for` is how long we have watched the Lease without seeing it change.
pub fn decide(holder: Option<&str>, me: &str, unchanged_for: Duration) -> Decision {
    match holder.filter(|holder| !holder.is_empty()) {
        Some(holder) if holder == me => Decision::Renew,
        None => Decision::Acquire,
        Some(_) if unchanged_for >= DURATION => Decision::Acquire,
        Some(_) => Decision::Wait,
    }
}

/// Keeps `leader` true while this process holds the Lease. Returns when leadership is lost for good, or on shutdown,
/// after giving the Lease back.
pub async fn hold(
    client: kube::Client,
    namespace: String,
    me: String,
    leader: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let api: Api<Lease> = Api::namespaced(client, &namespace);
    let mut seen: Option<(Option<String>, Instant)> = None;
    let mut held_until: Option<Instant> = None;
    loop {
        let began = Instant::now();
        match tokio::time::timeout(PERIOD * 2, step(&api, &me, &mut seen)).await {
            Ok(Ok(true)) => {
                held_until = Some(began + DURATION - MARGIN);
                if !leader.send_replace(true) {
                    tracing::info!(identity = me, "became leader");
                }
            }
            Ok(Ok(false)) if held_until.is_some() => break,
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!(error = %chain(&error), "cannot renew the Lease"),
            Err(_) => tracing::warn!("the API server does not answer about the Lease"),
        }
        let expires = async {
            match held_until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => {
                let was_leader = leader.send_replace(false);
                if was_leader {
                    release(&api, &me).await;
                }
                return;
            }
            () = expires => break,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
    leader.send_replace(false);
    tracing::error!("lost the Lease; ending, so that nothing is written twice");
}

/// One look at the Lease, and a write if it is ours to make. Returns whether we hold it.
async fn step(api: &Api<Lease>, me: &str, seen: &mut Option<(Option<String>, Instant)>) -> kube::Result<bool> {
    let Some(lease) = api.get_opt(NAME).await? else {
        let spec = spec(me, 0, MicroTime(Timestamp::now()));
        let lease =
            Lease { metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() }, spec: Some(spec) };
        return written(api.create(&PostParams::default(), &lease).await.map(drop));
    };
    let version = lease.metadata.resource_version.clone();
    let since = match seen {
        Some((known, since)) if *known == version => *since,
        _ => seen.insert((version, Instant::now())).1,
    };
    let known = lease.spec.clone().unwrap_or_default();
    let (transitions, acquired) = (known.lease_transitions.unwrap_or_default(), known.acquire_time);
    let now = MicroTime(Timestamp::now());
    let spec = match decide(known.holder_identity.as_deref(), me, since.elapsed()) {
        Decision::Wait => return Ok(false),
        Decision::Renew => spec(me, transitions, acquired.unwrap_or(now)),
        Decision::Acquire => spec(me, transitions + 1, now),
    };
    // The resource version in it makes the write fail if somebody was faster.
    written(api.replace(NAME, &PostParams::default(), &Lease { spec: Some(spec), ..lease }).await.map(drop))
}

fn spec(me: &str, transitions: i32, acquired: MicroTime) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        lease_transitions: Some(transitions),
        acquire_time: Some(acquired),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    }
}

fn written(answer: kube::Result<()>) -> kube::Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the Lease back, so that another replica need not wait for its end.
async fn release(api: &Api<Lease>, me: &str) {
    let answer = async {
        let Some(mut lease) = api.get_opt(NAME).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(me)) else {
            return Ok(());
        };
        spec.holder_identity = Some(String::new());
        api.replace(NAME, &PostParams::default(), &lease).await.map(drop)
    };
    if let Err(error) = answer.await {
        tracing::warn!(error = %chain(&error), "cannot give the Lease back; it will run out");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions() {
        let (soon, late) = (Duration::from_secs(1), DURATION);
        assert_eq!(decide(None, "a", soon), Decision::Acquire);
        assert_eq!(decide(Some(""), "a", soon), Decision::Acquire);
        assert_eq!(decide(Some("a"), "a", late), Decision::Renew);
        assert_eq!(decide(Some("b"), "a", soon), Decision::Wait);
        assert_eq!(decide(Some("b"), "a", late), Decision::Acquire);
    }
}
