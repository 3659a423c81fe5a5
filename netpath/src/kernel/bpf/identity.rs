//! What the programs know of senders: cookies, claimed addresses, VLAN interfaces.

use std::net::IpAddr;

use aya::maps::{MapError, lpm_trie::Key};
use ipnetwork::IpNetwork;
use netpath_ebpf::abi::{CookieKey, CookieOwner, TrieKey4, TrieKey6, VlanKey};

use super::maps::{Maps, MapsError, Raw};

/// Bits of a trie key before the address: the master.
const MASTER_BITS: u32 = 32;

impl Maps {
    /// The endpoint that answers for a pod on a master.
    pub fn cookie_owner(&self, master: u16, cookie: u64) -> Result<Option<CookieOwner>, MapsError> {
        match self.cookies.get(&Raw(key(master, cookie)), 0) {
            Ok(Raw(owner)) => Ok(Some(owner)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(MapsError::Access { op: "read", map: "cookies", source }),
        }
    }

    /// Makes `owner` answer for the pod with `cookie` on `master`; `None`: nobody does.
    pub fn set_cookie_owner(
        &mut self,
        master: u16,
        cookie: u64,
        owner: Option<CookieOwner>,
    ) -> Result<(), MapsError> {
        self.change(|maps| {
            let result = match owner {
                Some(owner) => maps.cookies.insert(Raw(key(master, cookie)), Raw(owner), 0),
                None => gone_is_fine(maps.cookies.remove(&Raw(key(master, cookie)))),
            };
            result.map_err(|source| MapsError::Access { op: "write", map: "cookies", source })
        })
    }

    /// Every row of `cookies`.
    pub fn cookie_owners(&self) -> Result<Vec<(CookieKey, CookieOwner)>, MapsError> {
        let rows = self.cookies.iter().map(|row| row.map(|(Raw(key), Raw(owner))| (key, owner)));
        rows.collect::<Result<_, _>>().map_err(|source| MapsError::Access {
            op: "list",
            map: "cookies",
            source,
        })
    }

    /// The claim on `address` by the longest prefix around it; 0 = none.
    pub fn claim(&self, master: u16, address: IpAddr) -> Result<u32, MapsError> {
        let slot = u32::from(master);
        let (map, found) = match address {
            IpAddr::V4(ip) => {
                let key = Key::new(MASTER_BITS + 32, Raw(TrieKey4 { slot, addr: ip.octets() }));
                ("claims_v4", self.claims_v4.get(&key, 0))
            }
            IpAddr::V6(ip) => {
                let key = Key::new(MASTER_BITS + 128, Raw(TrieKey6 { slot, addr: ip.octets() }));
                ("claims_v6", self.claims_v6.get(&key, 0))
            }
        };
        match found {
            Ok(Raw(claim)) => Ok(claim),
            Err(MapError::KeyNotFound) => Ok(0),
            Err(source) => Err(MapsError::Access { op: "read", map, source }),
        }
    }

    /// Writes the claim on `prefix` of `master`; 0 removes it.
    pub fn set_claim(&mut self, master: u16, prefix: IpNetwork, claim: u32) -> Result<(), MapsError> {
        let (slot, length) = (u32::from(master), MASTER_BITS + u32::from(prefix.prefix()));
        self.change(|maps| {
            let (map, result) = match prefix {
                IpNetwork::V4(prefix) => {
                    let key = Key::new(length, Raw(TrieKey4 { slot, addr: prefix.network().octets() }));
                    let result = match claim {
                        0 => gone_is_fine(maps.claims_v4.remove(&key)),
                        claim => maps.claims_v4.insert(&key, Raw(claim), 0),
                    };
                    ("claims_v4", result)
                }
                IpNetwork::V6(prefix) => {
                    let key = Key::new(length, Raw(TrieKey6 { slot, addr: prefix.network().octets() }));
                    let result = match claim {
                        0 => gone_is_fine(maps.claims_v6.remove(&key)),
                        claim => maps.claims_v6.insert(&key, Raw(claim), 0),
                    };
                    ("claims_v6", result)
                }
            };
            result.map_err(|source| MapsError::Access { op: "write", map, source })
        })
    }

    /// Every claim on `master`.
    pub fn claims(&self, master: u16) -> Result<Vec<(IpNetwork, u32)>, MapsError> {
        let unlisted = |map| move |source| MapsError::Access { op: "list", map, source };
        let length = |bits: u32| u8::try_from(bits.saturating_sub(MASTER_BITS)).unwrap_or(u8::MAX);
        let mut found = Vec::new();
        for entry in self.claims_v4.iter() {
            let (key, Raw(claim)) = entry.map_err(unlisted("claims_v4"))?;
            let Raw(data) = key.data();
            if data.slot == u32::from(master)
                && let Ok(prefix) = IpNetwork::new(IpAddr::from(data.addr), length(key.prefix_len()))
            {
                found.push((prefix, claim));
            }
        }
        for entry in self.claims_v6.iter() {
            let (key, Raw(claim)) = entry.map_err(unlisted("claims_v6"))?;
            let Raw(data) = key.data();
            if data.slot == u32::from(master)
                && let Ok(prefix) = IpNetwork::new(IpAddr::from(data.addr), length(key.prefix_len()))
            {
                found.push((prefix, claim));
            }
        }
        Ok(found)
    }

    /// Every row of `vlans`: the VLAN interfaces on masters, and which of them are masters.
    pub fn vlans(&self) -> Result<Vec<(VlanKey, u32)>, MapsError> {
        let rows = self.vlans.iter().map(|row| row.map(|(Raw(key), Raw(upper))| (key, upper)));
        rows.collect::<Result<_, _>>().map_err(|source| MapsError::Access {
            op: "list",
            map: "vlans",
            source,
        })
    }

    /// Writes the row of a VLAN interface; `None` removes it. Nothing that is remembered depends on it: flows are of untagged packets.
    pub fn set_vlan(&mut self, vlan: VlanKey, upper: Option<u32>) -> Result<(), MapsError> {
        let result = match upper {
            Some(upper) => self.vlans.insert(Raw(vlan), Raw(upper), 0),
            None => gone_is_fine(self.vlans.remove(&Raw(vlan))),
        };
        result.map_err(|source| MapsError::Access { op: "write", map: "vlans", source })
    }
}

fn key(master: u16, cookie: u64) -> CookieKey {
    CookieKey { cookie, master: u32::from(master), pad: 0 }
}

/// Two may remove one row.
fn gone_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        // A trie says it with the error of the system call.
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}
