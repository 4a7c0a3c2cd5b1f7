//! The bytes of ctnetlink: what is asked of conntrack, and what it answers.
//!
//! Written by hand because a table may hold a million entries: an entry is read where it lies in the receive buffer, and
//! the parts that name it are sent back as they came. Numbers of the netlink layer are in the host's byte order, those of
//! conntrack in the network's (`linux/netlink.h`, `linux/netfilter/nfnetlink_conntrack.h`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Flow;
use crate::model::family::Family;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// In an answer: the table changed in a way that may have hidden entries from this dump.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Of the netlink header, and of the netfilter header behind it.
const HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

const CT_NEW: u16 = 0x100;
const CT_GET: u16 = 0x101;
const CT_DELETE: u16 = 0x102;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// Filter by the protocol's number alone (`nf_internals.h`).
const CTA_FILTER_F_CTA_PROTO_NUM: u32 = 1 << 3;
/// Marks an attribute that holds attributes; this and the bit below it are no part of its kind.
const NESTED: u16 = 1 << 15;
const KIND_MASK: u16 = 0x3fff;

/// The protocol whose flows are cleaned.
pub const UDP: u8 = 17;

/// One message of an answer.
#[derive(Debug)]
pub enum Answer<'a> {
    /// An entry; `None` where it lacks something that every UDP entry has.
    Entry(Option<Entry<'a>>),
    /// The end of a dump, or the kernel's word on a request.
    End(io::Result<()>),
    /// Something else, to be passed over.
    Other,
}

/// An entry of the table.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Where the flow was sent to and who answers it.
    pub flow: Flow,
    /// Number of its protocol.
    pub protocol: u8,
    /// The attributes that name the entry to the kernel, as they came: original tuple, zone, id.
    name: [Option<Attribute<'a>>; 3],
}

#[derive(Clone, Copy, Debug)]
struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
}

/// Asks for all UDP entries of a family. Kernels from 5.8 filter by themselves; older ones send every protocol.
pub fn listing(family: Family) -> Vec<u8> {
    let mut message = request(CT_GET, NLM_F_DUMP, family, 1);
    nest(&mut message, CTA_TUPLE_ORIG, |tuple| {
        nest(tuple, CTA_TUPLE_PROTO, |proto| put(proto, CTA_PROTO_NUM, &[UDP]));
    });
    nest(&mut message, CTA_FILTER, |filter| {
        put(filter, CTA_FILTER_ORIG_FLAGS, &CTA_FILTER_F_CTA_PROTO_NUM.to_ne_bytes());
        put(filter, CTA_FILTER_REPLY_FLAGS, &0_u32.to_ne_bytes());
    });
    finish(message)
}

/// Asks to delete exactly this entry: a younger one with the same tuple has another id.
pub fn deletion(family: Family, entry: &Entry<'_>, sequence: u32) -> Vec<u8> {
    let mut message = request(CT_DELETE, NLM_F_ACK, family, sequence);
    for attribute in entry.name.iter().flatten() {
        let nested = if attribute.kind == CTA_TUPLE_ORIG { NESTED } else { 0 };
        put(&mut message, attribute.kind | nested, attribute.value);
    }
    finish(message)
}

/// The messages in one datagram, each with whether it says that the dump was disturbed.
pub fn answers(mut datagram: &[u8]) -> impl Iterator<Item = (Answer<'_>, bool)> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(first(datagram)?) as usize;
        let message = datagram.get(..length).filter(|message| message.len() >= HEADER)?;
        datagram = datagram.get(align(length)..).unwrap_or_default();
        let kind = u16::from_ne_bytes(first(&message[4..])?);
        let flags = u16::from_ne_bytes(first(&message[6..])?);
        let answer = match kind {
            NLMSG_ERROR | NLMSG_DONE => Answer::End(verdict(&message[HEADER..])),
            CT_NEW => Answer::Entry(message.get(HEADER + NETFILTER_HEADER..).and_then(entry)),
            _ => Answer::Other,
        };
        Some((answer, flags & NLM_F_DUMP_INTR != 0))
    })
}

/// What an error message, an acknowledgement or the end of a dump says: zero, or a negative errno.
fn verdict(payload: &[u8]) -> io::Result<()> {
    match first(payload).map_or(0, i32::from_ne_bytes) {
        code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

fn entry(attributes_of_entry: &[u8]) -> Option<Entry<'_>> {
    let find = |kind| attributes(attributes_of_entry).find(|attribute| attribute.kind == kind);
    let original = find(CTA_TUPLE_ORIG)?;
    let (protocol, original_destination) = end(original.value, [CTA_IP_V4_DST, CTA_IP_V6_DST], CTA_PROTO_DST_PORT)?;
    let reply = find(CTA_TUPLE_REPLY)?;
    let (_, reply_source) = end(reply.value, [CTA_IP_V4_SRC, CTA_IP_V6_SRC], CTA_PROTO_SRC_PORT)?;
    let name = [Some(original), find(CTA_ZONE), find(CTA_ID)];
    Some(Entry { flow: Flow { original_destination, reply_source }, protocol, name })
}

/// One end of a tuple: its protocol, and the address and port under these kinds.
fn end(tuple: &[u8], addresses: [u16; 2], port: u16) -> Option<(u8, SocketAddr)> {
    let find = |of: &[u16], within| attributes(within).find(|attribute| of.contains(&attribute.kind));
    let address = find(&addresses, find(&[CTA_TUPLE_IP], tuple)?.value)?.value;
    let address = match address.len() {
        4 => IpAddr::V4(Ipv4Addr::from(first::<4>(address)?)),
        16 => IpAddr::V6(Ipv6Addr::from(first::<16>(address)?)),
        _ => return None,
    };
    let proto = find(&[CTA_TUPLE_PROTO], tuple)?.value;
    let [protocol] = first(find(&[CTA_PROTO_NUM], proto)?.value)?;
    let port = u16::from_be_bytes(first(find(&[port], proto)?.value)?);
    Some((protocol, SocketAddr::new(address, port)))
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(first(rest)?));
        let kind = u16::from_ne_bytes(first(rest.get(2..)?)?) & KIND_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(align(length)..).unwrap_or_default();
        Some(Attribute { kind, value })
    })
}

fn first<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// Header with a length that [`finish`] fills in.
fn request(kind: u16, flags: u16, family: Family, sequence: u32) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    let family = match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    };
    message.extend([family, 0, 0, 0]);
    message
}

fn finish(mut message: Vec<u8>) -> Vec<u8> {
    // A request of ours has a few hundred bytes.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(align(message.len()), 0);
}

fn nest(message: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(message, kind | NESTED, &inner);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, destination: &str) -> Vec<u8> {
        let (source, destination): (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
        let mut tuple = Vec::new();
        nest(&mut tuple, CTA_TUPLE_IP, |ip| match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                put(ip, CTA_IP_V4_SRC, &source.octets());
                put(ip, CTA_IP_V4_DST, &destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                put(ip, CTA_IP_V6_SRC, &source.octets());
                put(ip, CTA_IP_V6_DST, &destination.octets());
            }
            _ => panic!("two families in one tuple"),
        });
        nest(&mut tuple, CTA_TUPLE_PROTO, |proto| {
            put(proto, CTA_PROTO_NUM, &[UDP]);
            put(proto, CTA_PROTO_SRC_PORT, &source.port().to_be_bytes());
            put(proto, CTA_PROTO_DST_PORT, &destination.port().to_be_bytes());
        });
        tuple
    }

    fn entry_message(original: &[u8], reply: &[u8]) -> Vec<u8> {
        let mut message = request(CT_NEW, 0, Family::Ipv4, 1);
        put(&mut message, CTA_TUPLE_ORIG | NESTED, original);
        put(&mut message, CTA_TUPLE_REPLY | NESTED, reply);
        put(&mut message, CTA_ID, &[1, 2, 3, 4]);
        finish(message)
    }

    fn read(datagram: &[u8]) -> Vec<(u8, Flow)> {
        let entry =
            |answer| if let Answer::Entry(Some(entry)) = answer { Some((entry.protocol, entry.flow)) } else { None };
        answers(datagram).filter_map(|(answer, _)| entry(answer)).collect()
    }

    #[test]
    fn entries_of_both_families_are_read() {
        for (client, frontend, endpoint) in [
            ("10.0.0.9:4000", "10.96.0.10:53", "10.0.3.4:1053"),
            ("[fd00::9]:4000", "[fd00:96::a]:53", "[fd00::3:4]:1053"),
        ] {
            let mut datagram = entry_message(&tuple(client, frontend), &tuple(endpoint, client));
            datagram.extend(datagram.clone());
            let flow =
                Flow { original_destination: frontend.parse().unwrap(), reply_source: endpoint.parse().unwrap() };
            assert_eq!(read(&datagram), vec![(UDP, flow); 2]);
        }
    }

    #[test]
    fn a_deletion_names_the_entry_by_its_own_bytes() {
        let original = tuple("10.0.0.9:4000", "10.96.0.10:53");
        let datagram = entry_message(&original, &tuple("10.0.3.4:1053", "10.0.0.9:4000"));
        let Some((Answer::Entry(Some(entry)), false)) = answers(&datagram).next() else { panic!("no entry") };
        let deletion = deletion(Family::Ipv4, &entry, 7);
        let sent: Vec<_> = attributes(&deletion[HEADER + NETFILTER_HEADER..]).map(|a| (a.kind, a.value)).collect();
        assert_eq!(sent, [(CTA_TUPLE_ORIG, &original[..]), (CTA_ID, &[1, 2, 3, 4])]);
    }

    #[test]
    fn cut_and_odd_bytes_are_no_entries() {
        let whole = entry_message(&tuple("10.0.0.9:4", "10.96.0.1:5"), &tuple("10.0.3.4:6", "10.0.0.9:4"));
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_empty());
            let mut cut = whole[..end].to_vec();
            if end >= HEADER {
                cut = finish(cut);
                let _ = read(&cut);
            }
        }
        assert!(attributes(&[0; 8]).next().is_none(), "an attribute shorter than its header ends the walk");
    }

    #[test]
    fn p63_ends_and_disturbances_are_told() {
        let end = |kind: u16, flags: u16, code: i32| {
            let mut message = [&[0; 4][..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
            message.extend(code.to_ne_bytes());
            finish(message)
        };
        let first = |datagram: &[u8]| {
            let Some((Answer::End(verdict), disturbed)) = answers(datagram).next() else { panic!("no end") };
            (verdict.map_err(|error| error.raw_os_error()), disturbed)
        };
        assert_eq!(first(&end(NLMSG_DONE, NLM_F_DUMP_INTR, 0)), (Ok(()), true));
        assert_eq!(first(&end(NLMSG_DONE, 0, -4)), (Err(Some(4)), false));
        assert_eq!(first(&end(NLMSG_ERROR, 0, -2)), (Err(Some(2)), false));
        assert_eq!(first(&end(NLMSG_ERROR, 0, 0)), (Ok(()), false));
    }
}
