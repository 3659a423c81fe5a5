//! Hears on the masters who claims an address that a pod has, and tells the pod's owner.
//!
//! What is heard is what the kernel hands the master itself: broadcasts, groups, and what is for the node. A frame for a pod
//! is the pod's, before any socket of the node sees it. So questions are heard, announcements, and what answers the node; not
//! what another host answers a pod. Packet sockets stand behind every program and cost traffic of other protocols nothing,
//! where a look at each frame would need a map from address to MAC that no program has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    os::fd::AsFd as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use netpath_ebpf::abi::{Endpoint, EndpointKey, Master, kind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    Shared,
    ledger::Name,
    listing::{id_of, id_of_row},
    metrics::name_of,
    notice::{Notices, Topic},
};
use crate::{
    causes::full,
    kernel::{
        bpf::maps::{Maps, text},
        netns,
        packet::{Ear, Heard, ROOM},
    },
    observe::Claim,
    police::{self, PoliceError},
    spec::{Event, Mac, Severity},
    state::{self, Outline, Phase},
};

/// How often it is looked who has which address, and where.
const LOOK: Duration = Duration::from_secs(2);
/// Packets that are read in a second; of more the kernel keeps what its buffers hold, and counts the rest.
const PER_SECOND: u32 = 2_000;
/// Packets that are read of one socket before the others get their turn.
const TURN: u32 = 64;
/// How long packets gather after some were read: nobody waits for them, and to be woken for each costs more than to read it.
const GATHER: Duration = Duration::from_millis(20);
/// As what the agent fails at this is known to metrics and health.
const WHAT: &str = "conflicts";

/// Works for as long as the process lives.
pub(super) fn run(shared: &Shared) {
    let mut conflicts = Conflicts::new(shared);
    loop {
        let until = Instant::now() + LOOK;
        conflicts.look();
        conflicts.hear(until);
    }
}

/// An attachment that has addresses.
#[derive(Debug)]
struct Holder {
    id: (u32, u32),
    key: EndpointKey,
    name: Name,
    record: Arc<Outline>,
}

/// Who else has an address.
#[derive(Clone, Copy)]
enum Rival<'a> {
    /// Somebody on the wire.
    Host(Mac),
    /// Another attachment of this node.
    Attachment(&'a Holder),
}

/// Who has which address on which master, by its index.
#[derive(Debug, Default)]
struct Index {
    masters: BTreeMap<u32, String>,
    holders: HashMap<(u32, IpAddr), Vec<Arc<Holder>>>,
}

impl Index {
    /// Of masters of this namespace, all rows, and the records of this boot.
    fn new(masters: &[(u16, Master)], rows: &[(EndpointKey, Endpoint)], records: &[Arc<Outline>]) -> Self {
        let records: HashMap<_, _> = records.iter().map(|record| (id_of(record), record)).collect();
        let mut index = Self::default();
        for (key, row) in rows.iter().filter(|(_, row)| row.kind == kind::ENDPOINT) {
            let Some((_, master)) = masters.iter().find(|(id, _)| *id == key.master) else { continue };
            // An ADD under way has not written down which row is its own; the next look finds it.
            let Some(record) = records.get(&id_of_row(key, row)) else { continue };
            let holder = Arc::new(Holder {
                id: (row.id, row.generation),
                key: *key,
                name: name_of(record),
                record: Arc::clone(record),
            });
            index.masters.entry(master.ifindex).or_insert_with(|| text(&master.name));
            for address in addresses(row) {
                index.holders.entry((master.ifindex, address)).or_default().push(Arc::clone(&holder));
            }
        }
        index
    }

    /// What has to be heard, and where.
    fn heard(&self) -> BTreeSet<(u32, Heard)> {
        let heard = |address: &IpAddr| match address {
            IpAddr::V4(_) => Heard::Arp,
            IpAddr::V6(_) => Heard::NeighbourDiscovery,
        };
        self.holders.keys().map(|(master, address)| (*master, heard(address))).collect()
    }

    /// Whose address is claimed by somebody else: what a holder says of itself is no news.
    fn wronged(&self, master: u32, claim: &Claim) -> &[Arc<Holder>] {
        let holders = self.holders.get(&(master, claim.address)).map_or(&[][..], Vec::as_slice);
        match holders.iter().any(|holder| Mac::new(holder.key.mac) == claim.mac) {
            true => &[],
            false => holders,
        }
    }
}

/// The addresses of a row that a master is listened to for. A link-local one is made of the MAC, and of the same MAC only.
fn addresses(row: &Endpoint) -> impl Iterator<Item = IpAddr> {
    let is_one = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_unspecified() && !address.is_unicast_link_local(),
    };
    row.v4.into_iter().map(IpAddr::from).chain(row.v6.into_iter().map(IpAddr::from)).filter(is_one)
}

/// How much is read: so many packets in each second.
#[derive(Debug, Default)]
struct Budget {
    /// When the second began, by any clock that does not go back.
    since: Duration,
    used: u32,
}

impl Budget {
    /// How many packets may be read now, or when there will be more.
    fn left(&mut self, now: Duration) -> Result<u32, Duration> {
        const SECOND: Duration = Duration::from_secs(1);
        if SECOND <= now.saturating_sub(self.since) {
            *self = Self { since: now, used: 0 };
        }
        match PER_SECOND.saturating_sub(self.used) {
            0 => Err(self.since + SECOND - now),
            left => Ok(left),
        }
    }
}

struct Conflicts<'a> {
    shared: &'a Shared,
    maps: Option<Maps>,
    index: Index,
    ears: BTreeMap<(u32, Heard), Ear>,
    budget: Budget,
    /// What the log was told.
    logged: Notices,
}

impl<'a> Conflicts<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            maps: None,
            index: Index::default(),
            ears: BTreeMap::new(),
            budget: Budget::default(),
            logged: Notices::default(),
        }
    }

    /// Sees who has which address, and hears where that has to be heard.
    fn look(&mut self) {
        match self.index() {
            Ok(index) => self.index = index,
            // Whoever puts it in force, or counts it, says so. Of who had them nobody is told.
            Err(error) => {
                tracing::debug!(error = full(&error), "it is not known who has which address");
                self.index = Index::default();
            }
        }
        let lost: u64 = self.ears.values().map(|ear| ear.lost().unwrap_or(0)).sum();
        let wanted = self.index.heard();
        self.ears.retain(|key, _| wanted.contains(key));
        let mut failed = None;
        for key in wanted {
            let (master, heard) = key;
            if self.ears.contains_key(&key) {
                continue;
            }
            match Ear::open(master, heard) {
                Ok(ear) => drop(self.ears.insert(key, ear)),
                Err(error) if is_away(&error) => {}
                Err(error) => {
                    let name = self.index.masters.get(&master).map(String::as_str).unwrap_or_default();
                    let lacks = error.raw_os_error() == Some(libc::EPERM);
                    let hint = if lacks { ": give the agent CAP_NET_RAW" } else { "" };
                    failed = failed.or(Some(format!("{name} cannot be listened to: {error}{hint}")));
                }
            }
        }
        self.say(failed, lost);
        self.rows();
    }

    /// Reads it; nobody where nothing is in force.
    fn index(&mut self) -> Result<Index, PoliceError> {
        let root = &self.shared.root;
        self.maps = match self.maps.take().filter(|maps| maps.is_in_force().unwrap_or(false)) {
            Some(maps) => Some(maps),
            None => police::maps(root)?,
        };
        let Some(maps) = &self.maps else { return Ok(Index::default()) };
        let cookie = netns::cookie().unwrap_or(0);
        let mut masters = maps.masters()?;
        masters.retain(|(_, master)| master.netns_cookie == cookie);
        let rows = maps.endpoints()?;
        Ok(Index::new(&masters, &rows, &self.shared.records()?))
    }

    /// Leaves word of what fails, once, and of what was lost.
    fn say(&self, failed: Option<String>, lost: u64) {
        let mut report = self.shared.report();
        report.claims_lost += lost;
        // A pod that is gone before anybody asked is forgotten.
        let live: BTreeSet<&Name> =
            self.index.holders.values().flatten().map(|holder| &holder.name).collect();
        report.conflicts.retain(|name, _| live.contains(name));
        let was = match &failed {
            Some(error) => report.errors.insert(WHAT, error.clone()),
            None => report.errors.remove(WHAT),
        };
        match (was, failed) {
            (was, Some(error)) if was.as_ref() != Some(&error) => {
                tracing::error!(what = WHAT, error, "cannot be done now");
            }
            (Some(_), None) => tracing::info!(what = WHAT, "works again"),
            (_, Some(_)) | (None, None) => {}
        }
    }

    /// Two attachments of one master that have the same address: no frame has to tell.
    fn rows(&mut self) {
        let shared: Vec<_> = self.index.holders.iter().filter(|(_, holders)| 1 < holders.len()).collect();
        if shared.is_empty() {
            return;
        }
        let Ok(boot) = state::boot_id() else { return };
        // What a sandbox that is gone has left ends with its DEL, and its addresses may be another's by then.
        let lives = |holder: &&Arc<Holder>| {
            holder.record.phase == Phase::Ready && !police::is_gone(&holder.record, &boot)
        };
        let mut told = Vec::new();
        for ((master, address), holders) in shared {
            let holders: Vec<_> = holders.iter().filter(lives).cloned().collect();
            for holder in &holders {
                let other = holders.iter().find(|other| other.id != holder.id).cloned();
                told.extend(other.map(|other| (*master, *address, Arc::clone(holder), other)));
            }
        }
        for (master, address, holder, other) in told {
            self.tell(master, address, &holder, Rival::Attachment(&other));
        }
    }

    /// Reads what comes until then.
    fn hear(&mut self, until: Instant) {
        let mut room = [0; ROOM];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let budget = match self.budget.left(self.shared.began.elapsed()) {
                Ok(budget) => budget,
                Err(pause) => {
                    thread::park_timeout(pause.min(left));
                    continue;
                }
            };
            let ready = self.ready(left);
            let (mut read, mut claims) = (0, Vec::new());
            for key in ready {
                let Some(ear) = self.ears.get(&key) else { continue };
                let most = TURN.min(budget - read);
                match hear(ear, key, most, &mut room, &mut claims) {
                    Ok(count) => read += count,
                    // It was taken down, or is gone; the next look finds what there is.
                    Err(error) => {
                        tracing::debug!(%error, master = key.0, "it is not listened to any more");
                        self.ears.remove(&key);
                    }
                }
            }
            self.budget.used += read;
            self.shared.report().claims_read += u64::from(read);
            for (master, claim) in claims {
                let wronged = self.index.wronged(master, &claim);
                for holder in
                    wronged.iter().filter(|holder| self.is_there(holder)).cloned().collect::<Vec<_>>()
                {
                    self.tell(master, claim.address, &holder, Rival::Host(claim.mac));
                }
            }
            if read != 0 {
                thread::park_timeout(GATHER.min(left));
            }
        }
    }

    /// Whether it still has its row: whose address was given back a moment ago has it no more.
    fn is_there(&self, holder: &Holder) -> bool {
        let row = self.maps.as_ref().and_then(|maps| maps.endpoint(holder.key).ok().flatten());
        row.is_some_and(|row| (row.id, row.generation) == holder.id)
    }

    /// Waits until something can be read, and says of which sockets.
    fn ready(&self, within: Duration) -> Vec<(u32, Heard)> {
        if self.ears.is_empty() {
            thread::park_timeout(within);
            return Vec::new();
        }
        let mut fds: Vec<_> =
            self.ears.values().map(|ear| PollFd::new(ear.as_fd(), PollFlags::POLLIN)).collect();
        let milliseconds = u16::try_from(within.as_millis()).unwrap_or(u16::MAX);
        // Longer by a moment than to be woken for nothing again and again.
        if poll(&mut fds, PollTimeout::from(milliseconds.saturating_add(1))).is_err() {
            thread::park_timeout(GATHER);
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        self.ears.keys().zip(&fds).filter(|(_, fd)| is_ready(fd)).map(|(key, _)| *key).collect()
    }

    /// Counts a claim, and tells of it now and then.
    fn tell(&mut self, master: u32, address: IpAddr, holder: &Holder, rival: Rival<'_>) {
        {
            let mut report = self.shared.report();
            match report.conflicts.get_mut(&holder.name) {
                Some(count) => *count += 1,
                None => drop(report.conflicts.insert(holder.name.clone(), 1)),
            }
        }
        let is_logged = self.logged.allow(holder.id, Topic::Conflict, self.shared.began.elapsed());
        let is_told = self.shared.may_tell(holder.id, Topic::Conflict);
        if !is_logged && !is_told {
            return;
        }
        let master = self.index.masters.get(&master).map(String::as_str).unwrap_or_default();
        let message = message(&holder.record, address, rival, master);
        if is_logged {
            tracing::warn!(pod = holder.record.pod_name(), master, "{message}");
        }
        if is_told {
            let reason = "AddressConflict".to_owned();
            self.shared.tell_pod(&holder.record, Event { severity: Severity::Warning, reason, message });
        }
    }
}

/// Reads at most so many packets of one socket; what they claim goes to `claims`.
fn hear(
    ear: &Ear,
    (master, heard): (u32, Heard),
    most: u32,
    room: &mut [u8; ROOM],
    claims: &mut Vec<(u32, Claim)>,
) -> std::io::Result<u32> {
    for count in 0..most {
        let Some((source, packet)) = ear.receive(room)? else { return Ok(count) };
        let claim = match heard {
            Heard::Arp => Claim::of_arp(packet),
            Heard::NeighbourDiscovery => Claim::of_neighbour(source, packet),
        };
        claims.extend(claim.map(|claim| (master, claim)));
    }
    Ok(most)
}

/// Whether a device is gone, or down, which it need not be by the next look.
fn is_away(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::ENETDOWN))
}

/// What the owner of a pod reads: which address, who else has it, and what can be done.
fn message(record: &Outline, address: IpAddr, rival: Rival<'_>, master: &str) -> String {
    let ifname = &record.ifname;
    match rival {
        Rival::Host(mac) => format!(
            "{ifname}: {address} is claimed by {mac} as well, seen on {master}: give each node a range of its own \
             (ipam.perNode), or take the address out of the range"
        ),
        Rival::Attachment(other) => format!(
            "{ifname}: {address} is also that of {} ({}) on this node and {master}: give the networks ranges that do not \
             overlap",
            other.record.pod_name(),
            other.record.ifname
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_packets_and_the_next_one_has_as_many() {
        let mut budget = Budget::default();
        let at = Duration::from_millis;
        assert_eq!(budget.left(at(500)), Ok(PER_SECOND));
        budget.used += PER_SECOND - 1;
        assert_eq!(budget.left(at(600)), Ok(1));
        budget.used += 1;
        assert_eq!(budget.left(at(700)), Err(at(300)));
        assert_eq!(budget.left(at(1000)), Ok(PER_SECOND));
        budget.used = PER_SECOND;
        // However late it is looked, no second brings more than one.
        assert_eq!(budget.left(at(90_000)), Ok(PER_SECOND));
    }
}
