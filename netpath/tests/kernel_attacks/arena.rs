//! Two pods on one master and the other end of its cable: who sent what, who got it, and which counter moved.

use std::net::{Ipv4Addr, Ipv6Addr};

use netpath_ebpf::abi::DropCounters;
use netpath_ebpf::drop_reason::DropReason;
use serde_json::{Value, json};

use crate::common::NetNs;
use crate::common::node::{GATEWAY, GATEWAY6, Node, OUTSIDE_MAC, Pod, runs_both_ways, stay_on_this_cpu};
use crate::common::wire::{
    RawSocket, carries, ethernet, ethertype, ipv4, ipv6, marker, protocol, udp, udp_frame,
};

/// Address of pod `a`.
pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 200);
/// Address of pod `b`.
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 12, 34, 201);
/// IPv6 address of pod `a`.
pub(crate) const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x34, 0, 0, 0, 0, 0, 0x200);
/// IPv6 address of pod `b`.
pub(crate) const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x34, 0, 0, 0, 0, 0, 0x201);
/// All nodes of the link, and the MAC that stands for them.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// MAC of [`ALL_NODES`].
pub(crate) const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// A MAC that nobody was given.
pub(crate) const STRANGER: [u8; 6] = [2, 0xba, 0xd0, 0, 0, 1];

/// The zone of the pods: the subnet and nothing else.
pub(crate) fn private() -> Value {
    json!({ "policy": "private" })
}

/// What masters.json says in most tests: nothing is left to `auto`.
pub(crate) fn strict() -> Value {
    json!({ "unknownSource": "drop" })
}

/// The ways programs stand on a master, by what this run is to show.
pub(crate) fn both_hooks() -> Vec<Value> {
    let mut entries = vec![strict()];
    if runs_both_ways() {
        entries.push(json!({ "unknownSource": "drop", "tc": "clsact" }));
    }
    entries
}

/// A node with pods `a` and `b` of one zone.
pub(crate) struct Arena {
    pub(crate) node: Node,
    pub(crate) a: Pod,
    pub(crate) b: Pod,
}

/// The way of a frame, and with it who is to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From pod `a` to the far end of the wire.
    Out,
    /// From pod `a` to pod `b`.
    Sibling,
    /// From the far end of the wire to pod `a`.
    In,
}

/// Whose counter moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    A,
    B,
    /// The row of frames that nobody owns.
    Nobody,
}

/// A counter of dropped or audited frames that moved, by how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grown {
    pub(crate) who: Who,
    /// `tx`, `rx`: dropped; `tx audited`, `rx audited`: passed all the same.
    pub(crate) what: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) by: u64,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) arrived: bool,
    pub(crate) grown: Vec<Grown>,
}

impl Fate {
    /// It arrived, and nothing was held against anybody.
    pub(crate) fn passed() -> Self {
        Self { arrived: true, grown: Vec::new() }
    }

    /// It did not arrive, and one counter says why.
    pub(crate) fn dropped(who: Who, what: &'static str, reason: DropReason) -> Self {
        Self { arrived: false, grown: vec![Grown { who, what, reason: reason.label(), by: 1 }] }
    }

    /// As the sender's.
    pub(crate) fn refused(reason: DropReason) -> Self {
        Self::dropped(Who::A, "tx", reason)
    }
}

impl Arena {
    /// Both families, both pods in the same zone.
    #[track_caller]
    pub(crate) fn new(entry: &Value) -> Self {
        Self::zones(entry, &private(), &private())
    }

    /// Both families, a zone for each pod.
    #[track_caller]
    pub(crate) fn zones(entry: &Value, a: &Value, b: &Value) -> Self {
        let node = Node::dual(entry);
        let pod = |v4, v6, zone| {
            let pod = node.pod(&[&format!("{v4}/24"), &format!("{v6}/64")], Some(zone));
            pod.knows(GATEWAY, OUTSIDE_MAC);
            pod.knows(GATEWAY6, OUTSIDE_MAC);
            pod
        };
        let (a, b) = (pod(A, A6, a), pod(B, B6, b));
        Self { node, a, b }
    }

    /// Drops of everybody, by reason.
    pub(crate) fn drops(&self) -> [(Who, DropCounters); 3] {
        let (a, b) = (self.node.drops(&self.a), self.node.drops(&self.b));
        [(Who::A, a), (Who::B, b), (Who::Nobody, self.node.unowned())]
    }

    /// Counters of drops that moved since `before`.
    pub(crate) fn grown(&self, before: &[(Who, DropCounters); 3]) -> Vec<Grown> {
        let mut found = Vec::new();
        for ((who, now), (_, before)) in self.drops().into_iter().zip(before) {
            for (what, now, before) in [
                ("tx", now.tx_dropped, before.tx_dropped),
                ("rx", now.rx_dropped, before.rx_dropped),
                ("tx audited", now.tx_audited, before.tx_audited),
                ("rx audited", now.rx_audited, before.rx_audited),
            ] {
                for reason in DropReason::ALL {
                    let at = usize::from(*reason as u8);
                    let by = now[at] - before[at];
                    if by != 0 {
                        found.push(Grown { who, what, reason: reason.label(), by });
                    }
                }
            }
        }
        found
    }

    /// Sends a frame that carries `mark` on its way, from an ordinary packet socket and from one that goes past
    /// the queueing disciplines; both must meet the same fate, which is returned.
    ///
    /// A fence behind the frame shows that absence is no matter of time.
    #[track_caller]
    pub(crate) fn fate(&self, way: Way, frame: &[u8], mark: &[u8]) -> Fate {
        let [plain, bypass] = [false, true].map(|bypass| {
            let (from, to) = self.ends(way);
            if bypass {
                from.bypass_qdisc();
            }
            self.one_fate(way, &from, &to, frame, mark)
        });
        assert_eq!(plain, bypass, "PACKET_QDISC_BYPASS makes a difference");
        plain
    }

    /// Sends a frame from this socket.
    #[track_caller]
    pub(crate) fn one_fate(
        &self,
        way: Way,
        from: &RawSocket,
        to: &RawSocket,
        frame: &[u8],
        mark: &[u8],
    ) -> Fate {
        stay_on_this_cpu();
        let before = self.drops();
        // A drop is ENOBUFS here; whether it was one is what the witness says.
        let _ = from.send(frame);
        let last = marker();
        let (sender, receiver) = self.ends(way);
        drop(receiver);
        sender.send(&self.fence(way, &last)).expect("the fence is allowed");
        let arrived = to.until(&last).iter().any(|seen| carries(seen, mark));
        Fate { arrived, grown: self.grown(&before) }
    }

    /// Sockets at both ends of a way.
    #[track_caller]
    pub(crate) fn ends(&self, way: Way) -> (RawSocket, RawSocket) {
        match way {
            Way::Out => (self.a.socket(), self.node.far_end()),
            Way::Sibling => (self.a.socket(), self.b.socket()),
            Way::In => (self.node.far_end(), self.a.socket()),
        }
    }

    /// An ordinary datagram with `mark`.
    pub(crate) fn fence(&self, way: Way, mark: &[u8]) -> Vec<u8> {
        match way {
            Way::Out => udp_frame((self.a.mac, OUTSIDE_MAC), A, GATEWAY, (9, 9), mark),
            Way::Sibling => udp_frame((self.a.mac, self.b.mac), A, B, (9, 9), mark),
            Way::In => udp_frame((OUTSIDE_MAC, self.a.mac), GATEWAY, A, (9, 9), mark),
        }
    }

    /// A frame from pod `a` to the far end.
    pub(crate) fn frame(&self, ethertype: u16, body: &[u8]) -> Vec<u8> {
        ethernet(OUTSIDE_MAC, self.a.mac, ethertype, body)
    }

    /// An IPv4 packet from `a`'s own address in such a frame.
    pub(crate) fn v4(&self, destination: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
        self.frame(ethertype::IPV4, &ipv4(A, destination, protocol, body))
    }

    /// An IPv6 packet from `a`'s own address in such a frame.
    pub(crate) fn v6(&self, destination: Ipv6Addr, next: u8, body: &[u8]) -> Vec<u8> {
        self.frame(ethertype::IPV6, &ipv6(A6, destination, next, body))
    }

    /// A UDP datagram from `a` in IPv4.
    pub(crate) fn udp(&self, destination: Ipv4Addr, mark: &[u8]) -> Vec<u8> {
        self.v4(destination, protocol::UDP, &udp(1000, 2000, mark))
    }

    /// A UDP datagram from `a` in IPv6.
    pub(crate) fn udp6(&self, destination: Ipv6Addr, mark: &[u8]) -> Vec<u8> {
        self.v6(destination, protocol::UDP, &udp(1000, 2000, mark))
    }

    /// Frames that the far end would receive must not arrive, for one reason, as `a`'s; `honest` must.
    #[track_caller]
    pub(crate) fn table(&self, attempts: Vec<Attempt>) {
        for Attempt { what, frame, mark, expected } in attempts {
            let fate = self.fate(Way::Out, &frame, &mark);
            let expected = expected.map_or_else(Fate::passed, Fate::refused);
            assert_eq!(fate, expected, "{what}");
        }
    }
}

/// One line of a table: a frame from `a`, and why it must not leave, or that it must.
pub(crate) struct Attempt {
    what: &'static str,
    frame: Vec<u8>,
    mark: Vec<u8>,
    expected: Option<DropReason>,
}

/// A line of a table; `frame` is told the mark it has to carry.
pub(crate) fn attempt(
    what: &'static str,
    expected: impl Into<Option<DropReason>>,
    frame: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Attempt {
    let mark = marker();
    Attempt { what, frame: frame(&mark), mark, expected: expected.into() }
}

/// A line whose frame is too short for a mark: nothing else on this wire looks like it.
pub(crate) fn runt(what: &'static str, expected: DropReason, frame: Vec<u8>) -> Attempt {
    Attempt { what, mark: frame.clone(), frame, expected: Some(expected) }
}

/// The honest twin.
pub(crate) const HONEST: Option<DropReason> = None;

/// Whether this kernel tells programs which namespace a frame was sent from (by the types of its own records: 6.2;
/// by `bpf_get_netns_cookie` for TC: 6.13).
pub(crate) fn kernel_tells_cookies() -> bool {
    kernel() >= (6, 2)
}

/// Version of the running kernel.
pub(crate) fn kernel() -> (u32, u32) {
    let release = nix::sys::utsname::uname().expect("uname").release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u32>().ok());
    (numbers.next().expect("a number"), numbers.next().expect("another"))
}

/// Keeps interfaces that are still to come from talking unasked.
pub(crate) fn mute(netns: &NetNs) {
    netns.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
}

/// A namespace that talks only when it is told to.
pub(crate) fn silent(role: &str) -> NetNs {
    let netns = NetNs::new(role);
    mute(&netns);
    netns
}
