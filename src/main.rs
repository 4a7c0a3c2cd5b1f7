//! The process: TLS provider, runtime, exit code.

use std::process::ExitCode;

use clap::Parser;
use weir::settings::{Cli, Command};
use weir::{controller, telemetry};

fn main() -> ExitCode {
    let Command::Controller(settings) = Cli::parse().command;
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not have started, and whoever starts weir by hand wants the sentence, not an object.
            eprintln!("weir: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: weir::settings::Controller) -> anyhow::Result<()> {
    telemetry::start(&settings.log)?;
    // kube and the AWS SDK share one provider; there is only this one in the binary, so a second call cannot differ.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // Two workers: the work is waiting for answers.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(controller::run::run(settings))
}
