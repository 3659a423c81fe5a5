//! Which kernels masters are policed on.
//!
//! The programs are tested from [`OLDEST`] on. Below it the first thing that is missing would be an errno of a
//! system call, behind half of the work: the release is asked before anything is made.

use std::{fmt, fs, path::PathBuf};

use super::BpfError;

/// The oldest kernel that masters are policed on.
pub const OLDEST: Release = Release(6, 1);

/// What netpath needs of a kernel, and since when Linux has it. Kernels with none of it missing and older than
/// [`OLDEST`] are refused all the same: nobody has tried the programs there.
const NEEDS: &[(Release, &str)] = &[
    (Release(5, 8), "ring buffers, which tell of drops"),
    (Release(5, 14), "SO_NETNS_COOKIE, which tells namespaces apart"),
    (Release(5, 18), "XDP programs for packets in fragments"),
];

/// Where the kernel says which it is.
const OSRELEASE: &str = "/proc/sys/kernel/osrelease";
/// Where it says how it was built.
const VERSION: &str = "/proc/sys/kernel/version";

/// Version and patch level of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(u32, u32);

impl Release {
    /// Reads what `uname -r` prints; none for what is not Linux's way to number.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Refuses a kernel that is too old, and one whose programs may get into each other's way.
pub fn check() -> Result<(), BpfError> {
    let read = |path: &str| {
        let text = fs::read_to_string(path);
        text.map_err(|source| BpfError::Release { path: PathBuf::from(path), source })
    };
    let release = read(OSRELEASE)?;
    refuse_older(release.trim())?;
    refuse_preemptible(release.trim(), &read(VERSION)?)
}

/// With PREEMPT_RT, since Linux 6.18 and stable releases before it, one program may be interrupted by another on the same CPU
/// ("softirq: Allow to drop the softirq-BKL lock on PREEMPT_RT"): then one frame would be judged by what was read of another.
fn refuse_preemptible(release: &str, version: &str) -> Result<(), BpfError> {
    match version.contains("PREEMPT_RT") {
        true => Err(BpfError::Preemptible { found: release.to_owned() }),
        false => Ok(()),
    }
}

/// A release that cannot be read is let through: the kernel itself refuses what it cannot do.
fn refuse_older(text: &str) -> Result<(), BpfError> {
    match Release::parse(text) {
        Some(release) if release < OLDEST => {
            let missing = NEEDS.iter().filter(|(since, _)| release < *since);
            let missing: Vec<_> = missing.map(|(since, what)| format!("{what} (Linux {since})")).collect();
            Err(BpfError::Kernel {
                found: text.to_owned(),
                missing: match &missing[..] {
                    [] => "it is not tested there".to_owned(),
                    missing => format!("it lacks {}", missing.join(", ")),
                },
            })
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_by_their_numbers() {
        assert_eq!(Release::parse("6.12.117+deb12-cloud-amd64\n"), Some(Release(6, 12)));
        assert_eq!(Release::parse("6.1-rc3"), Some(Release(6, 1)));
        assert_eq!(Release::parse("Linux"), None);
        assert!(Release(5, 18) < OLDEST && OLDEST < Release(6, 12));
    }

    #[test]
    fn a_realtime_kernel_is_refused() {
        let said = refuse_preemptible("6.12.1-rt", "#1 SMP PREEMPT_RT Debian 6.12.1")
            .expect_err("refused")
            .to_string();
        assert_eq!(
            said,
            "this node runs Linux 6.12.1-rt, which is built with PREEMPT_RT: masters are not policed there, since programs on one \
             CPU may interrupt each other; networks without a zone work"
        );
        assert!(refuse_preemptible("6.18.44", "#1 SMP PREEMPT_DYNAMIC Debian").is_ok());
    }

    #[test]
    fn an_old_kernel_is_told_what_it_lacks() {
        let said = |text| refuse_older(text).expect_err("too old").to_string();
        assert_eq!(
            said("5.10.0-46-cloud-amd64"),
            "this node runs Linux 5.10.0-46-cloud-amd64 and masters are policed on 6.1 or newer: it lacks \
             SO_NETNS_COOKIE, which tells namespaces apart (Linux 5.14), XDP programs for packets in fragments \
             (Linux 5.18)"
        );
        assert_eq!(
            said("5.19.17"),
            "this node runs Linux 5.19.17 and masters are policed on 6.1 or newer: it is not tested there"
        );
        for good in ["6.1.0-56-cloud-amd64", "6.18.44", "7.0", "a kernel of somebody's own"] {
            assert!(refuse_older(good).is_ok(), "{good}");
        }
    }
}
