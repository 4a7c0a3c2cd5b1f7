//! Reads the kernel of this node.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures::TryStreamExt as _;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use tokio_util::task::AbortOnDropHandle;

use super::super::facts::{Answer, NodeFacts, Seen, Unseen};
use crate::admin::PROGRAM;
use crate::command::settings::DoctorNode;
use crate::netfilter::netlink::{Channel, Error};
use crate::node::{kube_proxy, sysctl};
use crate::settings::NodeMode;
use crate::telemetry::chain;

/// CAP_NET_ADMIN of linux/capability.h.
const NET_ADMIN: u32 = 12;
/// Somebody on this host answers at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(2);
/// Tries at a listing while others change the ruleset.
const ATTEMPTS: usize = 5;

/// Everything about this node.
pub async fn node(settings: &DoctorNode) -> NodeFacts {
    let replaces = settings.mode == NodeMode::Replace;
    let sets_conntrack = replaces && !settings.keep_sysctls;
    let lacking = if sets_conntrack { sysctl::lacking(Path::new("/")) } else { vec![] };
    NodeFacts {
        replaces,
        mark: settings.masquerade_mark,
        healthz: settings.healthz_address,
        answer: ask(settings.healthz_address),
        has_net_admin: read("/proc/self/status").as_deref().is_some_and(has_net_admin),
        kernel: read("/proc/sys/kernel/osrelease").as_deref().and_then(kernel),
        nft: nft(),
        has_ipv6: read("/proc/net/if_inet6").is_some_and(|addresses| !addresses.trim().is_empty()),
        tables: listed(Channel::tables, "tables"),
        filters: listed(Channel::filters, "filter chains"),
        kube_proxy: listed(kube_proxy::rules, "kube-proxy's rules"),
        legacy: legacy(),
        forwards: flag("/proc/sys/net/ipv4/ip_forward"),
        forwards_v6: flag("/proc/sys/net/ipv6/conf/all/forwarding"),
        uplinks: uplinks(),
        marks: marks().await.map_err(|error| Unseen(format!("routing rules cannot be read: {error}"))),
        conntrack: lacking.into_iter().map(|write| (write.path, write.value)).collect(),
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn flag(path: &str) -> Option<bool> {
    Some(read(path)?.trim() != "0")
}

/// Whether a process's status has the capability among its effective ones.
fn has_net_admin(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_some_and(|bits| bits >> NET_ADMIN & 1 == 1)
}

/// Major and minor version of a release such as `6.1.141-155.222.amzn2023.x86_64`.
fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn nft() -> Result<(u32, u32, u32), String> {
    let output = Command::new("nft").arg("--version").output();
    let output = output.map_err(|error| format!("nft cannot be run: {error}"))?;
    let words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    nft_version(&words).ok_or_else(|| format!("`nft --version` says {words:?}, which is no version"))
}

/// The version in `nftables v1.0.6 (Lester Gooch #5)`.
fn nft_version(words: &str) -> Option<(u32, u32, u32)> {
    let version = words.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or_default()))
}

fn listed<T>(list: impl Fn(&mut Channel) -> Result<T, Error>, what: &str) -> Seen<T> {
    let unseen = |error: &dyn std::error::Error| Unseen(format!("{what} of nftables cannot be read: {}", chain(error)));
    let mut channel = Channel::open().map_err(|error| unseen(&error))?;
    let mut attempts = 1;
    loop {
        match list(&mut channel) {
            Err(Error::Interrupted | Error::Lost) if attempts < ATTEMPTS => attempts += 1,
            other => return other.map_err(|error| unseen(&error)),
        }
    }
}

/// Tables of legacy iptables in this network namespace.
fn legacy() -> Vec<String> {
    let named = |(command, path): (&str, &str)| {
        read(path).unwrap_or_default().lines().map(|table| format!("{command} {table}")).collect::<Vec<_>>()
    };
    [("iptables", "/proc/net/ip_tables_names"), ("ip6tables", "/proc/net/ip6_tables_names")]
        .into_iter()
        .flat_map(named)
        .collect()
}

/// Interfaces of IPv4 default routes, and how strictly each checks the way back.
fn uplinks() -> Vec<(String, u8)> {
    let value = |interface: &str| -> u8 {
        let text = read(&format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"));
        text.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    };
    let all = value("all");
    let routes = read("/proc/net/route").unwrap_or_default();
    let mut names: Vec<_> = routes.lines().filter_map(default_route).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(|name| (name.to_owned(), value(name).max(all))).collect()
}

/// The interface of a line of /proc/net/route, if it is a default route.
fn default_route(line: &str) -> Option<&str> {
    let mut fields = line.split_whitespace();
    let (interface, destination, mask) = (fields.next()?, fields.next()?, fields.nth(5)?);
    (destination == "00000000" && mask == "00000000").then_some(interface)
}

/// Marks that routing rules of either family look at.
async fn marks() -> Result<Vec<(u32, u32)>, String> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut found = vec![];
    for version in [IpVersion::V4, IpVersion::V6] {
        let rules = handle.rule().get(version).execute().try_collect::<Vec<_>>().await;
        found.extend(rules.map_err(|error| error.to_string())?.iter().filter_map(mark));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn mark(rule: &RuleMessage) -> Option<(u32, u32)> {
    let mask = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMask(mask) => Some(*mask),
        _ => None,
    });
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(value) => Some((*value, mask.unwrap_or(u32::MAX))),
        _ => None,
    })
}

/// Who answers at the health port.
fn ask(address: SocketAddr) -> Answer {
    let local = match address.ip() {
        IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(address) if address.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    let Ok(stream) = TcpStream::connect_timeout(&SocketAddr::new(local, address.port()), PATIENCE) else {
        return Answer::Nobody;
    };
    match head(stream) {
        Ok(head) => answer(&head),
        Err(error) => Answer::Other(format!("it takes connections and then fails ({error})")),
    }
}

fn head(mut stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /livez HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut head = vec![0; 2048];
    let length = stream.read(&mut head)?;
    Ok(String::from_utf8_lossy(&head[..length]).into_owned())
}

fn answer(head: &str) -> Answer {
    let status = head.lines().next().unwrap_or_default();
    let code = status.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    let server = head.lines().skip(1).take_while(|line| !line.is_empty()).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("server").then(|| value.trim())
    });
    let program = PROGRAM.split('/').next().unwrap_or_default();
    match (code, server) {
        (Some(code), Some(server)) if server.split('/').next() == Some(program) => Answer::Weir(code),
        (Some(_), server) => {
            Answer::Other(format!("{status}{}", server.map(|it| format!(", from {it}")).unwrap_or_default()))
        }
        (None, _) => Answer::Other("not in HTTP".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(nft_version("nftables v1.0.6 (Lester Gooch #5)"), Some((1, 0, 6)));
        assert_eq!(nft_version("nftables v0.9 (Topsy)"), Some((0, 9, 0)));
        assert_eq!(nft_version("usage: nft"), None);
        assert_eq!(kernel("6.1.141-155.222.amzn2023.x86_64\n"), Some((6, 1)));
        assert_eq!(kernel("odd"), None);
    }

    #[test]
    fn capabilities() {
        assert!(has_net_admin("Name:\tweir\nCapEff:\t0000000000001000\n"));
        assert!(!has_net_admin("Name:\tweir\nCapEff:\t0000000000000fff\n"));
        assert!(!has_net_admin(""));
    }

    #[test]
    fn default_routes() {
        let line = "eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0";
        assert_eq!(default_route(line), Some("eth0"));
        let local = "eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0";
        assert_eq!(default_route(local), None);
        assert_eq!(default_route("Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask"), None);
    }

    #[test]
    fn who_answers_is_told_by_a_header() {
        assert_eq!(answer("HTTP/1.1 503 Service Unavailable\r\nServer: weir/0.1.0\r\n\r\n{}"), Answer::Weir(503));
        let kube_proxy = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"lastUpdated\": \"x\"}";
        assert_eq!(answer(kube_proxy), Answer::Other("HTTP/1.1 200 OK".into()));
        assert_eq!(answer("SSH-2.0-OpenSSH_9.2"), Answer::Other("not in HTTP".into()));
    }
}
