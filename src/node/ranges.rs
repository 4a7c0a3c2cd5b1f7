//! The cluster's ranges of ClusterIPs, as the watch of ServiceCIDRs tells of them. Pure.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::watcher::Event;

/// What is known of them.
#[derive(Debug, Default)]
pub struct ServiceRanges {
    by_name: BTreeMap<String, Vec<IpNet>>,
    /// What a running list has brought so far.
    listed: BTreeMap<String, Vec<IpNet>>,
    is_known: bool,
}

impl ServiceRanges {
    /// Whether they have been listed whole at least once, or there is nothing to list.
    pub const fn is_known(&self) -> bool {
        self.is_known
    }

    /// This cluster has no ServiceCIDRs.
    pub const fn there_are_none(&mut self) {
        self.is_known = true;
    }

    /// All of them, sorted.
    pub fn all(&self) -> Vec<IpNet> {
        let mut all: Vec<_> = self.by_name.values().flatten().copied().collect();
        all.sort();
        all
    }

    /// Takes in an event. What was known before stands until a new list is whole, for the API server may be away between
    /// its first object and its last.
    pub fn take(&mut self, event: &Event<ServiceCIDR>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(range) => {
                self.listed.insert(name(range), cidrs(range));
            }
            Event::InitDone => {
                self.by_name = std::mem::take(&mut self.listed);
                self.is_known = true;
            }
            Event::Apply(range) => {
                self.by_name.insert(name(range), cidrs(range));
            }
            Event::Delete(range) => {
                self.by_name.remove(&name(range));
            }
        }
    }
}

fn name(range: &ServiceCIDR) -> String {
    range.metadata.name.clone().unwrap_or_default()
}

fn cidrs(range: &ServiceCIDR) -> Vec<IpNet> {
    let cidrs = range.spec.iter().filter_map(|spec| spec.cidrs.as_ref()).flatten();
    cidrs.filter_map(|cidr| cidr.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(name: &str, cidrs: &[&str]) -> ServiceCIDR {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}})).unwrap()
    }

    #[test]
    fn p16_the_ranges_stand_while_they_are_listed_again() {
        let mut ranges = ServiceRanges::default();
        let words = |ranges: &ServiceRanges| ranges.all().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        ranges.take(&Event::Init);
        ranges.take(&Event::InitApply(range("kubernetes", &["10.96.0.0/16", "fd00:96::/108"])));
        assert_eq!((ranges.is_known(), words(&ranges)), (false, String::new()));
        ranges.take(&Event::InitDone);
        assert_eq!((ranges.is_known(), &words(&ranges)[..]), (true, "10.96.0.0/16 fd00:96::/108"));
        ranges.take(&Event::Apply(range("more", &["10.97.0.0/16", "nonsense"])));
        assert_eq!(words(&ranges), "10.96.0.0/16 10.97.0.0/16 fd00:96::/108");

        // A list breaks off, and begins anew.
        for begun in [vec![range("kubernetes", &["10.98.0.0/16"])], vec![]] {
            ranges.take(&Event::Init);
            for range in begun {
                ranges.take(&Event::InitApply(range));
            }
            assert_eq!(words(&ranges), "10.96.0.0/16 10.97.0.0/16 fd00:96::/108");
        }
        ranges.take(&Event::InitApply(range("kubernetes", &["10.96.0.0/16"])));
        ranges.take(&Event::InitDone);
        assert_eq!(words(&ranges), "10.96.0.0/16");
        ranges.take(&Event::Delete(range("kubernetes", &[])));
        assert_eq!((ranges.is_known(), words(&ranges)), (true, String::new()));
    }
}
