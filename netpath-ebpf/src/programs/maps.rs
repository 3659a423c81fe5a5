//! The maps. Sizes here are defaults; the loader sets them from the node's settings.

use super::{account::Drop, reject::Room};
use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf},
    macros::btf_map,
};
use netpath_ebpf::{
    abi::{
        Budget, CookieKey, CookieOwner, Counters, DropCounters, DropEvent, Endpoint, EndpointKey, Flow,
        FlowKey, HEAD_LEN, MAX_MASTERS, Master, MasterCounters, Meta, Owner, PortSet, Reject, Rule,
        RuleCounters, TrieKey4, TrieKey6, VlanKey, VlanMaster, ZONE_PORT_SETS, ZONE_RULES, ZoneInfo,
        ZoneSlot, flow_bits,
    },
    packet::Facts,
};

const ENDPOINTS: usize = 1024;
const ZONES: usize = 256;
const CPUS: usize = 2;
const PREFIXES: usize = 16_384;
const VLANS: usize = 1024;
const PORT_SETS: usize = 2 * ZONES * ZONE_PORT_SETS as usize;
const RULE_ROWS: usize = ZONES * ZONE_RULES as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// What one frame needs on the way to its verdict; nothing in it outlives a packet.
#[repr(C)]
pub(crate) struct Scratch {
    /// What the bytes say.
    pub facts: Facts,
    /// Copy of a head that does not lie in linear memory.
    pub head: [u8; HEAD_LEN],
    /// What is to be reported.
    pub drop: Drop,
    /// Room for an answer.
    pub reject: Room,
    /// The flows of the frame that are not remembered yet.
    pub flows: [FlowKey; 3],
}

#[btf_map(name = "meta")]
pub(crate) static META: Array<Meta, 1> = Array::new();
#[btf_map(name = "masters")]
pub(crate) static MASTERS: Array<Master, { MAX_MASTERS as usize }> = Array::new();
#[btf_map(name = "endpoints")]
pub(crate) static ENDPOINT_ROWS: HashMap<EndpointKey, Endpoint, ENDPOINTS> = HashMap::new();
#[btf_map(name = "owners")]
pub(crate) static OWNERS: Array<Owner, ENDPOINTS> = Array::new();
#[btf_map(name = "zone_words")]
pub(crate) static ZONE_WORDS: Array<u32, ZONES> = Array::new();
#[btf_map(name = "zone_slots")]
pub(crate) static ZONE_SLOTS: Array<ZoneSlot, { 2 * ZONES }> = Array::new();
#[btf_map(name = "zone_info")]
pub(crate) static ZONE_INFO: Array<ZoneInfo, ZONES> = Array::new();
#[btf_map(name = "zone_trie_v4")]
pub(crate) static ZONE_TRIE_V4: LpmTrie<TrieKey4, u32, PREFIXES> = LpmTrie::new();
#[btf_map(name = "zone_trie_v6")]
pub(crate) static ZONE_TRIE_V6: LpmTrie<TrieKey6, u32, PREFIXES> = LpmTrie::new();
#[btf_map(name = "ports")]
pub(crate) static PORTS: Array<PortSet, PORT_SETS> = Array::new();
#[btf_map(name = "rules")]
pub(crate) static RULES: Array<Rule, RULE_ROWS> = Array::new();
#[btf_map(name = "rule_counters")]
pub(crate) static RULE_COUNTERS: PerCpuArray<RuleCounters, RULE_ROWS> = PerCpuArray::new();
#[btf_map(name = "cookies")]
pub(crate) static COOKIES: HashMap<CookieKey, CookieOwner, ENDPOINTS> = HashMap::new();
#[btf_map(name = "claims_v4")]
pub(crate) static CLAIMS_V4: LpmTrie<TrieKey4, u32, PREFIXES> = LpmTrie::new();
#[btf_map(name = "claims_v6")]
pub(crate) static CLAIMS_V6: LpmTrie<TrieKey6, u32, PREFIXES> = LpmTrie::new();
#[btf_map(name = "vlans")]
pub(crate) static VLAN_MASTERS: HashMap<VlanKey, VlanMaster, VLANS> = HashMap::new();
#[btf_map(name = "rejects")]
pub(crate) static REJECTS: Array<Reject, ENDPOINTS> = Array::new();
#[btf_map(name = "epoch")]
pub(crate) static EPOCH: Array<u32, 1> = Array::new();
// Mappable, because only then does each row have a cache line of its own.
#[btf_map(name = "flows")]
pub(crate) static FLOW_ROWS: Array<Flow, { CPUS << flow_bits(CPUS as u32) }, MMAPABLE> = Array::new();
#[btf_map(name = "counters")]
pub(crate) static COUNTERS: Array<Counters, { ENDPOINTS * CPUS }, MMAPABLE> = Array::new();
#[btf_map(name = "master_counters")]
pub(crate) static MASTER_COUNTERS: Array<MasterCounters, { MAX_MASTERS as usize * CPUS }, MMAPABLE> =
    Array::new();
#[btf_map(name = "drops")]
pub(crate) static DROPS: Array<DropCounters, ENDPOINTS> = Array::new();
#[btf_map(name = "budgets")]
pub(crate) static BUDGETS: Array<Budget, ENDPOINTS> = Array::new();
#[btf_map(name = "events")]
pub(crate) static EVENTS: RingBuf<DropEvent, { 256 * 1024 }> = RingBuf::new();
#[btf_map(name = "scratch")]
pub(crate) static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
