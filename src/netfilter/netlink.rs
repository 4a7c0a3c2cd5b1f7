//! nftables over raw netlink: elements are changed and read here, without a process and without text.
//!
//! Tables, chains, rules, sets and maps are made with `nft`, seldom. Their elements are what changes all day, so a
//! change is one datagram to the kernel, which handles it before the call returns. Nothing here knows what the bytes
//! mean, and no request is about any table but the one that is named. Message formats: linux/netfilter/nf_tables.h.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::Family;
use batch::Batch;
use wire::{Attributes, Message, Messages};

mod batch;
mod element;
mod error;
mod survey;
mod watch;
mod wire;

pub use element::{ElementChange, Value, Verb};
pub use error::{Error, Place};
pub use survey::{FilterSeen, TableSeen};
pub use watch::{Notice, Watch};

/// The most bytes that one transaction carries: some 100,000 elements of IPv4. It must fit into the socket's send buffer, and
/// the kernel copies it whole.
pub const MAX_BATCH: usize = 4 << 20;
/// Bytes of each of the transactions that [`Channel::load`] makes: large enough that the fixed cost of a transaction
/// does not show, small enough to cost little memory here and in the kernel.
const LOAD_BATCH: usize = 256 << 10;
/// The kernel makes no datagram of a listing longer than 32 KiB if it knows that as much can be received.
const RECEIVE: usize = 64 << 10;

/// Attribute types of linux/netfilter/nf_tables.h.
const SET_OF_ELEMENTS: u16 = 2;
const LIST_OF_ELEMENTS: u16 = 3;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
/// NFT_SET_ANONYMOUS.
const ANONYMOUS: u32 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_CHAIN: u16 = 2;
const RULE_USER_DATA: u16 = 7;
/// NFTNL_UDATA_RULE_COMMENT of libnftnl.
const COMMENT: u8 = 0;

/// A socket to nftables in the network namespace in which it was opened. Opening takes no privilege, all else takes
/// NET_ADMIN.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    port: u32,
    sequence: u32,
    /// The most bytes the socket sends at once.
    limit: usize,
    out: Vec<u8>,
    answers: Vec<u8>,
}

/// A chain as it is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where packets enter it, if it is a base chain.
    pub base: Option<Base>,
    /// The comment of each of its rules, in order.
    pub comments: Vec<Option<String>>,
}

/// Where packets enter a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// NF_INET_PRE_ROUTING and so on, from 0 to 4, of linux/netfilter.h.
    pub hook: u32,
    /// Lower ones come first.
    pub priority: i32,
}

impl Channel {
    /// Opens the socket.
    ///
    /// # Errors
    /// The system gives no socket of this kind.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel answers within the call that asks, so what is not there will not come.
        socket.set_non_blocking(true)?;
        // An error then names the place in our message, and does not echo all of it.
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        // The kernel doubles the size it is given. Without privilege it also cuts it down to net.core.wmem_max.
        if rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, MAX_BATCH).is_err() {
            rustix::net::sockopt::set_socket_send_buffer_size(&socket, MAX_BATCH)?;
        }
        let overhead = 32;
        let limit = rustix::net::sockopt::socket_send_buffer_size(&socket)?.saturating_sub(overhead).min(MAX_BATCH);
        Ok(Self { socket, port, sequence: 0, limit, out: Vec::new(), answers: Vec::with_capacity(RECEIVE) })
    }

    /// The number by which the kernel tells whose change it was; see [`Watch`].
    pub const fn port(&self) -> u32 {
        self.port
    }

    /// Makes all changes, in their order, in one transaction: packets meet either all or none of them.
    ///
    /// # Errors
    /// Nothing has changed, but with [`Error::Lost`], where that is unknown. [`Error::TooBig`] if the changes do not
    /// fit into [`MAX_BATCH`]: what nothing points at yet can go ahead with [`Self::load`].
    pub fn commit<'a>(
        &mut self,
        family: Family,
        table: &str,
        changes: impl IntoIterator<Item = ElementChange<'a>>,
    ) -> Result<(), Error> {
        self.transact(family, table, changes, self.limit, false)
    }

    /// Makes the changes in their order, in as many transactions as they need: for elements that no packet meets yet.
    ///
    /// # Errors
    /// An unknown number of changes has been made.
    pub fn load<'a>(
        &mut self,
        family: Family,
        table: &str,
        changes: impl IntoIterator<Item = ElementChange<'a>>,
    ) -> Result<(), Error> {
        self.transact(family, table, changes, self.limit.min(LOAD_BATCH), true)
    }

    fn transact<'a>(
        &mut self,
        family: Family,
        table: &str,
        changes: impl IntoIterator<Item = ElementChange<'a>>,
        limit: usize,
        may_split: bool,
    ) -> Result<(), Error> {
        let mut bytes = std::mem::take(&mut self.out);
        let mut batch = Batch::begin(&mut bytes, family, table, self.sequence, limit);
        let mut result = Ok(());
        for change in changes {
            if batch.push(&change) {
                continue;
            }
            result = if may_split { self.send(&mut batch) } else { Err(Error::TooBig(limit)) };
            if result.is_err() {
                break;
            }
            batch.restart();
            if !batch.push(&change) {
                result = Err(Error::TooBig(limit));
                break;
            }
        }
        if result.is_ok() {
            result = self.send(&mut batch);
        }
        // A great change is rare; its buffer need not stay.
        bytes.clear();
        bytes.shrink_to(RECEIVE);
        self.out = bytes;
        result
    }

    fn send(&mut self, batch: &mut Batch<'_>) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        self.discard()?;
        let sent = self.socket.send(batch.end(), 0);
        self.sequence = batch.last_sequence();
        sent.map_err(|error| self.failure(error))?;
        self.outcome(batch)
    }

    /// Reads the answers to a transaction. The first complaint is the telling one: a commit that fails as a whole comes
    /// before what the single messages say, and they come in their order.
    fn outcome(&mut self, batch: &Batch<'_>) -> Result<(), Error> {
        let mut failure = None;
        let mut acknowledged = false;
        let mut lost = false;
        loop {
            match self.receive() {
                Ok(true) => {}
                Ok(false) => break,
                // The answers that did arrive can still be read.
                Err(Error::Lost) => lost = true,
                Err(error) => return Err(error),
            }
            for message in Messages(&self.answers) {
                let Some(complaint) = message.complaint().filter(|_| message.kind == wire::ERROR) else { continue };
                if complaint.errno == 0 {
                    acknowledged |= batch.is_acknowledged_by(message.sequence);
                } else if failure.is_none() && batch.contains(message.sequence) {
                    let place = batch.place(message.sequence, complaint.offset);
                    failure = Some(Error::from_errno(complaint.errno, place, complaint.words, self.limit));
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None if acknowledged && !lost => Ok(()),
            None => Err(Error::Lost),
        }
    }

    /// Hands every element of a set or map to `each`, in no order. Nothing is kept.
    ///
    /// # Errors
    /// `each` may have seen elements before. [`Error::Interrupted`] asks for another try. [`Error::Unreadable`] if the
    /// set has intervals.
    pub fn elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        mut each: impl FnMut(&[u8], Value<'_>),
    ) -> Result<(), Error> {
        let place = Place::set(family, table, set);
        let names = [(wire::TABLE, table), (SET_OF_ELEMENTS, set)];
        self.request(wire::GET_ELEMENTS, wire::DUMP, family, &names)?;
        self.answers(wire::NEW_ELEMENTS, &place, |attributes| {
            let list = attributes.nest(LIST_OF_ELEMENTS).unwrap_or(Attributes(&[]));
            for (_, item) in list {
                let (key, value) = element::read(item).ok_or_else(|| Error::Unreadable(place.clone()))?;
                each(key, value);
            }
            Ok(())
        })
    }

    /// Whether there is such a table.
    ///
    /// # Errors
    /// The question could not be answered.
    pub fn has_table(&mut self, family: Family, table: &str) -> Result<bool, Error> {
        self.request(wire::GET_TABLE, wire::ACK, family, &[(wire::TABLE, table)])?;
        match self.answers(wire::NEW_TABLE, &Place::table(family, table), |_| Ok(())) {
            Ok(()) => Ok(true),
            Err(Error::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The table's chains by name.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no such table, [`Error::Interrupted`] asks for another try.
    pub fn chains(&mut self, family: Family, table: &str) -> Result<BTreeMap<String, Chain>, Error> {
        let place = self.existing(family, table)?;
        let mut chains = BTreeMap::<String, Chain>::new();
        self.request(wire::GET_CHAIN, wire::DUMP, family, &[])?;
        self.answers(wire::NEW_CHAIN, &place, |chain| {
            // The kernel lists the chains of every table of the family.
            if chain.name(wire::TABLE) == Some(table) {
                let name = chain.name(CHAIN_NAME).ok_or_else(|| Error::Unreadable(place.clone()))?;
                chains.insert(name.to_owned(), Chain { base: base(&chain), comments: Vec::new() });
            }
            Ok(())
        })?;
        self.request(wire::GET_RULE, wire::DUMP, family, &[(wire::TABLE, table)])?;
        self.answers(wire::NEW_RULE, &place, |rule| {
            let chain = rule.name(RULE_CHAIN).filter(|_| rule.name(wire::TABLE) == Some(table));
            // A chain made since the first listing is left out: the next listing has it.
            if let Some(chain) = chain.and_then(|name| chains.get_mut(name)) {
                chain.comments.push(rule.find(RULE_USER_DATA).and_then(comment));
            }
            Ok(())
        })?;
        Ok(chains)
    }

    /// The names of the table's sets and maps, without those that belong to a rule.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no such table, [`Error::Interrupted`] asks for another try.
    pub fn sets(&mut self, family: Family, table: &str) -> Result<BTreeSet<String>, Error> {
        let place = self.existing(family, table)?;
        let mut names = BTreeSet::new();
        self.request(wire::GET_SET, wire::DUMP, family, &[(wire::TABLE, table)])?;
        self.answers(wire::NEW_SET, &place, |set| {
            let is_named = set.number(SET_FLAGS).unwrap_or(0) & ANONYMOUS == 0;
            if is_named && set.name(wire::TABLE) == Some(table) {
                names.extend(set.name(SET_NAME).map(str::to_owned));
            }
            Ok(())
        })?;
        Ok(names)
    }

    /// A listing of what is in a missing table would be empty, not an error.
    fn existing(&mut self, family: Family, table: &str) -> Result<Place, Error> {
        let place = Place::table(family, table);
        if self.has_table(family, table)? { Ok(place) } else { Err(Error::Missing(place)) }
    }

    fn request(&mut self, kind: u16, flags: u16, family: Family, names: &[(u16, &str)]) -> Result<(), Error> {
        self.request_of(kind, flags, wire::number(family), names)
    }

    /// A request by the kernel's number of a family.
    fn request_of(&mut self, kind: u16, flags: u16, family: u8, names: &[(u16, &str)]) -> Result<(), Error> {
        self.discard()?;
        self.sequence = self.sequence.wrapping_add(1);
        self.out.clear();
        let flags = wire::REQUEST | flags;
        let start = wire::begin_message(&mut self.out, kind, flags, self.sequence, family);
        for (kind, name) in names {
            wire::put_name(&mut self.out, *kind, name);
        }
        wire::end_message(&mut self.out, start);
        self.socket.send(&self.out, 0).map_err(|error| self.failure(error))?;
        Ok(())
    }

    /// Reads the answers to a request, up to the one that says it was the last.
    fn answers(
        &mut self,
        kind: u16,
        place: &Place,
        mut each: impl FnMut(Attributes<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.answers_of(kind, place, |_, attributes| each(attributes))
    }

    /// The same, with the kernel's number of each answer's family.
    fn answers_of(
        &mut self,
        kind: u16,
        place: &Place,
        mut each: impl FnMut(u8, Attributes<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut interrupted = false;
        while self.receive()? {
            for message in Messages(&self.answers).filter(|message| message.sequence == self.sequence) {
                interrupted |= message.flags & wire::DUMP_INTERRUPTED != 0;
                match message.kind {
                    wire::ERROR | wire::DONE => return end_of_answers(message, place, interrupted, self.limit),
                    other if other == kind => {
                        let (family, attributes) = message.generic().ok_or_else(|| Error::Unreadable(place.clone()))?;
                        each(family, attributes)?;
                    }
                    _ => {}
                }
            }
        }
        Err(Error::Lost)
    }

    /// Throws away what is left of an earlier answer that was not read to its end. A listing that is under way goes on
    /// until it is read, and no other can begin before.
    fn discard(&mut self) -> Result<(), Error> {
        loop {
            match self.receive() {
                Ok(true) | Err(Error::Lost) => {}
                Ok(false) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives one datagram; false if there is none.
    fn receive(&mut self) -> Result<bool, Error> {
        self.answers.clear();
        match self.socket.recv(&mut self.answers, 0) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.raw_os_error() == Some(error::ENOBUFS) => Err(Error::Lost),
            Err(error) => Err(Error::Io(error)),
        }
    }

    fn failure(&self, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(error::EMSGSIZE) => Error::TooBig(self.limit),
            _ => Error::Io(error),
        }
    }
}

fn end_of_answers(message: Message<'_>, place: &Place, interrupted: bool, limit: usize) -> Result<(), Error> {
    // The end of a listing carries an errno too, with its sign and without the request.
    let (errno, words) = match message.complaint().filter(|_| message.kind == wire::ERROR) {
        Some(complaint) => (complaint.errno, complaint.words),
        None => (message.body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes).wrapping_neg()), None),
    };
    match errno {
        0 if interrupted => Err(Error::Interrupted),
        0 => Ok(()),
        errno => Err(Error::from_errno(errno, place.clone(), words, limit)),
    }
}

fn base(chain: &Attributes<'_>) -> Option<Base> {
    let hook = chain.nest(CHAIN_HOOK)?;
    Some(Base { hook: hook.number(HOOK_NUMBER)?, priority: hook.number(HOOK_PRIORITY)?.cast_signed() })
}

/// The comment among a rule's user data: type and length of one byte each, then the payload.
fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let (payload, next) = rest.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            return wire::name(payload).map(str::to_owned);
        }
        data = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_found_among_user_data() {
        assert_eq!(comment(b"\x00\x04abc\x00"), Some("abc".to_owned()));
        assert_eq!(comment(b"\x01\x02xy\x00\x04abc\x00"), Some("abc".to_owned()));
        assert_eq!(comment(b"\x00\x09abc\x00"), None);
        assert_eq!(comment(b""), None);
    }
}
