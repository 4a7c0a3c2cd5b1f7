//! Elements over raw netlink, in the real kernel. Each test runs in a network namespace of its own, which takes root.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics has failed, as it should")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use namespace::in_namespace;
use weir::netfilter::Family;
use weir::netfilter::netlink::{Base, Channel, ElementChange, Error, Notice, Value, Verb, Watch};

mod namespace;

const TABLE: &str = "weir";
const TCP: u8 = 6;
const UDP: u8 = 17;

type Elements = BTreeMap<Vec<u8>, String>;

fn nft(script: &str) -> u32 {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft refuses {script}");
    child.id()
}

/// What nft calls a family and its addresses.
fn words(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::Ipv4 => ("ip", "ipv4_addr"),
        Family::Ipv6 => ("ip6", "ipv6_addr"),
    }
}

/// A table with each kind of set and map, and chains to go to.
fn objects(family: Family) -> String {
    let (ip, address) = words(family);
    format!(
        "table {ip} {TABLE} {{
            map services {{ type {address} . inet_proto . inet_service : verdict; }}
            map endpoints {{ typeof {ip} daddr . tcp dport . numgen random mod 65536 : {ip} daddr . tcp dport; }}
            set nodes {{ type {address}; }}
            set pairs {{ type {address} . {address}; }}
            chain tcp-2 {{
                meta l4proto tcp dnat {ip} addr . port to {ip} daddr . tcp dport . numgen random mod 2 map @endpoints \
                    comment \"two endpoints\"
            }}
            chain marked {{
                meta mark set mark or 0x4000 comment \"to be masqueraded\"
                meta l4proto {{ tcp, udp }} counter
                goto tcp-2 comment \"as ever\"
            }}
            chain output {{
                type nat hook output priority -105
                {ip} daddr . meta l4proto . th dport vmap @services
            }}
        }}"
    )
}

fn address(family: Family, last: u32) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::from_bits(0x0a00_0000 + last).into(),
        Family::Ipv6 => Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(last)).into(),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn frontend(address: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    [octets(address), vec![protocol, 0, 0, 0, high, low, 0, 0]].concat()
}

fn slot(address: IpAddr, port: u16, index: u32) -> Vec<u8> {
    [endpoint(address, port), index.to_ne_bytes().to_vec()].concat()
}

fn endpoint(address: IpAddr, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    [octets(address), vec![high, low, 0, 0]].concat()
}

fn change<'a>(verb: Verb, set: &'a str, key: &'a [u8], value: Value<'a>) -> ElementChange<'a> {
    ElementChange { set, key, value, verb }
}

fn listed(channel: &mut Channel, family: Family, set: &str) -> Elements {
    let mut elements = Elements::new();
    let each = |key: &[u8], value: Value<'_>| {
        assert!(elements.insert(key.to_vec(), format!("{value:?}")).is_none(), "listed twice");
    };
    channel.elements(family, TABLE, set, each).unwrap();
    elements
}

#[test]
fn what_is_added_is_what_is_listed_and_what_nft_would_have_written() {
    in_namespace("what_is_added_is_what_is_listed_and_what_nft_would_have_written", &[], || {
        for family in Family::ALL {
            let (ip, _) = words(family);
            let (vip, pod) = (address(family, 1), address(family, 0x0102));
            nft(&objects(family));
            nft(&format!(
                "add element {ip} {TABLE} services {{ {vip} . tcp . 80 : goto tcp-2, {vip} . udp . 53 : drop }}
                 add element {ip} {TABLE} endpoints {{ {vip} . 80 . 0 : {pod} . 8080, {vip} . 80 . 1 : {pod} . 9 }}
                 add element {ip} {TABLE} nodes {{ {vip} }}
                 add element {ip} {TABLE} pairs {{ {vip} . {pod} }}"
            ));
            let changes = [
                ("services", frontend(vip, TCP, 80), Value::Goto("tcp-2")),
                ("services", frontend(vip, UDP, 53), Value::Drop),
                ("endpoints", slot(vip, 80, 0), Value::Data(&endpoint(pod, 8080))),
                ("endpoints", slot(vip, 80, 1), Value::Data(&endpoint(pod, 9))),
                ("nodes", octets(vip), Value::None),
                ("pairs", [octets(vip), octets(pod)].concat(), Value::None),
            ];
            let expected = |name: &str| -> Elements {
                let of_set = changes.iter().filter(|(set, ..)| *set == name);
                of_set.map(|(_, key, value)| (key.clone(), format!("{value:?}"))).collect()
            };
            let mut channel = Channel::open().unwrap();
            let sets = channel.sets(family, TABLE).unwrap();
            assert_eq!(sets, BTreeSet::from(["endpoints", "nodes", "pairs", "services"].map(str::to_owned)));
            for verb in [Verb::Delete, Verb::Add] {
                for set in &sets {
                    let wanted = if verb == Verb::Delete { expected(set) } else { Elements::new() };
                    assert_eq!(listed(&mut channel, family, set), wanted, "{ip} {set}");
                }
                channel
                    .commit(family, TABLE, changes.iter().map(|(set, key, value)| change(verb, set, key, *value)))
                    .unwrap();
            }
            for set in &sets {
                assert_eq!(listed(&mut channel, family, set), expected(set), "{ip} {set}");
            }
            // Adding what is there is no error.
            channel
                .commit(family, TABLE, changes.iter().map(|(set, key, value)| change(Verb::Add, set, key, *value)))
                .unwrap();
            channel.commit(family, TABLE, []).unwrap();
        }
    });
}

#[test]
fn packets_follow_the_elements() {
    in_namespace("packets_follow_the_elements", &[], || {
        for arguments in ["link set lo up", "address add 192.0.2.1/32 dev lo", "route add default dev lo"] {
            assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success());
        }
        let family = Family::Ipv4;
        nft(&objects(family));
        let vip = address(family, 1);
        let pods = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let data = pods.each_ref().map(|pod| {
            let at = pod.local_addr().unwrap();
            endpoint(at.ip(), at.port())
        });
        let slots = [slot(vip, 80, 0), slot(vip, 80, 1)];
        let service = frontend(vip, TCP, 80);
        let add = |index: usize| change(Verb::Add, "endpoints", &slots[index], Value::Data(&data[index]));
        let dispatch = change(Verb::Add, "services", &service, Value::Goto("tcp-2"));
        Channel::open().unwrap().commit(family, TABLE, [add(0), add(1), dispatch]).unwrap();
        let mut reached = BTreeSet::new();
        for _ in 0..64 {
            let client = TcpStream::connect_timeout(&SocketAddr::new(vip, 80), Duration::from_secs(2)).unwrap();
            for (index, pod) in pods.iter().enumerate() {
                pod.set_nonblocking(true).unwrap();
                if pod.accept().is_ok_and(|(_, from)| from == client.local_addr().unwrap()) {
                    reached.insert(index);
                }
            }
        }
        assert_eq!(reached, BTreeSet::from([0, 1]));
    });
}

#[test]
fn a_transaction_is_made_whole_or_not_at_all() {
    in_namespace("a_transaction_is_made_whole_or_not_at_all", &[], || {
        let family = Family::Ipv4;
        nft(&objects(family));
        let mut channel = Channel::open().unwrap();
        let keys: Vec<_> = (1..=4).map(|last| frontend(address(family, last), TCP, 80)).collect();
        let add = |key, value| change(Verb::Add, "services", key, value);
        let delete = |key| change(Verb::Delete, "services", key, Value::None);
        let (goto, drop) = (Value::Goto("tcp-2"), Value::Drop);
        channel.commit(family, TABLE, [add(&keys[0], goto), add(&keys[1], goto)]).unwrap();
        channel
            .commit(family, TABLE, [delete(&keys[0]), add(&keys[0], drop), delete(&keys[1]), add(&keys[2], drop)])
            .unwrap();
        let before = listed(&mut channel, family, "services");
        let drop_text = format!("{drop:?}");
        assert_eq!(before, Elements::from([(keys[0].clone(), drop_text.clone()), (keys[2].clone(), drop_text)]));

        let error = channel.commit(family, TABLE, [add(&keys[3], goto), delete(&keys[1]), add(&keys[1], goto)]);
        let Err(Error::Missing(place)) = error else { panic!("{error:?}") };
        assert_eq!((place.set.as_deref(), place.key.as_ref()), (Some("services"), Some(&keys[1])));
        let error = channel.commit(family, TABLE, [add(&keys[3], goto), add(&keys[1], goto), add(&keys[0], goto)]);
        let Err(Error::Exists(place)) = error else { panic!("{error:?}") };
        assert_eq!(place.key.as_ref(), Some(&keys[0]), "the third of three in one message");
        let words = "element 0x0a0000010600000000500000 of set services of table ip weir";
        assert_eq!(place.to_string(), words);
        assert_eq!(listed(&mut channel, family, "services"), before);
    });
}

#[test]
fn errors_name_what_they_are_about() {
    in_namespace("errors_name_what_they_are_about", &[], || {
        let (family, key) = (Family::Ipv4, octets(address(Family::Ipv4, 1)));
        let mut channel = Channel::open().unwrap();
        let add = |set, value| [change(Verb::Add, set, &key, value)];
        let missing = |error: Error| match error {
            Error::Missing(place) => (place.table, place.set, place.key),
            other => panic!("{other:?}"),
        };
        let table = (TABLE.to_owned(), None, None);
        assert_eq!(missing(channel.commit(family, TABLE, add("nodes", Value::None)).unwrap_err()), table);
        assert_eq!(missing(channel.chains(family, TABLE).unwrap_err()), table);
        assert_eq!(missing(channel.sets(family, TABLE).unwrap_err()), table);
        assert!(matches!(channel.elements(family, TABLE, "nodes", |_, _| ()), Err(Error::Missing(_))));
        assert!(!channel.has_table(family, TABLE).unwrap());

        nft(&objects(family));
        nft(&format!("add set ip {TABLE} small {{ type ipv4_addr; size 1; }}"));
        nft(&format!("add set ip {TABLE} ranges {{ type ipv4_addr; flags interval; elements = {{ 10.0.0.0/8 }}; }}"));
        assert!(channel.has_table(family, TABLE).unwrap());
        assert!(!channel.has_table(Family::Ipv6, TABLE).unwrap());
        let set = (TABLE.to_owned(), Some("absent".to_owned()), None);
        assert_eq!(missing(channel.commit(family, TABLE, add("absent", Value::None)).unwrap_err()), set);
        let vip = frontend(address(family, 1), TCP, 80);
        let lost = [change(Verb::Add, "services", &vip, Value::Goto("absent"))];
        let element = (TABLE.to_owned(), Some("services".to_owned()), Some(vip.clone()));
        assert_eq!(missing(channel.commit(family, TABLE, lost).unwrap_err()), element);
        let other = octets(address(family, 2));
        let two = [change(Verb::Add, "small", &key, Value::None), change(Verb::Add, "small", &other, Value::None)];
        assert!(matches!(channel.commit(family, TABLE, two), Err(Error::Full(_))));
        assert!(matches!(channel.elements(family, TABLE, "ranges", |_, _| ()), Err(Error::Unreadable(_))));
        let wrong = channel.commit(family, TABLE, [change(Verb::Add, "nodes", &vip, Value::None)]);
        assert!(matches!(wrong, Err(Error::Refused { .. })), "{wrong:?}");
        // More complaints than answers can be kept; the first ones tell.
        let absent: Vec<_> = (0..50_000).map(|last| octets(address(family, last))).collect();
        let sets = ["nodes", "small"];
        let deletions =
            absent.iter().zip(sets.iter().cycle()).map(|(key, set)| change(Verb::Delete, set, key, Value::None));
        let error = channel.load(family, TABLE, deletions).unwrap_err();
        assert!(matches!(&error, Error::Missing(place) if place.key.as_ref() == Some(&absent[0])), "{error:?}");
        assert!(channel.has_table(family, TABLE).unwrap());
    });
}

#[test]
fn without_the_capability_the_answer_is_denied() {
    let without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    in_namespace("without_the_capability_the_answer_is_denied", &without, || {
        let mut channel = Channel::open().unwrap();
        let key = octets(address(Family::Ipv4, 1));
        let add = [change(Verb::Add, "nodes", &key, Value::None)];
        assert!(matches!(channel.commit(Family::Ipv4, TABLE, add), Err(Error::Denied)));
        assert!(matches!(channel.has_table(Family::Ipv4, TABLE), Err(Error::Denied)));
        assert!(matches!(channel.elements(Family::Ipv4, TABLE, "nodes", |_, _| ()), Err(Error::Denied)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(async { Watch::open(TABLE, &[]) }).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    });
}

#[test]
fn chains_are_listed_with_hooks_and_comments() {
    in_namespace("chains_are_listed_with_hooks_and_comments", &[], || {
        nft(&objects(Family::Ipv4));
        nft("table ip other { chain theirs { accept comment \"theirs\"\n}\n}");
        let chains = Channel::open().unwrap().chains(Family::Ipv4, TABLE).unwrap();
        assert_eq!(chains.keys().collect::<Vec<_>>(), ["marked", "output", "tcp-2"]);
        assert_eq!(chains["output"].base, Some(Base { hook: 3, priority: -105 }));
        assert_eq!(chains["output"].comments, [None]);
        assert_eq!(chains["marked"].base, None);
        let comments: Vec<_> = chains["marked"].comments.iter().map(Option::as_deref).collect();
        assert_eq!(comments, [Some("to be masqueraded"), None, Some("as ever")]);
        assert_eq!(chains["tcp-2"].comments, [Some("two endpoints".to_owned())]);
    });
}

#[test]
fn a_hundred_thousand_elements() {
    in_namespace("a_hundred_thousand_elements", &[], || {
        let family = Family::Ipv4;
        nft(&objects(family));
        let mut channel = Channel::open().unwrap();
        let vip = address(family, 1);
        let keys: Vec<_> = (0..100_000).map(|index| slot(vip, 80, index)).collect();
        let datum = endpoint(address(family, 2), 8080);
        let value = Value::Data(&datum);
        let all = |verb| keys.iter().map(move |key| change(verb, "endpoints", key, value));
        let twice = all(Verb::Add).chain(all(Verb::Add));
        assert!(matches!(channel.commit(family, TABLE, twice), Err(Error::TooBig(_))));
        assert!(listed(&mut channel, family, "endpoints").is_empty());

        timed("load of 100,000", || channel.load(family, TABLE, all(Verb::Add)).unwrap());
        let mut count = 0;
        timed("listing of 100,000", || channel.elements(family, TABLE, "endpoints", |_, _| count += 1).unwrap());
        assert_eq!(count, keys.len());
        let some = |verb| all(verb).take(20_000);
        timed("one transaction that deletes and adds 20,000", || {
            channel.commit(family, TABLE, some(Verb::Delete).chain(some(Verb::Add))).unwrap();
        });
        let mut times: Vec<_> = (0..200)
            .map(|_| {
                let began = Instant::now();
                let swap = [Verb::Delete, Verb::Add].into_iter().flat_map(|verb| all(verb).take(2));
                channel.commit(family, TABLE, swap).unwrap();
                began.elapsed()
            })
            .collect();
        times.sort();
        println!("change of two elements: median {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1]);
        assert_eq!(listed(&mut channel, family, "endpoints").len(), keys.len());
        timed("deletion of 100,000", || channel.load(family, TABLE, all(Verb::Delete)).unwrap());
        assert!(listed(&mut channel, family, "endpoints").is_empty());
        timed("one transaction that adds 100,000", || channel.commit(family, TABLE, all(Verb::Add)).unwrap());
        timed("one transaction that deletes 100,000", || channel.commit(family, TABLE, all(Verb::Delete)).unwrap());
    });
}

fn timed(what: &str, work: impl FnOnce()) {
    let began = Instant::now();
    work();
    println!("{what}: {:?}", began.elapsed());
}

#[test]
fn others_changes_are_noticed_and_ours_are_not() {
    in_namespace("others_changes_are_noticed_and_ours_are_not", &[], || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let second = Duration::from_secs(1);
            nft(&objects(Family::Ipv4));
            let mut channel = Channel::open().unwrap();
            let mut watch = Watch::open(TABLE, &[1, channel.port()]).unwrap();
            let keys: Vec<_> = (0..50_000).map(|last| octets(address(Family::Ipv4, last))).collect();
            let changes = keys.iter().map(|key| change(Verb::Add, "nodes", key, Value::None));
            channel.load(Family::Ipv4, TABLE, changes).unwrap();
            nft("table ip other { chain theirs { accept\n}\n}");
            assert!(tokio::time::timeout(second / 2, watch.next()).await.is_err());

            let process = nft(&format!("delete element ip {TABLE} nodes {{ 10.0.0.7 }}"));
            let notice = tokio::time::timeout(second, watch.next()).await.unwrap().unwrap();
            assert_eq!(notice, Notice::Changed(Family::Ipv4, process));

            let mut overrun = Watch::open(TABLE, &[]).unwrap();
            for verb in [Verb::Delete, Verb::Add, Verb::Delete, Verb::Add] {
                let changes = keys[10..].iter().map(|key| change(verb, "nodes", key, Value::None));
                channel.load(Family::Ipv4, TABLE, changes).unwrap();
            }
            assert_eq!(overrun.next().await.unwrap(), Notice::Lost);
            assert_eq!(overrun.next().await.unwrap(), Notice::Changed(Family::Ipv4, channel.port()));

            nft(&format!("delete table ip {TABLE}"));
            let deleted = async { while !matches!(watch.next().await.unwrap(), Notice::Deleted(Family::Ipv4, _)) {} };
            tokio::time::timeout(second, deleted).await.unwrap();
        });
    });
}
