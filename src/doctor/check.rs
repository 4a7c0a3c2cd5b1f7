//! What a check is, and how findings are put in order: the worst first, and of two the cause first.

use serde::Serialize;

use super::facts::Unseen;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// It works, but less well than it could, or not for long.
    Warning,
    /// Something does not work.
    Error,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// How bad it is by itself.
    pub severity: Severity,
    /// What is wrong, with names.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// Checks whose findings may be nothing but its consequence.
    pub explains: &'static [&'static str],
}

impl Found {
    /// Something does not work.
    pub fn error(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Error, what: what.into(), remedy: remedy.into(), explains: &[] }
    }

    /// Something works less well than it could.
    pub fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(what, remedy) }
    }

    /// Something good to know.
    pub fn note(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::error(what, remedy) }
    }

    /// With what may follow from it.
    #[must_use]
    pub const fn explaining(mut self, explains: &'static [&'static str]) -> Self {
        self.explains = explains;
        self
    }
}

/// What a check says: its findings, or why it could not look.
pub type Verdict = Result<Vec<Found>, Unseen>;

/// One question, asked of facts of one kind.
#[derive(Debug)]
pub struct Check<F: 'static> {
    /// Its name in documentation and scripts.
    pub id: &'static str,
    /// What it finds, in a few words.
    pub title: &'static str,
    /// Why that matters.
    pub why: &'static str,
    /// Looks.
    pub look: fn(&F) -> Verdict,
}

/// A finding in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The check's id.
    pub id: &'static str,
    /// How bad it is: as bad as what follows from it.
    pub severity: Severity,
    /// The check's title.
    pub title: &'static str,
    /// What is wrong.
    pub finding: String,
    /// Why that matters.
    pub why: &'static str,
    /// What to do.
    pub remedy: String,
    /// Ids of earlier findings of which this may be nothing but the consequence.
    pub follows_from: Vec<&'static str>,
    #[serde(skip)]
    explains: &'static [&'static str],
}

/// A check that could not look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The check's id.
    pub id: &'static str,
    /// Why.
    pub reason: String,
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The worst first, of two the cause first.
    pub findings: Vec<Finding>,
    /// Ids of checks that found nothing.
    pub fine: Vec<&'static str>,
    /// Checks that could not look.
    pub not_looked_at: Vec<Skipped>,
}

impl Report {
    /// How many findings are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

/// Asks every check. They come in the order of causes.
pub fn examine<F>(checks: &[&'static Check<F>], facts: &F) -> Report {
    let mut report = Report::default();
    for check in checks {
        match (check.look)(facts) {
            Ok(found) if found.is_empty() => report.fine.push(check.id),
            Ok(found) => report.findings.extend(found.into_iter().map(|found| Finding {
                id: check.id,
                severity: found.severity,
                title: check.title,
                finding: found.what,
                why: check.why,
                remedy: found.remedy,
                follows_from: vec![],
                explains: found.explains,
            })),
            Err(Unseen(reason)) => report.not_looked_at.push(Skipped { id: check.id, reason }),
        }
    }
    relate(&mut report.findings);
    // Stable: causes stay before what follows from them.
    report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    report
}

/// Names the causes of each finding, and makes each cause as bad as the worst of what follows from it.
fn relate(findings: &mut [Finding]) {
    for cause in (0..findings.len()).rev() {
        let (causes, later) = findings.split_at_mut(cause + 1);
        let Some(cause) = causes.last_mut() else { continue };
        for effect in later.iter_mut().filter(|effect| cause.explains.contains(&effect.id)) {
            cause.severity = cause.severity.max(effect.severity);
            if !effect.follows_from.contains(&cause.id) {
                effect.follows_from.insert(0, cause.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Facts are what each check shall say, in order.
    type Verdicts = Vec<Verdict>;

    fn nth<const N: usize>(verdicts: &Verdicts) -> Verdict {
        verdicts[N].clone()
    }

    const fn check(id: &'static str, look: fn(&Verdicts) -> Verdict) -> Check<Verdicts> {
        Check { id, title: "", why: "", look }
    }

    static CHECKS: [Check<Verdicts>; 4] =
        [check("other", nth::<0>), check("root", nth::<1>), check("middle", nth::<2>), check("end", nth::<3>)];

    fn report(verdicts: [Verdict; 4]) -> Report {
        examine(&CHECKS.iter().collect::<Vec<_>>(), &verdicts.into())
    }

    fn order(report: &Report) -> Vec<(&'static str, Severity)> {
        report.findings.iter().map(|each| (each.id, each.severity)).collect()
    }

    fn root() -> Found {
        Found::note("a note", "").explaining(&["middle"])
    }

    fn middle() -> Found {
        Found::warning("a warning", "").explaining(&["end"])
    }

    #[test]
    fn a_cause_is_as_bad_as_what_follows_from_it_and_comes_first() {
        let end = Found::error("an error", "");
        let other = Found::warning("a warning", "");
        let report = report([Ok(vec![other]), Ok(vec![root()]), Ok(vec![middle()]), Ok(vec![end])]);
        let (error, warning) = (Severity::Error, Severity::Warning);
        assert_eq!(order(&report), [("root", error), ("middle", error), ("end", error), ("other", warning)]);
        assert_eq!(report.findings[1].follows_from, ["root"]);
        assert_eq!(report.findings[2].follows_from, ["middle"]);
    }

    #[test]
    fn what_explains_nothing_that_was_found_stays_as_bad_as_it_is() {
        let dark = Err(Unseen("it is dark".into()));
        let report = report([Ok(vec![]), Ok(vec![root()]), Ok(vec![middle()]), dark]);
        assert_eq!(order(&report), [("root", Severity::Warning), ("middle", Severity::Warning)]);
        assert_eq!(report.fine, ["other"]);
        assert_eq!(report.not_looked_at, [Skipped { id: "end", reason: "it is dark".into() }]);
    }
}
