//! What a network device does by itself, beside the kernel: its offloads, by the names `ethtool -k` shows.

use std::io;

const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
/// `ETH_SS_FEATURES`: the set of names of features.
const FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`
const NAME: usize = 32;
/// Words that `struct ethtool_get_features_block` has for 32 features: available, requested, active, never changed.
const BLOCK: usize = 4;
/// More features than any kernel has.
const MOST: u32 = 4096;

/// Names of the features that are on, of the device called `name` in the calling thread's namespace.
///
/// By ioctl, which every kernel since 2.6.39 has, where ethtool's netlink family is of 5.10 and may be left out.
pub fn active_features(name: &str) -> io::Result<Vec<String>> {
    let mut info = words(&[GSSET_INFO, 0, 1 << FEATURES, 0, 0]);
    call(name, &mut info)?;
    let count = word(&info, 4);
    // A mask without the bit that was asked for: there is no such set.
    if word(&info, 2) != 1 << FEATURES || MOST < count {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let length = usize::try_from(count).map_err(io::Error::other)?;
    let mut names = words(&[GSTRINGS, FEATURES, count]);
    names.resize(names.len() + length * NAME, 0);
    call(name, &mut names)?;
    let blocks = count.div_ceil(32);
    let mut states = words(&[GFEATURES, blocks]);
    states.resize(states.len() + usize::try_from(blocks).map_err(io::Error::other)? * BLOCK * 4, 0);
    call(name, &mut states)?;
    let is_on = |index: usize| word(&states, 2 + index / 32 * BLOCK + 2) >> (index % 32) & 1 == 1;
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    let names = names[12..].chunks_exact(NAME).map(text);
    Ok(names.enumerate().filter(|(index, _)| is_on(*index)).map(|(_, name)| name).collect())
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The word at `index`; zero behind the end.
fn word(bytes: &[u8], index: usize) -> u32 {
    let bytes = bytes.get(index * 4..index * 4 + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_ne_bytes)
}

/// One ethtool command; its answer comes back in `buffer`, which says itself how much room it has.
fn call(name: &str, buffer: &mut [u8]) -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::os::fd::AsRawFd;

    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: All zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
    // SAFETY: `request` and `buffer` live through the call, and each command of this module is passed with as much
    // room as it says.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
