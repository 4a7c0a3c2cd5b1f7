//! How each Service stands, for the metrics, and whether what is done for it is a repair.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::account::Account;
use crate::metrics::catalogue::count;
use crate::metrics::{Metrics, OfAsg, OfPlacement, OfService, OfState};
use crate::model::id::{InstanceId, ServiceKey, TargetGroupArn};

/// How a Service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// AWS has all that it asks for.
    Ready,
    /// Something is being waited for.
    Waiting,
    /// Its owner must change it.
    Refused,
    /// It is tried again.
    Failed,
    /// It is being given back.
    Deleting,
}

impl State {
    const ALL: [Self; 5] = [Self::Ready, Self::Waiting, Self::Refused, Self::Failed, Self::Deleting];

    const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

#[derive(Clone, Debug)]
struct Standing {
    service: ServiceKey,
    state: State,
    /// What it asked for when it was ready last.
    settled: Option<u64>,
}

/// All of them, by UID.
#[derive(Debug, Default)]
pub struct Standings(Mutex<BTreeMap<String, Standing>>);

impl Standings {
    /// A Service stands like this. `fingerprint` is that of what it asks for.
    pub fn note(&self, uid: &str, service: &ServiceKey, state: State, fingerprint: u64, metrics: &Metrics) {
        let mut all = self.lock();
        let settled = all.get(uid).and_then(|known| known.settled).filter(|settled| *settled == fingerprint);
        let settled = if state == State::Ready { Some(fingerprint) } else { settled };
        all.insert(uid.to_owned(), Standing { service: service.clone(), state, settled });
        show(&all, metrics);
    }

    /// Forgets Services that are gone.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool, metrics: &Metrics) {
        let mut all = self.lock();
        all.retain(|uid, _| is_there(uid));
        show(&all, metrics);
    }

    /// Whether a Service has been ready with what it asks for now.
    pub fn is_settled(&self, uid: &str, fingerprint: u64) -> bool {
        self.lock().get(uid).is_some_and(|known| known.settled == Some(fingerprint))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Standing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn show(all: &BTreeMap<String, Standing>, metrics: &Metrics) {
    let of = |state: State| all.values().filter(|standing| standing.state == state).count();
    metrics.services.replace(State::ALL.map(|state| (OfState { state: state.name() }, of(state))));
    metrics.service_ready.replace(all.values().map(|standing| {
        let ServiceKey { namespace, name } = &standing.service;
        let labels = OfService { service_namespace: namespace.clone(), service_name: name.clone() };
        (labels, usize::from(standing.state == State::Ready))
    }));
}

/// Measures where targets come from.
pub fn measure(account: &Account) {
    let metrics = account.aws.metrics();
    let now = Instant::now();
    let state = account.state();
    let ours = &state.observed.target_groups;
    let is_ours = |arn: &TargetGroupArn| ours.values().any(|group| group.arn == *arn);
    let workers = || state.workers.values().filter(|worker| worker.eligible);
    let shown = state.observed.asgs.iter().filter(|(_, asg)| {
        workers().any(|worker| worker.instance.as_ref().is_ok_and(|instance| asg.instances.contains(instance)))
            || asg.sources.keys().any(is_ours)
    });
    metrics.slots_used.replace(shown.map(|(name, asg)| {
        (OfAsg { auto_scaling_group: name.as_str().to_owned() }, asg.sources.len() + asg.legacy.len())
    }));
    let attached = ours.values().filter(|group| state.observed.asgs.values().any(|asg| asg.lists(&group.arn))).count();
    metrics.target_groups.replace([
        (OfPlacement { placement: "attached" }, attached),
        (OfPlacement { placement: "direct" }, ours.len() - attached),
    ]);
    metrics.direct_targets.set(count(state.targets.values().map(|targets| targets.direct.len()).sum()));
    metrics.refusing.set(count(state.refusing.values().filter(|refused| refused.until > now).count()));
    metrics.nodes.set(count(workers().count()));
    let is_unfit = |instance: &InstanceId| state.unfit.get(instance).is_some_and(|entry| entry.until > now);
    let unfit = workers().filter(|worker| worker.instance.as_ref().is_ok_and(is_unfit));
    metrics.unfit_nodes.set(count(unfit.count()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_was_ready_is_settled_until_it_is_edited() {
        let (standings, metrics) = (Standings::default(), Metrics::default());
        let order = ServiceKey::new("shop", "order");
        let note = |state, fingerprint| standings.note("u", &order, state, fingerprint, &metrics);
        note(State::Waiting, 1);
        assert!(!standings.is_settled("u", 1));
        note(State::Ready, 1);
        note(State::Failed, 1);
        assert!(standings.is_settled("u", 1) && !standings.is_settled("u", 2));
        let line = "weir_service_ready{service_namespace=\"shop\",service_name=\"order\"} 0";
        assert!(metrics.render().contains(line), "{}", metrics.render());
        note(State::Refused, 2);
        assert!(!standings.is_settled("u", 1));
        standings.retain(|_| false, &metrics);
        assert!(!metrics.render().contains("weir_service_ready{"));
    }
}
