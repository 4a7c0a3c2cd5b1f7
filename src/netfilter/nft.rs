//! Runs `nft -f -`: tables, chains, rules and sets, which change seldom. One run is one transaction.

use std::io::{self, Read as _, Write as _};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// Longer than any script of ours takes by far; a tool that hangs must not hang the node with it.
const LIMIT: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(1);
/// How much of what nft says about a failure is kept.
const WORDS: usize = 600;
/// How much of it is read. Who says more is told that nobody listens.
const HEARD: u64 = 64 << 10;
/// What an ended nft has said is there already; only a child of its own that lives on could keep us waiting for more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a script was not carried out.
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

/// Runs a script. Returns the number under which the kernel tells of its changes: see [`super::netlink::Notice`].
///
/// # Errors
/// Nothing was changed, but with [`Error::TooLong`], where that is unknown.
pub fn run(script: &str) -> Result<u32, Error> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]);
    carry_out(command, script, LIMIT)
}

fn carry_out(mut command: Command, script: &str, limit: Duration) -> Result<u32, Error> {
    let piped = command.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(Error::Start)?;
    // Either may be more than a pipe holds, and it may stop reading or writing at any time: only its end is waited for.
    let complaints = child.stderr.take().map(listen);
    let written = child.stdin.take().map(|stdin| tell(stdin, script.to_owned()));
    let ended_well = wait(&mut child, limit)?;
    if ended_well {
        // Its end of the pipe is closed, so this has ended too, unless a child of it lives on.
        let written = written.and_then(|written| written.recv_timeout(LAST_WORDS).ok());
        written.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into())).map_err(Error::Talk)?;
        // libmnl lets the kernel number its socket, which takes the id of the process if that is free.
        return Ok(child.id());
    }
    let words = complaints.and_then(|complaints| complaints.recv_timeout(LAST_WORDS).ok()).unwrap_or_default();
    if words.contains("Operation not permitted") {
        return Err(Error::Denied);
    }
    Err(Error::Refused(summary(&words)))
}

fn tell(mut stdin: ChildStdin, script: String) -> Receiver<io::Result<()>> {
    in_a_thread(move || stdin.write_all(script.as_bytes()))
}

fn listen(stderr: ChildStderr) -> Receiver<String> {
    in_a_thread(move || {
        let mut words = Vec::new();
        // What cannot be read is not there; the exit code tells that it failed.
        let _ = stderr.take(HEARD).read_to_end(&mut words);
        String::from_utf8_lossy(&words).into_owned()
    })
}

fn in_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (done, outcome) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody may be waiting any longer.
        let _ = done.send(work());
    });
    outcome
}

/// Whether it ended well.
fn wait(child: &mut Child, limit: Duration) -> Result<bool, Error> {
    let deadline = Instant::now() + limit;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn with(shell: &str, limit: Duration) -> Result<u32, Error> {
        let mut command = Command::new("sh");
        command.args(["-c", shell]);
        // More than a pipe holds.
        carry_out(command, &"add table ip weir\n".repeat(20_000), limit)
    }

    #[test]
    fn what_hangs_is_stopped_though_it_reads_nothing_and_leaves_a_child_behind() {
        let begun = Instant::now();
        for shell in ["exec sleep 20", "sleep 20 & wait", "sleep 20"] {
            let outcome = with(shell, Duration::from_millis(50));
            assert!(matches!(outcome, Err(Error::TooLong)), "{shell}: {outcome:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    #[test]
    fn what_talks_for_ever_is_not_heard_out() {
        let outcome = with("yes nonsense >&2; exit 1", Duration::from_secs(20));
        let Err(Error::Refused(words)) = outcome else { panic!("{outcome:?}") };
        assert!(words.starts_with("nonsense nonsense") && words.len() <= WORDS, "{words}");
    }

    #[test]
    fn what_does_not_read_all_is_not_believed() {
        assert!(matches!(with("exit 0", LIMIT), Err(Error::Talk(_))));
        assert!(with("cat > /dev/null", LIMIT).is_ok());
        let Err(Error::Refused(words)) = with("printf '\\377 odd' >&2; exit 3", LIMIT) else { panic!() };
        assert!(words.ends_with("odd"), "{words}");
        assert!(matches!(with("cat > /dev/null; kill -SEGV $$", LIMIT), Err(Error::Refused(_))));
    }
}
