use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};

use super::error::{NetlinkError, Op};
use super::{Netlink, decode};

/// Kind of the qdisc that has a place for filters of what arrives, and one for those of what is sent.
pub const CLSACT: &str = "clsact";

/// Where filters of the clsact qdisc stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterHook {
    /// What arrives.
    Ingress,
    /// What is sent.
    Egress,
}

/// A filter that runs a BPF program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its priority.
    pub priority: u16,
    /// Its handle.
    pub handle: u32,
    /// Id of the program it runs.
    pub program: u32,
    /// Name that whoever attached it gave it.
    pub name: String,
}

impl Netlink {
    /// Kind of the qdisc that the link of this index has for filters alone, if any: `clsact`, or `ingress`, which has no place for
    /// filters of what is sent, and in that place shows those of what arrives.
    pub fn filter_qdisc(&mut self, index: u32) -> Result<Option<String>, NetlinkError> {
        let request = || RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let read = |kind, payload: &[u8]| decode::filter_qdisc(kind, payload, index);
        Ok(self.channel.dump(Op::ListQdiscs, request, read)?.pop())
    }

    /// The BPF filters of the link of this index, in the order they run; none without a qdisc for them or such a link.
    pub fn bpf_filters(&mut self, index: u32, hook: FilterHook) -> Result<Vec<Filter>, NetlinkError> {
        // `TC_H_CLSACT` and below it `TC_H_MIN_INGRESS` or `TC_H_MIN_EGRESS` (`include/uapi/linux/pkt_sched.h`).
        let minor = match hook {
            FilterHook::Ingress => 0xfff2,
            FilterHook::Egress => 0xfff3,
        };
        let request = || {
            let mut message = TcMessage::with_index(index.cast_signed());
            message.header.parent = TcHandle { major: 0xffff, minor };
            RouteNetlinkMessage::GetTrafficFilter(message)
        };
        let listed = match self.channel.dump(Op::ListFilters(index), request, decode::filter) {
            // A kernel that was built without filters.
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => Vec::new(),
            listed => listed?,
        };
        let is_of_another_place = hook == FilterHook::Egress
            && !listed.is_empty()
            && self.filter_qdisc(index)?.is_none_or(|kind| kind != CLSACT);
        Ok(if is_of_another_place { Vec::new() } else { listed })
    }
}
