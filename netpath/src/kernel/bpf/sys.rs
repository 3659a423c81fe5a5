//! System calls that no crate of ours offers: what a pinned link is, a grace period, the BPF file system.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_DETACH: libc::c_long = 34;

/// What the kernel says of a `bpf_link` on a network device (`struct bpf_link_info`, `include/uapi/linux/bpf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Id of the program the link runs.
    pub program: u32,
    /// Interface it is attached to; 0 once the interface is gone.
    pub ifindex: u32,
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
    // SAFETY: `attr` has the layout of the anonymous struct of BPF_OBJ_GET and lives through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attr, size_of::<Attr>()) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads what the link pinned at `path` is attached to.
pub fn pinned_link(path: &Path) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
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
    let length = u32::try_from(size_of::<Info>()).map_err(io::Error::other)?;
    let attr = Attr {
        bpf_fd: u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)?,
        info_len: length,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `attr` has the layout of BPF_OBJ_GET_INFO_BY_FD's struct; `info` is as long as it says.
    let ret =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const attr, size_of::<Attr>()) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(LinkInfo { program: info.program, ifindex: info.ifindex })
}

/// Takes the program of the link pinned at `path` off its hook, at once: a link whose pin is removed lets go
/// only when the kernel comes to it (Linux 5.9).
pub fn detach_link(path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
    }
    let fd = obj_get(path)?;
    let attr = Attr { link_fd: u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)? };
    // SAFETY: `attr` has the layout of BPF_LINK_DETACH's struct and lives through the call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const attr, size_of::<Attr>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits until every program that runs now has ended (an RCU grace period, `membarrier(2)` GLOBAL).
pub fn grace_period() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: No memory is passed.
    let ret = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes sure that a BPF file system is mounted at `path`, and mounts one if `path` has none.
///
/// Each mount is a file system of its own: pins made in a second one would be a second set of maps, so a
/// directory that holds anything else is an error.
pub fn ensure_bpffs(path: &Path) -> io::Result<()> {
    if is_bpffs(path)? {
        return Ok(());
    }
    std::fs::create_dir_all(path)?;
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

/// A map of the kernel's memory, read-only: counters are read without a system call per value.
pub struct Mapped {
    address: *const u8,
    length: usize,
}

// SAFETY: The memory is shared with the kernel and only ever read.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps the first `length` bytes of an array map made with `BPF_F_MMAPABLE`.
    pub fn new(map: impl AsFd, length: usize) -> io::Result<Self> {
        // SAFETY: A fresh mapping of a descriptor that is open; it is unmapped on drop.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address: address.cast_const().cast(), length })
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
        // SAFETY: Mapped in `new` with this length, and nothing borrows from it.
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
