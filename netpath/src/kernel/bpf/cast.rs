//! The call that makes of a program's context the kernel's own record of a frame, `bpf_cast_to_kern_ctx` (Linux 6.2).
//!
//! It is none of the helpers, which have the same number everywhere, but a function among the kernel's types, which has another one in
//! each kernel. The object has a number in its place that no helper has ([`CAST_TO_KERNEL`]), behind a question that is answered
//! with no where nothing is put there.

use aya::sys::BpfHelper;
use aya_obj::generated::bpf_insn;
use netpath_ebpf::abi::CAST_TO_KERNEL;

use super::skb::{Layout, Origin};

/// An instruction (`struct bpf_insn`, `include/uapi/linux/bpf.h`) as the number that its eight bytes are in little endian.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: u32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([code, from << 4 | to, low, high, a, b, c, d])
}

/// The code of a call.
const CALL: u8 = 0x85;
/// What stands in the place of a register in a call of a function among the kernel's types (`BPF_PSEUDO_KFUNC_CALL`).
const KERNEL_FUNCTION: u8 = 2;

/// Puts the call of type number `cast` where these instructions have its place; without one they stay as they are.
pub(super) fn put(instructions: &mut [bpf_insn], cast: u32) {
    if cast == 0 {
        return;
    }
    // If none had it, the verifier would refuse the call that it then meets.
    let has_its_place =
        |it: &&mut bpf_insn| it.code == CALL && it.src_reg() == 0 && it.imm.cast_unsigned() == CAST_TO_KERNEL;
    for call in instructions.iter_mut().filter(has_its_place) {
        call.set_src_reg(KERNEL_FUNCTION);
        call.imm = cast.cast_signed();
    }
}

// Loads of so many bytes, a register set to a number or to another one, one added to it, and the end.
const BYTE: u8 = 0x71;
const HALF: u8 = 0x69;
const WORD: u8 = 0x61;
const LONG: u8 = 0x79;
const SET: u8 = 0xb7;
const COPY: u8 = 0xbf;
const ADD: u8 = 0x0f;
/// A jump over so many instructions if a register is a number.
const JUMP_IF: u8 = 0x15;
const EXIT: u8 = 0x95;

/// A program that reads all that `layout` has of the record by the pointer that the call gives: a kernel may have the function and
/// not let it be called, or not let everything be read so.
pub(super) fn all_reads(layout: &Layout) -> Vec<u64> {
    let reads = [
        (BYTE, layout.summed / 8),
        (WORD, layout.checksum),
        (HALF, layout.network),
        (LONG, layout.head),
        (LONG, layout.head + 8),
    ];
    program(layout.cast, reads.map(|(load, at)| as_programs_do(load, at, 0)).as_flattened())
}

/// A program that asks a helper for the cookie of the frame's network namespace.
pub(super) fn ask_for_cookie() -> Vec<u64> {
    let helper = BpfHelper::BPF_FUNC_get_netns_cookie as u32;
    [instruction(CALL, 0, 0, 0, helper), instruction(SET, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)].to_vec()
}

/// A program that goes from the record to the cookie of the frame's network namespace.
pub(super) fn walk_to_cookie(layout: &Layout) -> Vec<u64> {
    let Origin { socket, netns, cookie } = layout.origin;
    // Each load is behind what the one before it found. The verifier knows that a frame may have no socket, and has to be shown that
    // a socket has a namespace where the kernel's types say that RCU guards that pointer (`__rcu`, as clang writes it).
    let behind = unless_none(&as_programs_do(LONG, cookie, 1));
    let behind = unless_none(&[&as_programs_do(LONG, netns, 1)[..], &behind].concat());
    program(layout.cast, &[&as_programs_do(LONG, socket, 0)[..], &behind].concat())
}

/// These instructions, and before them a jump over them for register 1 being null.
fn unless_none(instructions: &[u64]) -> Vec<u64> {
    let over = i16::try_from(instructions.len()).unwrap_or(i16::MAX);
    [&[instruction(JUMP_IF, 1, 0, over, 0)], instructions].concat()
}

/// A load of what is `at` bytes behind what register `from` points to, into register 1, by way of registers 2 and 3.
fn as_programs_do(load: u8, at: u32, from: u8) -> [u64; 4] {
    let to = instruction(COPY, 2, from, 0, 0);
    [to, instruction(SET, 3, 0, 0, at), instruction(ADD, 2, 3, 0, 0), instruction(load, 1, 2, 0, 0)]
}

/// The call, and so many instructions behind it.
fn program(cast: u32, instructions: &[u64]) -> Vec<u64> {
    let mut all = vec![instruction(CALL, 0, KERNEL_FUNCTION, 0, cast)];
    all.extend(instructions);
    all.extend([instruction(SET, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    all
}

#[cfg(test)]
mod tests {
    use aya_obj::copy_instructions;

    use super::*;

    #[test]
    fn the_call_is_put_wherever_programs_have_its_place() {
        let wanted = [0x85, 0, 0, 0, 0x6e, 0x75, 0x66, 0x6b];
        // A call of a function of the program's own, and a number, that look alike.
        let others = [[0x85, 0x10, 0, 0, 0x6e, 0x75, 0x66, 0x6b], [0x18, 0, 0, 0, 0x6e, 0x75, 0x66, 0x6b]];
        let mut instructions =
            copy_instructions(&[wanted, others[0], wanted, others[1]].concat()).expect("whole");
        let text = |instructions: &[bpf_insn]| format!("{instructions:?}");
        let before = text(&instructions);
        put(&mut instructions, 0);
        assert_eq!(text(&instructions), before);
        put(&mut instructions, 0x0102_0304);
        let call = [0x85, 0x20, 0, 0, 4, 3, 2, 1];
        let expected = copy_instructions(&[call, others[0], call, others[1]].concat()).expect("whole");
        assert_eq!(text(&instructions), text(&expected));
    }

    /// Behind the call and before the end.
    fn between(program: Vec<u64>) -> Vec<[u8; 8]> {
        let mut bytes: Vec<[u8; 8]> = program.into_iter().map(u64::to_le_bytes).collect();
        let end = bytes.split_off(bytes.len() - 2);
        assert_eq!(bytes.remove(0), [0x85, 0x20, 0, 0, 0x77, 0, 0, 0]);
        assert_eq!(end, [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]]);
        bytes
    }

    fn load(code: u8, at: u8, from: u8) -> [[u8; 8]; 4] {
        [
            [0xbf, from << 4 | 2, 0, 0, 0, 0, 0, 0],
            [0xb7, 3, 0, 0, at, 0, 0, 0],
            [0x0f, 0x32, 0, 0, 0, 0, 0, 0],
            [code, 0x21, 0, 0, 0, 0, 0, 0],
        ]
    }

    const LAYOUT: Layout = Layout {
        sums: 128,
        summed: 1029,
        checksum: 136,
        head: 192,
        network: 180,
        cast: 0x77,
        origin: Origin { socket: 24, netns: 48, cookie: 96 },
    };

    #[test]
    fn a_program_reads_each_part_with_its_width() {
        let reads = [(0x71, 128), (0x61, 136), (0x69, 180), (0x79, 192), (0x79, 200)];
        let expected: Vec<_> = reads.into_iter().flat_map(|(code, at)| load(code, at, 0)).collect();
        assert_eq!(between(all_reads(&LAYOUT)), expected);
    }

    #[test]
    fn a_program_goes_from_each_record_to_the_next() {
        let unless_none = |over| [[0x15, 1, over, 0, 0, 0, 0, 0]];
        let expected = [
            &load(0x79, 24, 0)[..],
            &unless_none(9),
            &load(0x79, 48, 1),
            &unless_none(4),
            &load(0x79, 96, 1),
        ];
        assert_eq!(between(walk_to_cookie(&LAYOUT)), expected.concat());
    }
}
