//! The log.

use std::error::Error;
use std::fmt::Write as _;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::settings::{Log, LogFormat};

/// Starts logging to standard error. What is said about one Service carries it in `span`, with the reason for the work. The SDKs speak at debug level and are quiet unless asked for by name.
///
/// # Errors
/// If the filter is not one.
pub fn start(settings: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log).with_context(|| {
        format!("--log: {:?} is no log filter; expected a level or directives such as info,weir=debug", settings.log)
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // It would complain on standard error of a standard error that cannot be written to, and panic.
    let log = log.log_internal_errors(false);
    match settings.log_format {
        LogFormat::Json => log.json().flatten_event(true).with_current_span(true).with_span_list(false).init(),
        LogFormat::Text => log.init(),
    }
    Ok(())
}

/// An error with everything that caused it, in one line: the JSON form of the log would show the first link only.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut link = error.source();
    while let Some(source) = link {
        // Writing into a String does not fail.
        let _ = write!(text, ": {source}");
        link = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_told() {
        let error = anyhow::anyhow!("third").context("second").context("first");
        assert_eq!(chain(error.as_ref()), "first: second: third");
    }
}
