//! Commands for people: each reads, decides by pure functions, and prints. None of them changes anything, but for
//! `weir gc --delete`.

pub mod deployed;
pub mod doctor;
pub mod gc;
pub mod manifest;
pub mod observation;
pub mod plan;
pub mod report;
pub mod settings;
pub mod snapshot;
pub mod status;

use std::io::{ErrorKind, Write as _};

/// Writes an answer to standard output. Returns whether somebody still reads: one who goes away early, as `head` does,
/// is no failure.
///
/// # Errors
/// It cannot be written.
pub fn answer(text: &str) -> std::io::Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

/// Writes a sentence to standard error. Where nobody reads that, work goes on without it.
pub fn tell(sentence: &str) {
    // There is nowhere else to say it, and `eprintln!` would end the process in the middle of what it does.
    let _ = writeln!(std::io::stderr().lock(), "weir: {sentence}");
}
