//! Asks one question, and gathers from all sides what came of it.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use netpath_ebpf::{
    abi::{DropCounters, REASON_SLOTS},
    drop_reason::DropReason,
};

use super::{
    error::LabError,
    judge::Seen,
    rows::{FOREIGN, Outcome, Probe, Row},
    runtime::Attached,
    tools,
    wire::{self, Frame, Tap},
    world::{Host, MASTER, PORT, World},
};
use crate::{
    kernel::{
        bpf::{events::Consumer, maps::Maps, told},
        netlink::Netlink,
        netns::Netns,
    },
    observe::Event,
    spec::Mac,
};

/// How long counters and wire may differ: a packet is counted before or after it is heard.
const SETTLE: Duration = Duration::from_millis(500);

/// The instruments.
pub(super) struct Bench<'a> {
    world: &'a World,
    maps: Maps,
    events: Consumer,
    tap: Tap,
    gateway: Mac,
    /// Whether the kernel tells programs whose socket a frame is from.
    told: bool,
}

/// Whose packets are counted.
#[derive(Clone, Copy)]
enum Sender {
    Pod {
        endpoint: u32,
        mac: Mac,
    },
    /// What passes with a MAC that nobody has is counted by master.
    Nobody {
        /// Who answers for what is dropped: the pod where the kernel tells whose frame it is, else 0.
        endpoint: u32,
        master: u16,
        mac: Mac,
    },
}

/// Counters at one moment.
#[derive(PartialEq)]
struct Counted {
    sent: u64,
    received: u64,
    sent_dropped: u64,
    received_dropped: u64,
    drops: DropCounters,
}

impl<'a> Bench<'a> {
    /// Sets the instruments up; the first pod must have been attached.
    pub(super) fn new(world: &'a World) -> Result<Self, LabError> {
        let root = world.root();
        let pod = Host::NetPod.name();
        let maps = Maps::open(&root.pins())?.ok_or(LabError::Uncounted { pod, what: "maps" })?;
        let events = Consumer::new(&root.pins(), &root.events_lock())?;
        let tap = Tap::open(world, Host::Switch, PORT)?;
        let gateway = Netlink::in_netns(&Netns::open(&world.netns(Host::Gateway))?)?.link_by_name("lan")?.mac;
        let gateway =
            gateway.ok_or(LabError::Uncounted { pod: Host::Gateway.name(), what: "MAC address" })?;
        Ok(Self { world, maps, events, tap, gateway, told: told::has_netns_cookie()? })
    }

    /// Asks the question of `row` from the pod `attached`.
    pub(super) fn ask(&mut self, row: &Row, zone: bool, attached: &Attached) -> Result<Seen, LabError> {
        let sender = match row.probe {
            Probe::Ping { .. } | Probe::Riddle { .. } => {
                Sender::Pod { endpoint: attached.endpoint, mac: attached.mac }
            }
            Probe::Foreign => {
                let endpoint = if self.told { attached.endpoint } else { 0 };
                Sender::Nobody { master: attached.master, endpoint, mac: foreign() }
            }
        };
        let before = self.quiet(sender)?;

        let mut seen = Seen { reached: self.probe(row, zone, attached)?, ..Seen::default() };
        let deadline = Instant::now() + SETTLE;
        loop {
            for frame in self.tap.drain()? {
                hear(&mut seen, &frame, sender.mac(), row.probe);
            }
            self.counted(sender)?.since(&before, &mut seen);
            if seen.is_settled() || deadline <= Instant::now() {
                break;
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        let events = &mut seen.events;
        let wait = if seen.reasons.is_empty() { Duration::ZERO } else { SETTLE };
        self.events.read(wait, |record| events.extend(Event::decode(record).ok()))?;
        if row.probe == Probe::Foreign {
            seen.reached = 0 < seen.heard_from;
        }
        Ok(seen)
    }

    /// Waits until nothing is on its way, and forgets what came before: it is another row's.
    fn quiet(&mut self, sender: Sender) -> Result<Counted, LabError> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let before = self.counted(sender)?;
            thread::park_timeout(Duration::from_millis(5));
            self.tap.drain()?;
            self.events.read(Duration::ZERO, |_| {})?;
            if before == self.counted(sender)? || deadline <= Instant::now() {
                return Ok(before);
            }
        }
    }

    /// Whether the other end answered. Whether a frame that nobody answers arrived is heard on the wire.
    fn probe(&self, row: &Row, zone: bool, attached: &Attached) -> Result<bool, LabError> {
        // An answer ends the waiting for it; silence has to be waited for.
        let patience = if row.expected[usize::from(zone)] == Outcome::Reached { "5" } else { "1" };
        match row.probe {
            Probe::Ping { target, by } => self.ping(attached.host, target, by, patience),
            Probe::Riddle { target } => self.ping(attached.host, target.into(), "net1", patience),
            Probe::Foreign => {
                let frame = wire::experiment(foreign(), self.gateway);
                wire::send(self.world, attached.host, "net1", &frame)?;
                Ok(false)
            }
        }
    }

    fn ping(&self, host: Host, target: IpAddr, by: &str, patience: &str) -> Result<bool, LabError> {
        let target = target.to_string();
        let words = ["ping", "-n", "-q", "-c", "2", "-i", "0.2", "-w", patience, "-I", by, &target];
        let output = tools::output(Some(&self.world.netns(host)), &words, "")?;
        match output.status.code() {
            Some(0) => Ok(true),
            // 1 is silence; 2 is the kernel's refusal to send at all.
            Some(1 | 2) => Ok(false),
            _ => Err(LabError::Failed {
                line: words.join(" "),
                status: output.status,
                stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            }),
        }
    }

    fn counted(&self, sender: Sender) -> Result<Counted, LabError> {
        let view = self.maps.counters()?;
        Ok(match sender {
            Sender::Pod { endpoint, .. } => {
                let row = view.endpoint(endpoint);
                Counted {
                    sent: row.tx_packets,
                    received: row.rx_packets,
                    sent_dropped: row.tx_dropped,
                    received_dropped: row.rx_dropped,
                    drops: self.maps.drops(endpoint)?,
                }
            }
            Sender::Nobody { master, endpoint, .. } => {
                let row = view.master(master);
                Counted {
                    sent: row.unknown_passed,
                    received: 0,
                    sent_dropped: match endpoint {
                        0 => row.unknown_dropped,
                        endpoint => view.endpoint(endpoint).tx_dropped,
                    },
                    received_dropped: 0,
                    drops: self.maps.drops(endpoint)?,
                }
            }
        })
    }
}

impl Sender {
    fn mac(self) -> Mac {
        match self {
            Self::Pod { mac, .. } | Self::Nobody { mac, .. } => mac,
        }
    }
}

impl Counted {
    /// Writes down what has been counted since `before`.
    fn since(&self, before: &Self, seen: &mut Seen) {
        seen.sent = self.sent - before.sent;
        seen.received = self.received - before.received;
        seen.sent_dropped = self.sent_dropped - before.sent_dropped;
        seen.received_dropped = self.received_dropped - before.received_dropped;
        let total = |drops: &DropCounters, at: usize| drops.tx_dropped[at] + drops.rx_dropped[at];
        let new = |reason: &DropReason| {
            let at = *reason as usize;
            (at < REASON_SLOTS)
                .then(|| total(&self.drops, at) - total(&before.drops, at))
                .filter(|new| 0 < *new)
        };
        seen.reasons = DropReason::ALL.iter().filter_map(|reason| Some((*reason, new(reason)?))).collect();
    }
}

/// The port belongs to the switch: what comes in there is what the node has sent.
fn hear(seen: &mut Seen, frame: &Frame, mac: Mac, probe: Probe) {
    if frame.incoming && frame.source == mac.bytes() {
        seen.heard_from += 1;
        if let Probe::Riddle { target } = probe {
            seen.heard_asking += u64::from(frame.arp_asks == Some(target));
        }
    }
    if !frame.incoming && frame.destination == mac.bytes() {
        seen.heard_to += 1;
    }
}

fn foreign() -> Mac {
    Mac::parse("the lab's MAC", FOREIGN).unwrap_or_else(|error| unreachable!("{error}"))
}

/// Whether the master is promiscuous by the flag that `promisc: on` sets.
pub(super) fn is_promisc(world: &World) -> Result<bool, LabError> {
    let mut node = Netlink::in_netns(&Netns::open(&world.netns(Host::Worker01))?)?;
    Ok(node.link_by_name(MASTER)?.is_promisc())
}
