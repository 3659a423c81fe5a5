//! Whether a zone stays within another one.
//!
//! Prefixes alone do not answer it: a longer `allow` overrides a shorter `deny`, so that each of the
//! network's lists may look harmless beside the bound's. What counts is which addresses each image lets
//! through, and that is compared exactly, at every address where one of the two can change.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{zone_flags, zone_verdict};

use super::prefix::covered_by;
use super::resolve::ALLOW;
use super::{BoundError, Ingress, Zone, ZoneImage, compile};

/// Refuses a `zone` that lets through what `bound` does not. `local_key` says where its local prefixes
/// were written.
pub(super) fn check(zone: &Zone, local_key: &'static str, bound: &Zone) -> Result<(), BoundError> {
    if zone.mode < bound.mode {
        return Err(BoundError::Mode { mode: zone.mode, bound: bound.mode });
    }
    if bound.ingress < zone.ingress {
        return Err(BoundError::Ingress { ingress: zone.ingress, bound: bound.ingress });
    }
    let (ours, theirs) = (compile(zone), compile(bound));
    if let Some(address) = excess(&ours, &theirs, zone_verdict::EGRESS) {
        let (key, prefix) = allowing(zone, local_key, address);
        return Err(match longest(&bound.deny, address) {
            None => BoundError::Allow { key, prefix, allowed: allowed(bound) },
            Some(denied) if covered_by(&zone.deny, denied) => {
                BoundError::AllowsDenied { key, prefix, denied }
            }
            Some(denied) => BoundError::DenyLacks { denied },
        });
    }
    // With `any` there is no list to exceed, and a rank above the bound's was refused before.
    if bound.ingress != Ingress::Any
        && let Some(address) = excess(&ours, &theirs, zone_verdict::INGRESS)
    {
        let prefix = longest(&zone.local, address).unwrap_or_else(|| IpNetwork::from(address));
        return Err(BoundError::Local { key: local_key, prefix });
    }
    // The flag opens link-local addresses, even where the prefix that sets it is denied piece by piece.
    if ours.flags() & !theirs.flags() & zone_flags::HAS_V6 != 0 {
        let v6 = IpAddr::V6(
            ours.v6()
                .iter()
                .find(|(_, v)| v & zone_verdict::EGRESS != 0)
                .map_or(Ipv6Addr::UNSPECIFIED, |(prefix, _)| prefix.network()),
        );
        let (key, prefix) = allowing(zone, local_key, v6);
        return Err(BoundError::Allow { key, prefix, allowed: allowed(bound) });
    }
    Ok(())
}

/// An address to which `ours` grants `verdict` and `theirs` does not.
fn excess(ours: &ZoneImage, theirs: &ZoneImage, verdict: u32) -> Option<IpAddr> {
    // Between two neighbours of this list neither image changes its mind.
    let mut edges: Vec<IpAddr> = Vec::new();
    for prefix in ours.prefixes().chain(theirs.prefixes()).map(|(prefix, _)| prefix) {
        edges.push(prefix.network());
        edges.extend(after(prefix.broadcast()));
    }
    edges.sort_unstable();
    edges.dedup();
    let (ours, theirs) = (Index::new(ours), Index::new(theirs));
    edges
        .into_iter()
        .find(|&address| ours.verdicts(address) & verdict != 0 && theirs.verdicts(address) & verdict == 0)
}

/// An image that is asked often: its own list is walked from the start for each question, and who writes a
/// network says how long it is.
struct Index {
    /// The longest first.
    lengths: Vec<u8>,
    verdicts: HashMap<IpNetwork, u32>,
}

impl Index {
    fn new(image: &ZoneImage) -> Self {
        let mut verdicts = HashMap::new();
        for (prefix, bits) in image.prefixes() {
            verdicts.entry(prefix).or_insert(bits);
        }
        let mut lengths: Vec<u8> = verdicts.keys().map(IpNetwork::prefix).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Self { lengths, verdicts }
    }

    fn verdicts(&self, address: IpAddr) -> u32 {
        let prefix = |&length: &u8| {
            let host = IpNetwork::new(address, length).ok()?;
            self.verdicts.get(&IpNetwork::new(host.network(), length).ok()?).copied()
        };
        self.lengths.iter().find_map(prefix).unwrap_or(0)
    }
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|bits| IpAddr::V6(Ipv6Addr::from(bits))),
    }
}

/// Which prefix of `zone` lets `address` through, and where it was written.
fn allowing(zone: &Zone, local_key: &'static str, address: IpAddr) -> (&'static str, IpNetwork) {
    match (longest(&zone.local, address), longest(&zone.allow, address)) {
        (Some(local), Some(allow)) if allow.prefix() <= local.prefix() => (local_key, local),
        (_, Some(allow)) => (ALLOW, allow),
        (Some(local), None) => (local_key, local),
        (None, None) => (ALLOW, IpNetwork::from(address)),
    }
}

fn allowed(bound: &Zone) -> Vec<IpNetwork> {
    bound.local.iter().chain(&bound.allow).copied().collect()
}

fn longest(prefixes: &[IpNetwork], address: IpAddr) -> Option<IpNetwork> {
    prefixes.iter().copied().filter(|prefix| prefix.contains(address)).max_by_key(IpNetwork::prefix)
}
