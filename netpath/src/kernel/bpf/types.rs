//! The types of the kernel that runs (BTF), as it describes them.

use std::{
    fs::File,
    io::{self, Read as _},
};

use nix::sys::statfs::{SYSFS_MAGIC, fstatfs};

use super::sys::{Mapped, bpf_open, command, object_info};

/// What the kernel says of its own types (BTF).
pub(super) enum KernelTypes {
    /// Where they lie.
    Mapped(Mapped),
    /// A copy.
    Read(Vec<u8>),
}

impl KernelTypes {
    /// The bytes, from `struct btf_header` on.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            // SAFETY: It is the kernel's, which never changes what it says of itself.
            Self::Mapped(mapped) => unsafe { mapped.bytes() },
            Self::Read(types) => types,
        }
    }

    /// From the file; `None` where there is none, or nothing in it.
    fn of_file() -> Option<Self> {
        let mut file = File::open("/sys/kernel/btf/vmlinux").ok()?;
        let length = usize::try_from(file.metadata().ok()?.len()).ok().filter(|length| *length > 0)?;
        // From Linux 6.16 on, without a copy of megabytes. Whatever else somebody has put there may change or become shorter.
        let is_kernels = fstatfs(&file).is_ok_and(|file| file.filesystem_type() == SYSFS_MAGIC);
        if is_kernels && let Ok(mapped) = Mapped::of(&file, length, libc::MAP_PRIVATE) {
            return Some(Self::Mapped(mapped));
        }
        let mut types = Vec::new();
        types.try_reserve_exact(length).ok()?;
        file.read_to_end(&mut types).ok()?;
        Some(Self::Read(types))
    }
}

/// Those of the kernel that runs; `None` of one that was built without.
///
/// From the file, where there is one: the system calls take CAP_SYS_ADMIN.
pub(super) fn kernel_types() -> io::Result<Option<KernelTypes>> {
    // A container need not have it.
    if let Some(types) = KernelTypes::of_file() {
        return Ok(Some(types));
    }
    #[repr(C)]
    struct Attr {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    /// `struct bpf_btf_info`.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        types: u64,
        length: u32,
        id: u32,
        name: u64,
        name_length: u32,
        is_kernels: u32,
    }
    let mut id = 0;
    loop {
        let mut attr = Attr { id, next_id: 0, open_flags: 0 };
        let next = std::ptr::from_mut(&mut attr);
        // SAFETY: The layout of that command's struct, which the kernel writes the next id into.
        let ret = unsafe { libc::syscall(libc::SYS_bpf, command::BTF_GET_NEXT_ID, next, size_of::<Attr>()) };
        if ret != 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ENOENT) { Ok(None) } else { Err(error) };
        }
        id = attr.next_id;
        let attr = Attr { id, next_id: 0, open_flags: 0 };
        // SAFETY: As above.
        let types = match unsafe { bpf_open(command::BTF_GET_FD_BY_ID, &attr) } {
            Ok(types) => types,
            // Gone in between.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        let mut name = [0u8; 16];
        let room =
            |name: &mut [u8; 16]| Info { name: name.as_mut_ptr() as u64, name_length: 16, ..Info::default() };
        let mut info = room(&mut name);
        // SAFETY: `struct bpf_btf_info`; `name` is as long as it says.
        match unsafe { object_info(&types, &mut info) } {
            Ok(()) => {}
            // That of a module may have a longer name.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => continue,
            Err(error) => return Err(error),
        }
        if info.is_kernels == 0 || !name.starts_with(b"vmlinux\0") {
            continue;
        }
        let mut data = vec![0u8; info.length as usize];
        let mut info = Info { types: data.as_mut_ptr() as u64, length: info.length, ..room(&mut name) };
        // SAFETY: As above; `data` is as long as it says.
        unsafe { object_info(&types, &mut info) }?;
        return Ok(Some(KernelTypes::Read(data)));
    }
}
