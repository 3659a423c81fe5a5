//! Network sysctls of the calling thread's namespace.
//!
//! What `/proc/sys/net` shows is decided by the namespace of the thread that looks a name up, so the functions
//! here are called inside [`super::netns::within`] to reach another namespace.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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

/// Whether there is anything at `key`, which may be a directory such as `net/ipv6/conf/net1`.
pub fn exists(key: &str) -> bool {
    path(key).exists()
}

fn path(key: &str) -> PathBuf {
    Path::new(ROOT).join(key)
}
