//! `weir doctor`: gathers, examines, prints.

use anyhow::bail;

use super::answer;
use super::settings::{Doctor, DoctorScope, Output};
use crate::doctor::check::{Report, Severity, examine};
use crate::doctor::{cluster_checks, gather, node_checks, print};

/// Looks, and prints what was found.
///
/// # Errors
/// Errors were found, how many. What cannot be looked at is no error: the report says so.
pub async fn run(settings: Doctor) -> anyhow::Result<()> {
    let report = match &settings.scope {
        None => examine(&cluster_checks(), &gather::cluster(&settings.place, settings.patience).await),
        Some(DoctorScope::Node(node)) => examine(&node_checks(), &gather::node(node).await),
    };
    let text = match settings.output {
        Output::Text => print::text(&report),
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    answer(&text)?;
    conclude(&report)
}

/// The exit code of scripts.
fn conclude(report: &Report) -> anyhow::Result<()> {
    match report.count(Severity::Error) {
        0 => Ok(()),
        1 => bail!("1 error was found"),
        errors => bail!("{errors} errors were found"),
    }
}
