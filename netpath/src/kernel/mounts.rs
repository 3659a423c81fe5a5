//! What is mounted where, and whether the node sees the same.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{fs, io};

const OWN: &str = "/proc/thread-self/mountinfo";
const INIT: &str = "/proc/1/mountinfo";

/// Whether this is the mount namespace of process 1.
///
/// Mounts have numbers of their own, so two lists that begin alike are of one namespace. The links in `/proc/1/ns`,
/// which would say so, are not for everybody to read.
pub fn is_namespace_of_init() -> io::Result<bool> {
    let first = |path: &str| -> io::Result<Option<Vec<u8>>> {
        Ok(lines(&fs::read(path)?).next().map(<[u8]>::to_owned))
    };
    Ok(first(OWN)? == first(INIT)?)
}

/// Whether what process 1 mounts in `directory` is mounted there for us as well, also later.
pub fn follows_init(directory: &Path) -> io::Result<bool> {
    let directory = fs::canonicalize(directory)?;
    if is_namespace_of_init()? {
        return Ok(true);
    }
    let (own, init) = (fs::read(OWN)?, fs::read(INIT)?);
    Ok(follows(&own, &init, &directory))
}

/// Whether the mount of `directory` in the list `own` is told of what is mounted on that in the list `init`.
fn follows(own: &[u8], init: &[u8], directory: &Path) -> bool {
    let group = groups(init, directory).into_iter().find_map(|word| word.strip_prefix(b"shared:"));
    let Some(group) = group else { return false };
    let is_told = |word: &[u8]| {
        word.strip_prefix(b"shared:")
            .or_else(|| word.strip_prefix(b"master:"))
            .is_some_and(|own| own == group)
    };
    groups(own, directory).into_iter().any(is_told)
}

/// The groups of the mount that a directory is on, the last one where several lie on each other.
fn groups<'a>(list: &'a [u8], directory: &Path) -> Vec<&'a [u8]> {
    let point = |line: &'a [u8]| line.split(|byte| *byte == b' ').nth(4);
    let holds = |line: &&'a [u8]| {
        // A name with a space in it is written otherwise, and holds nothing then.
        point(line).is_some_and(|point| directory.starts_with(OsStr::from_bytes(point)))
    };
    let mount = lines(list).filter(holds).max_by_key(|line| point(line).map_or(0, <[u8]>::len));
    let words = mount.into_iter().flat_map(|line| line.split(|byte| *byte == b' ').skip(6));
    words.take_while(|word| *word != b"-").collect()
}

/// Names of mount points are whatever somebody called them.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_of_the_nodes_later_mounts() {
        let init =
            b"20 1 8:1 / / rw shared:1 - ext4 /dev/a rw\n30 20 0:5 / /run rw,nosuid shared:7 - tmpfs t rw\n";
        let of =
            |run: &str| format!("90 1 8:1 / / rw - ext4 /dev/a rw\n91 90 0:5 / /run rw {run}- tmpfs t rw\n");
        let netns = Path::new("/run/netns");
        for (groups, expected) in [
            ("shared:7 ", true),
            ("master:7 ", true),
            ("shared:9 master:7 ", true),
            ("", false),
            ("master:1 ", false),
        ] {
            assert_eq!(follows(of(groups).as_bytes(), init, netns), expected, "{groups}");
        }
        assert!(!follows(of("shared:7 ").as_bytes(), init, Path::new("/var/run")));
        assert!(!follows(init, of("").as_bytes(), netns));
    }
}
