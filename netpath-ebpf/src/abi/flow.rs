//! What the programs remember of flows that they judged.
//!
//! User space reads none of it. It says by `epoch` that what was remembered holds no longer: odd while it changes what verdicts
//! depend on, another even number afterwards. What may stand in a row (`crate::flow`) is part of this.

/// Rows of `flows` that each CPU has; a power of two. A flow's row is found by its hash, and who else has that hash takes it.
pub const FLOWS: u32 = 2048;

/// What was judged of a flow.
pub mod flow_hook {
    /// At TC egress, what an endpoint sends.
    pub const EGRESS: u64 = 0;
    /// At TC ingress, who sent it: an endpoint of this node to another one, or nobody here.
    pub const SENT: u64 = 1;
    /// At TC ingress, what an endpoint shall receive.
    pub const RECEIVED: u64 = 2;
    /// At XDP, the same.
    pub const XDP: u64 = 3;
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
    /// Of what was sent, the cookie of the network namespace it was sent from, 0 where that is not known; else 0.
    pub evidence: u64,
    /// Source and destination port in memory order.
    pub ports: u32,
}

/// Value of `flows`, index `CPU * FLOWS + hash`: a flow that passed, or that a zone denied. Only programs on that CPU write to it.
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
const _: () = assert!(super::MAX_MASTERS <= 64 && FLOWS.is_power_of_two());
