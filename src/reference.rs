//! The pages of `docs` that are written from the code: flags, metrics, Events.
//!
//! `WEIR_REWRITE_GOLDEN=1 cargo test --lib reference` writes them anew; what has changed in them is to be read.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use clap::{Arg, Command, CommandFactory as _};

use crate::cluster::reason::Reason;
use crate::metrics::Metrics;
use crate::node::metrics::NodeMetrics;
use crate::settings::Cli;

const REWRITE: &str = "WEIR_REWRITE_GOLDEN";
/// Between the two, a page is written from the code; around them it is written by hand.
const MARKS: [&str; 2] = ["<!-- from the code: begin -->\n", "<!-- from the code: end -->\n"];

/// Asserts that the parts of a page between the marks are these, or makes them so.
fn check(page: &str, parts: &[String]) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    let text = fs::read_to_string(&file).unwrap();
    let [begin, end] = MARKS;
    let mut pieces = text.split(begin);
    let mut now = pieces.next().unwrap().to_owned();
    let mut parts = parts.iter();
    for piece in pieces {
        let (_, rest) = piece.split_once(end).unwrap();
        let part = parts.next().expect("a part for each pair of marks");
        write!(now, "{begin}{part}{end}{rest}").unwrap();
    }
    assert_eq!(parts.next(), None, "{page} lacks a pair of marks");
    if std::env::var_os(REWRITE).is_some() {
        fs::write(&file, &now).unwrap();
    }
    let known = fs::read_to_string(&file).unwrap();
    let changed = known.lines().zip(now.lines()).find(|(known, now)| known != now);
    assert!(known == now, "{page}: set {REWRITE} if the code is right. First of what has changed: {changed:#?}");
}

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "\\<").replace('\n', " ")
}

fn flag(arg: &Arg) -> String {
    let Some(long) = arg.get_long() else { return format!("`{}`", arg.get_id()) };
    let value = arg.get_num_args().is_some_and(|range| range.takes_values());
    format!("`--{long}{}`", if value { "=…" } else { "" })
}

fn default_of(arg: &Arg) -> String {
    if !arg.get_action().takes_values() {
        return "off".to_owned();
    }
    let values: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    match values.join(",") {
        none if none.is_empty() && arg.is_required_set() => "required".to_owned(),
        none if none.is_empty() => String::new(),
        value => format!("`{value}`"),
    }
}

fn flags(command: &Command) -> String {
    let mut text = String::from("| Flag | Environment | Default | Meaning |\n|---|---|---|---|\n");
    let shown = |arg: &&Arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str());
    for arg in command.get_arguments().filter(shown) {
        let environment = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
        let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let values: Vec<_> = arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
        if !values.is_empty() && arg.get_action().takes_values() {
            write!(help, ". One of {}", values.join(", ")).unwrap();
        }
        writeln!(text, "| {} | {environment} | {} | {} |", flag(arg), default_of(arg), cell(&help)).unwrap();
    }
    text
}

/// Every command that does something, with the words that call it.
fn commands(command: &Command, words: &str, found: &mut Vec<String>) {
    let words = format!("{words} {}", command.get_name()).trim().to_owned();
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    if command.get_subcommands().next().is_none() || command.get_arguments().count() > 2 {
        found.push(format!("## `{words}`\n\n{about}\n\n{}\n", flags(command)));
    }
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        commands(inner, &words, found);
    }
}

#[test]
fn flags_are_as_the_page_says() {
    let mut found = vec![];
    commands(&Cli::command(), "", &mut found);
    check("flags.md", &[found.concat()]);
}

#[test]
fn metrics_are_as_the_page_says() {
    check("metrics.md", &[Metrics::default().table(), NodeMetrics::default().table()]);
}

#[test]
fn events_are_as_the_page_says() {
    let mut text = String::from("| Reason | About | Type | Meaning |\n|---|---|---|---|\n");
    for reason in Reason::ALL {
        let (about, kind, meaning) = reason.meaning();
        writeln!(text, "| `{}` | {about} | {kind} | {} |", reason.name(), cell(meaning)).unwrap();
    }
    check("events.md", &[text]);
}
