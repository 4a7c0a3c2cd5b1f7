//! Pure: a report as text.

use std::fmt::Write as _;

use super::check::{Report, Severity};

/// A report for people.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let word = match finding.severity {
            Severity::Error => "ERROR",
            Severity::Warning => "WARNING",
            Severity::Note => "NOTE",
        };
        // Writing into a String does not fail.
        let _ = writeln!(text, "{word}  {}: {}", finding.id, finding.title);
        let _ = writeln!(text, "  {}", finding.finding);
        if !finding.follows_from.is_empty() {
            let _ = writeln!(text, "  May follow from: {}", finding.follows_from.join(", "));
        }
        let _ = writeln!(text, "  Why it matters: {}", finding.why);
        let _ = writeln!(text, "  What to do: {}\n", finding.remedy);
    }
    let count = |severity, one: &str| {
        let number = report.count(severity);
        format!("{number} {one}{}", if number == 1 { "" } else { "s" })
    };
    let counts = [count(Severity::Error, "error"), count(Severity::Warning, "warning"), count(Severity::Note, "note")]
        .join(", ");
    let _ = writeln!(text, "{counts}; {} checks found nothing.", report.fine.len());
    if !report.not_looked_at.is_empty() {
        let _ = writeln!(text, "Could not be looked at:");
        for (reason, ids) in by_reason(report) {
            let _ = writeln!(text, "  {}: {reason}", ids.join(", "));
        }
    }
    text
}

/// Checks that could not look, together where they lack the same.
fn by_reason(report: &Report) -> Vec<(&str, Vec<&'static str>)> {
    let mut reasons: Vec<(&str, Vec<&'static str>)> = vec![];
    for skipped in &report.not_looked_at {
        match reasons.iter_mut().find(|(reason, _)| *reason == skipped.reason) {
            Some((_, ids)) => ids.push(skipped.id),
            None => reasons.push((&skipped.reason, vec![skipped.id])),
        }
    }
    reasons
}
