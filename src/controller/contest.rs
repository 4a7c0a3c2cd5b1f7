//! Writes that somebody undoes again and again: two controllers at odds must not write for ever (LBC#2183, LBC#3325).
//!
//! A step that was taken twice within ten minutes and is planned again waits, each time for longer, until ten minutes
//! have passed in which it might have been taken and need not have been. An edit of the Service ends all that. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::plan::Step;

/// How often a step may be taken before it counts as undone by somebody.
const PATIENCE: u32 = 2;
/// Within this time.
const WINDOW: Duration = Duration::from_mins(10);
/// First wait, which doubles up to [`WINDOW`].
const FIRST_WAIT: Duration = Duration::from_mins(1);

/// Owner of the rules in the groups of the nodes, which all Services share. It is no UID.
pub const SHARED: &str = "shared";

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

impl Taken {
    /// How long it waits after it was taken.
    fn wait(&self) -> Duration {
        let beyond = self.times.checked_sub(PATIENCE);
        beyond.map_or(Duration::ZERO, |count| FIRST_WAIT.saturating_mul(2u32.saturating_pow(count)).min(WINDOW))
    }
}

/// See the module's text. Owners are UIDs of Services, or [`SHARED`].
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
        history.taken.retain(|taken| now.duration_since(taken.last) <= taken.wait() + WINDOW);
        match history.taken.iter_mut().find(|taken| taken.step == *step) {
            Some(taken) => (taken.times, taken.last) = (taken.times + 1, now),
            None => history.taken.push(Taken { step: step.clone(), times: 1, last: now }),
        }
    }

    /// Whether somebody undoes a step, so that it must wait.
    pub fn is_contested(&self, owner: &str, fingerprint: u64, step: &Step, now: Instant) -> bool {
        let history = self.0.get(owner).filter(|history| history.fingerprint == fingerprint);
        let taken = history.and_then(|history| history.taken.iter().find(|taken| taken.step == *step));
        taken.is_some_and(|taken| now.duration_since(taken.last) < taken.wait())
    }

    /// Takes the steps that must wait out of a plan. Returns a sentence about each.
    pub fn hold(&self, owner: &str, fingerprint: u64, steps: &mut Vec<Step>, now: Instant) -> BTreeSet<String> {
        let held = steps.extract_if(.., |step| self.is_contested(owner, fingerprint, step, now));
        let edit = if owner == SHARED { "" } else { ", and when the Service is edited" };
        let note = |step: Step| {
            format!(
                "{step}: somebody has undone this twice within 10 minutes; another controller may manage it too. It is \
                 tried again at growing intervals{edit}"
            )
        };
        held.map(note).collect()
    }

    /// An owner is gone.
    pub fn forget(&mut self, owner: &str) {
        self.0.remove(owner);
    }

    /// Forgets all Services but those with these UIDs.
    pub fn retain(&mut self, uids: &BTreeSet<String>) {
        self.0.retain(|owner, _| owner == SHARED || uids.contains(owner));
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
    fn what_is_taken_more_seldom_than_every_ten_minutes_is_not_contested() {
        let (mut contests, start) = (Contests::default(), Instant::now());
        for times in 0..5 {
            let now = after(start, 11 * times);
            assert!(!contests.is_contested("u", 1, &step("a"), now));
            contests.note("u", 1, &step("a"), now);
        }
        assert!(!contests.is_contested("u", 1, &step("a"), after(start, 44)));
        contests.note("u", 1, &step("a"), after(start, 54));
        assert!(contests.is_contested("u", 1, &step("a"), after(start, 54)));
        // One minute of waiting is no time of peace.
        contests.note("u", 1, &step("a"), after(start, 65));
        assert!(contests.is_contested("u", 1, &step("a"), after(start, 66)), "two minutes by now");
    }

    #[test]
    fn what_waits_is_taken_out_of_the_plan_with_a_sentence() {
        let (mut contests, now) = (Contests::default(), Instant::now());
        for _ in 0..2 {
            contests.note(SHARED, 0, &step("a"), now);
        }
        let mut steps = vec![step("a"), step("b")];
        let notes = contests.hold(SHARED, 0, &mut steps, now);
        assert_eq!(steps, [step("b")]);
        let words = format!("{}: somebody has undone this twice within 10 minutes", step("a"));
        assert!(notes.len() == 1 && notes.iter().all(|note| note.starts_with(&words)), "{notes:?}");
    }

    #[test]
    fn services_that_are_gone_are_forgotten_and_what_all_share_is_not() {
        let (mut contests, now) = (Contests::default(), Instant::now());
        for owner in ["u", "v", SHARED, "u", "v", SHARED] {
            contests.note(owner, 0, &step("a"), now);
        }
        contests.retain(&["u".to_owned()].into());
        let contested = ["u", "v", SHARED].map(|owner| contests.is_contested(owner, 0, &step("a"), now));
        assert_eq!(contested, [true, false, true]);
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
