use std::os::fd::{AsRawFd as _, BorrowedFd};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use super::error::{NetlinkError, Op};
use super::{Netlink, decode};

/// Kind of the qdisc that has a place for filters of what arrives, and one for those of what is sent.
pub const CLSACT: &str = "clsact";
/// Kind of a filter that runs a program.
pub(super) const BPF: &str = "bpf";
/// Handle of a qdisc for filters alone, and what it is below (`TC_H_CLSACT`, `include/uapi/linux/pkt_sched.h`).
pub(super) const FILTER_QDISC: u32 = 0xffff_0000;
const TC_H_CLSACT: u32 = 0xffff_fff1;

/// Where filters of the clsact qdisc stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterHook {
    /// What arrives.
    Ingress,
    /// What is sent.
    Egress,
}

impl FilterHook {
    /// `TC_H_MIN_INGRESS` or `TC_H_MIN_EGRESS` below the qdisc.
    const fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// Which of the filters of a hook, for all protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterPlace {
    /// Its priority.
    pub priority: u16,
    /// Its handle.
    pub handle: u32,
}

impl FilterPlace {
    /// `ETH_P_ALL`, in the order of the network.
    pub const EVERYTHING: u16 = 3u16.to_be();

    fn message(self, index: u32, hook: FilterHook) -> TcMessage {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = TcHandle::from(hook.parent());
        message.header.handle = TcHandle::from(self.handle);
        message.header.info = u32::from(self.priority) << 16 | u32::from(Self::EVERYTHING);
        message
    }
}

/// A filter that runs a BPF program, of those that every packet meets: chain 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Which it is.
    pub place: FilterPlace,
    /// Ethertype of what it meets, in the order of the network.
    pub protocol: u16,
    /// What the program returns is the verdict (direct action), and not a class that others may look at.
    pub decides: bool,
    /// Id of the program it runs.
    pub program: u32,
    /// Name that whoever attached it gave it.
    pub name: String,
}

impl Netlink {
    /// Kind of the qdisc that the link of this index has for filters alone, if any: [`CLSACT`], or `ingress`, which has no place for
    /// filters of what is sent, and in that place shows those of what arrives.
    pub fn filter_qdisc(&mut self, index: u32) -> Result<Option<String>, NetlinkError> {
        let request = || RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let read = |kind, payload: &[u8]| decode::filter_qdisc(kind, payload, index);
        Ok(self.channel.dump(Op::ListQdiscs, request, read)?.pop())
    }

    /// Gives the link of this index a qdisc of kind [`CLSACT`]; the error is `EEXIST` if it has one, or one of kind `ingress`.
    pub fn add_clsact(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = TcHandle::from(TC_H_CLSACT);
        message.header.handle = TcHandle::from(FILTER_QDISC);
        message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.channel.acknowledged(Op::AddClsact(index), message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The BPF filters of the link of this index, in the order they run; none without a qdisc for them or such a link.
    pub fn bpf_filters(&mut self, index: u32, hook: FilterHook) -> Result<Vec<Filter>, NetlinkError> {
        let request = || {
            let mut message = TcMessage::with_index(index.cast_signed());
            message.header.parent = TcHandle::from(hook.parent());
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

    /// Has `program` decide on every packet of a hook of the link of this index (direct action), as the filter of this place: a new one,
    /// or `instead` of the one that is there.
    pub fn set_bpf_filter(
        &mut self,
        index: u32,
        hook: FilterHook,
        place: FilterPlace,
        (program, name): (BorrowedFd<'_>, &str),
        instead: bool,
    ) -> Result<(), NetlinkError> {
        let mut message = place.message(index, hook);
        message.attributes.push(TcAttribute::Kind(BPF.to_owned()));
        let options = [
            TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        message.attributes.push(TcAttribute::Options(options.map(TcOption::Bpf).into()));
        let flags = if instead { 0 } else { NLM_F_CREATE | NLM_F_EXCL };
        let message = RouteNetlinkMessage::NewTrafficFilter(message);
        self.channel.acknowledged(Op::SetFilter(index), message, flags)
    }

    /// Removes the BPF filter of this place of a hook of the link of this index.
    pub fn delete_filter(
        &mut self,
        index: u32,
        hook: FilterHook,
        place: FilterPlace,
    ) -> Result<(), NetlinkError> {
        let mut message = place.message(index, hook);
        message.attributes.push(TcAttribute::Kind(BPF.to_owned()));
        let message = RouteNetlinkMessage::DelTrafficFilter(message);
        self.channel.acknowledged(Op::DeleteFilter(index), message, 0)
    }
}
