//! What a pod's traffic is measured beside, and the rules of each as its own tool takes them.
//!
//! Every peer holds the pod to the same zone: [`ZONE`] may be talked to, all else not. Where a list is walked, what
//! decides stands at its end. What is unequal favours the peer: its pods have one prefix each where netpath's zone has
//! eight, it does not look at who sends (but for `nft-netdev`), and it counts nothing (but for `nft-netdev-set`).

use std::{
    fmt::{Display, Formatter, Write as _},
    net::Ipv4Addr,
};

use super::lab::{INTERFACE, POD, ZONE, text};
use crate::frames::pod_mac;

/// A way to police a pod, or not to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Nothing.
    None,
    /// Nothing, at another site: what two sites differ by that do not differ.
    NoneAgain,
    /// A TC program on the master that does nothing but pass or drop.
    TcEmpty,
    /// An XDP program on the master that does nothing but drop.
    XdpEmpty,
    /// An XDP program on the master and a TC program behind it, which do nothing but pass.
    BothEmpty,
    /// netpath.
    Netpath,
    /// A list of rules in the pod.
    IptablesLegacy,
    /// The same in nftables, by the translating iptables.
    IptablesNft,
    /// A list of rules in the pod.
    NftList,
    /// A set of prefixes in the pod.
    NftSet,
    /// What multi-networkpolicy-iptables writes into the pod.
    Mnp,
    /// The same, of a connection that was answered.
    MnpEstablished,
    /// A list of rules on the master.
    NftNetdev,
    /// A set of pods on the master, each with a counter.
    NftNetdevSet,
    /// A list of u32 filters on the master.
    U32,
}

impl Kind {
    /// Its part of a figure's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::NoneAgain => "none-again",
            Self::TcEmpty => "tc-empty",
            Self::XdpEmpty => "xdp-empty",
            Self::BothEmpty => "both-empty",
            Self::Netpath => "netpath",
            Self::IptablesLegacy => "iptables-legacy",
            Self::IptablesNft => "iptables-nft",
            Self::NftList => "nft-list",
            Self::NftSet => "nft-set",
            Self::Mnp => "mnp",
            Self::MnpEstablished => "mnp-established",
            Self::NftNetdev => "nft-netdev",
            Self::NftNetdevSet => "nft-netdev-set",
            Self::U32 => "u32",
        }
    }

    /// What it is, for the table.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::None => "no policy",
            Self::NoneAgain => "no policy, another pod",
            Self::TcEmpty => "an empty TC program on the master",
            Self::XdpEmpty => "an empty XDP program on the master",
            Self::BothEmpty => "empty XDP and TC programs on the master",
            Self::Netpath => "**netpath**, by pods",
            Self::IptablesLegacy => "iptables-legacy in the pod, by rules",
            Self::IptablesNft => "iptables-nft in the pod, by rules",
            Self::NftList => "nft list in the pod, by rules",
            Self::NftSet => "nft interval set in the pod, by elements",
            Self::Mnp => "multi-networkpolicy-iptables in the pod, by policies",
            Self::MnpEstablished => "the same, answered once (conntrack: established)",
            Self::NftNetdev => "nft list on the master, by pods",
            Self::NftNetdevSet => "nft set with counters on the master, by pods",
            Self::U32 => "tc u32 on the master, by pods",
        }
    }

    /// Whether it has a size.
    pub(super) fn is_sized(self) -> bool {
        !matches!(self, Self::None | Self::NoneAgain | Self::TcEmpty | Self::XdpEmpty | Self::BothEmpty)
    }

    /// Whether the pod's own netfilter polices it: then a denied packet is an error of `sendto`.
    pub(super) fn is_in_pod(self) -> bool {
        matches!(
            self,
            Self::IptablesLegacy
                | Self::IptablesNft
                | Self::NftList
                | Self::NftSet
                | Self::Mnp
                | Self::MnpEstablished
        )
    }
}

/// One of them, in one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peer {
    pub(super) kind: Kind,
    /// Pods, rules, elements or policies; 1 where the kind has no size.
    pub(super) size: u32,
}

/// As it stands in a figure's name: `nft-list/10`, `none`.
impl Display for Peer {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { kind, size } = self;
        match kind.is_sized() {
            true => write!(f, "{}/{size}", kind.name()),
            false => f.write_str(kind.name()),
        }
    }
}

/// Something that a tool is to load.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) program: &'static str,
    pub(super) arguments: &'static [&'static str],
    pub(super) text: String,
}

/// How tc is told to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drop {
    /// By its action.
    Action,
    /// By sending to a device that is down, where the kernel was built without that action.
    ToDown,
}

/// A device of the node that is down.
pub(super) const DOWN: &str = "down0";

impl Peer {
    /// What has to be loaded: into the pod's namespace or the node's. `None` where it is no matter of rules.
    pub(super) fn rules(self, master: &str, drop: Drop) -> Option<Rules> {
        let Self { kind, size } = self;
        let rules = |program, arguments, text| Some(Rules { program, arguments, text });
        match kind {
            Kind::None
            | Kind::NoneAgain
            | Kind::TcEmpty
            | Kind::XdpEmpty
            | Kind::BothEmpty
            | Kind::Netpath => None,
            Kind::IptablesLegacy => rules("iptables-legacy-restore", &[], iptables(size)),
            Kind::IptablesNft => rules("iptables-nft-restore", &[], iptables(size)),
            Kind::NftList => rules("nft", &["-f", "-"], nft_list(size)),
            Kind::NftSet => rules("nft", &["-f", "-"], nft_set(size)),
            Kind::Mnp | Kind::MnpEstablished => rules("iptables-legacy-restore", &[], policies(size)),
            Kind::NftNetdev => rules("nft", &["-f", "-"], nft_netdev(size, master)),
            Kind::NftNetdevSet => rules("nft", &["-f", "-"], nft_netdev_set(size, master)),
            Kind::U32 => rules("tc", &["-batch", "-"], u32_filters(size, master, drop)),
        }
    }
}

/// Drops all that comes to the pod, before anything has looked at it.
pub(super) fn sink() -> Rules {
    let text = "table ip sink { chain in { type filter hook prerouting priority raw; policy drop; }; }\n";
    Rules { program: "nft", arguments: &["-f", "-"], text: text.to_owned() }
}

/// `count` prefixes of which the last is the zone.
fn prefixes(count: u32) -> impl Iterator<Item = String> {
    let others = (1..count).map(|number| format!("{}/24", Ipv4Addr::from(0x0a64_0000 + number * 0x100)));
    others.chain([ZONE.to_owned()])
}

/// Numbers of `count` pods, of which the last is the one that there is.
fn pods(count: u32) -> impl Iterator<Item = u32> {
    (1..count).chain([0])
}

fn iptables(rules: u32) -> String {
    let mut text = String::from("*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT DROP [0:0]\n");
    // Writing into a `String` cannot fail, here and below.
    for prefix in prefixes(rules) {
        let _ = writeln!(text, "-A OUTPUT -d {prefix} -j ACCEPT\n-A INPUT -s {prefix} -j ACCEPT");
    }
    text + "COMMIT\n"
}

fn nft_list(rules: u32) -> String {
    let mut text = String::from("table ip bench {\n");
    for (hook, address) in [("output", "daddr"), ("input", "saddr")] {
        let _ = writeln!(text, "chain {hook} {{ type filter hook {hook} priority 0; policy drop;");
        for prefix in prefixes(rules) {
            let _ = writeln!(text, "ip {address} {prefix} accept");
        }
        text += "}\n";
    }
    text + "}\n"
}

fn nft_set(elements: u32) -> String {
    let elements: Vec<String> = prefixes(elements).collect();
    format!(
        "table ip bench {{\n\
         set zone {{ type ipv4_addr; flags interval; elements = {{ {} }}; }}\n\
         chain output {{ type filter hook output priority 0; policy drop; ip daddr @zone accept; }}\n\
         chain input {{ type filter hook input priority 0; policy drop; ip saddr @zone accept; }}\n}}\n",
        elements.join(", ")
    )
}

fn nft_netdev(count: u32, master: &str) -> String {
    let mut text = format!("table netdev bench-{master} {{\n");
    for (hook, pod, peer) in [("egress", "saddr", "daddr"), ("ingress", "daddr", "saddr")] {
        let _ = writeln!(
            text,
            "chain {hook} {{ type filter hook {hook} device \"{master}\" priority 0; policy accept;"
        );
        for number in pods(count) {
            let _ = writeln!(text, "ether {pod} {} ip {peer} != {ZONE} drop", self::text(pod_mac(number)));
        }
        text += "}\n";
    }
    text + "}\n"
}

fn nft_netdev_set(count: u32, master: &str) -> String {
    let elements: Vec<String> =
        pods(count).map(|number| format!("{} counter", text(pod_mac(number)))).collect();
    let mut text = format!("table netdev bench-{master} {{\n");
    for (hook, pod, peer) in [("egress", "saddr", "daddr"), ("ingress", "daddr", "saddr")] {
        let _ = writeln!(
            text,
            "set {hook}-pods {{ type ether_addr; counter; elements = {{ {} }}; }}\n\
             chain {hook} {{ type filter hook {hook} device \"{master}\" priority 0; policy accept;\n\
             ether {pod} @{hook}-pods ip {peer} != {ZONE} drop\n}}",
            elements.join(", ")
        );
    }
    text + "}\n"
}

/// Two filters a pod: one that lets the zone pass, one that drops the rest. By address, which takes u32 one comparison
/// where a MAC takes it two.
fn u32_filters(count: u32, master: &str, drop: Drop) -> String {
    let drop = match drop {
        Drop::Action => "action drop".to_owned(),
        Drop::ToDown => format!("action mirred egress redirect dev {DOWN}"),
    };
    let mut text = format!("qdisc add dev {master} clsact\n");
    for number in pods(count) {
        let address = if number == 0 { POD } else { Ipv4Addr::from(0x0a0d_0000 + number) };
        let filter =
            format!("filter add dev {master} egress protocol ip prio 1 u32 match ip src {address}/32");
        let _ = writeln!(text, "{filter} match ip dst {ZONE} flowid 1:1\n{filter} {drop}");
    }
    text
}

/// Whether `tc` can be told to drop: a filter on a device that nothing is measured on.
pub(super) fn probe_of_drop() -> Rules {
    let text = "qdisc add dev lo clsact\n\
                filter add dev lo egress protocol ip prio 1 u32 match ip src 192.0.2.1/32 action drop\n";
    Rules { program: "tc", arguments: &["-batch", "-"], text: text.to_owned() }
}

/// The rules of multi-networkpolicy-iptables for a pod that `count` policies select, each of which allows one block,
/// as `renderEgressCommon` and `renderEgress` of its `pkg/server/policyrules.go` write them: the pod's interface jumps
/// to MULTI-EGRESS; what conntrack knows as established is accepted; then each policy has a chain, which clears two
/// bits of the mark and has one chain set the first by ports and another the second by blocks (and by the pod's own
/// address); whoever has both bits returns; what no policy let return is dropped. By iptables-legacy, the cheaper of
/// the two.
fn policies(count: u32) -> String {
    let [mut chains, mut policies, mut ports, mut to] = [const { String::new() }; 4];
    for (number, block) in prefixes(count).enumerate() {
        let chain = format!("MULTI-{number}-EGRESS");
        let _ = writeln!(chains, ":{chain} - [0:0]\n:{chain}-0-PORTS - [0:0]\n:{chain}-0-TO - [0:0]");
        let _ = writeln!(
            policies,
            "-A MULTI-EGRESS -m comment --comment \"policy:p{number} net-attach-def:bench/bench\" -o {INTERFACE} -j {chain}\n\
             -A MULTI-EGRESS -m mark --mark 0x30000/0x30000 -j RETURN\n\
             -A {chain} -j MARK --set-xmark 0x0/0x30000\n\
             -A {chain} -j {chain}-0-PORTS\n\
             -A {chain} -j {chain}-0-TO\n\
             -A {chain} -m mark --mark 0x30000/0x30000 -j RETURN"
        );
        let _ = writeln!(
            ports,
            "-A {chain}-0-PORTS -m comment --comment \"no egress ports, skipped\" -j MARK --set-xmark 0x10000/0x10000"
        );
        let _ = writeln!(
            to,
            "-A {chain}-0-TO -o {INTERFACE} -d {block} -j MARK --set-xmark 0x20000/0x20000\n\
             -A {chain}-0-TO -o {INTERFACE} -d {POD} -j MARK --set-xmark 0x20000/0x20000"
        );
    }
    format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         :MULTI-EGRESS - [0:0]\n:MULTI-EGRESS-COMMON - [0:0]\n{chains}\
         -A OUTPUT -o {INTERFACE} -j MULTI-EGRESS\n\
         -A MULTI-EGRESS-COMMON -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A MULTI-EGRESS -j MULTI-EGRESS-COMMON\n{policies}-A MULTI-EGRESS -j DROP\n{ports}{to}COMMIT\n\
         *nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         -A PREROUTING -i {INTERFACE} -j RETURN\nCOMMIT\n"
    )
}

#[cfg(test)]
mod tests {
    use super::{super::lab::mac, *};

    fn rules(kind: Kind, size: u32) -> String {
        Peer { kind, size }.rules("m7", Drop::Action).expect("has rules").text
    }

    #[test]
    fn a_figure_is_named_by_kind_and_size() {
        assert_eq!(Peer { kind: Kind::NftList, size: 10 }.to_string(), "nft-list/10");
        assert_eq!(Peer { kind: Kind::None, size: 1 }.to_string(), "none");
    }

    #[test]
    fn what_decides_stands_at_the_end_of_a_list_as_long_as_asked_for() {
        for size in [1, 10, 300] {
            for (kind, word) in [
                (Kind::IptablesLegacy, "-A OUTPUT"),
                (Kind::NftList, "ip daddr"),
                (Kind::NftNetdev, "ether saddr"),
                (Kind::U32, "match ip dst"),
                (Kind::Mnp, "net-attach-def"),
            ] {
                let text = rules(kind, size);
                let lines: Vec<&str> = text.lines().filter(|line| line.contains(word)).collect();
                assert_eq!(lines.len(), size as usize, "{kind:?}");
                let own = mac_or_zone(kind, size);
                assert_eq!(
                    lines.iter().position(|line| line.contains(&own)),
                    Some(lines.len() - 1),
                    "{kind:?}: {own}"
                );
            }
        }
    }

    fn mac_or_zone(kind: Kind, size: u32) -> String {
        match kind {
            Kind::NftNetdev => text(mac()),
            Kind::U32 => POD.to_string(),
            Kind::Mnp => format!("policy:p{} ", size - 1),
            _ => ZONE.to_owned(),
        }
    }

    #[test]
    fn no_prefix_of_a_list_covers_who_is_denied() {
        let all: Vec<String> = prefixes(1000).collect();
        assert!(all.iter().all(|prefix| prefix.starts_with("10.")), "{all:?}");
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 1000);
    }

    #[test]
    fn every_chain_of_the_policies_is_declared_before_it_is_used() {
        let text = rules(Kind::Mnp, 3);
        for line in text.lines().filter_map(|line| line.strip_prefix("-A ")) {
            let chain = line.split(' ').next().expect("a chain");
            let declared = text.find(&format!(":{chain} ")).expect("declared");
            assert!(declared < text.find(line).expect("itself"), "{chain}");
        }
    }
}
