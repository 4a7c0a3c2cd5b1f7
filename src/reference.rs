//! The pages of `docs` that are written from the code: flags, metrics, Events, annotations.
//!
//! `WEIR_REWRITE_GOLDEN=1 cargo test --lib reference` writes them anew; what has changed in them is to be read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use clap::{Arg, Command, CommandFactory as _};

use crate::cluster::reason::Reason;
use crate::metrics::Metrics;
use crate::model::annotation::{Answer, Change, TABLE, TYPE};
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

const PREFIX: &str = "service.beta.kubernetes.io/";

/// Files below a folder of the repository whose names end so, with their texts, by path.
fn sources(folder: &str, end: &str) -> BTreeMap<String, String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut open) = (BTreeMap::new(), vec![root.join(folder)]);
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.to_string_lossy().ends_with(end) {
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            found.insert(name, fs::read_to_string(path).unwrap());
        }
    }
    found
}

/// The constant that stands for a key in the code, if there is one.
fn constant<'a>(table: &'a str, key: &str) -> Option<&'a str> {
    let short = key.strip_prefix(PREFIX)?;
    let line = table.lines().find(|line| line.ends_with(&format!(": &str = key!(\"{short}\");")))?;
    line.strip_prefix("pub const ")?.split(':').next()
}

/// Paths of the files that have one of these words, as a cell.
fn with_one_of(files: &BTreeMap<String, String>, words: &[String]) -> String {
    let found = files.iter().filter(|(_, text)| words.iter().any(|word| text.contains(word)));
    found.map(|(path, _)| format!("`{path}`")).collect::<Vec<_>>().join(" ")
}

/// How a test in Python names a key that it tries out. The word alone would not do: `"name"` is in every second file.
const TRIALS: [&str; 6] = ["Row(\"", "Mistake(\"", "mistaken(\"", "attribute(\"", "annotated(\"", "ANNOTATION + \""];

fn annotations() -> String {
    let code = sources("src/model", ".rs");
    let table = &code["src/model/annotation/table.rs"];
    let (tests, mut parsers): (BTreeMap<_, _>, BTreeMap<_, _>) =
        code.clone().into_iter().partition(|(path, _)| path.ends_with("tests.rs"));
    parsers.retain(|path, _| path.starts_with("src/model/service"));
    let mut tests = tests;
    tests.extend(sources("tests", ".py").into_iter().filter(|(path, _)| path.starts_with("tests/test_")));
    let mut text = String::from(
        "| Annotation | Value | Default | AWS | On a change | Answer | Parsed by | Tried out by |\n|---|---|---|---|---|---|---|---|\n",
    );
    for row in TABLE {
        let short = row.key.strip_prefix(PREFIX).unwrap();
        let shorter = short.strip_prefix("aws-load-balancer-").unwrap_or(short);
        let name = constant(table, row.key);
        let of_code: Vec<_> = name.iter().map(|name| format!("annotation::{name}")).collect();
        let mut of_tests = of_code.clone();
        // A family's key goes on.
        let end = if row.key.ends_with('.') { "" } else { "\"" };
        of_tests.extend(TRIALS.map(|trial| format!("{trial}{shorter}{end}")));
        of_tests.push(format!("{{ANNOTATION}}{shorter}:"));
        of_tests.push(format!("\"{}\"", row.key));
        let (mut parsed, mut tried) = (with_one_of(&parsers, &of_code), with_one_of(&tests, &of_tests));
        if matches!(row.answer, Answer::Ignored(_)) || row.key == TYPE {
            // By the code that warns of them, and by its test of all of them.
            for cell in [&mut parsed, &mut tried] {
                *cell = "`src/model/annotation.rs`".to_owned();
            }
        }
        assert!(!parsed.is_empty() && !tried.is_empty(), "{}: parsed by {parsed:?}, tried out by {tried:?}", row.key);
        let answer = match row.answer {
            Answer::Honoured => "honoured".to_owned(),
            Answer::Refused => "refused, if it asks for more than the default".to_owned(),
            Answer::Ignored(why) => format!("ignored with a warning: it {why}"),
        };
        let change = match row.change {
            Change::InPlace => "in place",
            Change::Listener => "the listener, in place",
            Change::TargetGroup => "a new target group takes over",
            Change::Replace => "another load balancer takes over, with another name",
            Change::Never => "refused; what runs stays",
            Change::Nothing => "none",
        };
        let (value, default, effect) = (cell(row.value), cell(row.default), cell(row.effect));
        writeln!(text, "| `{short}` | {value} | {default} | {effect} | {change} | {answer} | {parsed} | {tried} |")
            .unwrap();
    }
    text
}

#[test]
fn annotations_are_as_the_table_has_them() {
    check("annotations.md", &[annotations()]);
}
