//! Filters of the clsact qdisc: how TC programs are attached where TCX is missing or not wanted.

use std::io;

use futures_util::TryStreamExt;
use rtnetlink::{
    new_connection,
    packet_route::tc::{TcAttribute, TcFilterBpfOption, TcOption},
};

use super::Hook;

/// Priority of our filters: the first there is.
pub const PRIORITY: u16 = 1;
/// Handle of our filters: fixed, so that a second attach replaces the first.
pub const HANDLE: u32 = 0x6e70;

/// A BPF filter on a clsact qdisc.
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

impl Filter {
    /// Whether it has the priority and the handle of ours.
    pub fn is_at_our_place(&self) -> bool {
        (self.priority, self.handle) == (PRIORITY, HANDLE)
    }
}

/// The BPF filters of `ifindex` in the current network namespace, in the order they run; none if there is no clsact qdisc.
pub fn filters(ifindex: u32, hook: Hook) -> io::Result<Vec<Filter>> {
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection()?;
        let task = tokio::spawn(connection);
        let request = handle.traffic_filter(index).get();
        let request = if hook == Hook::Egress { request.egress() } else { request.ingress() };
        let messages: Vec<_> = match request.execute().try_collect().await {
            Ok(messages) => messages,
            // No such qdisc, or no such interface.
            Err(rtnetlink::Error::NetlinkError(error)) if error.code.is_some() => Vec::new(),
            Err(error) => return Err(io::Error::other(error)),
        };
        task.abort();
        let mut found = Vec::new();
        for message in messages {
            let mut program = None;
            let mut name = None;
            let mut is_bpf = false;
            for attribute in &message.attributes {
                match attribute {
                    TcAttribute::Kind(kind) => is_bpf = kind == "bpf",
                    TcAttribute::Options(options) => {
                        program = program.or_else(|| program_id(options));
                        name = name.or_else(|| program_name(options));
                    }
                    _ => {}
                }
            }
            if let (true, Some(program)) = (is_bpf, program) {
                let priority = u16::try_from(message.header.info >> 16).unwrap_or_default();
                let name = name.unwrap_or_else(|| "unnamed".to_owned());
                found.push(Filter { priority, handle: message.header.handle.into(), program, name });
            }
        }
        Ok(found)
    })
}

fn program_id(options: &[TcOption]) -> Option<u32> {
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}

fn program_name(options: &[TcOption]) -> Option<String> {
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    })
}
