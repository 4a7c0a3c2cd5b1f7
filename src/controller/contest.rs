//! Writes that somebody undoes again and again: two controllers at odds must not write for ever (LBC#2183, LBC#3325).
//!
//! A step that was taken twice within ten minutes and is planned again waits, each time for longer. An edit of the
//! Service ends all that. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::plan::Step;

/// How often a step may be taken before it counts as undone by somebody.
const PATIENCE: u32 = 2;
/// Within this time.
const WINDOW: Duration = Duration::from_mins(10);
/// First wait, which doubles up to [`WINDOW`].
const FIRST_WAIT: Duration = Duration::from_mins(1);

/// Steps that were taken for one owner's wish.
#[derive(Debug)]
struct History {
    fingerprint: u64,
    taken: Vec<Taken>,
}

#[derive(Debug)]
struct Taken {
    step: Step,
    times: u32,
    last: Instant,
}

/// See the module's text. Owners are UIDs of Services.
#[derive(Debug, Default)]
pub struct Contests(BTreeMap<String, History>);

impl Contests {
    /// A step was taken for what the owner wrote.
    pub fn note(&mut self, owner: &str, fingerprint: u64, step: &Step, now: Instant) {
        if !step.is_write() {
            return;
        }
        let history =
            self.0.entry(owner.to_owned()).or_insert_with(|| History { fingerprint, taken: Vec::with_capacity(1) });
        if history.fingerprint != fingerprint {
            *history = History { fingerprint, taken: vec![] };
        }
        history.taken.retain(|taken| now.duration_since(taken.last) <= WINDOW * 2);
        match history.taken.iter_mut().find(|taken| taken.step == *step) {
            Some(taken) => (taken.times, taken.last) = (taken.times + 1, now),
            None => history.taken.push(Taken { step: step.clone(), times: 1, last: now }),
        }
    }

    /// Whether somebody undoes a step, so that it must wait.
    pub fn is_contested(&self, owner: &str, fingerprint: u64, step: &Step, now: Instant) -> bool {
        let history = self.0.get(owner).filter(|history| history.fingerprint == fingerprint);
        let taken = history.and_then(|history| history.taken.iter().find(|taken| taken.step == *step));
        taken.is_some_and(|taken| {
            let beyond = taken.times.checked_sub(PATIENCE);
            let wait = beyond.map(|count| FIRST_WAIT.saturating_mul(2u32.saturating_pow(count)).min(WINDOW));
            wait.is_some_and(|wait| now.duration_since(taken.last) < wait)
        })
    }

    /// An owner is gone.
    pub fn forget(&mut self, owner: &str) {
        self.0.remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str) -> Step {
        Step::DeleteGroup { name: name.into(), because: "a test" }
    }

    fn after(start: Instant, minutes: u64) -> Instant {
        start + Duration::from_mins(minutes)
    }

    #[test]
    fn r32_what_is_undone_twice_waits_for_longer_and_longer() {
        let (mut contests, start) = (Contests::default(), Instant::now());
        let contested = |contests: &Contests, minutes| contests.is_contested("u", 1, &step("a"), after(start, minutes));
        contests.note("u", 1, &step("a"), start);
        assert!(!contested(&contests, 0));
        contests.note("u", 1, &step("a"), start);
        assert!(contested(&contests, 0) && !contested(&contests, 1));
        contests.note("u", 1, &step("a"), after(start, 1));
        assert!(contested(&contests, 2) && !contested(&contests, 3));
        for minutes in 2..40 {
            contests.note("u", 1, &step("a"), after(start, minutes));
        }
        assert!(contested(&contests, 48) && !contested(&contests, 49), "ten minutes are the most");
    }

    #[test]
    fn other_steps_other_owners_and_edits_are_not_held_up() {
        let (mut contests, now) = (Contests::default(), Instant::now());
        for _ in 0..2 {
            contests.note("u", 1, &step("a"), now);
        }
        assert!(contests.is_contested("u", 1, &step("a"), now));
        assert!(!contests.is_contested("u", 1, &step("b"), now));
        assert!(!contests.is_contested("v", 1, &step("a"), now));
        assert!(!contests.is_contested("u", 2, &step("a"), now));
        contests.note("u", 2, &step("b"), now);
        assert!(!contests.is_contested("u", 1, &step("a"), now));
    }

    #[test]
    fn peace_for_a_while_ends_it() {
        let (mut contests, start) = (Contests::default(), Instant::now());
        for _ in 0..2 {
            contests.note("u", 1, &step("a"), start);
        }
        contests.note("u", 1, &step("b"), after(start, 21));
        contests.note("u", 1, &step("a"), after(start, 21));
        assert!(!contests.is_contested("u", 1, &step("a"), after(start, 21)));
    }
}
