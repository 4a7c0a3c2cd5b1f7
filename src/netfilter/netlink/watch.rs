//! Tells of changes to our tables that others make.

use std::collections::VecDeque;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use socket2::{SockFilter, SockRef};

use super::error::ENOBUFS;
use super::wire::{self, Message, Messages};
use crate::netfilter::Family;

/// NFNLGRP_NFTABLES.
const GROUP: u32 = 7;
/// Room for what others change at once: kube-proxy's first sync, for instance.
const QUEUE: usize = 4 << 20;
/// A datagram of notices is at most a page or two long, unless a single notice is longer.
const RECEIVE: usize = 64 << 10;

/// Instructions of classic BPF, of linux/bpf_common.h: load the word at an offset; jump if it equals; return.
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Where `nlmsghdr` has the port.
const PORT_OFFSET: u32 = 12;

/// What somebody else did to our table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It was deleted, alone or with the whole ruleset, by the socket of that number. It may have been made anew since.
    Deleted(Family, u32),
    /// Something in it was made, changed or deleted, by the socket of that number; for an `nft` command this is, as a
    /// rule, its process id.
    Changed(Family, u32),
    /// There were more notices than could be kept: anything may have happened.
    Lost,
}

/// A subscription to the changes of one table, of the same name in either family, in the network namespace in which it
/// was opened.
pub struct Watch {
    socket: TokioSocket,
    table: String,
    datagram: Vec<u8>,
    pending: VecDeque<Notice>,
}

impl Watch {
    /// Subscribes, but not to what the sockets in `ours` change: see [`super::Channel::port`]. The kernel drops those
    /// notices itself, so a cold load wakes nobody and overflows nothing.
    ///
    /// # Errors
    /// `PermissionDenied` without NET_ADMIN.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(table: &str, ours: &[u32]) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        let options = socket.socket_mut();
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&*options, QUEUE).is_err() {
            rustix::net::sockopt::set_socket_recv_buffer_size(&*options, QUEUE)?;
        }
        SockRef::from(&*options).attach_filter(&all_but(ours))?;
        options.bind(&SocketAddr::new(0, 0))?;
        options.add_membership(GROUP)?;
        Ok(Self { socket, table: table.to_owned(), datagram: Vec::with_capacity(RECEIVE), pending: VecDeque::new() })
    }

    /// Waits for the next notice. Several changes of one transaction may be told as one. Nothing is lost if the wait is
    /// given up.
    ///
    /// # Errors
    /// The socket failed; open another one.
    pub async fn next(&mut self) -> io::Result<Notice> {
        loop {
            if let Some(notice) = self.pending.pop_front() {
                return Ok(notice);
            }
            self.datagram.clear();
            match self.socket.recv(&mut self.datagram).await {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => return Ok(Notice::Lost),
                Err(error) => return Err(error),
            }
            for notice in Messages(&self.datagram).filter_map(|message| notice(message, &self.table)) {
                if self.pending.back() != Some(&notice) {
                    self.pending.push_back(notice);
                }
            }
        }
    }
}

fn notice(message: Message<'_>, table: &str) -> Option<Notice> {
    if message.kind >> 8 != u16::from(wire::NFTABLES) || message.kind == wire::NEW_GENERATION {
        return None;
    }
    let (family, attributes) = message.generic()?;
    let family = wire::family(family).filter(|_| attributes.name(wire::TABLE) == Some(table))?;
    Some(match message.kind {
        wire::DELETE_TABLE => Notice::Deleted(family, message.port),
        _ => Notice::Changed(family, message.port),
    })
}

/// A filter that lets pass what does not come from one of the ports. A datagram tells of one transaction, hence its
/// first message speaks for all.
fn all_but(ports: &[u32]) -> Vec<SockFilter> {
    let mut program = vec![SockFilter::new(LOAD_WORD, 0, 0, PORT_OFFSET)];
    for port in ports {
        // The load takes the bytes for network order. Behind an equal port comes the return that drops.
        program.push(SockFilter::new(JUMP_IF_EQUAL, 0, 1, u32::from_be_bytes(port.to_ne_bytes())));
        program.push(SockFilter::new(RETURN, 0, 0, 0));
    }
    program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    program
}
