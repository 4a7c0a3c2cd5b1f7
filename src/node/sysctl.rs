//! The kernel's settings for conntrack on a node whose Services weir alone forwards (P65, P66).
//!
//! What to write is decided by [`wanted`]; [`ensure`] reads and writes. A write that is refused costs the node some
//! connections under load, not its Services; so it is told and passed over.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Most tracked connections per CPU, and the bounds of their sum (kube-proxy's `maxPerCore` and `min`; the upper bound is
/// ours: at some 320 bytes each it is 320 MiB).
const MAX_PER_CPU: u64 = 32_768;
const MAX_FLOOR: u64 = 131_072;
const MAX_CEILING: u64 = 1_048_576;
/// Connections per bucket of the hash table at the most.
const PER_BUCKET: u64 = 4;

const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
/// In buckets. Like the maximum, it can be set from the host's network namespace only.
const HASHSIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";
const CPUS: &str = "sys/devices/system/cpu/online";

/// Values that do not depend on the host: path under the root, value.
const FIXED: [(&str, u64); 3] = [
    // A day instead of five, as long as most idle connections are kept open.
    ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", 86_400),
    // An hour instead of a minute: a server that is slow to close still gets its last packets translated.
    ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", 3_600),
    // A packet outside the window is translated like the others. Otherwise it reaches the client from an address that
    // the client does not know, and the client resets the connection (kubernetes#74839).
    ("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", 1),
];

/// A value to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The file, below the root.
    pub path: &'static str,
    /// Its new value.
    pub value: u64,
}

/// A value that could not be read or written.
#[derive(Debug)]
pub struct Refused {
    path: PathBuf,
    wanted: Option<u64>,
    error: io::Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, error) = (self.path.display(), &self.error);
        match self.wanted {
            Some(value) => write!(f, "cannot set {path} to {value}: {error}; set it on the host, or mount it writable"),
            None => write!(f, "cannot read {path}: {error}; it stays as it is"),
        }
    }
}

/// What has to be written, given the host's online CPUs and the value that a file has now (`None`: it has none).
///
/// `nf_conntrack_max` and the hash table are raised only: someone may have good reasons for more.
pub fn wanted(cpus_online: u64, current: impl Fn(&str) -> Option<u64>) -> Vec<Write> {
    let max = cpus_online.saturating_mul(MAX_PER_CPU).clamp(MAX_FLOOR, MAX_CEILING);
    let mut writes = Vec::new();
    let effective_max = match current(MAX) {
        Some(now) if now < max => {
            writes.push(Write { path: MAX, value: max });
            max
        }
        now => now.unwrap_or(max),
    };
    let buckets = effective_max.div_ceil(PER_BUCKET);
    if current(HASHSIZE).is_some_and(|now| now < buckets) {
        writes.push(Write { path: HASHSIZE, value: buckets });
    }
    let fixed = FIXED.iter().filter(|(path, value)| current(path).is_some_and(|now| now != *value));
    writes.extend(fixed.map(|(path, value)| Write { path, value: *value }));
    writes
}

/// What has to be written under `root`.
pub fn lacking(root: &Path) -> Vec<Write> {
    let cpus = fs::read_to_string(root.join(CPUS)).ok().and_then(|list| count_cpus(&list)).unwrap_or(1);
    wanted(cpus, |path| read(root, path).ok())
}

/// Brings the settings under `root` (`/`, or where the host's files are mounted) to what is wanted. Returns what was
/// written, and what was refused.
pub fn ensure(root: &Path) -> (Vec<Write>, Vec<Refused>) {
    let mut refused = Vec::new();
    for path in [MAX, HASHSIZE].into_iter().chain(FIXED.map(|(path, _)| path)) {
        if let Err(error) = read(root, path) {
            refused.push(Refused { path: root.join(path), wanted: None, error });
        }
    }
    let mut written = Vec::new();
    for write in lacking(root) {
        // The files are the kernel's and are neither created nor truncated.
        let path = root.join(write.path);
        let outcome = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, format!("{}\n", write.value).as_bytes()));
        match outcome {
            Ok(()) => written.push(write),
            Err(error) => refused.push(Refused { path, wanted: Some(write.value), error }),
        }
    }
    (written, refused)
}

fn read(root: &Path, path: &str) -> io::Result<u64> {
    let text = fs::read_to_string(root.join(path))?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{:?} is no number", text.trim())))
}

/// CPUs in a list such as `0-3,5`: all of the host, unlike a cpuset's share (P65).
fn count_cpus(list: &str) -> Option<u64> {
    list.trim().split(',').try_fold(0, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some(count + last.checked_sub(first)? + 1)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A host as the kernel sets it up by itself.
    fn fresh() -> BTreeMap<&'static str, u64> {
        BTreeMap::from([(MAX, 65_536), (HASHSIZE, 16_384), (FIXED[0].0, 432_000), (FIXED[1].0, 60), (FIXED[2].0, 0)])
    }

    fn writes(cpus: u64, current: &BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
        wanted(cpus, |path| current.get(path).copied()).into_iter().map(|write| (write.path, write.value)).collect()
    }

    #[test]
    fn p65_the_maximum_follows_the_cpus_within_bounds() {
        for (cpus, max) in [(1, 131_072), (4, 131_072), (8, 262_144), (32, 1_048_576), (192, 1_048_576)] {
            let writes = writes(cpus, &fresh());
            assert_eq!((writes[MAX], writes[HASHSIZE]), (max, max / 4), "{cpus} CPUs");
        }
    }

    #[test]
    fn p65_nothing_is_lowered() {
        let mut current = fresh();
        current.extend([(MAX, 2_000_000), (HASHSIZE, 500_000)]);
        let writes = writes(4, &current);
        assert!(!writes.contains_key(MAX) && !writes.contains_key(HASHSIZE), "{writes:?}");
    }

    #[test]
    fn p65_a_maximum_already_higher_still_gets_its_buckets() {
        let mut current = fresh();
        current.insert(MAX, 262_144);
        assert_eq!(writes(4, &current).get(HASHSIZE), Some(&65_536));
        assert_eq!(writes(4, &current).get(MAX), None);
    }

    #[test]
    fn p65_p66_timeouts_and_tolerance() {
        let writes = writes(4, &fresh());
        assert_eq!(FIXED.map(|(path, _)| writes[path]), [86_400, 3_600, 1]);
    }

    #[test]
    fn what_is_right_or_missing_is_not_written() {
        let mut current = fresh();
        current.extend(writes(4, &fresh()));
        assert_eq!(writes(4, &current), BTreeMap::new());
        assert_eq!(writes(4, &BTreeMap::new()), BTreeMap::new());
    }

    #[test]
    fn p65_cpus_are_counted_from_the_hosts_list() {
        assert_eq!(count_cpus("0-3,5\n"), Some(5));
        assert_eq!(count_cpus("0"), Some(1));
        for odd in ["", "0-", "3-1", "a"] {
            assert_eq!(count_cpus(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn p65_a_refused_write_names_file_and_value_and_the_rest_is_written() {
        let root = std::env::temp_dir().join(format!("weir-sysctl-{}", std::process::id()));
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (path, value) in fresh() {
            put(path, &format!("{value}\n"));
        }
        put(CPUS, "0-7\n");
        put(FIXED[1].0, "odd\n");
        fs::remove_file(root.join(HASHSIZE)).unwrap();
        let (written, refused) = ensure(&root);
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        // A plain file keeps what a shorter value leaves; the kernel's take the line.
        assert!(text(MAX).starts_with("262144\n"), "{:?}", text(MAX));
        assert_eq!(written.iter().map(|write| write.path).collect::<Vec<_>>(), [MAX, FIXED[0].0, FIXED[2].0]);
        let sentences: Vec<String> = refused.iter().map(ToString::to_string).collect();
        assert_eq!(sentences.len(), 2, "{sentences:?}");
        assert!(sentences[0].contains(HASHSIZE) && sentences[1].contains("\"odd\" is no number"), "{sentences:?}");
        fs::remove_dir_all(&root).unwrap();

        let unwritable = Refused {
            path: Path::new("/").join(MAX),
            wanted: Some(131_072),
            error: io::Error::from(io::ErrorKind::PermissionDenied),
        };
        assert!(unwritable.to_string().starts_with(&format!("cannot set /{MAX} to 131072: ")), "{unwritable}");
    }
}
