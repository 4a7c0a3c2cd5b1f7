//! A registry whose metrics are described for people as well: `docs/metrics.md` is written from it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, text::encode};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::process;

/// What is said of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name as it is scraped, without the suffixes of a histogram's parts.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

/// The metrics of one role.
#[derive(Debug)]
pub struct Catalogue {
    registry: Registry,
    rows: Vec<Row>,
}

impl Catalogue {
    /// One that has what every process has: which build it is, in which role, and what it takes of its machine.
    pub fn new(role: &'static str) -> Self {
        let mut catalogue = Self { registry: Registry::default(), rows: vec![] };
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("role", role)]);
        catalogue.add("weir_build", &["version", "role"], "Version and role of this process", build);
        catalogue.rows.extend(process::rows());
        catalogue.registry.register_collector(Box::new(process::Usage));
        catalogue
    }

    /// Adds a metric without a unit. Suffixes come by its type.
    pub fn add(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        metric: impl Metric,
    ) {
        self.describe(name, &metric, labels, help);
        self.registry.register(name, help, metric);
    }

    /// Adds a metric in seconds; its name says so.
    pub fn add_seconds(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        metric: impl Metric,
    ) {
        self.describe(&format!("{name}_seconds"), &metric, labels, help);
        self.registry.register_with_unit(name, help, Unit::Seconds, metric);
    }

    fn describe(&mut self, name: &str, metric: &impl Metric, labels: &'static [&'static str], help: &'static str) {
        let (suffix, kind) = match EncodeMetric::metric_type(metric) {
            MetricType::Counter => ("_total", "counter"),
            MetricType::Info => ("_info", "info"),
            MetricType::Histogram => ("", "histogram"),
            _ => ("", "gauge"),
        };
        self.rows.push(Row { name: format!("{name}{suffix}"), kind, labels, help });
    }

    /// What is said of each metric.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        encode(&mut text, &self.registry).map(|()| text).unwrap_or_default()
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut text = String::from("| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n");
        for Row { name, kind, labels, help } in &self.rows {
            let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
            // Writing into a String does not fail.
            let _ = writeln!(text, "| `{name}` | {kind} | {} | {help} |", labels.join(", "));
        }
        text
    }
}

/// Gauges of things that come and go: what is gone is not shown any more.
#[derive(Debug)]
pub struct Present<L> {
    gauges: Family<L, Gauge>,
    shown: Mutex<BTreeSet<L>>,
}

impl<L> Default for Present<L>
where
    L: Clone + Eq + Hash + Ord + EncodeLabelSet + std::fmt::Debug + Send + Sync + 'static,
{
    fn default() -> Self {
        Self { gauges: Family::default(), shown: Mutex::default() }
    }
}

impl<L> Present<L>
where
    L: Clone + Eq + Hash + Ord + EncodeLabelSet + std::fmt::Debug + Send + Sync + 'static,
{
    /// What is registered.
    pub fn gauges(&self) -> Family<L, Gauge> {
        self.gauges.clone()
    }

    /// Shows these values, and nothing else.
    pub fn replace(&self, values: impl IntoIterator<Item = (L, usize)>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeSet::new();
        for (labels, value) in values {
            self.gauges.get_or_create(&labels).set(count(value));
            now.insert(labels);
        }
        for gone in shown.difference(&now) {
            self.gauges.remove(gone);
        }
        *shown = now;
    }
}

/// A number of things as a gauge takes it.
pub fn count(things: usize) -> i64 {
    i64::try_from(things).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
    struct Of {
        name: &'static str,
    }

    #[test]
    fn what_is_gone_is_not_shown_any_more() {
        let mut catalogue = Catalogue::new("test");
        let present = Present::default();
        catalogue.add("weir_things", &["name"], "Things", present.gauges());
        present.replace([(Of { name: "a" }, 1), (Of { name: "b" }, 2)]);
        present.replace([(Of { name: "b" }, 3)]);
        let text = catalogue.render();
        assert!(text.contains("weir_things{name=\"b\"} 3\n") && !text.contains("name=\"a\""), "{text}");
        assert!(text.contains("weir_build_info{version="), "{text}");
        assert!(catalogue.table().contains("| `weir_things` | gauge | `name` | Things |"));
    }
}
