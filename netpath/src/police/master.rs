//! Bringing a master under police.

use std::{fs, io};

use netpath_ebpf::abi::{Endpoint, EndpointKey, HOST_MACS, Master, kind, master_flags, mode, unknown_source};

use super::{PoliceError, adopt, identity, inherit, settings};
use crate::{
    kernel::{
        bpf::{
            BpfError, Hook, TcHook,
            attach::{self, Change, Target},
            bpffs::{self, Known},
            maps::{self, Maps, MapsError, NAMES, pin_of},
            object, pins, support, swap,
            trees::Trees,
        },
        netlink::{Link, Netlink, NetlinkError},
        netns,
    },
    root::Root,
    spec::Mac,
    state,
    zone::{MasterEntry, Masters, Promisc, Tc, Xdp},
};

/// A master as found: the link, and the administrator's word on it.
#[derive(Clone, Debug)]
pub struct MasterLink {
    /// The link that was resolved, in the caller's namespace.
    pub link: Link,
    /// Its entry in `masters.json`.
    pub entry: Option<MasterEntry>,
}

/// A master under police.
pub struct Attached {
    /// Its dense id.
    pub id: u16,
    /// The MACs the host sends with.
    pub host_macs: Vec<Mac>,
    /// The maps.
    pub maps: Maps,
    /// What was done to its hooks.
    pub changes: Vec<Change>,
}

/// Finds the link a network means by `name` (empty: the interface of the default route).
///
/// A macvlan on a macvlan stands on that one's master, which is what it sends by and so what has to be under
/// police; one in another namespace is out of reach.
pub fn resolve_master(node: &mut Netlink, name: Option<&str>) -> Result<Option<Link>, NetlinkError> {
    let named = match name.filter(|name| !name.is_empty()) {
        Some(name) => node.find_link(name)?,
        None => node.default_route_link()?.map(|index| node.link_by_index(index)).transpose()?,
    };
    let below = named.as_ref().filter(|link| link.is_macvlan() && link.link_netnsid.is_none());
    match below.and_then(|link| link.link) {
        Some(below) => node.link_by_index(below).map(Some),
        None => Ok(named),
    }
}

/// Brings a master under police, or checks that it is: row, host MACs, census, programs, promiscuous mode.
///
/// With `replace` the programs are replaced by this build's even where they are in place. The caller holds
/// the lock and is in the master's namespace.
pub fn attach(
    root: &Root,
    node: &mut Netlink,
    master: &MasterLink,
    replace: bool,
) -> Result<Attached, PoliceError> {
    if let Some(path) = root.disabled() {
        return Err(BpfError::Disabled { path }.into());
    }
    support::check()?;
    let link = &master.link;
    // Since Linux 6.9 such a program may be handed a copy of the packet that has forgotten how long its link-layer
    // header is: what TC then reads as Ethernet is the IP header, and nothing can be judged by it.
    if let Some(program) = link.generic_xdp {
        return Err(PoliceError::GenericXdp { master: link.name.clone(), program });
    }
    let known = check_bpffs(root)?;
    if known == Known::Unmarked {
        bpffs::ensure(&root.bpffs())?;
    }
    let settings = settings(root)?;
    let pins = root.pins();
    Trees::list(&pins)?.check()?;
    let fresh = !pin_of(&pins, NAMES[0]).exists();
    let mut maps = object::maps(&pins, &settings)?;
    if known == Known::Unmarked {
        leave_mark(root)?;
    }
    let cookie = netns::cookie().unwrap_or(0);
    let found =
        maps.masters()?.into_iter().find(|(_, row)| row.ifindex == link.index && row.netns_cookie == cookie);
    let (id, before) = match found {
        Some((id, row)) => (id, Some(row)),
        None => {
            free_dead(&mut maps, node, cookie)?;
            let id = maps.free_master_id()?;
            maps.forget_master(id)?;
            (id, None)
        }
    };
    let mut attached = Attached { id, host_macs: Vec::new(), maps, changes: Vec::new() };
    match put_in_place(root, node, master, before, replace, &mut attached) {
        Ok(()) => Ok(attached),
        // A master that was not under police stays as it was: half its hooks would judge half its frames.
        Err(failed) if before.is_none_or(|row| row.object == 0) => {
            let undone = take_back(root, link, &mut attached, fresh);
            match undone {
                Ok(()) => Err(failed),
                Err(error) => Err(PoliceError::Undo { failed: Box::new(failed), source: Box::new(error) }),
            }
        }
        Err(failed) => Err(failed),
    }
}

/// The maps; `None` if nothing is loaded.
pub fn maps(root: &Root) -> Result<Option<Maps>, PoliceError> {
    check_bpffs(root)?;
    Ok(Maps::open(&root.pins())?)
}

/// Fails where pins lie on a BPF file system that is not to be seen from here: nothing would be found, and a second
/// set of maps be made.
pub fn check_bpffs(root: &Root) -> Result<Known, PoliceError> {
    Ok(bpffs::check(&root.bpffs(), &root.bpffs_mark(), &state::boot_id()?)?)
}

/// Says where the pins are. The caller holds the lock and has checked.
pub(super) fn leave_mark(root: &Root) -> Result<(), PoliceError> {
    Ok(bpffs::leave_mark(&root.bpffs(), &root.bpffs_mark(), &state::boot_id()?)?)
}

/// Detaches what was attached of a master, and removes its rows.
fn take_back(root: &Root, link: &Link, attached: &mut Attached, fresh: bool) -> Result<(), PoliceError> {
    let pins = root.pins();
    attach::detach(&pins, attached.id, Some(&link.name), link.index)?;
    for (key, row) in attached.maps.endpoints()? {
        if key.master == attached.id && row.kind == kind::FOREIGN {
            attached.maps.remove_endpoint(key, row.id)?;
        }
    }
    let used = attached.maps.endpoints()?.iter().any(|(key, _)| key.master == attached.id);
    if !used {
        attached.maps.set_master(attached.id, &nobody())?;
    }
    // Nobody else can have used them: the lock is held since they were made.
    if fresh {
        pins::remove_pins(&pins)?;
        remove_mark(root)?;
    }
    Ok(())
}

/// What `attach` does to one master, once it has a number.
fn put_in_place(
    root: &Root,
    node: &mut Netlink,
    master: &MasterLink,
    before: Option<Master>,
    replace: bool,
    attached: &mut Attached,
) -> Result<(), PoliceError> {
    let (link, entry) = (&master.link, master.entry.as_ref());
    let Attached { id, host_macs: found, maps, changes } = attached;
    let (id, pins) = (*id, root.pins());
    let states = attach::inspect_beside(maps, id, link.index)?;
    let links = node.links()?;
    let host_macs = host_macs(link, &links)?;
    found.clone_from(&host_macs);
    let cookie = netns::cookie().unwrap_or(0);
    let mut row = before.unwrap_or_else(|| fresh_row(link, cookie));
    (row.host_macs, row.host_mac_count) = mac_list(&host_macs);
    row.flags = with(row.flags, master_flags::DEDICATED, entry.is_some_and(MasterEntry::dedicated));
    row.mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
    if before != Some(row) {
        maps.set_master(id, &row)?;
    }
    if links.iter().any(|link| link.vlan_id.is_some()) || row.flags & master_flags::VLANS != 0 {
        identity::refresh_vlans(maps, cookie, &links)?;
        row.flags = maps.master(id)?.flags;
    }
    // A NIC may come back under its old index: the row is there, and nothing of it holds for the new one.
    if row.object == 0 || !states.iter().any(|state| state.live) {
        census(root, maps, node, &super::masters(root)?, id, link, &host_macs)?;
    }
    identity::host_addresses(maps, node, link, id)?;
    let unknown = identity::unknown(maps, node, link, id, &host_macs, entry)?;
    if unknown != row.unknown_source {
        row.unknown_source = unknown;
        maps.set_master(id, &row)?;
    }
    let host_macs: Vec<_> = host_macs.iter().map(|mac| mac.bytes()).collect();
    let target = Target {
        pins: &pins,
        cpus: maps.meta()?.cpus,
        id,
        ifindex: link.index,
        name: &link.name,
        xdp: entry.is_some_and(|entry| entry.xdp() == Xdp::Native),
        tc: tc(entry),
        host_macs: &host_macs,
    };
    // Programs of two builds are not mixed on one master: where one of this build is attached, all are.
    let complete = Hook::ALL
        .into_iter()
        .filter(|hook| *hook != Hook::Xdp || target.xdp)
        .all(|hook| states.iter().any(|state| state.hook == hook && state.live));
    let stale = row.object != object::digest();
    let replace = replace || stale && (!complete || row.object == 0);
    let ensured = attach::ensure(&target, &states, replace);
    let is_replaced = |change: &Change| matches!(change, Change::Replaced(..));
    if ensured.as_ref().map_or(true, |changes| changes.iter().any(is_replaced)) {
        // Until no program runs any more that was replaced: it could still remember something.
        swap::settle()?;
    }
    // What other programs remembered was theirs. Also where nothing was replaced: somebody may have changed a map by hand.
    maps.change(|_| Ok::<_, MapsError>(()))?;
    *changes = ensured?;
    if stale && (replace || row.object == 0) {
        row.object = object::digest();
        maps.set_master(id, &row)?;
    }
    refresh_promisc(root, node, master)
}

/// The row of a number that no master has.
fn nobody() -> Master {
    Master {
        netns_cookie: 0,
        stamp: 0,
        ifindex: 0,
        unknown_source: 0,
        host_mac_count: 0,
        mtu: 0,
        host_macs: [[0; 8]; HOST_MACS],
        name: [0; 16],
        object: 0,
        flags: 0,
        pad: 0,
    }
}

/// Frees the rows of NICs of this namespace that are gone. Rows of pods stay until their DEL, and keep the id.
fn free_dead(maps: &mut Maps, node: &mut Netlink, cookie: u64) -> Result<(), PoliceError> {
    let links = node.links()?;
    for (id, row) in maps.masters()? {
        if row.netns_cookie != cookie || links.iter().any(|link| link.index == row.ifindex) {
            continue;
        }
        attach::detach(maps.pins(), id, None, row.ifindex)?;
        for (key, endpoint) in maps.endpoints()? {
            if key.master == id && endpoint.kind == kind::FOREIGN {
                maps.remove_endpoint(key, endpoint.id)?;
            }
        }
        maps.set_master(id, &Master { ifindex: 0, netns_cookie: 0, ..row })?;
    }
    Ok(())
}

fn fresh_row(link: &Link, cookie: u64) -> Master {
    let mut name = [0; 16];
    let length = link.name.len().min(15);
    name[..length].copy_from_slice(&link.name.as_bytes()[..length]);
    Master {
        netns_cookie: cookie,
        stamp: stamp(),
        ifindex: link.index,
        unknown_source: unknown_source::AUDIT,
        name,
        ..nobody()
    }
}

/// A number that nobody on the wire or in a pod can guess.
fn stamp() -> u64 {
    let mut bytes = [0; 8];
    // `/dev/urandom` cannot fail where there is a /dev; a clock is the last resort of a broken sandbox.
    match fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
    {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => std::process::id().into(),
    }
}

fn with(flags: u32, bit: u32, set: bool) -> u32 {
    if set { flags | bit } else { flags & !bit }
}

fn mac_list(macs: &[Mac]) -> ([[u8; 8]; HOST_MACS], u8) {
    let mut list = [[0; 8]; HOST_MACS];
    for (slot, mac) in list.iter_mut().zip(macs) {
        slot[..6].copy_from_slice(&mac.bytes());
    }
    (list, u8::try_from(macs.len()).unwrap_or(u8::MAX))
}

/// The MACs the host sends with on a master: its own, its permanent one, its controller's (bridge, bond), those
/// of its ports, where it is a bond, which takes them over when it fails over, and those of its upper devices in
/// this namespace.
fn host_macs(link: &Link, links: &[Link]) -> Result<Vec<Mac>, PoliceError> {
    let own = link.mac.ok_or_else(|| PoliceError::NoMac { master: link.name.clone() })?;
    let mut macs = vec![own];
    macs.extend(link.permanent_mac);
    if let Some(controller) = link.controller {
        macs.extend(links.iter().find(|link| link.index == controller).and_then(|link| link.mac));
    }
    if link.kind.as_deref() == Some("bond") {
        let ports = links.iter().filter(|port| port.controller == Some(link.index));
        macs.extend(ports.flat_map(|port| [port.mac, port.permanent_mac]).flatten());
    }
    macs.extend(links.iter().filter(|upper| upper.is_upper_of(link.index)).filter_map(|upper| upper.mac));
    let mut unique: Vec<Mac> = Vec::new();
    for mac in macs {
        if !unique.contains(&mac) && mac.bytes() != [0; 6] {
            unique.push(mac);
        }
    }
    if unique.len() > HOST_MACS {
        return Err(PoliceError::HostMacs {
            master: link.name.clone(),
            count: unique.len(),
            limit: HOST_MACS,
        });
    }
    Ok(unique)
}

/// Adoption before attachment: every upper device that is there already, in whatever namespace, and that
/// nobody explains gets a row that passes, so that it loses nothing when the programs are attached.
///
/// Who was found by an earlier one and is not there any more loses its row: it would pass for whoever uses its MAC.
/// So would one on a VLAN interface above, whose MAC this NIC receives as well: it is judged by its tag, as that
/// master's.
fn census(
    root: &Root,
    maps: &mut Maps,
    node: &mut Netlink,
    masters: &Masters,
    id: u16,
    master: &Link,
    host: &[Mac],
) -> Result<(), PoliceError> {
    let index = master.index;
    let mut here = node.unicast_list(index)?;
    let (rows, above) = (maps.endpoints()?, identity::above(maps, id)?);
    here.retain(|mac| !rows.iter().any(|(key, _)| key.mac == mac.bytes() && above.contains(&key.master)));
    for (key, row) in rows {
        if key.master == id && row.kind == kind::FOREIGN && here.iter().all(|mac| mac.bytes() != key.mac) {
            maps.remove_endpoint(key, row.id)?;
        }
    }
    let mut records = adopt::living(root, index)?;
    let mut caches = None;
    for mac in here {
        let key = EndpointKey::new(id, mac.bytes());
        if host.contains(&mac) || maps.endpoint(key)?.is_some() {
            continue;
        }
        match records.iter().position(|record| record.mac == Some(mac)) {
            Some(ours) => adopt::adopt(root, maps, id, mac, records.swap_remove(ours))?,
            None => {
                let known = caches.get_or_insert_with(|| inherit::known(root));
                match inherit::inherit(root, node, masters, master, mac, known) {
                    Some(record) => adopt::adopt(root, maps, id, mac, record)?,
                    None => match maps.add_endpoint(key, foreign()) {
                        Ok(_) => {}
                        // Zones are not to wait for room for a stranger: it is what `unknownSource` says.
                        Err(error @ MapsError::Full { .. }) => {
                            tracing::warn!(%mac, error = &error as &dyn std::error::Error, "a device that was there has no row");
                        }
                        Err(error) => return Err(error.into()),
                    },
                }
            }
        }
    }
    Ok(())
}

fn foreign() -> Endpoint {
    Endpoint {
        id: 0,
        generation: 0,
        zone: 0,
        mode: mode::OFF,
        kind: kind::FOREIGN,
        flags: 0,
        cookie: 0,
        v4: Default::default(),
        gateway_v4: [0; 4],
        pad: [0; 4],
        v6: Default::default(),
        link_local: [0; 16],
        gateway_v6: [0; 16],
    }
}

fn tc(entry: Option<&MasterEntry>) -> TcHook {
    match entry.map(MasterEntry::tc) {
        Some(Tc::Tcx) => TcHook::Tcx,
        Some(Tc::Clsact) => TcHook::Clsact,
        Some(Tc::Auto) | None => TcHook::Auto,
    }
}

/// Switches promiscuous mode on where the administrator says `on`, and remembers that it was netpath.
///
/// `auto` leaves it to the kernel, which sets it by itself for NICs without unicast filters.
pub fn refresh_promisc(root: &Root, node: &mut Netlink, master: &MasterLink) -> Result<(), PoliceError> {
    let wanted = master.entry.as_ref().is_some_and(|entry| entry.promisc() == Promisc::On);
    if !wanted || master.link.is_promisc() {
        return Ok(());
    }
    // Written first: better to remember one that did not come to be than to forget one that did.
    let path = promisc_mark(root, &master.link.name);
    let result =
        path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, b"netpath\n"));
    result.map_err(|source| PoliceError::Read { path, source })?;
    node.set_promisc(master.link.index, true)?;
    Ok(())
}

/// The file that says that netpath made a master promiscuous.
fn promisc_mark(root: &Root, name: &str) -> std::path::PathBuf {
    root.join("var/lib/netpath/promisc").join(name)
}

/// Detaches everything and removes every pin of this root; what netpath made promiscuous is so no more.
///
/// Needs neither the object nor settings nor `masters.json`.
pub fn uninstall(root: &Root, node: &mut Netlink) -> Result<Vec<String>, PoliceError> {
    check_bpffs(root)?;
    let pins = root.pins();
    let mut names = Vec::new();
    let links = node.links()?;
    let name_of = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.as_str());
    // What cannot be read can be removed all the same.
    let masters = pins::recover_maps(&pins).map_err(PoliceError::from);
    let masters = masters.and_then(|_| Ok(maps::masters(&pins)?)).unwrap_or_default();
    for (id, row) in masters {
        let name = name_of(row.ifindex);
        attach::detach(&pins, id, name, row.ifindex)?;
        names.extend(name.map(str::to_owned));
    }
    pins::remove_pins(&pins)?;
    // What was to take their place.
    let trees = Trees::list(&pins)?;
    let is_bare = trees.in_force()?.is_none();
    if is_bare {
        trees.staged().try_for_each(pins::remove_pins)?;
    }
    for link in &links {
        let mark = promisc_mark(root, &link.name);
        if mark.exists() {
            node.set_promisc(link.index, false)?;
            fs::remove_file(&mark).map_err(|source| PoliceError::Read { path: mark, source })?;
        }
    }
    if is_bare {
        remove_mark(root)?;
    }
    Ok(names)
}

/// Without pins there is nothing that would have to lie on the same file system.
fn remove_mark(root: &Root) -> Result<(), PoliceError> {
    let mark = root.bpffs_mark();
    match fs::remove_file(&mark) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PoliceError::Read { path: mark, source })
        }
        _ => Ok(()),
    }
}

/// What stands before our programs on the TC hooks of a master: such a program may decide alone.
pub fn ahead(
    name: &str,
    ifindex: u32,
    states: &[attach::HookState],
) -> Result<Vec<(Hook, Vec<String>)>, PoliceError> {
    let mut found = Vec::new();
    for state in states.iter().filter(|state| state.live) {
        let programs = attach::programs_before(name, ifindex, state)?;
        if !programs.is_empty() {
            found.push((state.hook, programs));
        }
    }
    Ok(found)
}
