//! The case table: a frame, where it plays, and what each direction says. Written by hand; the reference and
//! the verdict both have to agree with it.

use netpath_ebpf::drop_reason::DropReason;

use super::{
    frames::{PEER_MAC, POD_MAC, between},
    model::Setup,
    reference::Way,
    table_ports, table_v4, table_v6,
};

/// Passes.
pub(crate) const PASS: Option<DropReason> = None;

/// One frame and what becomes of it.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// A sentence's worth of what it is.
    pub(crate) name: &'static str,
    /// Where it plays.
    pub(crate) setup: Setup,
    /// As the pod sends it.
    frame: Vec<u8>,
    /// Expected when the pod sends it.
    pub(crate) egress: Option<DropReason>,
    /// Expected when the same bytes come to the pod.
    pub(crate) ingress: Option<DropReason>,
}

impl Case {
    /// The frame going `way`.
    pub(crate) fn frame(&self, way: Way) -> Vec<u8> {
        match way {
            Way::Egress => self.frame.clone(),
            Way::Ingress => between(&self.frame, PEER_MAC, POD_MAC),
        }
    }

    /// What is expected of it.
    pub(crate) fn expected(&self, way: Way) -> Option<DropReason> {
        match way {
            Way::Egress => self.egress,
            Way::Ingress => self.ingress,
        }
    }

    /// A test run takes no more than a page with its head- and tailroom.
    pub(crate) fn is_small(&self) -> bool {
        self.frame.len() <= 3000
    }

    /// Whether a TC program can be run on it: newer kernels refuse a frame that is too short for the header that its
    /// ethertype promises. XDP takes it.
    pub(crate) fn has_header(&self) -> bool {
        let least = match self.frame[12..14] {
            [0x08, 0x00] => 34,
            [0x86, 0xdd] => 54,
            _ => 14,
        };
        self.frame.len() >= least
    }
}

/// A table in the making.
#[derive(Default)]
pub(crate) struct Table(Vec<Case>);

impl Table {
    /// A case in the zone that has both families.
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        frame: Vec<u8>,
        egress: Option<DropReason>,
        ingress: Option<DropReason>,
    ) {
        self.on(Setup::Dual, name, frame, egress, ingress);
    }

    /// A case somewhere else.
    pub(crate) fn on(
        &mut self,
        setup: Setup,
        name: &'static str,
        frame: Vec<u8>,
        egress: Option<DropReason>,
        ingress: Option<DropReason>,
    ) {
        self.0.push(Case { name, setup, frame, egress, ingress });
    }
}

/// Every case. Names are unique.
pub(crate) fn all() -> Vec<Case> {
    let mut table = Table::default();
    table_v4::link_layer(&mut table);
    table_v4::arp(&mut table);
    table_v4::form(&mut table);
    table_v4::zone(&mut table);
    table_v4::errors(&mut table);
    table_v6::form(&mut table);
    table_v6::source(&mut table);
    table_v6::neighbours(&mut table);
    table_v6::zone(&mut table);
    table_v6::errors(&mut table);
    table_ports::v4_ports(&mut table);
    table_ports::v6_ports(&mut table);
    table.0
}
