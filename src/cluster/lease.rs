//! Leadership by a Lease: pure [`decide`], the thin loop that keeps it, and the [`Claim`] that writes look at.
//!
//! The claim ends here before it ends for others: its deadline is counted from before the write that renewed it, by the
//! monotonic clock. Writes compare it with that clock themselves, one by one, so that a process that was stopped for a
//! while, and nothing in it has taken note yet, writes nothing when it goes on. Others take over only after they have
//! watched an unchanged Lease for its whole duration by their own clock, so skewed clocks do no harm.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::Health;
use crate::telemetry::chain;

/// How long a leader that is not heard of stays leader.
const DURATION: Duration = Duration::from_secs(15);
/// The leader gives up this long before others may take over. A call that was let go just before then has this long to
/// reach AWS: connecting takes 3.1 seconds at most (the SDK's time-out).
const MARGIN: Duration = Duration::from_secs(5);
/// Time between two looks at the Lease.
const PERIOD: Duration = Duration::from_secs(2);
/// Name of the Lease.
pub const NAME: &str = "weir-controller";
/// What keeps us from the Lease is said again after this time, if it has not changed.
const REMINDER: Duration = Duration::from_mins(1);

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

/// Until when this process may write, for whoever is about to. `None`: it does not lead.
#[derive(Clone, Debug)]
pub struct Claim(watch::Receiver<Option<Until>>);

/// How long a claim holds.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// As long as the process lives.
    End,
    /// Up to this moment.
    At(Instant),
}

impl Claim {
    /// That of a process which needs no Lease.
    pub fn unlimited() -> Self {
        // A value stays readable without its sender.
        Self(watch::channel(Some(Until::End)).1)
    }

    /// That of a process which only looks.
    pub fn none() -> Self {
        Self(watch::channel(None).1)
    }

    /// One that holds for as long as the channel says.
    pub const fn following(channel: watch::Receiver<Option<Until>>) -> Self {
        Self(channel)
    }

    /// Whether it holds at this moment.
    pub fn holds(&self) -> bool {
        match *self.0.borrow() {
            None => false,
            Some(Until::End) => true,
            Some(Until::At(deadline)) => Instant::now() < deadline,
        }
    }

    /// Waits until it holds. Never returns if nobody can make it hold any more.
    pub async fn won(&self) {
        if self.0.clone().wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// This process's part in the election of a leader.
#[derive(Debug)]
pub struct Candidate {
    claim: Claim,
    task: Option<JoinHandle<()>>,
    let_go: CancellationToken,
}

impl Candidate {
    /// The only one, who leads from the start.
    pub fn alone() -> Self {
        Self { claim: Claim::unlimited(), task: None, let_go: CancellationToken::new() }
    }

    /// One of several, who follows the Lease in this namespace from now on. Standing by is being ready: `health` says so
    /// once the Lease can be read. `instance` is for people, who look at the Lease to see which pod leads.
    pub fn stand(client: kube::Client, namespace: String, instance: &str, health: Health) -> Self {
        let (sender, receiver) = watch::channel(None);
        let let_go = CancellationToken::new();
        // The host's name and the process's number are the same for two pods in the network of one host, and for a
        // container and the one that follows it.
        let identity = format!("{instance}_{:016x}", RandomState::new().hash_one(std::process::id()));
        let lease = Election { namespace, identity, claim: sender, health, seen: None, told: None };
        let task = tokio::spawn(lease.follow(client, let_go.clone()));
        Self { claim: Claim(receiver), task: Some(task), let_go }
    }

    /// What writes look at.
    pub fn claim(&self) -> Claim {
        self.claim.clone()
    }

    /// Returns when leadership is lost for good. Never if it cannot be.
    pub async fn lost(&mut self) {
        match &mut self.task {
            // A panic of the task is a loss too.
            Some(task) => drop(task.await),
            None => std::future::pending().await,
        }
    }

    /// Gives the Lease back, so that another replica need not wait for its end.
    pub async fn resign(self) {
        self.let_go.cancel();
        if let Some(task) = self.task {
            // What cannot be given back runs out.
            let _ = tokio::time::timeout(PERIOD * 4, task).await;
        }
    }
}

/// Follows the Lease, and keeps the claim.
struct Election {
    namespace: String,
    identity: String,
    claim: watch::Sender<Option<Until>>,
    health: Health,
    /// Version of the Lease that was seen last, and since when.
    seen: Option<(Option<String>, Instant)>,
    /// What was said last about what keeps us from the Lease, and when.
    told: Option<(String, Instant)>,
}

/// What a look at the Lease came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// We hold it, for its whole duration from the beginning of the look on.
    Ours,
    /// Somebody else holds it.
    Others,
    /// It was changed under our hands: by somebody else, or by a write of ours whose answer was lost. The next look tells.
    Changed,
}

impl Election {
    /// Returns when leadership is lost for good, or on request, after giving the Lease back.
    async fn follow(mut self, client: kube::Client, let_go: CancellationToken) {
        let api: Api<Lease> = Api::namespaced(client, &self.namespace);
        let mut deadline: Option<Instant> = None;
        loop {
            let began = Instant::now();
            // Somebody else may have led meanwhile, and what we know of AWS may be old.
            if deadline.is_some_and(|deadline| deadline <= began) {
                break;
            }
            match tokio::time::timeout(PERIOD * 2, self.step(&api)).await {
                Ok(Ok(Look::Ours)) => {
                    let until = began + DURATION - MARGIN;
                    self.reached();
                    self.claim.send_replace(Some(Until::At(until)));
                    if deadline.replace(until).is_none() {
                        tracing::info!(identity = self.identity, namespace = self.namespace, "became leader");
                    }
                }
                Ok(Ok(Look::Others)) if deadline.is_some() => break,
                Ok(Ok(Look::Others | Look::Changed)) => self.reached(),
                Ok(Err(error)) => self.complain(&self.sentence(&error)),
                Err(_) => self.complain("the API server does not answer"),
            }
            let expires = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = let_go.cancelled() => {
                    if self.claim.send_replace(None).is_some() {
                        release(&api, &self.identity).await;
                    }
                    return;
                }
                () = expires => break,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
        self.claim.send_replace(None);
    }

    /// One look at the Lease, and a write if it is ours to make.
    async fn step(&mut self, api: &Api<Lease>) -> kube::Result<Look> {
        let me = &self.identity;
        let Some(lease) = api.get_opt(NAME).await? else {
            let spec = spec(me, 0, MicroTime(Timestamp::now()));
            let lease =
                Lease { metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() }, spec: Some(spec) };
            return written(api.create(&PostParams::default(), &lease).await.map(drop));
        };
        let version = lease.metadata.resource_version.clone();
        let since = match &self.seen {
            Some((known, since)) if *known == version => *since,
            _ => self.seen.insert((version, Instant::now())).1,
        };
        let known = lease.spec.clone().unwrap_or_default();
        let (transitions, acquired) = (known.lease_transitions.unwrap_or_default(), known.acquire_time);
        let now = MicroTime(Timestamp::now());
        let spec = match decide(known.holder_identity.as_deref(), me, since.elapsed()) {
            Decision::Wait => return Ok(Look::Others),
            Decision::Renew => spec(me, transitions, acquired.unwrap_or(now)),
            Decision::Acquire => spec(me, transitions + 1, now),
        };
        // The resource version in it makes the write fail if somebody was faster.
        written(api.replace(NAME, &PostParams::default(), &Lease { spec: Some(spec), ..lease }).await.map(drop))
    }

    fn sentence(&self, error: &kube::Error) -> String {
        match error {
            kube::Error::Api(status) if status.code == 404 => format!(
                "the namespace {} does not exist: make it, or name another one by --namespace ({})",
                self.namespace, status.message
            ),
            error => chain(error),
        }
    }

    /// The Lease can be read.
    fn reached(&mut self) {
        if self.told.take().is_some() {
            tracing::info!(namespace = self.namespace, "the Lease is in reach again");
        }
        if self.claim.borrow().is_none() {
            self.health.set_ready(true);
        }
    }

    /// Says what keeps us from the Lease: once, and again after a while.
    fn complain(&mut self, error: &str) {
        let is_old = |(said, when): &(String, Instant)| said == error && when.elapsed() < REMINDER;
        if self.told.as_ref().is_none_or(|told| !is_old(told)) {
            tracing::warn!(namespace = self.namespace, error, "cannot read or renew the Lease {NAME}");
            self.told = Some((error.to_owned(), Instant::now()));
        }
    }
}

/// Who holds the Lease, going by the times in it and this process's clock: for people, not for a decision to write.
///
/// # Errors
/// As of the API server.
pub async fn holder(client: &kube::Client, namespace: &str, now: Timestamp) -> kube::Result<Option<String>> {
    let lease = Api::<Lease>::namespaced(client.clone(), namespace).get_opt(NAME).await?;
    Ok(lease.and_then(|lease| live_holder(lease.spec?, now)))
}

fn live_holder(spec: LeaseSpec, now: Timestamp) -> Option<String> {
    let renewed = spec.renew_time?.0;
    let is_live = now.duration_since(renewed) < SignedDuration::try_from(DURATION).ok()?;
    spec.holder_identity.filter(|holder| is_live && !holder.is_empty())
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

fn written(answer: kube::Result<()>) -> kube::Result<Look> {
    match answer {
        Ok(()) => Ok(Look::Ours),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Look::Changed),
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
    fn a_claim_ends_by_the_clock_although_nobody_takes_it_back() {
        let (sender, receiver) = watch::channel(None);
        let claim = Claim(receiver);
        assert!(!claim.holds());
        let deadline = Instant::now() + Duration::from_millis(200);
        sender.send_replace(Some(Until::At(deadline)));
        assert!(claim.holds());
        std::thread::sleep(Duration::from_millis(201));
        assert!(!claim.holds());
        assert!(Claim::unlimited().holds());
    }

    #[test]
    fn a_lease_that_ran_out_or_was_given_back_is_nobodys() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let held = |by: &str| spec(by, 0, MicroTime(at(0)));
        let held = |by: &str| LeaseSpec { renew_time: Some(MicroTime(at(100))), ..held(by) };
        assert_eq!(live_holder(held("a"), at(110)), Some("a".into()));
        assert_eq!(live_holder(held("a"), at(90)), Some("a".into()), "a clock that is ahead");
        assert_eq!(live_holder(held("a"), at(115)), None);
        assert_eq!(live_holder(held(""), at(110)), None);
    }

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
