//! What others have in nftables, as far as it can meet our packets: which tables there are, and where filters are.
//!
//! Names and hooks alone: nobody's rules, sets or elements are listed, however many there are.

use super::error::{Error, Place};
use super::wire::{self, Attributes};
use super::{CHAIN_HOOK, CHAIN_NAME, Channel, HOOK_NUMBER};
use crate::netfilter::Family;

/// NFPROTO_UNSPEC and NFPROTO_INET of linux/netfilter.h.
const ANY: u8 = 0;
const INET: u8 = 1;

/// Attribute types of linux/netfilter/nf_tables.h.
const TABLE_FLAGS: u16 = 2;
const TABLE_OWNER: u16 = 7;
const CHAIN_POLICY: u16 = 5;
const CHAIN_USE: u16 = 6;
const CHAIN_TYPE: u16 = 7;
/// NFT_TABLE_F_OWNER.
const OWNED: u32 = 2;
/// NF_DROP.
const DROP: u32 = 0;

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSeen {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Its name.
    pub name: String,
    /// The netlink port of the program that alone may change it.
    pub owner: Option<u32>,
}

/// A filter chain where packets enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterSeen {
    /// Family of its table.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// `prerouting`, `input`, `forward`, `output` or `postrouting`.
    pub hook: &'static str,
    /// Whether it drops what no rule of it accepts.
    pub drops: bool,
    /// Number of its rules.
    pub rules: u32,
}

impl Channel {
    /// All tables that can meet IP packets.
    ///
    /// # Errors
    /// [`Error::Interrupted`] asks for another try.
    pub fn tables(&mut self) -> Result<Vec<TableSeen>, Error> {
        let mut found = vec![];
        self.request_of(wire::GET_TABLE, wire::DUMP, ANY, &[])?;
        self.answers_of(wire::NEW_TABLE, &everything(), |number, table| {
            found.extend(read_table(number, &table));
            Ok(())
        })?;
        Ok(found)
    }

    /// All filter chains where IP packets enter.
    ///
    /// # Errors
    /// [`Error::Interrupted`] asks for another try.
    pub fn filters(&mut self) -> Result<Vec<FilterSeen>, Error> {
        let mut found = vec![];
        self.request_of(wire::GET_CHAIN, wire::DUMP, ANY, &[])?;
        self.answers_of(wire::NEW_CHAIN, &everything(), |number, chain| {
            found.extend(read_filter(number, &chain));
            Ok(())
        })?;
        Ok(found)
    }
}

fn everything() -> Place {
    Place::table(Family::Ipv4, "*")
}

const fn word(number: u8) -> Option<&'static str> {
    match (wire::family(number), number) {
        (Some(family), _) => Some(family.word()),
        (None, INET) => Some("inet"),
        (None, _) => None,
    }
}

fn read_table(number: u8, table: &Attributes<'_>) -> Option<TableSeen> {
    // Without an owner, the kernel sends no attribute for it.
    let owner = table.number(TABLE_OWNER).filter(|_| table.number(TABLE_FLAGS).unwrap_or_default() & OWNED != 0);
    Some(TableSeen { family: word(number)?, name: table.name(wire::TABLE)?.to_owned(), owner })
}

fn read_filter(number: u8, chain: &Attributes<'_>) -> Option<FilterSeen> {
    if chain.name(CHAIN_TYPE) != Some("filter") {
        return None;
    }
    let hook = match chain.nest(CHAIN_HOOK)?.number(HOOK_NUMBER)? {
        0 => "prerouting",
        1 => "input",
        2 => "forward",
        3 => "output",
        4 => "postrouting",
        _ => return None,
    };
    Some(FilterSeen {
        family: word(number)?,
        table: chain.name(wire::TABLE)?.to_owned(),
        name: chain.name(CHAIN_NAME)?.to_owned(),
        hook,
        drops: chain.number(CHAIN_POLICY) == Some(DROP),
        // Nothing can jump to a base chain, so that whatever uses it is a rule in it.
        rules: chain.number(CHAIN_USE).unwrap_or_default(),
    })
}
