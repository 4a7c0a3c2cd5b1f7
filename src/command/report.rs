//! What a command found out, as one value that is written for people or for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::controller::rehearsal::{Act, Change, Kind};

/// One line of what would be, or was, done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What it does to AWS.
    pub kind: Kind,
    /// In words.
    pub text: String,
    /// What is changed, or how what is made differs from what it takes the place of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

impl Line {
    /// Of an act, with its texts as they are to be shown.
    pub fn of(act: &Act, shown: impl Fn(&str) -> String) -> Self {
        let changes = match act {
            Act::Take { changes, .. } => changes.clone(),
            _ => vec![],
        };
        let show = |side: Option<String>| side.map(|text| shown(&text));
        let changes = changes.into_iter().map(|change| Change {
            what: change.what,
            from: show(change.from),
            to: show(change.to),
        });
        Self { kind: act.kind(), text: shown(&act.to_string()), changes: changes.collect() }
    }
}

/// Lines of acts that need no cover.
pub fn lines(acts: &[Act]) -> Vec<Line> {
    acts.iter().map(|act| Line::of(act, str::to_owned)).collect()
}

/// Whether any of these lines changes AWS.
pub fn writes(lines: &[Line]) -> bool {
    lines.iter().any(|line| line.kind != Kind::Wait)
}

/// Writes lines for people, each with its sign.
pub fn write_lines(text: &mut String, lines: &[Line]) {
    for line in lines {
        let sign = match line.kind {
            Kind::Create => '+',
            Kind::Change => '~',
            Kind::Delete => '-',
            Kind::Wait => '.',
        };
        write_line(text, sign, &line.text);
    }
}

/// Writes one line under a heading.
pub fn write_line(text: &mut String, sign: char, line: &str) {
    // Writing into a String does not fail.
    let _ = writeln!(text, "  {sign} {line}");
}
