//! What the lab asks, and what must come of it: the table, without its answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpath_ebpf::drop_reason::DropReason;

use super::world::Host;

/// What came of a question, or must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The other end answered, or heard it where nobody answers.
    Reached,
    /// Nobody answered, and netpath dropped nothing.
    Unanswered,
    /// netpath dropped it.
    Dropped(DropReason),
}

/// How a question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// `ping`, bound to an interface of the pod.
    Ping { target: IpAddr, by: &'static str },
    /// The same without a route: what it asks the wire by ARP is the answer.
    Riddle { target: Ipv4Addr },
    /// A frame that says it comes from a MAC that nobody was given.
    Foreign,
}

/// A question.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) from: Host,
    pub(super) to: &'static str,
    pub(super) probe: Probe,
    /// Without the zone, and with it.
    pub(super) expected: [Outcome; 2],
    /// Why that is, where it is not plain.
    pub(super) why: Option<&'static str>,
}

impl Row {
    /// The interface the question is bound to.
    pub(super) const fn by(&self) -> &'static str {
        match self.probe {
            Probe::Ping { by, .. } => by,
            Probe::Riddle { .. } | Probe::Foreign => "net1",
        }
    }

    /// What is asked for, as text.
    pub(super) fn target(&self) -> String {
        match self.probe {
            Probe::Ping { target, .. } => target.to_string(),
            Probe::Riddle { target } => target.to_string(),
            Probe::Foreign => "from a foreign MAC".to_owned(),
        }
    }
}

/// MAC of the frame that nobody owns; locally administered.
pub(super) const FOREIGN: &str = "02:00:5e:10:00:01";

const INTERNET: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
const ALWAYS: [Outcome; 2] = [Outcome::Reached; 2];
const UNTIL_ZONED: [Outcome; 2] = [Outcome::Reached, Outcome::Dropped(DropReason::ZoneDeny)];

/// Every question, in the order they are asked. `told`: the kernel tells programs whose socket a frame is from
/// (Linux 6.2); one that does not knows the foreign MAC's frame as nobody's.
pub(super) fn rows(told: bool) -> Vec<Row> {
    let mut rows = ROWS.to_vec();
    for row in rows.iter_mut().filter(|row| !told && row.probe == Probe::Foreign) {
        row.expected[1] = Outcome::Dropped(DropReason::UnknownSource);
    }
    rows
}

/// As a kernel has it that tells whose a frame is.
pub(super) const ROWS: &[Row] = &[
    private("gateway", [10, 12, 34, 254], ALWAYS, None),
    private("worker02", [10, 12, 34, 102], ALWAYS, None),
    private("master01", [10, 12, 34, 10], ALWAYS, None),
    private(
        "own node",
        [10, 12, 34, 101],
        [Outcome::Unanswered; 2],
        Some(
            "A macvlan cannot talk to its own parent: what the pod sends leaves by enp0s8, where its node does not hear itself.",
        ),
    ),
    Row {
        from: Host::NetPod,
        to: "internet",
        probe: Probe::Ping { target: IpAddr::V4(INTERNET), by: "eth0" },
        expected: ALWAYS,
        why: Some("By way of the node, as ever: the zone is net1's alone."),
    },
    Row {
        from: Host::NetPod,
        to: "internet",
        probe: Probe::Ping { target: IpAddr::V4(INTERNET), by: "net1" },
        expected: UNTIL_ZONED,
        why: Some(
            "This gateway source-NATs: without the zone the private zone is public. With it, no firewall has to be trusted.",
        ),
    },
    Row {
        from: Host::NetPod,
        to: "gateway",
        probe: Probe::Foreign,
        expected: [Outcome::Reached, Outcome::Dropped(DropReason::SourceMac)],
        why: Some(
            "A raw frame from 02:00:5e:10:00:01, a MAC that no pod was given. Reached: it was heard behind the switch's port.",
        ),
    },
    Row {
        from: Host::RiddlePod,
        to: "gateway",
        probe: Probe::Ping { target: v6(0x2001, 0xdb8, 0x12, 0x34, 0xfe), by: "net1" },
        expected: ALWAYS,
        why: None,
    },
    Row {
        from: Host::RiddlePod,
        to: "internet",
        probe: Probe::Ping { target: v6(0x2001, 0x4860, 0x4860, 0, 0x8888), by: "net1" },
        expected: UNTIL_ZONED,
        why: Some("IPv6 needs no NAT to get out."),
    },
    Row {
        from: Host::RiddlePod,
        to: "internet",
        probe: Probe::Riddle { target: INTERNET },
        expected: [Outcome::Unanswered, Outcome::Dropped(DropReason::ZoneDeny)],
        why: Some(
            "The riddle: net1 has no route to 8.8.8.8 here. Bound to a device without a route, Linux takes the destination for \
             a neighbour and asks the private LAN by ARP who has 8.8.8.8. Nobody has; the firewall never sees a packet.",
        ),
    },
];

const fn private(
    to: &'static str,
    [a, b, c, d]: [u8; 4],
    expected: [Outcome; 2],
    why: Option<&'static str>,
) -> Row {
    let target = IpAddr::V4(Ipv4Addr::new(a, b, c, d));
    Row { from: Host::NetPod, to, probe: Probe::Ping { target, by: "net1" }, expected, why }
}

/// An address of four groups, zeros, and one group.
const fn v6(a: u16, b: u16, c: u16, d: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, last))
}
