//! The process: TLS provider, runtime, exit code.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use weir::settings::{Cli, Command, Log, Node, NodeCommand};
use weir::{command, controller, node, telemetry};

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Controller(settings) => return serve(&settings.log.clone(), controller::run::run(settings)),
        Command::Node(NodeCommand { question: Some(question), settings }) => {
            block_on(node::question::answer(question, settings))
        }
        Command::Node(NodeCommand { settings: settings @ Node { cleanup: true, .. }, .. }) => {
            node::run::clean_up(&settings)
        }
        Command::Node(NodeCommand { settings, .. }) => {
            return serve(&settings.log.clone(), node::run::run(settings));
        }
        Command::Status(settings) => block_on(command::status::run(settings)),
        Command::Doctor(settings) => block_on(command::doctor::run(settings)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Runs a role with its log, whose last line says why it ended.
fn serve(log: &Log, role: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    if let Err(error) = telemetry::start(log) {
        return fail(&error);
    }
    match block_on(role) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever starts weir by hand wants the sentence, not an object.
        Err(error) if std::io::stderr().is_terminal() => fail(&error),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "ended");
            ExitCode::FAILURE
        }
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("weir: {error:#}");
    ExitCode::FAILURE
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // kube and the AWS SDK share one provider; there is only this one in the binary, so a second call cannot differ.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // Two workers: the work is waiting for answers.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(work)
}
