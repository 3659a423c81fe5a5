//! Traffic both ways, inside the zone and outside, while something is done to the node.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netpath_ebpf::abi::Counters;

use super::node::{GATEWAY, INTERNET, Node, OUTSIDE_MAC, Pod};
use super::wire::{RawSocket, carries, udp_frame};
use super::{PATIENCE, eventually, pace, times};

const INSIDE: &[u8] = b"within the zone";
const OUTSIDE: &[u8] = b"out of the zone";

/// Runs `act` while the pod and the gateway send each other frames, and while both try to cross the zone.
///
/// Every frame inside the zone must arrive, none outside, and each must be counted exactly once.
#[track_caller]
pub(crate) fn under_traffic<T>(node: &Node, pod: &Pod, own: Ipv4Addr, act: impl FnOnce() -> T) -> T {
    let before = node.counters(pod);
    let running = AtomicBool::new(true);
    let sent: [AtomicU64; 2] = Default::default();
    let ways = [
        (pod.socket(), node.far_end(), out(pod, own, GATEWAY, INSIDE), out(pod, own, INTERNET, OUTSIDE)),
        (node.far_end(), pod.socket(), into(pod, own, GATEWAY, INSIDE), into(pod, own, INTERNET, OUTSIDE)),
    ];
    let result = thread::scope(|scope| {
        for ((from, to, allowed, denied), sent) in ways.iter().zip(&sent) {
            scope.spawn(|| {
                while running.load(Ordering::Relaxed) {
                    from.send(allowed).expect("a frame inside the zone is not refused");
                    sent.fetch_add(1, Ordering::Relaxed);
                    arrives(to);
                    let _ = from.send(denied);
                    if let Some(pause) = pace() {
                        thread::park_timeout(pause);
                    }
                }
            });
        }
        let enough =
            || sent.iter().all(|sent| sent.load(Ordering::Relaxed) >= times(100).into()).then_some(());
        eventually(PATIENCE, "traffic flows", enough);
        // The threads end also where `act` panics: the scope waits for them.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        running.store(false, Ordering::Relaxed);
        result
    });
    let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let [out, into] = sent.map(AtomicU64::into_inner);
    let counted = |now: &Counters| {
        [
            now.tx_packets - before.tx_packets,
            now.tx_dropped - before.tx_dropped,
            now.rx_packets - before.rx_packets,
            now.rx_dropped - before.rx_dropped,
        ]
    };
    let expected = [out, out, into, into];
    let deadline = Instant::now() + PATIENCE;
    while counted(&node.counters(pod)) != expected && Instant::now() < deadline {
        thread::park_timeout(Duration::from_millis(5));
    }
    assert_eq!(counted(&node.counters(pod)), expected, "passed and dropped, sent and received");
    result
}

/// Waits for the frame inside the zone; one from outside must not come before it.
#[track_caller]
fn arrives(to: &RawSocket) {
    loop {
        let frame = to.receive(PATIENCE).expect("a frame inside the zone is not lost");
        assert!(!carries(&frame, OUTSIDE), "left the zone: {frame:02x?}");
        if carries(&frame, INSIDE) {
            return;
        }
    }
}

fn out(pod: &Pod, own: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    udp_frame((pod.mac, OUTSIDE_MAC), own, destination, (1, 2), payload)
}

fn into(pod: &Pod, own: Ipv4Addr, source: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    udp_frame((OUTSIDE_MAC, pod.mac), source, own, (1, 2), payload)
}
