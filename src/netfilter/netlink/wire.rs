//! Netlink's bytes: messages of attributes, each padded to 4 bytes. Lengths and the kernel's own numbers are in the
//! order of this machine, nftables' values in network order.

use crate::netfilter::Family;

/// Bytes of `nlmsghdr`.
pub const HEADER: usize = 16;
/// Bytes of `nfgenmsg`, which follows it in every message of netfilter.
const GENERIC: usize = 4;
/// Bytes before an attribute's payload.
pub const ATTRIBUTE: usize = 4;
/// The bits of an attribute's type that are not flags.
const TYPE_MASK: u16 = 0x3fff;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;

/// Message types and flags of linux/netlink.h.
pub const ERROR: u16 = 2;
pub const DONE: u16 = 3;
pub const REQUEST: u16 = 0x1;
pub const ACK: u16 = 0x4;
pub const DUMP_INTERRUPTED: u16 = 0x10;
pub const DUMP: u16 = 0x300;
pub const CREATE: u16 = 0x400;
const CAPPED: u16 = 0x100;
const ACK_ATTRIBUTES: u16 = 0x200;

/// Message types of linux/netfilter/nfnetlink.h and nf_tables.h.
pub const BATCH_BEGIN: u16 = 16;
pub const BATCH_END: u16 = 17;
/// NFNL_SUBSYS_NFTABLES.
pub const NFTABLES: u8 = 10;
pub const NEW_TABLE: u16 = nftables(0);
pub const GET_TABLE: u16 = nftables(1);
pub const DELETE_TABLE: u16 = nftables(2);
pub const NEW_CHAIN: u16 = nftables(3);
pub const GET_CHAIN: u16 = nftables(4);
pub const NEW_RULE: u16 = nftables(6);
pub const GET_RULE: u16 = nftables(7);
pub const NEW_SET: u16 = nftables(9);
pub const GET_SET: u16 = nftables(10);
pub const NEW_ELEMENTS: u16 = nftables(12);
pub const GET_ELEMENTS: u16 = nftables(13);
pub const DELETE_ELEMENTS: u16 = nftables(14);
pub const NEW_GENERATION: u16 = nftables(15);

/// The attribute that names the table, in every message but those about generations.
pub const TABLE: u16 = 1;

/// NFPROTO_IPV4 and NFPROTO_IPV6 of linux/netfilter.h.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

const fn nftables(message: u16) -> u16 {
    (NFTABLES as u16) << 8 | message
}

/// The kernel's number of a family.
pub const fn number(family: Family) -> u8 {
    match family {
        Family::Ipv4 => IPV4,
        Family::Ipv6 => IPV6,
    }
}

/// The family of a number, if it is one of ours.
pub const fn family(number: u8) -> Option<Family> {
    match number {
        IPV4 => Some(Family::Ipv4),
        IPV6 => Some(Family::Ipv6),
        _ => None,
    }
}

/// `length` and the padding after it.
pub const fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Opens a message at the end of `bytes` and says where; [`end_message`] closes it.
pub fn begin_message(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8) -> usize {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    // The resource of a batch is the subsystem it is for; elsewhere it stays 0.
    let resource = if kind == BATCH_BEGIN || kind == BATCH_END { NFTABLES } else { 0 };
    bytes.extend_from_slice(&[family, 0, 0, resource]);
    start
}

/// Closes the message that began at `start`. A message of 4 GiB does not occur: batches are bounded far below.
pub fn end_message(bytes: &mut [u8], start: usize) {
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Adds flags to the message that began at `start`.
pub fn add_flags(bytes: &mut [u8], start: usize, flags: u16) {
    let old = u16::from_ne_bytes([bytes[start + 6], bytes[start + 7]]);
    bytes[start + 6..start + 8].copy_from_slice(&(old | flags).to_ne_bytes());
}

/// Appends an attribute. Callers see to it that payloads stay below 64 KiB, the most its length can say.
pub fn put(bytes: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    let start = bytes.len();
    put_head(bytes, kind);
    bytes.extend_from_slice(payload);
    end_attribute(bytes, start);
    bytes.resize(padded(bytes.len()), 0);
}

/// Appends a name, which ends with a zero byte.
pub fn put_name(bytes: &mut Vec<u8>, kind: u16, name: &str) {
    let start = bytes.len();
    put_head(bytes, kind);
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(0);
    end_attribute(bytes, start);
    bytes.resize(padded(bytes.len()), 0);
}

/// Opens an attribute that holds attributes and says where; [`end_attribute`] closes it.
pub fn begin_nest(bytes: &mut Vec<u8>, kind: u16) -> usize {
    let start = bytes.len();
    put_head(bytes, kind | NESTED);
    start
}

/// Closes the attribute that began at `start`.
pub fn end_attribute(bytes: &mut [u8], start: usize) {
    let length = u16::try_from(bytes.len() - start).unwrap_or(u16::MAX);
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}

fn put_head(bytes: &mut Vec<u8>, kind: u16) {
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// The socket whose request this answers or tells of.
    pub port: u32,
    /// What follows `nlmsghdr`.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Family and attributes of a message of netfilter.
    pub fn generic(&self) -> Option<(u8, Attributes<'a>)> {
        Some((*self.body.first()?, Attributes(self.body.get(GENERIC..)?)))
    }

    /// What an error message says; an errno of 0 is an acknowledgement.
    pub fn complaint(&self) -> Option<Complaint<'a>> {
        let errno = i32::from_ne_bytes(array(self.body)?).wrapping_neg();
        let request = self.body.get(4..4 + HEADER)?;
        let echoed = if self.flags & CAPPED == 0 { u32::from_ne_bytes(array(request)?) as usize } else { HEADER };
        let mut complaint = Complaint { errno, offset: None, words: None };
        if self.flags & ACK_ATTRIBUTES != 0 {
            for (kind, payload) in Attributes(self.body.get(4 + padded(echoed)..).unwrap_or_default()) {
                match kind {
                    1 => complaint.words = name(payload),
                    2 => complaint.offset = array(payload).map(|bytes| u32::from_ne_bytes(bytes) as usize),
                    _ => {}
                }
            }
        }
        Some(complaint)
    }
}

/// An answer to one message of ours.
#[derive(Clone, Copy, Debug)]
pub struct Complaint<'a> {
    /// Positive, as in errno.h; 0 for success.
    pub errno: i32,
    /// Where in that message the attribute is that the kernel complains about.
    pub offset: Option<usize>,
    /// The kernel's own words.
    pub words: Option<&'a str>,
}

/// The messages of a datagram, up to the first that is cut off.
#[derive(Clone, Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_ne_bytes(array(self.0)?) as usize;
        let message = self.0.get(..length)?;
        let body = message.get(HEADER..)?;
        self.0 = self.0.get(padded(length)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes(array(&message[4..])?),
            flags: u16::from_ne_bytes(array(&message[6..])?),
            sequence: u32::from_ne_bytes(array(&message[8..])?),
            port: u32::from_ne_bytes(array(&message[12..])?),
            body,
        })
    }
}

/// Type and payload of each attribute, up to the first that is cut off.
#[derive(Clone, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The payload of the first attribute of that type.
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(other, payload)| (other == kind).then_some(payload))
    }

    /// The name in the first attribute of that type.
    pub fn name(&self, kind: u16) -> Option<&'a str> {
        self.find(kind).and_then(name)
    }

    /// The attributes in the first attribute of that type.
    pub fn nest(&self, kind: u16) -> Option<Self> {
        self.find(kind).map(Self)
    }

    /// The number, in network order, in the first attribute of that type.
    pub fn number(&self, kind: u16) -> Option<u32> {
        self.find(kind).and_then(array).map(u32::from_be_bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(array(self.0)?));
        let kind = u16::from_ne_bytes(array(self.0.get(2..)?)?) & TYPE_MASK;
        let payload = self.0.get(ATTRIBUTE..length)?;
        self.0 = self.0.get(padded(length)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// The text before the zero byte, if it is text.
pub fn name(payload: &[u8]) -> Option<&str> {
    let text = payload.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok()
}

/// The first bytes, as many as the number has.
fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_complaint_has_its_place_and_words() {
        let mut bytes = Vec::new();
        let start = begin_message(&mut bytes, ERROR, CAPPED | ACK_ATTRIBUTES, 7, 0);
        bytes.truncate(HEADER);
        bytes.extend_from_slice(&(-2_i32).to_ne_bytes());
        let request = begin_message(&mut bytes, NEW_ELEMENTS, REQUEST, 7, 2);
        bytes.truncate(request + HEADER);
        bytes[request..request + 4].copy_from_slice(&60_000_u32.to_ne_bytes());
        put_name(&mut bytes, 1, "no such thing");
        put(&mut bytes, 2, &40_u32.to_ne_bytes());
        end_message(&mut bytes, start);
        let message = Messages(&bytes).next().unwrap();
        let complaint = message.complaint().unwrap();
        assert_eq!((message.sequence, complaint.errno, complaint.offset), (7, 2, Some(40)));
        assert_eq!(complaint.words, Some("no such thing"));
    }

    proptest! {
        #[test]
        fn no_bytes_trip_the_reader(bytes in prop::collection::vec(prop_oneof![0..24_u8, any::<u8>()], 0..200)) {
            for message in Messages(&bytes) {
                let _ = message.complaint();
                let attributes = message.generic().map(|(_, attributes)| attributes);
                let _ = attributes.into_iter().flatten().flat_map(|(_, payload)| Attributes(payload)).count();
            }
        }
    }
}
