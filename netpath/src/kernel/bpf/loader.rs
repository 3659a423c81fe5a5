//! Programs on their way into the kernel.
//!
//! `aya-obj` parses the object and ties it to its maps; what follows is one system call per program. `aya` has a loader for that, which
//! reads and unpacks all types of the kernel each time it is made, for relocations that these programs have none of: a third of
//! the time that an attach took, and 20 MB.

use std::{
    collections::HashMap,
    ffi::CStr,
    io::{self, ErrorKind},
    iter,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use aya::{EbpfError, maps::MapData, programs::ProgramError, sys::SyscallError};
use aya_obj::{EbpfSectionKind, Function, Map, Object, ProgramSection, VerifierLog};

use super::{
    BpfError, Hook, cast,
    sys::{self, bpf_open, command, raw},
};

/// Constants of programs by their names, in the machine's byte order.
#[derive(Debug, Default)]
pub(super) struct Constants(HashMap<&'static str, Vec<u8>>);

impl Constants {
    /// One of four bytes.
    pub(super) fn set(&mut self, name: &'static str, value: u32) -> &mut Self {
        self.0.insert(name, value.to_ne_bytes().to_vec());
        self
    }

    /// One of eight.
    pub(super) fn set_long(&mut self, name: &'static str, value: u64) -> &mut Self {
        self.0.insert(name, value.to_ne_bytes().to_vec());
        self
    }
}

/// An error of the library's for which a whole object is to blame.
pub(super) fn unloaded(error: impl Into<EbpfError>) -> BpfError {
    BpfError::Load { source: Box::new(error.into()) }
}

/// Gives the kernel the types of an object; `None` where the kernel, or the object, has none.
pub(super) fn load_types(object: &mut Object) -> Result<Option<OwnedFd>, BpfError> {
    let Some(features) = aya::features().btf() else { return Ok(None) };
    let types = object.fixup_and_sanitize_btf(features).map_err(unloaded)?;
    // Each map names its types, so that none can be made without them.
    let types = types.map(|types| sys::load_types(&types.to_bytes())).transpose();
    types.map_err(|source| BpfError::TypesRefused { source })
}

/// The object's programs, bound to their maps; none of them is in the kernel.
pub struct Bound {
    object: Object,
    types: Option<OwnedFd>,
    /// Programs name them by these numbers until they are in the kernel.
    _maps: Vec<MapData>,
}

impl Bound {
    /// Binds the programs of `object` to what `open` gives for each map's name, with `constants`, and with the function of type number
    /// `cast` where they give a frame to one. A map of a section of the object is made for it.
    pub(super) fn new(
        mut object: Object,
        cast: u32,
        constants: &Constants,
        mut open: impl FnMut(&str, &Map, Option<&OwnedFd>) -> Result<MapData, BpfError>,
    ) -> Result<Self, BpfError> {
        let values = constants.0.iter().map(|(name, value)| (*name, (&value[..], true)));
        object.patch_map_data(values.collect()).map_err(unloaded)?;
        let types = load_types(&mut object)?;
        let mut maps = Vec::new();
        for (name, map) in std::mem::take(&mut object.maps) {
            let opened = open(&name, &map, types.as_ref())?;
            if !map.data().is_empty() {
                let is_constant = map.section_kind() == EbpfSectionKind::Rodata;
                // SAFETY: It was made of this section, whose bytes are its one value.
                let filled = unsafe { sys::fill(opened.fd(), map.data(), is_constant) };
                filled.map_err(|source| BpfError::Constants { source })?;
            }
            maps.push((name, map, opened));
        }
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        let numbers =
            maps.iter().map(|(name, map, opened)| (name.as_str(), opened.fd().as_fd().as_raw_fd(), map));
        object.relocate_maps(numbers, &sections).map_err(unloaded)?;
        object.relocate_calls(&sections).map_err(unloaded)?;
        object.sanitize_functions(aya::features());
        for function in object.functions.values_mut() {
            cast::put(&mut function.instructions, cast);
        }
        Ok(Self { object, types, _maps: maps.into_iter().map(|(_, _, opened)| opened).collect() })
    }

    /// Has the kernel verify the program of a hook, and take it.
    pub fn load(&self, hook: Hook) -> Result<OwnedFd, BpfError> {
        let program = self.object.programs.get(hook.name());
        let program = program.ok_or(BpfError::Missing { program: hook.name() })?;
        let function = self.object.functions.get(&program.function_key());
        let function = function.ok_or(BpfError::Missing { program: hook.name() })?;
        let kind = match (&program.section, hook) {
            (ProgramSection::SchedClassifier, Hook::Ingress | Hook::Egress) => Kind::CLASSIFIER,
            (ProgramSection::Xdp { frags, .. }, Hook::Xdp) => Kind::xdp(*frags),
            _ => return Err(BpfError::Missing { program: hook.name() }),
        };
        let types = self.types.as_ref().map(|types| (types, function));
        let loaded = Load::new(kind, hook.name(), &program.license, &function.instructions)
            .and_then(|load| load.with(types))
            .map_err(ProgramError::IOError)
            .and_then(|load| load.explained());
        loaded.map_err(|source| BpfError::Program { program: hook.name(), source: Box::new(source) })
    }
}

/// What kind of program the kernel is given.
#[derive(Clone, Copy)]
struct Kind {
    program: u32,
    attach: u32,
    flags: u32,
}

impl Kind {
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    const CLASSIFIER: Self = Self { program: 3, attach: 0, flags: 0 };

    /// `BPF_PROG_TYPE_XDP`, to be attached to an interface (`BPF_XDP`); with `frags` also where frames are in parts.
    const fn xdp(frags: bool) -> Self {
        const HAS_FRAGS: u32 = 1 << 5;
        Self { program: 6, attach: 37, flags: if frags { HAS_FRAGS } else { 0 } }
    }
}

/// Loads instructions (`struct bpf_insn`, as numbers in the machine's order) as a program of TC with this name.
pub(super) fn load_classifier(name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    Load::new(Kind::CLASSIFIER, name, c"GPL", instructions)?.tried(0, &mut [])
}

/// A program with all that belongs to it.
struct Load<'a, I> {
    kind: Kind,
    name: [u8; 16],
    license: &'a CStr,
    instructions: &'a [I],
    types: Option<Types<'a>>,
}

/// Which of an object's types are the program's, and from which lines of its source it is.
struct Types<'a> {
    object: &'a OwnedFd,
    functions: Records,
    lines: Records,
}

/// Records of one size.
struct Records {
    bytes: Vec<u8>,
    size: u32,
    count: u32,
}

impl Records {
    fn new(bytes: Vec<u8>, size: usize, count: usize) -> io::Result<Self> {
        let number = |number| u32::try_from(number).map_err(io::Error::other);
        Ok(Self { bytes, size: number(size)?, count: number(count)? })
    }
}

impl<'a, I> Load<'a, I> {
    fn new(kind: Kind, name: &str, license: &'a CStr, instructions: &'a [I]) -> io::Result<Self> {
        const { assert!(size_of::<I>() == 8) };
        let mut padded = [0; 16];
        let letters = name.as_bytes();
        // One more for the zero that ends it.
        let room = padded[..15].get_mut(..letters.len()).ok_or(ErrorKind::InvalidInput)?;
        room.copy_from_slice(letters);
        Ok(Self { kind, name: padded, license, instructions, types: None })
    }

    fn with(self, types: Option<(&'a OwnedFd, &Function)>) -> io::Result<Self> {
        let types = types.map(|(object, function)| {
            let (functions, lines) = (&function.func_info, &function.line_info);
            let (bytes, size) = (functions.func_info_bytes(), function.func_info_rec_size);
            let functions = Records::new(bytes, size, functions.len())?;
            let (bytes, size) = (lines.line_info_bytes(), function.line_info_rec_size);
            let lines = Records::new(bytes, size, lines.len())?;
            Ok::<_, io::Error>(Types { object, functions, lines })
        });
        Ok(Self { types: types.transpose()?, ..self })
    }

    /// Loads it, with as much as `level` of what the verifier says into `log` if there is room for any.
    fn once(&self, level: u32, log: &mut [u8]) -> io::Result<OwnedFd> {
        /// The beginning of the anonymous struct of BPF_PROG_LOAD.
        #[repr(C)]
        #[derive(Default)]
        struct Attr {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_length: u32,
            log: u64,
            kernel_version: u32,
            flags: u32,
            name: [u8; 16],
            ifindex: u32,
            attach_type: u32,
            types: u32,
            function_size: u32,
            functions: u64,
            function_count: u32,
            line_size: u32,
            lines: u64,
            line_count: u32,
            attach_type_id: u32,
        }
        let mut attr = Attr {
            kind: self.kind.program,
            count: u32::try_from(self.instructions.len()).map_err(io::Error::other)?,
            instructions: self.instructions.as_ptr() as u64,
            license: self.license.as_ptr() as u64,
            flags: self.kind.flags,
            name: self.name,
            attach_type: self.kind.attach,
            ..Attr::default()
        };
        if !log.is_empty() {
            attr.log_level = level;
            attr.log_length = u32::try_from(log.len()).map_err(io::Error::other)?;
            attr.log = log.as_mut_ptr() as u64;
        }
        if let Some(Types { object, functions, lines }) = &self.types {
            attr.types = raw(*object)?;
            (attr.functions, attr.function_size) = (functions.bytes.as_ptr() as u64, functions.size);
            (attr.lines, attr.line_size) = (lines.bytes.as_ptr() as u64, lines.size);
            (attr.function_count, attr.line_count) = (functions.count, lines.count);
        }
        // SAFETY: The layout of that command's struct; instructions are eight bytes each, there are as many of them and of the records as
        // it says, the license ends with a zero, and the log has as much room as it says.
        unsafe { bpf_open(command::PROG_LOAD, &attr) }
    }

    /// The same, once more where that may help.
    fn tried(&self, level: u32, log: &mut [u8]) -> io::Result<OwnedFd> {
        // The verifier stops for a signal, also for one that is then ignored. The other number is that of a kernel that cannot compile
        // a program to the machine's code: never, or without the memory for it at this moment.
        const TRIES: usize = 5;
        let may_pass = |error: &io::Error| {
            error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(ENOTSUPP)
        };
        let mut done = iter::repeat_with(|| self.once(level, log)).take(TRIES - 1);
        match done.find(|made| !made.as_ref().is_err_and(may_pass)) {
            Some(made) => made,
            None => self.once(level, log),
        }
    }

    /// The same, and if it is refused once more for the reason.
    fn explained(&self) -> Result<OwnedFd, ProgramError> {
        // What each kernel takes (`UINT_MAX >> 8`, up to Linux 5.1); no more of it is touched than is written.
        const ROOM: usize = (1 << 24) - 1;
        let io_error = match self.tried(0, &mut []) {
            Ok(program) => return Ok(program),
            Err(error) => error,
        };
        // What it says of another attempt need not be why this one failed.
        if !has_looked(&io_error) {
            return Err(SyscallError { call: "bpf_prog_load", io_error }.into());
        }
        let mut log = vec![0; ROOM];
        let error = match self.tried(WAY_AND_END, &mut log) {
            Ok(program) => return Ok(program),
            Err(error) => error,
        };
        // Too long: before Linux 6.4 what is missing is the end.
        if error.raw_os_error() == Some(libc::ENOSPC)
            && let Ok(program) = self.tried(END, &mut log)
        {
            return Ok(program);
        }
        Err(ProgramError::LoadError { io_error, verifier_log: VerifierLog::new(end(&log)) })
    }
}

/// What the verifier says: the way that it went, and how it ended (`BPF_LOG_LEVEL1`, `BPF_LOG_STATS`).
const WAY_AND_END: u32 = 1 | END;
const END: u32 = 4;

/// Whether a kernel that did not take a program has looked at it. There are many numbers for a refusal, and few for not having
/// looked.
pub(super) fn has_looked(error: &io::Error) -> bool {
    let has_no_room = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOSPC));
    let kinds = [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::OutOfMemory];
    !has_no_room && !kinds.contains(&error.kind())
}

/// The last lines of a log that ends with a zero: where the verifier gave up, and why. All of it may be megabytes.
fn end(log: &[u8]) -> String {
    const LINES: usize = 40;
    let length = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..length]);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// `include/linux/errno.h`; no number for programs.
const ENOTSUPP: i32 = 524;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_log_the_end_is_kept() {
        let mut log: String = (0..50).map(|line| format!("{line}\n")).collect();
        log.push('\0');
        log.push_str("never written");
        let kept = end(log.as_bytes());
        assert!(kept.starts_with("10\n") && kept.ends_with("\n49"), "{kept}");
        assert_eq!(end(b"short\0\0"), "short");
        assert_eq!(end(b""), "");
        assert_eq!(end(b"cut\xff"), "cut\u{fffd}");
    }

    #[test]
    fn a_kernel_that_could_not_look_has_not_refused() {
        for number in [libc::EINVAL, libc::EACCES, libc::EPERM, libc::E2BIG, libc::ENOENT, 524] {
            assert!(has_looked(&io::Error::from_raw_os_error(number)), "{number}");
        }
        for number in [libc::EAGAIN, libc::EINTR, libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::ENOSPC] {
            assert!(!has_looked(&io::Error::from_raw_os_error(number)), "{number}");
        }
    }
}
