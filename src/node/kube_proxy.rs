//! What kube-proxy leaves in the kernel: rules that answer for Services which nobody keeps up to date any longer.

use crate::netfilter::Family;
use crate::netfilter::netlink::{Channel, Error};

/// kube-proxy's tables, and the chain of its iptables mode as far as nftables shows it, in words.
///
/// # Errors
/// The kernel could not be asked.
pub fn rules(channel: &mut Channel) -> Result<Vec<String>, Error> {
    let mut found = vec![];
    for family in Family::ALL {
        let word = family.word();
        if channel.has_table(family, "kube-proxy")? {
            found.push(format!("table {word} kube-proxy"));
        }
        let chains = match channel.chains(family, "nat") {
            Err(Error::Missing(_)) => continue,
            other => other?,
        };
        if chains.contains_key("KUBE-SERVICES") {
            found.push(format!("chain KUBE-SERVICES of table {word} nat"));
        }
    }
    Ok(found)
}
