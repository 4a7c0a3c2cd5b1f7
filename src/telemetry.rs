//! The log, and traces beside it.

pub mod otlp;

use std::error::Error;
use std::fmt::Write as _;

use anyhow::Context;
use tracing_subscriber::filter::FilterExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use self::otlp::Traces;
use crate::settings::{Log, LogFormat};

/// Starts logging to standard error, and traces if they are asked for: call it inside the runtime, which sends them.
/// What is said about one Service carries it in `span`, with the reason for the work. The SDKs speak at debug level and
/// are quiet unless asked for by name.
///
/// # Errors
/// If the filter is not one, or the environment has settings of OTLP that cannot be met.
pub fn start(settings: &Log) -> anyhow::Result<Traces> {
    let filter = EnvFilter::try_new(&settings.log).with_context(|| {
        format!("--log: {:?} is no log filter; expected a level or directives such as info,weir=debug", settings.log)
    })?;
    // It would complain on standard error of a standard error that cannot be written to, and panic.
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let log = match settings.log_format {
        LogFormat::Json => log.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
        LogFormat::Text => log.boxed(),
    };
    let mut layers = vec![log.with_filter(filter.and(otlp::not_only_for_traces())).boxed()];
    let traces = match &settings.otlp_endpoint {
        None => Traces::default(),
        Some(endpoint) => {
            let traces = Traces::to(endpoint).context("--otlp-endpoint: cannot send traces")?;
            layers.extend(traces.layer());
            traces
        }
    };
    tracing_subscriber::registry().with(layers).init();
    Ok(traces)
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
