//! What asks the kernel, against the real kernel: each test in a network namespace of its own.
//!
//! A test starts itself again under `unshare --net`. Where that is not allowed, it says so and passes.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use namespace::in_namespace;
use weir::model::family::Family;
use weir::netfilter::flows::{Swept, sweep};
use weir::node::addresses::follow;
use weir::node::conntrack::ServingByFrontend;

mod namespace;

/// Enough for many datagrams of a dump.
const MANY: u16 = 5_000;

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

fn nft(script: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "nft refused {script}");
}

/// Frontends and endpoints of both families on loopback, and a rule that makes conntrack watch and translate.
fn set_up() {
    ip("link set lo up");
    for address in ["10.96.0.10/32", "10.0.3.4/32"] {
        ip(&format!("address add {address} dev lo"));
    }
    for address in ["fd00:96::a/128", "fd00::3:4/128"] {
        ip(&format!("address add {address} dev lo nodad"));
    }
    nft("table ip test {
            chain output { type nat hook output priority -105; ip daddr 10.96.0.10 udp dport 53 dnat to 10.0.3.4:1053; }
         }
         table ip6 test {
            chain output { type nat hook output priority -105; ip6 daddr fd00:96::a udp dport 53 dnat to [fd00::3:4]:1053; }
         }");
}

fn send(from: &str, to: &str) {
    UdpSocket::bind(from).unwrap().send_to(b"?", to).unwrap();
}

fn serving(frontend: &str, endpoints: &[&str]) -> ServingByFrontend {
    let endpoints: HashSet<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect();
    let mut serving = ServingByFrontend::default();
    serving.insert(frontend.parse().unwrap(), Arc::new(endpoints));
    serving
}

fn clean(family: Family, serving: &ServingByFrontend) -> Swept {
    sweep(family, |flow| serving.is_stale(flow)).unwrap()
}

fn swept(listed: u64, deleted: u64) -> Swept {
    Swept { listed, deleted, complete: true }
}

#[test]
fn p59_p60_p62_stale_udp_flows_of_both_families_go_and_nothing_else() {
    in_namespace("p59_p60_p62_stale_udp_flows_of_both_families_go_and_nothing_else", &[], || {
        set_up();
        let server = TcpListener::bind("10.0.3.4:0").unwrap();
        let _connection = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        for (family, source, frontend, endpoint, plain) in [
            (Family::Ipv4, "10.0.3.4:0", "10.96.0.10:53", "10.0.3.4:1053", "10.96.0.10:54"),
            (Family::Ipv6, "[fd00::3:4]:0", "[fd00:96::a]:53", "[fd00::3:4]:1053", "[fd00:96::a]:54"),
        ] {
            send(source, frontend);
            send(source, frontend);
            send(source, plain);
            assert_eq!(clean(family, &ServingByFrontend::default()), swept(3, 0), "TCP is not listed");
            assert_eq!(clean(family, &serving(frontend, &[endpoint])), swept(3, 0), "its endpoint serves");
            // None to some: these senders came before there was a rule, and their entries have no DNAT.
            assert_eq!(clean(family, &serving(plain, &[endpoint])), swept(3, 1));
            assert_eq!(clean(family, &serving(frontend, &[])), swept(2, 2), "the last endpoint is gone");
            assert_eq!(clean(family, &serving(frontend, &[])), swept(0, 0));
        }
    });
}

#[test]
fn p64_a_long_table_is_swept_without_being_collected() {
    in_namespace("p64_a_long_table_is_swept_without_being_collected", &[], || {
        set_up();
        let socket = UdpSocket::bind("10.0.3.4:0").unwrap();
        for port in 0..MANY {
            // A refusal by the closed port before.
            let _ = socket.send_to(b"?", ("10.96.0.10", 20_000 + port));
        }
        let stale: HashSet<u16> = (20_000..20_000 + MANY).filter(|port| port % 2 == 0).collect();
        let before = peak_kib();
        let first = sweep(Family::Ipv4, |flow| stale.contains(&flow.original_destination.port())).unwrap();
        assert_eq!(first.deleted, u64::from(MANY / 2));
        assert!(first.listed >= u64::from(MANY), "{first:?}");
        assert_eq!(sweep(Family::Ipv4, |_| false).unwrap(), swept(u64::from(MANY / 2), 0));
        assert!(peak_kib() < before + 512, "{before} KiB before, {} KiB after", peak_kib());
    });
}

/// The most memory that this process has had resident.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn p24_address_changes_are_followed() {
    in_namespace("p24_address_changes_are_followed", &[], || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut seen = follow::addresses().await.unwrap();
            assert!(seen.borrow().is_empty());
            ip("link set lo up");
            ip("address add 10.0.1.5/24 dev lo");
            ip("address add fd00::5/64 dev lo nodad");
            let wanted: BTreeSet<IpAddr> =
                ["127.0.0.1", "::1", "10.0.1.5", "fd00::5"].iter().map(|ip| ip.parse().unwrap()).collect();
            wait_for(&mut seen, &wanted).await;
            ip("address del 10.0.1.5/24 dev lo");
            let left: BTreeSet<IpAddr> = wanted.into_iter().filter(|ip| ip.to_string() != "10.0.1.5").collect();
            wait_for(&mut seen, &left).await;
        });
    });
}

async fn wait_for(seen: &mut tokio::sync::watch::Receiver<BTreeSet<IpAddr>>, wanted: &BTreeSet<IpAddr>) {
    let waited = tokio::time::timeout(Duration::from_secs(10), seen.wait_for(|known| known == wanted)).await;
    assert!(waited.is_ok_and(|known| known.is_ok()), "not {wanted:?}");
}
