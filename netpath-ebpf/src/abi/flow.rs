//! What the programs remember of flows that they judged.
//!
//! User space reads none of it. It says by `epoch` that what was remembered holds no longer: odd while it changes what verdicts
//! depend on, another even number afterwards. What may stand in a row (`crate::flow`) is part of this.

/// Rows of `flows` at most, 16 MiB, as far as each CPU has [`FEWEST_FLOW_BITS`].
const FLOWS: u32 = 1 << 18;
const FEWEST_FLOW_BITS: u32 = 9;
/// More would be taken less often, and be in no cache.
const MOST_FLOW_BITS: u32 = 13;

/// How many rows of `flows` each of `cpus` CPUs has, as a power of two: `cpus` are all that may come to be, and a virtual machine may
/// have hundreds that never do. A flow's row is found by its hash, and who else has that hash takes it.
pub const fn flow_bits(cpus: u32) -> u32 {
    let share = FLOWS / if cpus == 0 { 1 } else { cpus };
    match share.checked_ilog2() {
        Some(bits) if bits > MOST_FLOW_BITS => MOST_FLOW_BITS,
        Some(bits) if bits > FEWEST_FLOW_BITS => bits,
        _ => FEWEST_FLOW_BITS,
    }
}

/// What was judged of a flow.
pub mod flow_hook {
    /// At TC egress, what an endpoint sends.
    pub const EGRESS: u64 = 0;
    /// At TC ingress, who sent it: an endpoint of this node to another one, or a socket elsewhere, by a virtual wire.
    pub const SENT: u64 = 1;
    /// At TC ingress, what an endpoint shall receive from either.
    pub const RECEIVED: u64 = 2;
    /// At XDP, the same.
    pub const XDP: u64 = 3;
    /// At TC ingress, what an endpoint shall receive from nobody of this node, sent by no socket that is known.
    pub const OUTSIDE: u64 = 4;
}

/// Bits of [`Flow::outcome`].
pub mod flow_outcome {
    /// It is dropped, by the zone, and its sender is not told.
    pub const DENIED: u32 = 1 << 31;
    /// The row of `rule_counters`; 0 = no rule decided.
    pub const RULE: u32 = !DENIED;
}

/// Which flow it is: all that a verdict on a plain packet ([`crate::flow`]) depends on, but for what maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FlowKey {
    /// The endpoint's MAC in memory order in the lower 48 bits, then six bits of master id, three of [`flow_hook`], one for
    /// UDP and one for IPv6. Never 0.
    pub who: u64,
    /// Source and destination in memory order; IPv4 has both in the first number.
    pub addresses: [u64; 4],
    /// Of what was sent, the cookie of the network namespace it was sent from, 0 where that is not known; of what comes from outside, the
    /// sender's MAC in memory order; else 0.
    pub evidence: u64,
    /// Source and destination port in memory order.
    pub ports: u32,
}

/// Value of `flows`, index `CPU << flow_bits | hash`: a flow that passed, or that a zone denied. Only programs on that CPU write to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Flow {
    /// As in [`FlowKey::who`].
    pub who: u64,
    /// As in [`FlowKey::addresses`].
    pub addresses: [u64; 4],
    /// As in [`FlowKey::evidence`].
    pub evidence: u64,
    /// As in [`FlowKey::ports`].
    pub ports: u32,
    /// Value of `epoch` before it was judged, never an odd one: with any other one it is forgotten.
    pub epoch: u32,
    /// Id of the endpoint; 0 = nobody here sent it.
    pub id: u32,
    /// Bits of [`flow_outcome`].
    pub outcome: u32,
}

const _: () = assert!(size_of::<Flow>() == 64);
const _: () = assert!(super::MAX_MASTERS <= 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shared_out_among_cpus_that_may_come_to_be() {
        for (cpus, rows) in
            [(0, 8192), (1, 8192), (2, 8192), (32, 8192), (33, 4096), (64, 4096), (128, 2048), (240, 1024)]
        {
            assert_eq!(1 << flow_bits(cpus), rows, "{cpus}");
        }
        assert_eq!(1 << flow_bits(4096), 512, "as few as that are no use");
        assert_eq!(1 << flow_bits(u32::MAX), 512);
    }
}
