//! The process: TLS provider, runtime, exit code.

use std::process::ExitCode;

use clap::Parser;
use weir::settings::{Cli, Command, Log, Node, NodeCommand};
use weir::{controller, node, telemetry};

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Controller(settings) => serve(&settings.log.clone(), controller::run::run(settings)),
        Command::Node(NodeCommand { question: Some(question), settings }) => {
            block_on(node::question::answer(question, settings))
        }
        Command::Node(NodeCommand { settings: settings @ Node { cleanup: true, .. }, .. }) => {
            node::run::clean_up(&settings)
        }
        Command::Node(NodeCommand { settings, .. }) => serve(&settings.log.clone(), node::run::run(settings)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not have started, and whoever starts weir by hand wants the sentence, not an object.
            eprintln!("weir: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(log: &Log, role: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    telemetry::start(log)?;
    // In the form of the log, for whoever reads it by machine; it is the last line.
    block_on(role).inspect_err(|error| tracing::error!(error = format!("{error:#}"), "ended"))
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // kube and the AWS SDK share one provider; there is only this one in the binary, so a second call cannot differ.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // Two workers: the work is waiting for answers.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(work)
}
