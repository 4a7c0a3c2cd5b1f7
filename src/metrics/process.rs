//! What the process takes of its machine, under the names that all Prometheus clients use.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::catalogue::Row;

/// Clock ticks a second in /proc; fixed by Linux for everything outside the kernel (`man 7 time`).
const TICKS: f64 = 100.0;

const CPU: &str = "User and system CPU time";
const MEMORY: &str = "Resident memory";
const FILES: &str = "Open file descriptors";
const START: &str = "Start of the process since the Unix epoch";

/// Read anew for each scrape.
#[derive(Debug)]
pub struct Usage;

/// What is said of these metrics.
pub fn rows() -> Vec<Row> {
    let row = |name: &str, kind, help| Row { name: name.to_owned(), kind, labels: &[], help };
    vec![
        row("process_cpu_seconds_total", "counter", CPU),
        row("process_resident_memory_bytes", "gauge", MEMORY),
        row("process_open_fds", "gauge", FILES),
        row("process_start_time_seconds", "gauge", START),
    ]
}

impl Collector for Usage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        if let Some(bytes) = resident() {
            gauge("process_resident_memory", MEMORY, Some(&Unit::Bytes), bytes)?;
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One is of this listing.
            let open = u32::try_from(files.count().saturating_sub(1)).unwrap_or(u32::MAX);
            gauge("process_open_fds", FILES, None, open.into())?;
        }
        let Some((cpu, start)) = times() else { return Ok(()) };
        gauge("process_start_time", START, Some(&Unit::Seconds), start)?;
        let cpu = ConstCounter::new(cpu);
        cpu.encode(encoder.encode_descriptor("process_cpu", CPU, Some(&Unit::Seconds), cpu.metric_type())?)
    }
}

fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

/// CPU time, and the start since the Unix epoch, in seconds.
fn times() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in brackets, may hold anything.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok().map(|ticks| ticks / TICKS);
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    Some((ticks(11)? + ticks(12)?, boot + ticks(19)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_plausible() {
        let (cpu, start) = times().unwrap();
        let now = jiff::Timestamp::now().as_duration().as_secs_f64();
        assert!(cpu >= 0.0 && start <= now + 1.0 && now - start < 3600.0, "{cpu} {start} {now}");
        assert!(resident().unwrap() > 1e6);
    }
}
