//! Names that cannot be wrong: interfaces, networks, containers, hardware addresses.

use std::fmt;
use std::net::Ipv6Addr;

use super::error::ConfError;

/// Size of the kernel's buffer for an interface name, with its final zero.
const IFNAMSIZ: usize = 16;

/// Longest network name or container ID: both become part of file names, which end at 255 bytes.
const FILE_NAME_MAX: usize = 255;
const IDENTIFIER_MAX: usize = 200;

/// Name of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// Parses an interface name by the rules of the kernel's `dev_valid_name`, and two that follow from how
    /// we use it: the kernel replaces `%d`, and `all` and `default` name something else among the sysctls.
    pub fn parse(field: &str, value: &str) -> Result<Self, ConfError> {
        let rule = match value {
            "" => "an interface name cannot be empty",
            "." | ".." => "`.` and `..` are reserved",
            "all" | "default" => "`all` and `default` name the sysctls of every interface",
            name if IFNAMSIZ <= name.len() => "an interface name has at most 15 bytes",
            name if name.bytes().any(|b| matches!(b, 0 | b'/' | b':' | b' ' | 0x09..=0x0d | 0xa0)) => {
                "an interface name has no `/`, `:` or white space"
            }
            name if name.contains('%') => "an interface name has no `%`, the kernel would number it",
            name => return Ok(Self(name.to_owned())),
        };
        Err(ConfError::field(field, value, rule))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Name of a network: the `name` of its configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(String);

impl NetworkName {
    /// Parses a network name by the rules of the CNI specification.
    pub fn parse(field: &str, value: &str) -> Result<Self, ConfError> {
        identifier(field, value).map(Self)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The runtime's name of a container; in Kubernetes of a pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// Parses a container ID by the rules of the CNI specification.
    pub fn parse(field: &str, value: &str) -> Result<Self, ConfError> {
        identifier(field, value).map(Self)
    }

    /// The ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn identifier(field: &str, value: &str) -> Result<String, ConfError> {
    let rule = match value.as_bytes() {
        [] => "it cannot be empty",
        bytes if IDENTIFIER_MAX < bytes.len() => "it has at most 200 bytes",
        [first, ..] if !first.is_ascii_alphanumeric() => "it begins with an ASCII letter or digit",
        bytes if !bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) => {
            "it has ASCII letters, digits, `_`, `.` and `-` only"
        }
        _ => return Ok(value.to_owned()),
    };
    Err(ConfError::field(field, value, rule))
}

/// Refuses names of which together a file's name would be made that no file system takes.
pub fn check_file_name(field: &str, name: &str) -> Result<(), ConfError> {
    match name.len() <= FILE_NAME_MAX {
        true => Ok(()),
        false => Err(ConfError::field(
            field,
            name,
            "files of this name are kept for the attachment, and it has more than 255 bytes: give the network a shorter name",
        )),
    }
}

/// Ethernet hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// The address with these bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Parses what Go's `net.ParseMAC` accepts for six bytes: `0a:58:0a:01:02:03`, `0a-58-0a-01-02-03` and
    /// `0a58.0a01.0203`.
    pub fn parse(field: &str, value: &str) -> Result<Self, ConfError> {
        let digits = match value.len() {
            17 => groups(value, ':', 2).or_else(|| groups(value, '-', 2)),
            14 => groups(value, '.', 4),
            _ => None,
        };
        digits.and_then(|digits| from_hex(&digits)).map(Self).ok_or_else(|| {
            ConfError::field(field, value, "write a hardware address as six bytes: 0a:58:0a:01:02:03")
        })
    }

    /// The bytes in the order in which they are sent.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Whether the address is that of a group; the broadcast address is one.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether the kernel lets an interface have this address: one station's, and not zero.
    pub fn is_usable(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }

    /// The link-local address that the kernel forms of it (`addr_gen_mode` 0).
    pub fn link_local_eui64(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f])
    }
}

/// The digits of `value`, if it consists of groups of `width` characters between `separator`s.
fn groups(value: &str, separator: char, width: usize) -> Option<String> {
    value.split(separator).all(|group| group.len() == width).then(|| value.replace(separator, ""))
}

fn from_hex(digits: &str) -> Option<[u8; 6]> {
    if digits.len() != 12 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let [_, _, bytes @ ..] = u64::from_str_radix(digits, 16).ok()?.to_be_bytes();
    Some(bytes)
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check<T: fmt::Display>(parsed: Result<T, ConfError>, expected: &str) {
        let text = match parsed {
            Ok(name) => name.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn interface_names() {
        let parse = |value| IfName::parse("CNI_IFNAME", value);
        check(parse("a23456789012345"), "a23456789012345");
        check(parse("net1.100@x"), "net1.100@x");
        check(parse(""), "CNI_IFNAME ``: an interface name cannot be empty");
        check(parse(".."), "CNI_IFNAME `..`: `.` and `..` are reserved");
        check(
            parse("a234567890123456"),
            "CNI_IFNAME `a234567890123456`: an interface name has at most 15 bytes",
        );
        check(parse("a/b"), "CNI_IFNAME `a/b`: an interface name has no `/`, `:` or white space");
        check(parse("a:b"), "CNI_IFNAME `a:b`: an interface name has no `/`, `:` or white space");
        check(parse("a\tb"), "CNI_IFNAME `a\tb`: an interface name has no `/`, `:` or white space");
        check(parse("a\0b"), "CNI_IFNAME `a\0b`: an interface name has no `/`, `:` or white space");
        // Ends in the byte 0xa0, which the kernel's isspace() counts as white space.
        check(parse("\u{e0}"), "CNI_IFNAME `\u{e0}`: an interface name has no `/`, `:` or white space");
        check(parse("net%d"), "CNI_IFNAME `net%d`: an interface name has no `%`, the kernel would number it");
        check(parse("all"), "CNI_IFNAME `all`: `all` and `default` name the sysctls of every interface");
    }

    #[test]
    fn network_names_and_container_ids() {
        check(NetworkName::parse("name", "mv-1.a_B"), "mv-1.a_B");
        check(ContainerId::parse("CNI_CONTAINERID", "0"), "0");
        check(NetworkName::parse("name", ""), "name ``: it cannot be empty");
        check(NetworkName::parse("name", ".."), "name `..`: it begins with an ASCII letter or digit");
        check(
            NetworkName::parse("name", "a/b"),
            "name `a/b`: it has ASCII letters, digits, `_`, `.` and `-` only",
        );
        check(
            ContainerId::parse("id", "a\n"),
            "id `a\n`: it has ASCII letters, digits, `_`, `.` and `-` only",
        );
        check(ContainerId::parse("id", "é"), "id `é`: it begins with an ASCII letter or digit");
        assert!(ContainerId::parse("id", &"a".repeat(200)).is_ok());
        assert!(ContainerId::parse("id", &"a".repeat(201)).is_err());
    }

    #[test]
    fn hardware_addresses() {
        let parse = |value| Mac::parse("mac", value);
        check(parse("0A:58:0a:01:02:fF"), "0a:58:0a:01:02:ff");
        check(parse("0a-58-0a-01-02-03"), "0a:58:0a:01:02:03");
        check(parse("0A58.0a01.0203"), "0a:58:0a:01:02:03");
        for wrong in [
            "",
            "0a:58:0a:01:02",
            "0a:58:0a:01:02:3",
            "0a:58:0a:01:02:03:04:05",
            "0a:58-0a:01-02:03",
            "0a580a010203",
            "0a58:0a01:0203",
            "0g:58:0a:01:02:03",
            "+a:58:0a:01:02:03",
            "0a:58:0a:01:02:é",
            "a:058:0a:01:02:03",
            " a:58:0a:01:02:03",
        ] {
            let rule = "write a hardware address as six bytes: 0a:58:0a:01:02:03";
            check(parse(wrong), &format!("mac `{wrong}`: {rule}"));
        }
    }

    #[test]
    fn kinds_of_hardware_addresses() {
        assert!(Mac::new([0x02, 0, 0, 0, 0, 1]).is_usable());
        assert!(!Mac::new([0; 6]).is_usable());
        assert!(!Mac::new([0xff; 6]).is_usable());
        assert!(Mac::new([0x33, 0x33, 0, 0, 0, 1]).is_multicast());
    }

    #[test]
    fn link_local_address_of_a_mac() {
        let mac = Mac::new([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
        assert_eq!(mac.link_local_eui64().to_string(), "fe80::5054:ff:fe12:3456");
    }

    proptest! {
        #[test]
        fn a_mac_is_read_as_it_is_written(bytes: [u8; 6]) {
            let mac = Mac::new(bytes);
            prop_assert_eq!(Mac::parse("mac", &mac.to_string()).expect("our own text"), mac);
        }

        #[test]
        fn a_valid_name_is_one_component_of_a_path(text in "\\PC{0,20}") {
            let names = [
                IfName::parse("x", &text).ok().map(|it| it.to_string()),
                NetworkName::parse("x", &text).ok().map(|it| it.to_string()),
                ContainerId::parse("x", &text).ok().map(|it| it.to_string()),
            ];
            for name in names.into_iter().flatten() {
                prop_assert_eq!(&name, &text);
                let path = std::path::Path::new("/dir").join(&name);
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/dir")));
                prop_assert_eq!(path.file_name(), Some(std::ffi::OsStr::new(&name)));
            }
        }
    }
}
