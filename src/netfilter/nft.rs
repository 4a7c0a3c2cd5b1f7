//! Runs `nft -f -`: tables, chains, rules and sets, which change seldom. One run is one transaction.

use std::io::{self, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than any script of ours takes by far; a tool that hangs must not hang the node with it.
const LIMIT: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(1);
/// How much of what nft says about a failure is kept.
const WORDS: usize = 600;

/// Why a script was not carried out. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no nft, or it cannot be started.
    #[error("cannot run nft: is the nftables package installed?")]
    Start(#[source] io::Error),
    /// It was started, but could not be spoken to.
    #[error("cannot talk to nft")]
    Talk(#[source] io::Error),
    /// It had to be stopped.
    #[error("nft did not end within {LIMIT:?} and was stopped")]
    TooLong,
    /// The process lacks a capability, or another program has made a table of our name for itself alone.
    #[error("the kernel refuses nft's changes: the capability NET_ADMIN is missing, or another program owns our table")]
    Denied,
    /// It refuses the script, or the kernel does.
    #[error("nft refuses: {0}")]
    Refused(String),
}

/// Runs a script.
///
/// # Errors
/// Nothing was changed.
pub fn run(script: &str) -> Result<(), Error> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::Start)?;
    // Its complaints are read while it reads: either may be longer than a pipe holds.
    let complaints = child.stderr.take().map(|mut stderr| {
        std::thread::spawn(move || {
            let mut words = String::new();
            // What cannot be read is not there; the exit code tells that it failed.
            let _ = stderr.read_to_string(&mut words);
            words
        })
    });
    // A tool that does not read must not keep us: it is waited for no longer than the limit.
    let writer = child.stdin.take().map(|mut stdin| {
        let script = script.to_owned();
        std::thread::spawn(move || stdin.write_all(script.as_bytes()))
    });
    let succeeded = wait(&mut child)?;
    let written = writer.and_then(|writer| writer.join().ok()).unwrap_or(Ok(()));
    if succeeded {
        return written.map_err(Error::Talk);
    }
    let words = complaints.and_then(|reader| reader.join().ok()).unwrap_or_default();
    if words.contains("Operation not permitted") {
        return Err(Error::Denied);
    }
    Err(Error::Refused(summary(&words)))
}

/// Whether it ended well.
fn wait(child: &mut Child) -> Result<bool, Error> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().map_err(Error::Talk)? {
            return Ok(status.success());
        }
        if Instant::now() > deadline {
            // Either fails only if it has just ended.
            let _ = child.kill().and_then(|()| child.wait());
            return Err(Error::TooLong);
        }
        std::thread::sleep(PAUSE);
    }
}

/// The first complaint with what it is about. nft repeats the line it does not like, which may be long.
fn summary(words: &str) -> String {
    let text = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { "it gives no reason".to_owned() } else { text.chars().take(WORDS).collect() }
}
