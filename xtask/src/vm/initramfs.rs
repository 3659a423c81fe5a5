//! The machine's file system: a cpio archive in the format the kernel unpacks, written as it is needed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;

/// Files by their absolute path in the machine.
#[derive(Default)]
pub(super) struct Archive {
    files: BTreeMap<PathBuf, (u32, Vec<u8>)>,
}

impl Archive {
    /// Puts these bytes at `path`.
    pub(super) fn bytes(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.files.insert(PathBuf::from(path), (REGULAR | mode, content));
    }

    /// Puts an executable file of this machine at `path`.
    pub(super) fn file(&mut self, path: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.bytes(path, 0o755, content);
        Ok(())
    }

    /// Puts a program of this machine and the libraries it is linked with where they are found.
    pub(super) fn program(&mut self, name: &str) -> Result<()> {
        let found = process::find_program(name)
            .with_context(|| format!("no program `{name}`; `cargo xtask setup` installs it"))?;
        self.file(&format!("/usr/bin/{name}"), &found)?;
        self.libraries(&found)
    }

    /// Puts what was built here at `path`, without what only a debugger reads: all of it is in the machine's memory.
    /// `scratch` is a file that may be written.
    pub(super) fn built(&mut self, path: &str, from: &Path, scratch: &Path) -> Result<()> {
        process::output(Command::new("strip").arg("-o").arg(scratch).arg(from))?;
        self.file(path, scratch)?;
        self.libraries(from)
    }

    fn libraries(&mut self, program: &Path) -> Result<()> {
        let text = process::output(Command::new("ldd").env("LC_ALL", "C").arg(program))?;
        for library in libraries(&text) {
            self.file(library, Path::new(library))?;
        }
        Ok(())
    }

    /// Writes the archive.
    pub(super) fn write(&self, to: &Path) -> Result<()> {
        fs::write(to, self.encode()).with_context(|| format!("cannot write {}", to.display()))
    }

    fn encode(&self) -> Vec<u8> {
        let mut directories: Vec<&Path> = self
            .files
            .keys()
            .flat_map(|path| path.ancestors().skip(1))
            .filter(|dir| dir.parent().is_some())
            .collect();
        directories.sort();
        directories.dedup();
        let mut out = Vec::new();
        let mut inode = 0;
        // Sorted, so that a directory comes before what is in it.
        for directory in directories {
            inode += 1;
            entry(&mut out, inode, directory, DIRECTORY, &[]);
        }
        for (path, (mode, content)) in &self.files {
            inode += 1;
            entry(&mut out, inode, path, *mode, content);
        }
        entry(&mut out, 0, Path::new("TRAILER!!!"), 0, &[]);
        out
    }
}

/// One entry of the "new ASCII" format: thirteen numbers of eight hexadecimal digits, the name, the content.
fn entry(out: &mut Vec<u8>, inode: u32, path: &Path, mode: u32, content: &[u8]) {
    let name = path.to_string_lossy();
    let name = name.trim_start_matches('/');
    let mut header = String::from("070701");
    // Inode, mode, owner, group, links, time, size, device (2), device of a special file (2), name, checksum.
    let numbers = [inode, mode, 0, 0, 1, 0, size(content), 0, 0, 0, 0, size(name.as_bytes()) + 1, 0];
    for number in numbers {
        // Writing into a string does not fail.
        let _ = write!(header, "{number:08x}");
    }
    out.extend(header.as_bytes());
    out.extend(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend(content);
    pad(out);
}

fn size(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The files that `ldd` names: what stands behind the arrow, and the loader, which has none.
fn libraries(ldd: &str) -> impl Iterator<Item = &str> {
    ldd.lines().filter_map(|line| {
        let line = line.split_once("=>").map_or(line, |(_, file)| file);
        line.split_whitespace().next().filter(|file| file.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x00007f)\n\t/lib64/ld.so.2 (0x7f)\n";
        assert_eq!(libraries(ldd).collect::<Vec<_>>(), ["/lib/x/libz.so.1", "/lib64/ld.so.2"]);
        assert_eq!(libraries("\tnot a dynamic executable\n").count(), 0);
    }

    #[test]
    fn directories_come_before_their_files_and_everything_is_aligned() {
        let mut archive = Archive::default();
        archive.bytes("/a/b/c", 0o755, b"hello".to_vec());
        let out = archive.encode();
        let at = |text: &[u8]| out.windows(text.len()).position(|window| window == text);
        let places = [at(b"\0a\0"), at(b"a/b\0"), at(b"a/b/c\0"), at(b"hello"), at(b"TRAILER!!!\0")];
        assert!(places[1..].iter().all(Option::is_some) && places[1..].is_sorted(), "{places:?}");
        assert_eq!(places[3].map(|place| place % 4), Some(0));
        assert_eq!(out.len() % 4, 0);
        // Mode and size of the file, at their places in the header before its name.
        let header = places[2].map(|name| name - 110).unwrap();
        assert_eq!(&out[header..header + 6], b"070701");
        assert_eq!(&out[header + 14..header + 22], b"000081ed");
        assert_eq!(&out[header + 54..header + 62], b"00000005");
    }
}
