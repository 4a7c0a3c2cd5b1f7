//! What both roles do as processes.

use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

/// Work under way gets this long to end when the process is to end.
const GRACE: Duration = Duration::from_secs(20);

/// Asks for the end at SIGTERM or SIGINT, and ends the process if that takes too long.
///
/// # Errors
/// The system gives no signals.
pub fn end_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending, after the work under way");
        stop.cancel();
        tokio::time::sleep(GRACE).await;
        tracing::error!("work under way did not end in time");
        std::process::exit(1);
    });
    Ok(())
}
