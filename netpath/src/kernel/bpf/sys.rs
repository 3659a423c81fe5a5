//! System calls of BPF, and around it: what a pinned link is, a grace period, the BPF file system.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::bpf_prog_info;

use super::{Hook, links};

/// Commands of `bpf(2)` (`enum bpf_cmd`, `include/uapi/linux/bpf.h`).
pub(super) mod command {
    pub(in crate::kernel::bpf) const MAP_CREATE: libc::c_long = 0;
    pub(in crate::kernel::bpf) const MAP_LOOKUP_ELEM: libc::c_long = 1;
    pub(in crate::kernel::bpf) const MAP_UPDATE_ELEM: libc::c_long = 2;
    pub(in crate::kernel::bpf) const PROG_LOAD: libc::c_long = 5;
    pub(in crate::kernel::bpf) const OBJ_PIN: libc::c_long = 6;
    pub(in crate::kernel::bpf) const OBJ_GET: libc::c_long = 7;
    pub(in crate::kernel::bpf) const PROG_TEST_RUN: libc::c_long = 10;
    pub(in crate::kernel::bpf) const PROG_GET_FD_BY_ID: libc::c_long = 13;
    pub(in crate::kernel::bpf) const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    pub(in crate::kernel::bpf) const BTF_LOAD: libc::c_long = 18;
    pub(in crate::kernel::bpf) const BTF_GET_FD_BY_ID: libc::c_long = 19;
    pub(in crate::kernel::bpf) const BTF_GET_NEXT_ID: libc::c_long = 23;
    pub(in crate::kernel::bpf) const MAP_FREEZE: libc::c_long = 22;
    pub(in crate::kernel::bpf) const MAP_LOOKUP_BATCH: libc::c_long = 24;
    pub(in crate::kernel::bpf) const MAP_UPDATE_BATCH: libc::c_long = 26;
    pub(in crate::kernel::bpf) const LINK_CREATE: libc::c_long = 28;
    pub(in crate::kernel::bpf) const LINK_UPDATE: libc::c_long = 29;
    pub(in crate::kernel::bpf) const LINK_DETACH: libc::c_long = 34;
}

/// `bpf(2)`.
///
/// # Safety
///
/// `attr` has the layout that the command takes, and what it points to is as long as the command assumes.
pub(super) unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` lives through the call; the caller vouches for the rest.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    match i32::try_from(ret) {
        Ok(ret) if 0 <= ret => Ok(ret),
        Ok(_) => Err(io::Error::last_os_error()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The same for commands that return a descriptor.
///
/// # Safety
///
/// As for [`bpf`], and the command returns a descriptor of its own.
pub(super) unsafe fn bpf_open<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: The caller vouches for it; the kernel has just given us this descriptor.
    unsafe { bpf(command, attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

pub(super) fn raw(fd: &impl AsRawFd) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

/// What the kernel says of a `bpf_link` on a network device (`struct bpf_link_info`, `include/uapi/linux/bpf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Id of the program the link runs.
    pub program: u32,
    /// Interface it is attached to; 0 once the interface is gone.
    pub ifindex: u32,
    /// Where; none of it holds of what is no link of these hooks.
    pub hook: Option<Hook>,
}

/// Opens what is pinned at `path`.
fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr { pathname: name.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: The layout of the anonymous struct of BPF_OBJ_GET; `name` lives through the call.
    unsafe { bpf_open(command::OBJ_GET, &attr) }
}

/// `BPF_OBJ_GET_INFO_BY_FD` into `info`.
///
/// # Safety
///
/// `I` is the beginning of what the kernel tells of such an object, and pointers in it lead to as much memory as it
/// says.
pub(super) unsafe fn object_info<I>(fd: &OwnedFd, info: &mut I) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let info_len = u32::try_from(size_of::<I>()).map_err(io::Error::other)?;
    let attr = Attr { bpf_fd: raw(fd)?, info_len, info: std::ptr::from_mut(info) as u64 };
    // SAFETY: The layout of that command's struct; `info` is as long as it says; the caller vouches for the rest.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &attr) }.map(drop)
}

/// Reads what the link pinned at `path` is attached to.
pub fn pinned_link(path: &Path) -> io::Result<LinkInfo> {
    /// The first words of `struct bpf_link_info`: XDP and TCX have the interface at the same place.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        pad: u32,
        ifindex: u32,
        attach_type: u32,
        rest: [u64; 5],
    }
    let fd = obj_get(path)?;
    let mut info = Info::default();
    // SAFETY: The beginning of `struct bpf_link_info`, without pointers.
    unsafe { object_info(&fd, &mut info) }?;
    /// `enum bpf_link_type`.
    const XDP: u32 = 6;
    const TCX: u32 = 11;
    // Whatever else is pinned has other things there.
    let object = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
    let others = ["anon_inode:bpf-map", "anon_inode:bpf-prog"];
    let hook = match (info.kind, info.attach_type) {
        _ if others.iter().any(|other| object.as_os_str() == *other) => None,
        (XDP, _) => Some(Hook::Xdp),
        (TCX, links::TCX_INGRESS) => Some(Hook::Ingress),
        (TCX, links::TCX_EGRESS) => Some(Hook::Egress),
        _ => None,
    };
    Ok(LinkInfo { program: info.program, ifindex: info.ifindex, hook })
}

/// The program with this id: it stays in the kernel as long as the descriptor is open.
pub fn program(id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let attr = Attr { id, next_id: 0, open_flags: 0 };
    // SAFETY: The layout of that command's struct.
    unsafe { bpf_open(command::PROG_GET_FD_BY_ID, &attr) }
}

/// What the kernel says of a program; without what takes a pointer to write to.
pub(super) fn program_info(program: &OwnedFd) -> io::Result<bpf_prog_info> {
    // SAFETY: Numbers all through, and pointers that are none.
    let mut info = unsafe { std::mem::zeroed() };
    // SAFETY: The kernel's own struct; it is asked for no list.
    unsafe { object_info(program, &mut info) }?;
    Ok(info)
}

/// Runs a program once on a frame; what it returns.
pub(super) fn test_run(program: &OwnedFd, frame: &[u8]) -> io::Result<u32> {
    /// The beginning of that command's struct.
    #[repr(C)]
    struct Attr {
        program: u32,
        returned: u32,
        length: u32,
        room: u32,
        frame: u64,
        result: u64,
        repeat: u32,
        duration: u32,
    }
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let (program, frame) = (raw(program)?, frame.as_ptr() as u64);
    let mut attr = Attr { program, returned: 0, length, room: 0, frame, result: 0, repeat: 0, duration: 0 };
    let pointer = &raw mut attr;
    // SAFETY: The layout of that command's struct, which the kernel writes to; the frame is as long as it says.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command::PROG_TEST_RUN, pointer, size_of::<Attr>()) };
    if ret == 0 { Ok(attr.returned) } else { Err(io::Error::last_os_error()) }
}

/// Pins an object of the kernel at `path`.
pub fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr { pathname: name.as_ptr() as u64, bpf_fd: raw(object)?, file_flags: 0 };
    // SAFETY: The layout of the anonymous struct of BPF_OBJ_PIN; `name` lives through the call.
    unsafe { bpf(command::OBJ_PIN, &attr) }.map(drop)
}

/// Gives the kernel the types of an object, in the kernel's own form.
pub fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    /// Ends where that of Linux 6.1 does, which refuses what is not zero behind it; newer ones would write there.
    #[repr(C, packed(4))]
    struct Attr {
        types: u64,
        log: u64,
        length: u32,
        log_length: u32,
        log_level: u32,
    }
    let length = u32::try_from(types.len()).map_err(io::Error::other)?;
    let attr = Attr { types: types.as_ptr() as u64, log: 0, length, log_length: 0, log_level: 0 };
    const { assert!(size_of::<Attr>() == 28) };
    // SAFETY: The layout of the anonymous struct of BPF_BTF_LOAD; `types` is as long as it says.
    unsafe { bpf_open(command::BTF_LOAD, &attr) }
}

/// Makes the link pinned at `path` run `program`: each packet meets the old program or this one.
pub fn update_link(path: &Path, program: &OwnedFd) -> io::Result<()> {
    links::update(obj_get(path)?.as_fd(), program.as_fd())
}

/// Puts two directories in each other's place in one step (BPF file systems: Linux 5.16).
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    const RENAME_EXCHANGE: libc::c_uint = 1 << 1;
    let (one, other) =
        (CString::new(one.as_os_str().as_bytes())?, CString::new(other.as_os_str().as_bytes())?);
    let here = libc::AT_FDCWD;
    // SAFETY: Two paths that live through the call.
    let ret = unsafe {
        libc::syscall(libc::SYS_renameat2, here, one.as_ptr(), here, other.as_ptr(), RENAME_EXCHANGE)
    };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ids of the maps that the program with this id works on.
pub fn program_maps(id: u32) -> io::Result<Vec<u32>> {
    /// The beginning of `struct bpf_prog_info`. Zero where a length stands: the kernel is asked for nothing else.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_length: u32,
        translated_length: u32,
        jited: u64,
        translated: u64,
        load_time: u64,
        uid: u32,
        map_count: u32,
        maps: u64,
    }
    // More than the object has.
    let mut maps = [0u32; 64];
    let fd = program(id)?;
    let map_count = u32::try_from(maps.len()).map_err(io::Error::other)?;
    let mut info = Info { map_count, maps: maps.as_mut_ptr() as u64, ..Info::default() };
    // SAFETY: The beginning of `struct bpf_prog_info`; `maps` has room for as many ids as it says.
    unsafe { object_info(&fd, &mut info) }?;
    Ok(maps.into_iter().take(info.map_count as usize).collect())
}

/// Takes the program of the link pinned at `path` off its hook, at once: a link whose pin is removed lets go
/// only when the kernel comes to it (Linux 5.9).
pub fn detach_link(path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
    }
    let fd = obj_get(path)?;
    let attr = Attr { link_fd: raw(&fd)? };
    // SAFETY: The layout of BPF_LINK_DETACH's struct.
    unsafe { bpf(command::LINK_DETACH, &attr) }.map(drop)
}

/// Waits until every program that runs now has ended (an RCU grace period).
///
/// `membarrier(2)` GLOBAL is one; a kernel with `nohz_full` CPUs refuses it, and so may a seccomp filter. Then the
/// kernel is made to wait by what makes it wait: replacing an entry of an array of maps.
pub fn grace_period() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: No memory is passed.
    let ret = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if ret == 0 { Ok(()) } else { wait_for_programs() }
}

/// Replaces an entry of an array of maps that nobody else has: the system call returns when no program can have
/// the old one any more (`maybe_wait_bpf_programs`, Linux 4.19).
fn wait_for_programs() -> io::Result<()> {
    const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
    let inner = map_create(BPF_MAP_TYPE_ARRAY, (4, 1), 0, None)?;
    let outer = map_create(BPF_MAP_TYPE_ARRAY_OF_MAPS, (4, 1), 0, Some(&inner))?;
    // The first write fills an empty entry, the second replaces one.
    map_update(&outer, &inner)?;
    map_update(&outer, &inner)
}

const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// An array of `rows` values of `value_size` bytes that no program knows, and that can be mapped.
pub fn make_array(value_size: u32, rows: u32) -> io::Result<OwnedFd> {
    const BPF_F_MMAPABLE: u32 = 1 << 10;
    map_create(BPF_MAP_TYPE_ARRAY, (value_size, rows), BPF_F_MMAPABLE, None)
}

/// A map of this kind with keys of four bytes, with the size of a value and how many there are.
fn map_create(
    kind: u32,
    (value_size, max_entries): (u32, u32),
    map_flags: u32,
    inner: Option<&OwnedFd>,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
    }
    let inner_map_fd = inner.map_or(Ok(0), raw)?;
    let attr = Attr { map_type: kind, key_size: 4, value_size, max_entries, map_flags, inner_map_fd };
    // SAFETY: The beginning of BPF_MAP_CREATE's struct.
    unsafe { bpf_open(command::MAP_CREATE, &attr) }
}

/// Puts `inner` into the one entry of an array of maps.
fn map_update(outer: &OwnedFd, inner: &OwnedFd) -> io::Result<()> {
    let value = raw(inner)?;
    // SAFETY: The value is four bytes, as the map has them.
    unsafe { element(command::MAP_UPDATE_ELEM, raw(outer)?, 0, (&raw const value) as u64) }
}

/// Writes the first value of an array; `frozen`: nobody writes it again.
///
/// # Safety
///
/// Values of the map are as long as `value`.
pub(super) unsafe fn fill(map: impl AsFd, value: &[u8], frozen: bool) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        map: u32,
    }
    let map = u32::try_from(map.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: The caller's word for the length.
    unsafe { element(command::MAP_UPDATE_ELEM, map, 0, value.as_ptr() as u64) }?;
    if frozen {
        // SAFETY: The layout of that command's struct.
        unsafe { bpf(command::MAP_FREEZE, &Attr { map }) }?;
    }
    Ok(())
}

/// A command on the value of an array at `index`.
///
/// # Safety
///
/// `value` is the address of as many bytes as a value of the map has, to be read or written as the command does.
unsafe fn element(command: libc::c_long, map_fd: u32, index: u32, value: u64) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let attr = Attr { map_fd, pad: 0, key: (&raw const index) as u64, value, flags: 0 };
    // SAFETY: The layout of the struct of these commands; a key is four bytes; the caller vouches for the value.
    unsafe { bpf(command, &attr) }.map(drop)
}

/// A value of an array as 64-bit words, of which the caller knows that a look-up yields `words.len()`.
pub(super) fn read_words(map: impl AsFd, index: u32, words: &mut [u64]) -> io::Result<()> {
    let fd = u32::try_from(map.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: `words` is as long as a value, of a per-CPU map those of all CPUs: `Rows::open` compares the sizes.
    unsafe { element(command::MAP_LOOKUP_ELEM, fd, index, words.as_mut_ptr() as u64) }
}

/// Writes what [`read_words`] reads.
pub(super) fn write_words(map: impl AsFd, index: u32, words: &[u64]) -> io::Result<()> {
    let fd = u32::try_from(map.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: As above.
    unsafe { element(command::MAP_UPDATE_ELEM, fd, index, words.as_ptr() as u64) }
}

/// Of `union bpf_attr` what the commands on many rows of a map take.
#[repr(C)]
struct Rows {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a [`lookup_batch`] ended.
pub(super) enum Batch {
    /// There may be more, from here on.
    More(u32),
    /// Nothing is left.
    Last,
}

/// Adds at most `room` rows of a hash map or an array to `rows`, from where an earlier call ended.
///
/// # Safety
///
/// Keys of the map are as long as `K` and values as `V`, and any bytes are one of both.
pub(super) unsafe fn lookup_batch<K: Copy, V: Copy>(
    map: impl AsFd,
    from: Option<u32>,
    room: u32,
    rows: &mut Vec<(K, V)>,
) -> io::Result<Batch> {
    let (mut keys, mut values) =
        (Vec::<K>::with_capacity(room as usize), Vec::<V>::with_capacity(room as usize));
    let (begin, mut end) = (from.unwrap_or(0), 0u32);
    let mut attr = Rows {
        in_batch: from.map_or(0, |_| (&raw const begin) as u64),
        out_batch: (&raw mut end) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room,
        map_fd: u32::try_from(map.as_fd().as_raw_fd()).map_err(io::Error::other)?,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: The layout of the struct of this command; there is room for as many rows as it says, and a place in a hash map or an
    // array is four bytes. The kernel writes how many rows it wrote.
    let done = unsafe {
        let pointer = &raw mut attr;
        libc::syscall(libc::SYS_bpf, command::MAP_LOOKUP_BATCH, pointer, size_of::<Rows>())
    };
    let last = match done {
        0.. => false,
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => true,
            error => return Err(error),
        },
    };
    let count = attr.count.min(room) as usize;
    // SAFETY: The kernel wrote as many; the caller vouches for what they are.
    unsafe {
        keys.set_len(count);
        values.set_len(count);
    }
    rows.extend(keys.into_iter().zip(values));
    Ok(if last { Batch::Last } else { Batch::More(end) })
}

/// Writes rows of a hash map or an array, one after the other; of one that fails the rest is not written.
///
/// # Safety
///
/// Keys of the map are as long as `K` and `values` hold a value of the map for each key, every byte of which was written.
pub(super) unsafe fn update_batch<K: Copy, V: Copy>(
    map: impl AsFd,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    let mut attr = Rows {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map_fd: u32::try_from(map.as_fd().as_raw_fd()).map_err(io::Error::other)?,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: The layout of the struct of this command; the caller vouches for the rows. The kernel writes how many it took.
    let done = unsafe {
        let pointer = &raw mut attr;
        libc::syscall(libc::SYS_bpf, command::MAP_UPDATE_BATCH, pointer, size_of::<Rows>())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes zeros to `rows` of an array, whose values are of as many 64-bit words.
pub(super) fn clear_words(map: impl AsFd, rows: std::ops::Range<u32>, words: usize) -> io::Result<()> {
    let keys: Vec<u32> = rows.collect();
    let zeros = vec![0u64; keys.len() * words];
    // SAFETY: A key of an array is four bytes; the caller knows the words: `Rows::open` compares the sizes.
    unsafe { update_batch(map, &keys, &zeros) }
}

/// Mounts a BPF file system at `path`.
pub fn mount_bpffs(path: &Path) -> io::Result<()> {
    nix::mount::mount(Some("bpf"), path, Some("bpf"), nix::mount::MsFlags::empty(), Some("mode=0700"))?;
    Ok(())
}

/// Whether `path` lies on a BPF file system; a path that does not exist does not.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    match nix::sys::statfs::statfs(path) {
        Ok(stat) => Ok(stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC),
        Err(nix::Error::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Memory of the kernel's, read-only: counters are read without a system call per value, and its types without a copy.
pub struct Mapped {
    address: *const u8,
    length: usize,
}

// SAFETY: The memory is shared with the kernel and only ever read.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps the first `length` bytes of an array map made with `BPF_F_MMAPABLE`.
    pub fn new(map: impl AsFd, length: usize) -> io::Result<Self> {
        Self::of(map, length, libc::MAP_SHARED)
    }

    /// Maps the first `length` bytes of a file; `sharing` is one of `MAP_SHARED` and `MAP_PRIVATE`.
    pub(super) fn of(file: impl AsFd, length: usize, sharing: i32) -> io::Result<Self> {
        // SAFETY: A fresh mapping of a descriptor that is open; it is unmapped on drop.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, sharing, file.as_fd().as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address: address.cast_const().cast(), length })
    }

    /// All of it.
    ///
    /// # Safety
    ///
    /// Nobody changes it.
    pub(super) unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: As long as it is mapped; the caller's word.
        unsafe { std::slice::from_raw_parts(self.address, self.length) }
    }

    /// The `index`-th value of `N` 64-bit words; `None` behind the end.
    ///
    /// Each word is read whole; the words of one value may be from different packets.
    pub fn words<const N: usize>(&self, index: usize) -> Option<[u64; N]> {
        let offset = index.checked_mul(N * 8)?;
        if offset.checked_add(N * 8)? > self.length {
            return None;
        }
        let mut words = [0; N];
        for (i, word) in words.iter_mut().enumerate() {
            // SAFETY: Within the mapping, aligned since mappings and offsets are; volatile because the
            // kernel writes at any time.
            *word = unsafe { std::ptr::read_volatile(self.address.add(offset + i * 8).cast()) };
        }
        Some(words)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: Mapped in `of` with this length, and nothing that borrows from it outlives it.
        unsafe { libc::munmap(self.address.cast_mut().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_is_no_bpffs() {
        assert!(!is_bpffs(Path::new("/tmp")).expect("/tmp exists"));
        assert!(!is_bpffs(Path::new("/nonexistent/bpf")).expect("absence is an answer"));
    }
}
