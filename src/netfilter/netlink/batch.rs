//! One transaction's bytes: begin, lists of elements, end.

use super::element::ElementChange;
use super::wire::{self, Attributes, Messages};
use super::{Place, Verb};
use crate::netfilter::Family;

/// Attribute types of linux/netfilter/nf_tables.h.
const SET: u16 = 2;
const ELEMENTS: u16 = 3;

/// A list is closed at this length, well before its 16-bit length overflows.
const LIST_LIMIT: usize = 60_000;
/// Bytes of the message that ends a batch.
const END: usize = 20;
/// Where in a message the attribute is that names the table.
const TABLE_OFFSET: usize = 20;

/// A transaction while it is written and while its answers are read.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    bytes: &'a mut Vec<u8>,
    family: Family,
    table: &'a str,
    limit: usize,
    first: u32,
    next: u32,
    open: Option<List>,
    /// Where the last message with elements begins.
    last: Option<usize>,
}

/// The message being written: consecutive changes of one kind to one set.
#[derive(Debug)]
struct List {
    set: String,
    verb: Verb,
    message: usize,
    attribute: usize,
}

impl<'a> Batch<'a> {
    /// Begins a transaction of at most `limit` bytes in `bytes`, with numbers after `last_sequence`.
    pub fn begin(bytes: &'a mut Vec<u8>, family: Family, table: &'a str, last_sequence: u32, limit: usize) -> Self {
        let mut batch = Self { bytes, family, table, limit, first: 0, next: last_sequence, open: None, last: None };
        batch.restart();
        batch
    }

    /// Begins the next transaction after one that was ended.
    pub fn restart(&mut self) {
        self.bytes.clear();
        self.last = None;
        self.first = self.next.wrapping_add(1);
        let start = wire::begin_message(self.bytes, wire::BATCH_BEGIN, wire::REQUEST, self.first, 0);
        wire::end_message(self.bytes, start);
        self.next = self.first.wrapping_add(1);
    }

    /// Appends a change, or says false and leaves all as it was if there is no room for it.
    pub fn push(&mut self, change: &ElementChange<'_>) -> bool {
        let continues = self.open.as_ref().is_some_and(|list| {
            list.set == change.set
                && list.verb == change.verb
                && self.bytes.len() - list.attribute + change.room() <= LIST_LIMIT
        });
        let head = wire::HEADER + 3 * (wire::ATTRIBUTE + 4) + self.table.len() + change.set.len() + 4;
        let room = change.room() + END + if continues { 0 } else { head };
        if !change.is_writable() || self.bytes.len() + room > self.limit {
            return false;
        }
        if !continues {
            self.close();
            self.open(change);
        }
        change.write(self.bytes);
        true
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// Ends it. The last change asks to be acknowledged, as only newer kernels acknowledge the end itself.
    pub fn end(&mut self) -> &[u8] {
        self.close();
        if let Some(start) = self.last {
            wire::add_flags(self.bytes, start, wire::ACK);
        }
        let start = wire::begin_message(self.bytes, wire::BATCH_END, wire::REQUEST, self.next, 0);
        wire::end_message(self.bytes, start);
        self.bytes
    }

    /// The number of the message that ends it.
    pub fn last_sequence(&self) -> u32 {
        self.next
    }

    /// Whether `sequence` numbers a message of it.
    pub fn contains(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.first) <= self.next.wrapping_sub(self.first)
    }

    /// Whether `sequence` numbers the change that asks to be acknowledged.
    pub fn is_acknowledged_by(&self, sequence: u32) -> bool {
        sequence == self.next.wrapping_sub(1)
    }

    /// What the kernel complains about, from the message's number and the place in it.
    pub fn place(&self, sequence: u32, offset: Option<usize>) -> Place {
        let table = Place::table(self.family, self.table);
        let message = Messages(self.bytes).find(|message| message.sequence == sequence);
        let Some((_, attributes)) = message.as_ref().and_then(wire::Message::generic) else { return table };
        let Some(set) = attributes.name(SET) else { return table };
        let place = Place::set(self.family, self.table, set);
        // The list of elements ends where the message does.
        let end = message.map_or(0, |message| wire::HEADER + message.body.len());
        let mut items = Attributes(attributes.find(ELEMENTS).unwrap_or_default());
        let element = match offset {
            Some(TABLE_OFFSET) => return table,
            Some(offset) => std::iter::from_fn(|| items.next().map(|(_, item)| (end - items.0.len(), item)))
                .find(|(next, _)| offset < *next)
                .filter(|(next, item)| offset + wire::padded(item.len()) + wire::ATTRIBUTE >= *next)
                .map(|(_, item)| item),
            None => items.next().filter(|_| items.0.is_empty()).map(|(_, item)| item),
        };
        let key = element.and_then(super::element::read).map(|(key, _)| key.to_vec());
        Place { key, ..place }
    }

    fn open(&mut self, change: &ElementChange<'_>) {
        let (kind, flags) = match change.verb {
            Verb::Add => (wire::NEW_ELEMENTS, wire::REQUEST | wire::CREATE),
            Verb::Delete => (wire::DELETE_ELEMENTS, wire::REQUEST),
        };
        let message = wire::begin_message(self.bytes, kind, flags, self.next, wire::number(self.family));
        self.next = self.next.wrapping_add(1);
        wire::put_name(self.bytes, wire::TABLE, self.table);
        wire::put_name(self.bytes, SET, change.set);
        let attribute = wire::begin_nest(self.bytes, ELEMENTS);
        self.open = Some(List { set: change.set.to_owned(), verb: change.verb, message, attribute });
        self.last = Some(message);
    }

    fn close(&mut self) {
        if let Some(list) = self.open.take() {
            wire::end_attribute(self.bytes, list.attribute);
            wire::end_message(self.bytes, list.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::netlink::Value;

    fn change<'a>(set: &'a str, key: &'a [u8], verb: Verb) -> ElementChange<'a> {
        ElementChange { set, key, value: Value::None, verb }
    }

    #[test]
    fn consecutive_changes_of_one_kind_share_a_message_and_order_is_kept() {
        let mut bytes = Vec::new();
        let mut batch = Batch::begin(&mut bytes, Family::Ipv4, "weir", 40, 4096);
        assert!(batch.is_empty());
        for (set, verb) in
            [("a", Verb::Add), ("a", Verb::Add), ("a", Verb::Delete), ("b", Verb::Delete), ("a", Verb::Add)]
        {
            assert!(batch.push(&change(set, &[1; 4], verb)));
        }
        let messages: Vec<_> = Messages(batch.end()).map(|message| (message.kind, message.sequence)).collect();
        let (add, delete) = (wire::NEW_ELEMENTS, wire::DELETE_ELEMENTS);
        let expected =
            [(wire::BATCH_BEGIN, 41), (add, 42), (delete, 43), (delete, 44), (add, 45), (wire::BATCH_END, 46)];
        assert_eq!(messages, expected);
        assert!(batch.is_acknowledged_by(45) && batch.contains(41) && batch.contains(46) && !batch.contains(40));
    }

    #[test]
    fn a_place_is_found_by_offset() {
        let mut bytes = Vec::new();
        let mut batch = Batch::begin(&mut bytes, Family::Ipv4, "weir", 0, 4096);
        for last in 1..=3 {
            assert!(batch.push(&change("nodes", &[10, 0, 0, last], Verb::Add)));
        }
        batch.end();
        let key = |offset| batch.place(2, offset).key;
        // Header 20, table 12, set 12, the list's own head 4, then items of 16.
        assert_eq!(key(Some(48)), Some(vec![10, 0, 0, 1]));
        assert_eq!(key(Some(64)), Some(vec![10, 0, 0, 2]));
        assert_eq!(key(Some(84)), Some(vec![10, 0, 0, 3]));
        assert_eq!((key(Some(32)), key(Some(44)), key(Some(96)), key(None)), (None, None, None, None));
        assert_eq!(batch.place(2, Some(32)).set.as_deref(), Some("nodes"));
        assert_eq!(batch.place(2, Some(20)).set, None);
        assert_eq!(batch.place(1, None).set, None);
    }

    #[test]
    fn what_does_not_fit_leaves_the_batch_as_it_was() {
        let mut bytes = Vec::new();
        let mut batch = Batch::begin(&mut bytes, Family::Ipv6, "weir", 0, 1000);
        let mut count = 0;
        while batch.push(&change("nodes", &[0; 16], Verb::Add)) {
            count += 1;
        }
        assert!(count > 20);
        assert!(batch.end().len() <= 1000);
        batch.restart();
        assert!(batch.is_empty() && batch.push(&change("nodes", &[0; 16], Verb::Add)));
    }

    #[test]
    fn a_long_list_is_split_before_its_length_overflows() {
        let mut bytes = Vec::new();
        let mut batch = Batch::begin(&mut bytes, Family::Ipv4, "weir", 0, 1 << 20);
        for _ in 0..10_000 {
            assert!(batch.push(&change("nodes", &[0; 12], Verb::Add)));
        }
        let lists: Vec<_> = Messages(batch.end())
            .filter_map(|message| message.generic()?.1.find(ELEMENTS).map(|list| Attributes(list).count()))
            .collect();
        assert!(lists.len() > 1);
        assert_eq!(lists.iter().sum::<usize>(), 10_000);
    }
}
