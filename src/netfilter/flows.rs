//! The kernel's UDP flows (conntrack) over netlink: listed one by one, and deleted where the caller says so.
//!
//! Nothing is collected: an entry is judged where it lies in the receive buffer, so a table of a million entries costs no
//! memory. What a flow is judged by is not known here (`node::conntrack`). Everything blocks; call it from a thread that
//! may.

mod wire;

use std::io;
use std::net::SocketAddr;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::model::family::Family;
use wire::{Answer, Entry};

/// Dumps of one sweep, when each was disturbed (P63).
const ATTEMPTS: usize = 3;
/// Room for what the kernel sends at once: it fills at most 32 KiB of a reader's buffer.
const BUFFER: usize = 32 * 1024;
const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const ENOBUFS: i32 = 105;

/// A UDP flow, as far as Services concern it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where its sender sends to.
    pub original_destination: SocketAddr,
    /// Who answers: the endpoint after DNAT, or the original destination itself without.
    pub reply_source: SocketAddr,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// UDP flows that were read, again in each attempt.
    pub listed: u64,
    /// Flows that were deleted.
    pub deleted: u64,
    /// Whether a dump came through undisturbed. Otherwise some flows may not have been seen.
    pub complete: bool,
}

/// Why a sweep failed. What was deleted until then is deleted.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// No netlink socket.
    #[error("cannot open a netlink socket to conntrack")]
    Open(#[source] io::Error),
    /// The table cannot be read.
    #[error("cannot list the {0} UDP flows of conntrack")]
    List(Family, #[source] io::Error),
    /// An entry cannot be deleted.
    #[error("cannot delete the UDP flow to {destination} that {source_of_replies} answers from conntrack")]
    Delete {
        /// Its original destination.
        destination: SocketAddr,
        /// Its endpoint.
        source_of_replies: SocketAddr,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
}

/// Deletes each UDP flow of the family that `is_stale` picks.
///
/// A disturbed dump is repeated, and used for what it showed (P63).
///
/// # Errors
/// When the kernel refuses to list or to delete; an entry that is gone already is no error. Needs `CAP_NET_ADMIN`.
pub fn sweep(family: Family, is_stale: impl Fn(&Flow) -> bool) -> Result<Swept, FlowsError> {
    let mut deleter = Deleter { socket: open()?, family, sequence: 0, buffer: vec![0; BUFFER] };
    let mut swept = Swept::default();
    for _ in 0..ATTEMPTS {
        swept.complete = list(family, |entry| {
            swept.listed += 1;
            swept.deleted += u64::from(is_stale(&entry.flow) && deleter.delete(entry)?);
            Ok(())
        })?;
        if swept.complete {
            break;
        }
    }
    Ok(swept)
}

/// Shows each UDP entry of the family, and says whether the dump was undisturbed.
fn list(family: Family, mut each: impl FnMut(&Entry<'_>) -> Result<(), FlowsError>) -> Result<bool, FlowsError> {
    // A socket of its own for each dump: a dump given up leaves answers behind.
    let socket = open()?;
    let failed = |error| FlowsError::List(family, error);
    socket.send(&wire::listing(family), 0).map_err(failed)?;
    let mut buffer = vec![0; BUFFER];
    let mut complete = true;
    loop {
        let datagram = match receive(&socket, &mut buffer) {
            Err(error) if is_disturbance(&error) => return Ok(false),
            received => received.map_err(failed)?,
        };
        for (answer, disturbed) in wire::answers(datagram) {
            complete &= !disturbed;
            match answer {
                Answer::Entry(Some(entry)) if entry.protocol == wire::UDP => each(&entry)?,
                Answer::End(Err(error)) if is_disturbance(&error) => return Ok(false),
                Answer::End(verdict) => return verdict.map(|()| complete).map_err(failed),
                Answer::Entry(_) | Answer::Other => {}
            }
        }
    }
}

/// Deletes entries while they are listed, over a socket of its own.
struct Deleter {
    socket: Socket,
    family: Family,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Deleter {
    /// Whether the entry was there and is gone.
    fn delete(&mut self, entry: &Entry<'_>) -> Result<bool, FlowsError> {
        self.sequence = self.sequence.wrapping_add(1);
        match self.request(&wire::deletion(self.family, entry, self.sequence)) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(false),
            Err(source) => Err(FlowsError::Delete {
                destination: entry.flow.original_destination,
                source_of_replies: entry.flow.reply_source,
                source,
            }),
        }
    }

    /// Sends, and waits for the kernel's word on it.
    fn request(&mut self, message: &[u8]) -> io::Result<()> {
        self.socket.send(message, 0)?;
        loop {
            for (answer, _) in wire::answers(receive(&self.socket, &mut self.buffer)?) {
                if let Answer::End(verdict) = answer {
                    return verdict;
                }
            }
        }
    }
}

fn open() -> Result<Socket, FlowsError> {
    let connect = || {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        Ok(socket)
    };
    connect().map_err(FlowsError::Open)
}

/// One datagram.
fn receive<'a>(socket: &Socket, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    loop {
        match socket.recv(&mut &mut buffer[..], 0) {
            // A signal, not the dump.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received.map(|length| &buffer[..length.min(BUFFER)]),
        }
    }
}

/// Whether the dump has to be read again: the table changed under it, or this reader was too slow.
fn is_disturbance(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EINTR | ENOBUFS))
}
