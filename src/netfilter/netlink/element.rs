//! Elements of sets and maps, and their bytes.

use super::wire::{self, Attributes};

/// Attribute types of linux/netfilter/nf_tables.h.
const ITEM: u16 = 1;
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const KEY_END: u16 = 10;
const PLAIN: u16 = 1;
const VERDICT: u16 = 2;
const CODE: u16 = 1;
const CHAIN: u16 = 2;
/// NFT_GOTO, and NF_DROP of linux/netfilter.h.
const GOTO: i32 = -4;
const DROP: i32 = 0;

/// The longest key or datum that the kernel takes is 64 bytes, the longest chain name 255; what is longer is refused
/// before it is written.
const WIDEST: usize = 256;

/// One change of one element.
#[derive(Clone, Copy, Debug)]
pub struct ElementChange<'a> {
    /// Name of the set or map.
    pub set: &'a str,
    /// The key, each field of a concatenation padded to 4 bytes. Addresses and ports are in network order; the number
    /// that `numgen` makes is in the order of this machine.
    pub key: &'a [u8],
    /// The value, laid out like a key. A deletion does not look at it.
    pub value: Value<'a>,
    /// What to do.
    pub verb: Verb,
}

/// What to do with an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Adds it. It is no error if it is there with the same value; with another value it is [`super::Error::Exists`].
    Add,
    /// Deletes it; it must be there. Delete and add, in this order in one transaction, is how a value is replaced.
    Delete,
}

/// What a key leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Nothing: the element of a set.
    None,
    /// The bytes of a map's datum.
    Data(&'a [u8]),
    /// The verdict to go to that chain.
    Goto(&'a str),
    /// The verdict to drop the packet.
    Drop,
    /// Another verdict, by its code in the kernel. We write none; where one is read, somebody else wrote it.
    Other(i32),
}

impl ElementChange<'_> {
    /// Whether the kernel could take it at all.
    pub(super) fn is_writable(&self) -> bool {
        let value = match self.value {
            Value::Data(data) => data.len(),
            Value::Goto(chain) => chain.len(),
            Value::None | Value::Drop | Value::Other(_) => 0,
        };
        self.set.len() < WIDEST && self.key.len() < WIDEST && value < WIDEST
    }

    /// The most bytes that [`Self::write`] appends.
    pub(super) fn room(&self) -> usize {
        let value = match self.value {
            Value::None => 0,
            Value::Data(data) => data.len(),
            Value::Goto(chain) => chain.len(),
            Value::Drop | Value::Other(_) => 4,
        };
        // Seven attributes at most (item, key, its bytes, data, verdict, code and chain), their padding, the code.
        self.key.len() + value + 7 * (wire::ATTRIBUTE + 3) + 4
    }

    /// Appends it as an item of a list of elements.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let item = wire::begin_nest(bytes, ITEM);
        let key = wire::begin_nest(bytes, KEY);
        wire::put(bytes, PLAIN, self.key);
        wire::end_attribute(bytes, key);
        if self.verb == Verb::Add && self.value != Value::None {
            let data = wire::begin_nest(bytes, DATA);
            match self.value {
                Value::None => {}
                Value::Data(datum) => wire::put(bytes, PLAIN, datum),
                Value::Goto(chain) => put_verdict(bytes, GOTO, Some(chain)),
                Value::Drop => put_verdict(bytes, DROP, None),
                Value::Other(code) => put_verdict(bytes, code, None),
            }
            wire::end_attribute(bytes, data);
        }
        wire::end_attribute(bytes, item);
    }
}

fn put_verdict(bytes: &mut Vec<u8>, code: i32, chain: Option<&str>) {
    let verdict = wire::begin_nest(bytes, VERDICT);
    wire::put(bytes, CODE, &code.to_be_bytes());
    if let Some(chain) = chain {
        wire::put_name(bytes, CHAIN, chain);
    }
    wire::end_attribute(bytes, verdict);
}

/// Key and value of an item of a list of elements. None for anything but a single key: intervals, and the element
/// that catches all the rest.
pub(super) fn read(item: &[u8]) -> Option<(&[u8], Value<'_>)> {
    let element = Attributes(item);
    let is_single = element.number(FLAGS).unwrap_or(0) == 0 && element.find(KEY_END).is_none();
    let key = element.nest(KEY)?.find(PLAIN).filter(|_| is_single)?;
    let Some(data) = element.nest(DATA) else { return Some((key, Value::None)) };
    if let Some(datum) = data.find(PLAIN) {
        return Some((key, Value::Data(datum)));
    }
    let verdict = data.nest(VERDICT)?;
    let value = match verdict.number(CODE)?.cast_signed() {
        DROP => Value::Drop,
        GOTO => Value::Goto(verdict.name(CHAIN)?),
        code => Value::Other(code),
    };
    Some((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_fits_its_room() {
        let values = [Value::None, Value::Data(&[7; 5]), Value::Goto("lb-tcp-3"), Value::Drop, Value::Other(1)];
        for value in values {
            for length in [1, 4, 12, 40] {
                let key = vec![9; length];
                let change = ElementChange { set: "services", key: &key, value, verb: Verb::Add };
                let mut bytes = Vec::new();
                change.write(&mut bytes);
                assert!(bytes.len() <= change.room(), "{value:?} {length}: {}", bytes.len());
                let item = Attributes(&bytes).find(ITEM).unwrap();
                assert_eq!(read(item), Some((&key[..], value)));
            }
        }
    }

    #[test]
    fn an_interval_is_not_a_single_key() {
        let mut bytes = Vec::new();
        let key = wire::begin_nest(&mut bytes, KEY);
        wire::put(&mut bytes, PLAIN, &[1; 4]);
        wire::end_attribute(&mut bytes, key);
        assert!(read(&bytes).is_some());
        wire::put(&mut bytes, FLAGS, &1_u32.to_be_bytes());
        assert!(read(&bytes).is_none());
    }

    #[test]
    fn what_no_attribute_can_hold_is_told_apart() {
        let long = vec![0; 70_000];
        let change = ElementChange { set: "s", key: &[1], value: Value::Data(&long), verb: Verb::Add };
        assert!(!change.is_writable());
        assert!(ElementChange { value: Value::None, ..change }.is_writable());
    }
}
