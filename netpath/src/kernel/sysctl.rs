//! Network sysctls of the calling thread's namespace.
//!
//! What `/proc/sys/net` shows is decided by the namespace of the thread that looks a name up, so the functions
//! here are called inside [`super::netns::within`] to reach another namespace.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

const ROOT: &str = "/proc/sys";
/// Where a container has the node's, since runtimes make its own one that is for reading only.
const OF_NODE: &str = "/host/proc/sys";

/// Why a sysctl could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// Reading failed.
    #[error("cannot read sysctl `{key}`")]
    Read {
        /// The name below `/proc/sys`, with slashes: interface names may have dots.
        key: String,
        /// What the system said; `NotFound` where the kernel has no such setting.
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot set sysctl `{key}` to {value}")]
    Write {
        /// The name below `/proc/sys`.
        key: String,
        /// What was to be written.
        value: String,
        /// What the system said; `NotFound` where the kernel has no such setting.
        source: io::Error,
    },
}

/// Reads `key`, such as `net/ipv4/conf/net1/arp_notify`, without the newline at its end.
pub fn read(key: &str) -> Result<String, SysctlError> {
    match fs::read_to_string(path(key)) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(SysctlError::Read { key: key.to_owned(), source }),
    }
}

/// Writes `value` to `key`.
pub fn write(key: &str, value: &str) -> Result<(), SysctlError> {
    // Not `fs::write`, which would create a file where a setting is missing and fail with a misleading error.
    let open = |path: PathBuf| File::options().write(true).open(path);
    let file = match open(path(key)) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            let of_node = open(Path::new(OF_NODE).join(key));
            // Without the node's, why the first one failed says more.
            of_node.map_err(|_| error)
        }
        file => file,
    };
    let written = file.and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|source| SysctlError::Write { key: key.to_owned(), value: value.to_owned(), source })
}

/// Writes settings of links one after the other, and looks the directory of each link up once.
///
/// The kernel has the directories of all namespaces in one place, and compares a name below `net` with each of them.
#[derive(Debug, Default)]
pub struct Writer(Vec<(String, File)>);

impl Writer {
    /// Writes `value` to `name` in `directory`, such as `net/ipv4/conf/net1`.
    pub fn write(&mut self, directory: &str, name: &str, value: &str) -> Result<(), SysctlError> {
        let key = || format!("{directory}/{name}");
        let written = self.open(directory, name).and_then(|mut file| file.write_all(value.as_bytes()));
        match written {
            // In a container: it may be another one that can be written.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => write(&key(), value),
            written => {
                written.map_err(|source| SysctlError::Write { key: key(), value: value.to_owned(), source })
            }
        }
    }

    fn open(&mut self, directory: &str, name: &str) -> io::Result<File> {
        let known = self.0.iter().position(|(known, _)| known == directory);
        let at = match known {
            Some(at) => at,
            None => {
                let flags = (OFlag::O_PATH | OFlag::O_DIRECTORY).bits();
                let open = File::options().read(true).custom_flags(flags).open(path(directory))?;
                self.0.push((directory.to_owned(), open));
                self.0.len() - 1
            }
        };
        let file = openat(&self.0[at].1, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(file.into())
    }
}

/// Whether there is anything at `key`, which may be a directory such as `net/ipv6/conf/net1`.
pub fn exists(key: &str) -> bool {
    path(key).exists()
}

fn path(key: &str) -> PathBuf {
    Path::new(ROOT).join(key)
}
