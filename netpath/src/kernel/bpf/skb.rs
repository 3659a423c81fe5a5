//! What the kernel's own record of a frame (`struct sk_buff`) looks like, as far as no helper tells what is in it.
//!
//! It differs between kernels and how they were built; each describes its own in its types (BTF).

use std::sync::OnceLock;

use netpath_ebpf::abi::SKB_SUMS_LEN;

use super::{BpfError, types};

/// Where the record has what programs read of it. All 0, where a kernel does not describe its types, and of one that does
/// not let programs read it: then they read nothing of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The part that has `ip_summed`, `csum_start` and `csum_offset`, [`SKB_SUMS_LEN`] bytes long, in bytes.
    pub sums: u32,
    /// `ip_summed`, in bits.
    pub summed: u32,
    /// `csum_start`, and `csum_offset` behind it, in bytes.
    pub checksum: u32,
    /// `head`, and `data` behind it, in bytes.
    pub head: u32,
    /// `network_header`, in bytes.
    pub network: u32,
    /// The number of the function that gives the record out (`bpf_cast_to_kern_ctx`, Linux 6.2), among the kernel's types; 0 =
    /// there is none, and the record is read as memory of any kind.
    pub cast: u32,
    /// What leads from there to the cookie of the frame's network namespace.
    pub origin: Origin,
}

/// Where the cookie of a frame's network namespace is found, in bytes. All 0 where the kernel's types do not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// `sk` of the record of a frame: a pointer to `struct sock`.
    pub socket: u32,
    /// `skc_net` of a socket: a pointer to `struct net`.
    pub netns: u32,
    /// `net_cookie` of a network namespace.
    pub cookie: u32,
}

/// That of the kernel that runs.
pub fn layout() -> Result<Layout, BpfError> {
    // The types of a kernel are megabytes, and they stay as they are.
    static FOUND: OnceLock<Layout> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    let types = types::kernel_types().map_err(|source| BpfError::Types { source })?;
    let found = types
        .as_ref()
        .and_then(|types| Types::parse(types.bytes()))
        .and_then(|types| types.layout())
        .unwrap_or_default();
    Ok(*FOUND.get_or_init(|| found))
}

/// Kinds of types (`BTF_KIND_*`, `include/uapi/linux/btf.h`), and the bytes that follow the head of each.
mod kind {
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const FUNCTION: u32 = 12;

    /// `count` is how many members, values or parameters it has; `None` for a kind that is not known.
    pub(super) fn rest(kind: u32, count: usize) -> Option<usize> {
        match kind {
            // Pointers, forward declarations, names, qualifiers, functions, floats, tags of types.
            2 | 7..=12 | 16 | 18 => Some(0),
            // Integers, variables, tags of declarations.
            1 | 14 | 17 => Some(4),
            // Arrays.
            3 => Some(12),
            // Enumerations, parameters.
            6 | 13 => Some(8 * count),
            // Sections, enumerations of 64 bits.
            STRUCT | UNION | 15 | 19 => Some(12 * count),
            _ => None,
        }
    }
}

/// Structs within structs that are looked through.
const DEPTH: u32 = 8;

/// The types of a kernel (`struct btf_header` and what it leads to).
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins. Number 0 is `void`, and has no place.
    places: Vec<usize>,
}

/// A struct or a union.
#[derive(Clone, Copy)]
struct Struct<'a> {
    members: &'a [u8],
    /// Offsets have the width of a bit field in their highest byte.
    has_widths: bool,
}

/// Where a member is within the outermost struct, in bits, and how wide, if it is a bit field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Member {
    bits: u32,
    width: u32,
}

impl<'a> Types<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        if u16::from_ne_bytes(*data.first_chunk()?) != MAGIC {
            return None;
        }
        let word = |at| Some(word(data, at)? as usize);
        let (head, types, types_length, strings, strings_length) =
            (word(4)?, word(8)?, word(12)?, word(16)?, word(20)?);
        let part = |from: usize, length: usize| data.get(head.checked_add(from)?..)?.get(..length);
        let (types, strings) = (part(types, types_length)?, part(strings, strings_length)?);
        let mut places = vec![usize::MAX];
        let mut at = 0;
        while at < types.len() {
            places.push(at);
            let info = self::word(types, at + 4)?;
            at += 12 + kind::rest(info >> 24 & 0x1f, (info & 0xffff) as usize)?;
        }
        Some(Self { types, strings, places })
    }

    fn name(&self, at: u32) -> Option<&'a [u8]> {
        self.strings.get(at as usize..)?.split(|byte| *byte == 0).next()
    }

    /// The type that begins at `place`, if it has members.
    fn at(&self, place: usize) -> Option<Struct<'a>> {
        let info = word(self.types, place.checked_add(4)?)?;
        if !matches!(info >> 24 & 0x1f, kind::STRUCT | kind::UNION) {
            return None;
        }
        let members = self.types.get(place + 12..)?.get(..12 * (info & 0xffff) as usize)?;
        Some(Struct { members, has_widths: info >> 31 != 0 })
    }

    /// Finds a member, also of the nameless structs and unions within.
    fn member(&self, of: Struct<'a>, name: &[u8], depth: u32) -> Option<Member> {
        of.members.chunks_exact(12).find_map(|member| {
            let (its_name, its_type, offset) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            let (bits, width) =
                if of.has_widths { (offset & 0x00ff_ffff, offset >> 24) } else { (offset, 0) };
            match self.name(its_name)? {
                found if found == name => Some(Member { bits, width }),
                b"" if 0 < depth => {
                    let within = self.at(*self.places.get(its_type as usize)?)?;
                    let found = self.member(within, name, depth - 1)?;
                    Some(Member { bits: bits.checked_add(found.bits)?, ..found })
                }
                _ => None,
            }
        })
    }

    /// The struct with this name.
    fn named(&self, name: &[u8]) -> Option<Struct<'a>> {
        self.places.iter().find_map(|place| {
            let found = self.at(*place)?;
            (self.name(word(self.types, *place)?)? == name).then_some(found)
        })
    }

    /// A member of a struct that begins with a byte, in bytes.
    fn byte(&self, of: Struct<'a>, name: &[u8]) -> Option<u32> {
        self.member(of, name, DEPTH).filter(|found| found.bits % 8 == 0).map(|found| found.bits / 8)
    }

    fn origin(&self, record: Struct<'a>) -> Option<Origin> {
        let socket = self.named(b"sock")?;
        let (within, common) = (self.byte(socket, b"__sk_common")?, self.named(b"sock_common")?);
        Some(Origin {
            socket: self.byte(record, b"sk")?,
            netns: within.checked_add(self.byte(common, b"skc_net")?)?,
            cookie: self.byte(self.named(b"net")?, b"net_cookie")?,
        })
    }

    /// `None` of what is not as the programs take it.
    fn layout(&self) -> Option<Layout> {
        let record = self.named(b"sk_buff")?;
        let find = |name: &str| self.member(record, name.as_bytes(), DEPTH);
        let byte = |name: &str| self.byte(record, name.as_bytes());
        let summed = find("ip_summed")?;
        let (checksum, head, network) = (byte("csum_start")?, byte("head")?, byte("network_header")?);
        let sums = (summed.bits / 8).min(checksum) & !7;
        let end = (summed.bits / 8 + 1).max(checksum + 4);
        let is_as_read = summed.width == 2
            && summed.bits % 8 <= 6
            && byte("csum_offset")? == checksum + 2
            && byte("data")? == head + 8
            && checksum % 4 == 0
            && end <= sums + SKB_SUMS_LEN;
        let cast = self.function(b"bpf_cast_to_kern_ctx\0").unwrap_or(0);
        let origin = self.origin(record).unwrap_or_default();
        is_as_read.then_some(Layout { sums, summed: summed.bits, checksum, head, network, cast, origin })
    }

    /// The number of the function with this name, which ends with a zero.
    fn function(&self, name: &[u8]) -> Option<u32> {
        let is_its = |place: usize| {
            let (at, info) = (word(self.types, place)?, word(self.types, place.checked_add(4)?)?);
            let is_function = info >> 24 & 0x1f == kind::FUNCTION;
            (is_function && self.strings.get(at as usize..)?.starts_with(name)).then_some(())
        };
        let number = self.places.iter().position(|place| is_its(*place).is_some())?;
        u32::try_from(number).ok()
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types, each a kind, a name and what follows its head, as a kernel would describe them.
    fn describe(types: &[(u32, &str, Vec<u8>, u32)]) -> Vec<u8> {
        let (mut body, mut strings) = (Vec::new(), vec![0]);
        strings.extend(NAMES.join("\0").bytes().chain([0]));
        for (kind, name, rest, count) in types {
            body.extend([named(name), kind << 24 | count | 1 << 31, 0].map(u32::to_ne_bytes).concat());
            body.extend(rest);
        }
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("short");
        let mut data = vec![0x9f, 0xeb, 1, 0];
        data.extend([24, 0, length(&body), length(&body), length(&strings)].map(u32::to_ne_bytes).concat());
        [data, body, strings].concat()
    }

    const NAMES: [&str; 16] = [
        "sk_buff",
        "head",
        "data",
        "ip_summed",
        "csum_start",
        "csum_offset",
        "int",
        "network_header",
        "bpf_cast_to_kern_ctx",
        "sk",
        "sock",
        "__sk_common",
        "sock_common",
        "skc_net",
        "net",
        "net_cookie",
    ];

    fn named(name: &str) -> u32 {
        let before = |index: usize| 1 + NAMES[..index].iter().map(|name| name.len() + 1).sum::<usize>();
        let place = NAMES.iter().position(|known| *known == name).map_or(0, before);
        u32::try_from(place).expect("short")
    }

    fn members(members: &[(&str, u32, u32, u32)]) -> Vec<u8> {
        let member = |&(name, kind, bits, width): &_| {
            [named(name), kind, bits | width << 24].map(u32::to_ne_bytes).concat()
        };
        members.iter().flat_map(member).collect()
    }

    /// A record with a union of a struct within a struct, where `ip_summed` is so wide and `data` there.
    fn record(width: u32, data: u32) -> Vec<u8> {
        with_sums(width, data, 1088, "int")
    }

    /// The same with `csum_start` there, and a function of that name.
    fn with_sums(width: u32, data: u32, sums: u32, named_as: &str) -> Vec<u8> {
        let checksum = [("csum_start", 1, 0, 0), ("csum_offset", 1, 16, 0), ("network_header", 1, 32, 0)];
        let checksum = members(&checksum);
        let whole =
            [("ip_summed", 1, 1029, width), ("", 3, sums, 0), ("head", 1, 1600, 0), ("data", 1, data, 0)];
        describe(&[
            (1, "int", vec![0; 4], 0),
            (4, "", checksum, 3),
            (5, "", members(&[("", 2, 0, 0)]), 1),
            (6, "", vec![0; 8], 1),
            (4, "sk_buff", members(&whole), 4),
            (12, named_as, Vec::new(), 0),
        ])
    }

    #[test]
    fn members_are_found_in_nameless_structs() {
        let found = |data: &[u8]| Types::parse(data).expect("well described").layout();
        let data = record(2, 1664);
        let origin = Origin::default();
        let layout =
            Layout { sums: 128, summed: 1029, checksum: 136, head: 200, network: 140, cast: 0, origin };
        assert_eq!(found(&data), Some(layout));
        let data = with_sums(2, 1664, 1088, "bpf_cast_to_kern_ctx");
        assert_eq!(found(&data), Some(Layout { cast: 6, ..layout }), "the last of six types");
        let types = Types::parse(&data).expect("well described");
        let last = types.places.iter().rev().find_map(|place| types.at(*place)).expect("a struct");
        assert_eq!(types.member(last, b"csum_offset", DEPTH), Some(Member { bits: 1104, width: 0 }));
        assert_eq!(types.member(last, b"csum_offset", 1), None, "two structs down");
        assert_eq!(types.member(last, b"int", DEPTH), None);
    }

    /// The same with what leads to a cookie, but for the struct that is called `without`.
    fn with_origin(without: &str) -> Option<Origin> {
        let whole = [
            ("ip_summed", 1, 1024, 2),
            ("csum_start", 1, 1088, 0),
            ("csum_offset", 1, 1104, 0),
            ("network_header", 1, 1120, 0),
            ("head", 1, 1600, 0),
            ("data", 1, 1664, 0),
            ("sk", 1, 192, 0),
        ];
        let structs = [
            ("sk_buff", members(&whole), 7),
            ("sock_common", members(&[("skc_net", 1, 384, 0)]), 1),
            ("sock", members(&[("__sk_common", 1, 64, 0)]), 1),
            ("net", members(&[("net_cookie", 1, 768, 0)]), 1),
        ];
        let structs = structs.into_iter().filter(|(name, ..)| *name != without);
        let types: Vec<_> = structs.map(|(name, members, count)| (4, name, members, count)).collect();
        Types::parse(&describe(&types)).and_then(|types| types.layout()).map(|layout| layout.origin)
    }

    #[test]
    fn the_way_to_a_cookie_is_known_whole_or_not_at_all() {
        let origin = Origin { socket: 24, netns: 8 + 48, cookie: 96 };
        assert_eq!(with_origin(""), Some(origin));
        for without in ["sock", "sock_common", "net"] {
            assert_eq!(with_origin(without), Some(Origin::default()), "{without}");
        }
        assert_eq!(with_origin("sk_buff"), None);
    }

    #[test]
    fn a_record_that_is_not_as_it_is_read_is_not_read() {
        let found = |data: &[u8]| Types::parse(data).and_then(|types| types.layout());
        assert_eq!(found(&record(3, 1664)), None, "another width");
        assert_eq!(found(&record(2, 1728)), None, "`data` elsewhere");
        let sums =
            |bits| found(&with_sums(2, 1664, bits, "int")).map(|layout| (layout.sums, layout.checksum));
        assert_eq!(sums(1120), Some((128, 140)), "in the second half of a word");
        assert_eq!(sums(1104), None, "over the end of a word");
        assert_eq!(sums(1024 + 224), Some((128, 156)), "the last that is read");
        assert_eq!(sums(1024 + 256), None, "behind what is read");
        assert_eq!(sums(960), Some((120, 120)), "before `ip_summed`");
        let whole = record(2, 1664);
        assert_eq!(
            found(&[&whole[..2], &[0], &whole[3..]].concat()),
            found(&whole),
            "a version is not looked at"
        );
        assert_eq!(found(&[&[0], &whole[1..]].concat()), None, "no types");
        (0..whole.len()).for_each(|length| assert_eq!(found(&whole[..length]), None, "{length}"));
        let unknown = describe(&[(31, "int", Vec::new(), 0)]);
        assert_eq!(found(&unknown), None, "a kind that nobody knows");
    }
}
