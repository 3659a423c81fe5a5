//! Network namespaces: the only place that enters one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};
use nix::{getsockopt_impl, sockopt_impl};

/// The calling thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Why a network namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path does not exist, or may not be read.
    #[error("cannot open network namespace `{}`", path.display())]
    Open {
        /// As it was given, usually `CNI_NETNS`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is a file of another kind, or a namespace of another kind, or the caller lacks `CAP_SYS_ADMIN`.
    #[error("cannot enter `{}`: is it a network namespace, and is this root?", path.display())]
    Enter {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The identity of the calling thread's own namespace could not be read.
    #[error("cannot read the caller's own network namespace")]
    Current {
        /// What the system said.
        source: io::Error,
    },
}

impl NetnsError {
    /// Whether the namespace is gone, which DEL takes for success.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENXIO))
            }
            // What an unmounted `/run/netns/x` leaves behind is an ordinary file.
            Self::Enter { source, .. } => source.raw_os_error() == Some(libc::EINVAL),
            Self::Current { .. } => false,
        }
    }
}

/// What tells one network namespace from all others that exist at the same time: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device of the kernel's internal file system of namespaces.
    pub dev: u64,
    /// Inode; may be used again once the namespace is gone.
    pub ino: u64,
}

/// An open network namespace: it cannot disappear, or become another, while this lives.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Opens the namespace at `path`.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        // Opening a pipe would wait for its other end.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode of what was opened.
    pub fn identity(&self) -> Result<Identity, NetnsError> {
        let open = |source| NetnsError::Open { path: self.path.clone(), source };
        let metadata = self.file.metadata().map_err(open)?;
        Ok(Identity { dev: metadata.dev(), ino: metadata.ino() })
    }

    /// Runs `f` in this namespace: the calling thread goes there and comes back, whatever becomes of `f`.
    ///
    /// On the calling thread, since one of its own takes longer than all that is done in a pod's namespace.
    pub fn within<T>(&self, f: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let home = File::open(OWN).map_err(|source| NetnsError::Current { source })?;
        let enter = |source| NetnsError::Enter { path: self.path.clone(), source };
        set(&self.file).map_err(enter)?;
        let _home = Home(home);
        Ok(f())
    }
}

/// The namespace that a thread comes from. When it goes, the thread is back there.
struct Home(File);

impl Drop for Home {
    fn drop(&mut self) {
        if set(&self.0).is_err() {
            // What it did from here on it would do to a pod instead of the node.
            std::process::abort();
        }
    }
}

fn set(netns: &File) -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "this is the one function that may")]
    Ok(nix::sched::setns(netns, CloneFlags::CLONE_NEWNET)?)
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Runs `f` in the network namespace at `path`: see [`Netns::within`].
pub fn within<T>(path: &Path, f: impl FnOnce() -> T) -> Result<T, NetnsError> {
    Netns::open(path)?.within(f)
}

/// Device and inode of the namespace at `path`.
pub fn identity(path: &Path) -> Result<Identity, NetnsError> {
    Netns::open(path)?.identity()
}

/// Whether this is the number of a namespace, and not of an ordinary file.
pub fn is_namespace(identity: Identity) -> bool {
    std::fs::metadata(OWN).is_ok_and(|own| own.dev() == identity.dev)
}

/// Whether `path` is the namespace the calling thread is in.
pub fn is_same_as_current(path: &Path) -> Result<bool, NetnsError> {
    let metadata = std::fs::metadata(OWN);
    let current = metadata.map_err(|source| NetnsError::Current { source })?;
    let other = identity(path)?;
    Ok(other == Identity { dev: current.dev(), ino: current.ino() })
}

sockopt_impl!(
    /// The cookie of the namespace a socket was made in.
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// The kernel's own number for the calling thread's namespace, never used again while the machine runs.
///
/// `None` on kernels before 5.14, which do not tell.
pub fn cookie() -> Option<u64> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    getsockopt(&socket, NetnsCookie).ok()
}

/// The cookie of the namespace at `path`: see [`cookie`].
pub fn cookie_of(path: &Path) -> Result<Option<u64>, NetnsError> {
    within(path, cookie)
}
