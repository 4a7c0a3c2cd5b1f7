//! The process: TLS provider, runtime, exit code.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use tokio::runtime::Runtime;
use weir::settings::{Cli, Command, Log, Node, NodeCommand};
use weir::{command, controller, node, telemetry};

fn main() -> ExitCode {
    let command = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli.command,
        Err(error) => return refuse(&error),
    };
    let outcome = match command {
        Command::Controller(settings) => return serve(&settings.log.clone(), controller::run::run(settings)),
        Command::Node(NodeCommand { question: Some(question), settings }) => {
            block_on(node::question::answer(question, settings)).map(|()| ExitCode::SUCCESS)
        }
        Command::Node(NodeCommand { settings: settings @ Node { cleanup: true, .. }, .. }) => {
            node::run::clean_up(&settings).map(|()| ExitCode::SUCCESS)
        }
        Command::Node(NodeCommand { settings, .. }) => {
            return serve(&settings.log.clone(), node::run::run(settings));
        }
        Command::Status(settings) => block_on(command::status::run(settings)).map(|()| ExitCode::SUCCESS),
        Command::Doctor(settings) => block_on(command::doctor::run(settings)).map(|()| ExitCode::SUCCESS),
        Command::Plan(settings) => block_on(command::plan::run(settings)),
        Command::Gc(settings) => block_on(command::gc::run(settings)),
    };
    outcome.unwrap_or_else(|error| fail(&error))
}

/// Says what is wrong with the command line. To those who run `weir plan` and `weir gc`, 2 means something else.
fn refuse(error: &clap::Error) -> ExitCode {
    // There is nowhere else to say it.
    let _ = error.print();
    let is_question = std::env::args_os().nth(1).is_some_and(|name| name == "plan" || name == "gc");
    match u8::try_from(error.exit_code()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(code) if !is_question => ExitCode::from(code),
        _ => ExitCode::FAILURE,
    }
}

/// Runs a role with its log, whose last line says why it ended.
fn serve(log: &Log, role: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let ended = runtime().map_err(Into::into).and_then(|runtime| {
        let traces = runtime.block_on(async { telemetry::start(log) })?;
        let ended = runtime.block_on(role);
        traces.end();
        Ok(ended)
    });
    match ended {
        Ok(Ok(())) => ExitCode::SUCCESS,
        // Whoever starts weir by hand wants the sentence, not an object.
        Ok(Err(error)) if !std::io::stderr().is_terminal() => {
            tracing::error!(error = format!("{error:#}"), "ended");
            ExitCode::FAILURE
        }
        Ok(Err(error)) | Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    command::tell(&format!("{error:#}"));
    ExitCode::FAILURE
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    runtime()?.block_on(work)
}

fn runtime() -> std::io::Result<Runtime> {
    // kube and the AWS SDK share one provider; there is only this one in the binary, so a second call cannot differ.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // Two workers: the work is waiting for answers.
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}
