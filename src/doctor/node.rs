//! Pure checks of one node: what keeps its packets from their endpoints.

#![expect(clippy::unnecessary_wraps, reason = "all checks have one shape, whether or not they can lack facts")]

use super::check::{Check, Found, Verdict};
use super::facts::{Answer, NodeFacts, Seen, Unseen, seen};
use crate::netfilter::netlink::TableSeen;
use crate::netfilter::script::TABLE;

/// The first version of nft that knows all of what we write, and the one that kube-proxy asks for.
const NFT: (u32, u32, u32) = (1, 0, 1);
/// The oldest kernel that we look after.
const KERNEL: (u32, u32) = (5, 15);

/// All of them.
pub const CHECKS: &[Check<NodeFacts>] = &[
    Check { id: "nft-missing", title: "There is no nft", why: "Without it weir node writes no rule.", look: no_nft },
    Check { id: "nft-old", title: "nft is too old", why: "It refuses rules that weir node writes.", look: old_nft },
    Check {
        id: "kernel-old",
        title: "The kernel is old",
        why: "weir node is tested on 5.15 and later; older ones lack parts of nftables that it uses.",
        look: old_kernel,
    },
    Check {
        id: "net-admin-missing",
        title: "This process lacks NET_ADMIN",
        why: "Rules can be neither read nor written without it. If weir node lacks it as well, nothing is forwarded.",
        look: no_net_admin,
    },
    Check {
        id: "table-owned",
        title: "Another program owns a table of our name",
        why: "The kernel lets nobody else change it: weir node writes no rule.",
        look: owned,
    },
    Check {
        id: "kube-proxy-rules",
        title: "Rules of kube-proxy are there",
        why: "Where weir node replaces kube-proxy, they still answer for Services that have changed since.",
        look: kube_proxy,
    },
    Check {
        id: "mark-taken",
        title: "Routing looks at our bit of the packet mark",
        why: "Packets that weir marks for masquerading would leave by another route.",
        look: marks,
    },
    Check {
        id: "ip-forward-off",
        title: "The kernel does not forward",
        why: "A packet to a pod on another node, or in another network namespace, ends here.",
        look: forwarding,
    },
    Check {
        id: "rp-filter-strict",
        title: "The way back of packets is checked strictly",
        why: "With several network interfaces, as under the VPC CNI, packets that come in by one and would go out by another \
              are dropped without a word.",
        look: strict,
    },
    Check {
        id: "firewall-drops",
        title: "A firewall drops what its rules do not accept",
        why: "What weir accepts, a later chain may still drop: NodePorts, packets to pods, and health checks.",
        look: firewall,
    },
    Check {
        id: "health-port-taken",
        title: "Something else answers at the health port",
        why: "Load balancers learn from it whether to use this node, and weir node cannot listen there.",
        look: taken,
    },
    Check {
        id: "table-missing",
        title: "There are no rules of weir",
        why: "No NodePort, ClusterIP or load balancer address is answered here.",
        look: no_table,
    },
    Check {
        id: "agent-silent",
        title: "weir node does not answer at its health port",
        why: "Load balancers take this node out. Rules that are there go on working, but no longer change.",
        look: silent,
    },
    Check {
        id: "conntrack-settings",
        title: "The kernel's conntrack settings are not what weir node sets",
        why: "Under load, connections are dropped when the table is full, or reset after they were idle.",
        look: conntrack,
    },
    Check {
        id: "iptables-legacy",
        title: "There are rules of legacy iptables",
        why: "They are met by every packet, and nft does not show them: a drop among them cannot be seen here.",
        look: legacy,
    },
];

fn no_nft(facts: &NodeFacts) -> Verdict {
    let Err(words) = &facts.nft else { return Ok(vec![]) };
    let found = Found::error(words.clone(), "install nftables 1.0.1 or later where weir node runs");
    Ok(vec![found.explaining(&["table-missing"])])
}

fn old_nft(facts: &NodeFacts) -> Verdict {
    let version = facts.nft.as_ref().map_err(|_| Unseen("there is no nft".into()))?;
    if *version >= NFT {
        return Ok(vec![]);
    }
    let (major, minor, patch) = version;
    let what = format!("nft is {major}.{minor}.{patch}; it has to be 1.0.1 or later");
    Ok(vec![Found::error(what, "install a later nftables where weir node runs").explaining(&["table-missing"])])
}

fn old_kernel(facts: &NodeFacts) -> Verdict {
    let Some((major, minor)) = facts.kernel.filter(|version| *version < KERNEL) else { return Ok(vec![]) };
    let what = format!("the kernel is {major}.{minor}; weir node asks for 5.15 or later");
    Ok(vec![Found::warning(what, "use a node image with a later kernel (Amazon Linux 2023, Bottlerocket)")])
}

fn no_net_admin(facts: &NodeFacts) -> Verdict {
    if facts.has_net_admin {
        return Ok(vec![]);
    }
    let remedy =
        "run it as root, or in the container of weir node: kubectl exec -n weir-system <pod> -- /weir doctor node";
    Ok(vec![Found::error("the capability NET_ADMIN is not among this process's", remedy)])
}

fn ours(facts: &NodeFacts) -> Seen<impl Iterator<Item = &TableSeen>> {
    let tables = seen(&facts.tables)?.iter();
    Ok(tables.filter(|table| table.name == TABLE && matches!(table.family, "ip" | "ip6")))
}

fn owned(facts: &NodeFacts) -> Verdict {
    let tell = |table: &TableSeen| {
        let owner = table.owner?;
        let what = format!(
            "table {} {TABLE} belongs to the program with netlink port {owner} (as a rule its process id)",
            table.family
        );
        let found = Found::error(what, "end that program; weir node makes the table anew within a minute");
        Some(found.explaining(&["agent-silent"]))
    };
    Ok(ours(facts)?.filter_map(tell).collect())
}

fn kube_proxy(facts: &NodeFacts) -> Verdict {
    let there = seen(&facts.kube_proxy)?;
    if !facts.replaces || there.is_empty() {
        return Ok(vec![]);
    }
    let what = format!("{}: kube-proxy runs here, or ran and was not cleaned up", there.join(", "));
    let remedy =
        "end kube-proxy and run `kube-proxy --cleanup`, or reboot the node; or run weir node with --mode=beside";
    Ok(vec![Found::error(what, remedy).explaining(&["health-port-taken"])])
}

fn marks(facts: &NodeFacts) -> Verdict {
    let taken = seen(&facts.marks)?.iter().filter(|(_, mask)| mask & facts.mark != 0);
    let tell = |(value, mask): &(u32, u32)| {
        let what =
            format!("a routing rule looks at fwmark {value:#x}/{mask:#x}; --masquerade-mark is {:#x}", facts.mark);
        Found::error(what, "give weir node a --masquerade-mark that no routing rule looks at (`ip rule` shows them)")
    };
    Ok(taken.map(tell).collect())
}

fn forwarding(facts: &NodeFacts) -> Verdict {
    let mut found = vec![];
    if facts.forwards == Some(false) {
        found.push(Found::error(
            "net.ipv4.ip_forward is 0",
            "sysctl -w net.ipv4.ip_forward=1, and keep it in /etc/sysctl.d",
        ));
    }
    if facts.has_ipv6 && facts.forwards_v6 == Some(false) {
        let remedy = "in a cluster with IPv6: sysctl -w net.ipv6.conf.all.forwarding=1";
        found.push(Found::note("net.ipv6.conf.all.forwarding is 0", remedy));
    }
    Ok(found)
}

fn strict(facts: &NodeFacts) -> Verdict {
    let strict: Vec<_> = facts.uplinks.iter().filter(|(_, value)| *value == 1).map(|(name, _)| name.as_str()).collect();
    let Some(first) = strict.first() else { return Ok(vec![]) };
    let what = format!(
        "rp_filter is 1 (strict) on {}; the higher of its own value and that of \"all\" counts",
        strict.join(", ")
    );
    let remedy = format!("sysctl -w net.ipv4.conf.{first}.rp_filter=2 (loose), as the VPC CNI sets it");
    Ok(vec![Found::warning(what, remedy)])
}

fn firewall(facts: &NodeFacts) -> Verdict {
    let mut found = vec![];
    for filter in seen(&facts.filters)?.iter().filter(|filter| filter.drops && filter.table != TABLE) {
        let place =
            format!("chain {} of table {} {}, at hook {},", filter.name, filter.family, filter.table, filter.hook);
        let remedy = match filter.hook {
            "forward" => {
                "accept there what goes to pods, and their answers (ct state established,related; ct status dnat)"
            }
            "output" => "accept there what this node sends to endpoints and load balancers",
            _ => "accept there the health port (10256) and what goes to NodePorts and to pods of the host's network",
        };
        found.push(if filter.rules == 0 {
            Found::error(format!("{place} has the policy drop and no rule: nothing passes"), remedy)
        } else {
            Found::warning(
                format!("{place} has the policy drop and {} rules; it drops what none of them accepts", filter.rules),
                remedy,
            )
        });
    }
    Ok(found)
}

fn taken(facts: &NodeFacts) -> Verdict {
    let Answer::Other(words) = &facts.answer else { return Ok(vec![]) };
    let what = format!("at {} somebody else answers: {words}", facts.healthz);
    let remedy = "end that program (`ss -ltnp` names it; kube-proxy listens on 10256), or give weir node and the controller \
                  another port: --healthz-address and --health-port";
    Ok(vec![Found::error(what, remedy)])
}

fn no_table(facts: &NodeFacts) -> Verdict {
    let families: Vec<_> = ours(facts)?.map(|table| table.family).collect();
    let wanted = ["ip", "ip6"].into_iter().filter(|family| *family == "ip" || facts.has_ipv6);
    let missing: Vec<_> =
        wanted.filter(|family| !families.contains(family)).map(|family| format!("{family} {TABLE}")).collect();
    if missing.is_empty() {
        return Ok(vec![]);
    }
    let what = format!("there is no table {}", missing.join(" and no table "));
    let remedy = "start weir node here, or see in its log why it writes nothing";
    Ok(vec![Found::error(what, remedy)])
}

fn silent(facts: &NodeFacts) -> Verdict {
    let found = match &facts.answer {
        Answer::Nobody => {
            Found::error(format!("nobody listens at {}", facts.healthz), "start weir node here, or see why it ended")
        }
        Answer::Weir(200) | Answer::Other(_) => return Ok(vec![]),
        Answer::Weir(code) => Found::error(
            format!("weir node answers {code} at {}/livez", facts.healthz),
            "see in its log what keeps changes from the kernel",
        ),
    };
    Ok(vec![found])
}

fn conntrack(facts: &NodeFacts) -> Verdict {
    if facts.conntrack.is_empty() {
        return Ok(vec![]);
    }
    let wanted = facts.conntrack.iter().map(|(path, value)| format!("/{path} should be {value}")).collect::<Vec<_>>();
    let remedy = "let weir node set them (/proc/sys writable, no --keep-sysctls), or set them on the host";
    Ok(vec![Found::note(wanted.join("; "), remedy)])
}

fn legacy(facts: &NodeFacts) -> Verdict {
    if facts.legacy.is_empty() {
        return Ok(vec![]);
    }
    let what = format!("tables of legacy iptables: {}", facts.legacy.join(", "));
    Ok(vec![Found::note(what, "see them with `iptables-legacy-save`; look for KUBE-* chains and for drops")])
}
