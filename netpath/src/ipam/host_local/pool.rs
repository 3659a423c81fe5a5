//! Which addresses an attachment gets. Pure.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::{HostLocalError, in_set};
use crate::ipam::refused::{Refuse, RefusedAddress, by_nature};
use crate::spec::{ContainerId, Range, RangeSet};

/// What the choice depends on.
#[derive(Clone, Copy)]
pub(super) struct Pool<'a> {
    /// One address is given from each.
    pub(super) sets: &'a [RangeSet],
    /// By anybody.
    pub(super) taken: &'a HashSet<IpAddr>,
    /// By this attachment.
    pub(super) mine: &'a [IpAddr],
    /// Given last, by range set.
    pub(super) last: &'a [Option<IpAddr>],
    pub(super) refuse: Refuse<'a>,
}

/// An address for an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// Index of the range set.
    pub(super) set: usize,
    /// The address, with the prefix length of its subnet.
    pub(super) address: IpNetwork,
    pub(super) gateway: IpAddr,
}

impl Pool<'_> {
    /// One address from each range set: the one in `requested` that lies in it, else the next in turn.
    pub(super) fn choose(
        &self,
        requested: &[IpAddr],
        container_id: &ContainerId,
    ) -> Result<Vec<Choice>, HostLocalError> {
        let mut wishes: Vec<IpAddr> = Vec::new();
        for wish in requested {
            // By capability and by CNI_ARGS the same address may be asked for twice.
            if !wishes.contains(wish) {
                wishes.push(*wish);
            }
        }
        let mut choices = Vec::new();
        for set in 0..self.sets.len() {
            let wish =
                wishes.iter().position(|&wish| in_set(self.sets, set, wish)).map(|at| wishes.remove(at));
            choices.push(match wish {
                Some(address) => self.grant(set, address)?,
                None => self.next(set, container_id)?,
            });
        }
        if wishes.is_empty() { Ok(choices) } else { Err(HostLocalError::Leftover { addresses: wishes }) }
    }

    fn grant(&self, set: usize, address: IpAddr) -> Result<Choice, HostLocalError> {
        let taken = || HostLocalError::Taken { set, address, range_set: self.sets[set].to_string() };
        let range = self.sets[set].0.iter().find(|range| range.contains(address)).ok_or_else(taken)?;
        if self.is_gateway(address) {
            return Err(HostLocalError::Gateway { set, address });
        }
        let network = in_subnet(range, address).ok_or_else(taken)?;
        let why = by_nature(&network).map(str::to_owned).or_else(|| (self.refuse)(address));
        match why {
            Some(why) => Err(HostLocalError::Refused { set, refused: RefusedAddress { address, why } }),
            None if self.taken.contains(&address) => Err(taken()),
            None => Ok(Choice { set, address: network, gateway: range.gateway }),
        }
    }

    fn next(&self, set: usize, container_id: &ContainerId) -> Result<Choice, HostLocalError> {
        if let Some(&address) = self.mine.iter().find(|&&address| in_set(self.sets, set, address)) {
            return Err(HostLocalError::Duplicate { set, address, container_id: container_id.clone() });
        }
        let last = self.last.get(set).copied().flatten();
        turn(&self.sets[set], last)
            .filter(|&(_, address)| !self.is_gateway(address) && !self.taken.contains(&address))
            .filter_map(|(range, address)| Some((range, in_subnet(range, address)?)))
            .find(|(_, network)| by_nature(network).is_none() && (self.refuse)(network.ip()).is_none())
            .map(|(range, address)| Choice { set, address, gateway: range.gateway })
            .ok_or_else(|| HostLocalError::Exhausted { set, range_set: self.sets[set].to_string() })
    }

    /// Of any range: what routes for one pod must not be another pod.
    fn is_gateway(&self, address: IpAddr) -> bool {
        self.sets.iter().flat_map(|set| &set.0).any(|range| range.gateway == address)
    }
}

/// `None` only if the range mixes families, which none does.
fn in_subnet(range: &Range, address: IpAddr) -> Option<IpNetwork> {
    IpNetwork::new(address, range.subnet.prefix()).ok()
}

/// Every address of `set` once, beginning after `last`, around to `last` itself.
fn turn(set: &RangeSet, last: Option<IpAddr>) -> impl Iterator<Item = (&Range, IpAddr)> {
    let ranges = &set.0;
    let at = last
        .and_then(|last| ranges.iter().position(|range| range.contains(last)).map(|at| (at, number(last))));
    let (first, split) = at.unwrap_or((0, 0));
    let whole = move |range: &Range| (number(range.start), number(range.end));
    // The range of `last` comes twice: what is after it first, what is before it, and it, at the end.
    let mut parts: Vec<(&Range, (u128, u128))> = Vec::new();
    for range in ranges[first..].iter().chain(&ranges[..first]) {
        parts.push((range, whole(range)));
    }
    if at.is_some()
        && let Some(&(range, (start, end))) = parts.first()
    {
        parts[0].1 = (split.saturating_add(1), end);
        parts.push((range, (start, split)));
    }
    // An empty part has its start after its end.
    parts
        .into_iter()
        .flat_map(|(range, (start, end))| (start..=end).map(move |number| (range, address(range, number))))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(range: &Range, number: u128) -> IpAddr {
    match range.start {
        // A number between two IPv4 addresses is one.
        IpAddr::V4(_) => u32::try_from(number).map_or(range.start, |number| Ipv4Addr::from(number).into()),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
