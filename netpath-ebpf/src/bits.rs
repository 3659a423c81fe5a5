//! Loads and comparisons that compile to straight-line code on the BPF target.
//!
//! The verifier walks every path: where what follows depends on which of several comparisons held, branches are
//! hundreds of paths, and the programs would not load. LLVM turns `|` of comparisons into branches unless it cannot see what
//! is compared, so on the BPF target each value goes through an instruction that it cannot look into. On
//! the host the same functions are ordinary arithmetic. Where all ways lead to a number out of a map, as those through a zone's
//! prefixes do, branches cost the verifier nothing, and a processor guesses them: it need not wait for the comparisons.

/// Hides a value from the optimizer. The instruction must exist: an empty comment would repeat the line
/// information of its neighbour, which the kernel refuses ("Invalid line_info").
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: A register moved onto itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}

/// 1 if `a == b`, else 0.
#[inline(always)]
pub fn eq32(a: u32, b: u32) -> u32 {
    let difference = opaque(u64::from(a ^ b));
    // Below 2^32 only zero has its sign bit set after subtracting one.
    ((difference.wrapping_sub(1)) >> 63) as u32
}

/// 1 if the two halves of `a` and `b` are equal, else 0.
#[inline(always)]
pub fn eq128(a: [u64; 2], b: [u64; 2]) -> u32 {
    let difference = opaque((a[0] ^ b[0]) | (a[1] ^ b[1]));
    // Any number but zero has its sign bit set in itself or in its negation.
    let differs = ((difference | opaque(difference.wrapping_neg())) >> 63) as u32;
    differs ^ 1
}

/// The bytes of an address as one number in memory order: for comparing and masking, not for arithmetic.
#[inline(always)]
pub fn raw4(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

/// The bytes of an address as two numbers in memory order: for comparing and masking, not for arithmetic.
#[inline(always)]
pub fn raw16(bytes: [u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
}

/// As [`raw4`], of a field of a map's value.
///
/// # Safety
///
/// The field lies on a multiple of four: LLVM, which would read its bytes one by one, is told so.
#[inline(always)]
pub unsafe fn field4(bytes: &[u8; 4]) -> u32 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: Four bytes are there, and lie as the caller says.
    unsafe {
        bytes.as_ptr().cast::<u32>().read()
    }
    #[cfg(not(target_arch = "bpf"))]
    raw4(*bytes)
}

/// As [`raw16`], of a field of a map's value.
///
/// # Safety
///
/// As of [`field4`], with a multiple of eight.
#[inline(always)]
pub unsafe fn field16(bytes: &[u8; 16]) -> [u64; 2] {
    #[cfg(target_arch = "bpf")]
    // SAFETY: As in `field4`.
    unsafe {
        bytes.as_ptr().cast::<[u64; 2]>().read()
    }
    #[cfg(not(target_arch = "bpf"))]
    raw16(*bytes)
}

/// The bytes of an address from [`raw4`].
#[inline(always)]
pub fn bytes4(raw: u32) -> [u8; 4] {
    raw.to_ne_bytes()
}

/// The bytes of an address from [`raw16`].
#[inline(always)]
pub fn bytes16(raw: [u64; 2]) -> [u8; 16] {
    let (a, b) = (raw[0].to_ne_bytes(), raw[1].to_ne_bytes());
    [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equality_without_branches_is_equality() {
        for (a, b) in [(0, 0), (1, 1), (0, 1), (1, 0), (u32::MAX, 0), (u32::MAX, u32::MAX), (1 << 31, 0)] {
            assert_eq!(eq32(a, b), u32::from(a == b), "{a} {b}");
        }
        let words = [0, 1, 1 << 63, u64::MAX];
        for a in words {
            for b in words {
                for c in words {
                    for d in words {
                        assert_eq!(eq128([a, b], [c, d]), u32::from(a == c && b == d));
                    }
                }
            }
        }
    }

    #[test]
    fn raw_values_keep_the_order_of_bytes() {
        assert_eq!(bytes4(raw4([1, 2, 3, 4])), [1, 2, 3, 4]);
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        assert_eq!(bytes16(raw16(bytes)), bytes);
    }
}
