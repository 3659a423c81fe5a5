//! TC programs of somebody else: a few instructions, loaded by bpf(2) and pinned for `tc` and aya to attach.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::common::node::Node;

/// One instruction, as `struct bpf_insn` has it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const MOV_IMMEDIATE: u8 = 0xb7;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const REDIRECT_NEIGH: i32 = 152;

fn mov(register: u8, immediate: i32) -> Insn {
    Insn { code: MOV_IMMEDIATE, registers: register, offset: 0, immediate }
}

const RETURN: Insn = Insn { code: EXIT, registers: 0, offset: 0, immediate: 0 };

/// Says `verdict` of every packet.
pub(crate) fn verdict(node: &Node, verdict: i32) -> PathBuf {
    pin(node, "verdict", &[mov(0, verdict), RETURN])
}

/// Sends every packet out of the interface with this index, to whom its routing table says, as a cluster network
/// with eBPF host routing does: `bpf_redirect_neigh`.
pub(crate) fn redirect_neigh(node: &Node, ifindex: u32) -> PathBuf {
    let index = i32::try_from(ifindex).expect("small");
    let call = Insn { code: CALL, registers: 0, offset: 0, immediate: REDIRECT_NEIGH };
    pin(node, "neigh", &[mov(1, index), mov(2, 0), mov(3, 0), mov(4, 0), call, RETURN])
}

/// Loads a program and pins it below the node's root.
fn pin(node: &Node, name: &str, program: &[Insn]) -> PathBuf {
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        program: u64,
        licence: u64,
        rest: [u64; 12],
    }
    #[repr(C)]
    struct Pin {
        path: u64,
        program: u32,
        flags: u32,
    }
    const PROG_LOAD: libc::c_long = 5;
    const OBJ_PIN: libc::c_long = 6;
    const SCHED_CLS: u32 = 3;
    let licence = c"GPL";
    let load = Load {
        kind: SCHED_CLS,
        instructions: u32::try_from(program.len()).expect("few"),
        program: program.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        rest: [0; 12],
    };
    // SAFETY: `load` begins as the struct of BPF_PROG_LOAD does, its rest is zero; what it points to lives on.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    assert!(fd >= 0, "the program is refused: {}", io::Error::last_os_error());
    // SAFETY: The kernel just gave us this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) };
    let directory = node.root.bpffs().join("others");
    fs::create_dir_all(&directory).expect("the node has a BPF file system");
    let path = directory.join(name);
    let text = CString::new(path.as_os_str().as_bytes()).expect("a path");
    let pin = Pin {
        path: text.as_ptr() as u64,
        program: u32::try_from(fd.as_raw_fd()).expect("a descriptor"),
        flags: 0,
    };
    // SAFETY: `pin` has the layout of BPF_OBJ_PIN's struct and lives through the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, OBJ_PIN, &raw const pin, size_of::<Pin>()) };
    assert_eq!(done, 0, "{}: {}", path.display(), io::Error::last_os_error());
    path
}
