//! Runs a plan step by step and undoes it in reverse when a step fails.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use crate::kernel::arp::{self, ArpError};
use crate::kernel::netlink::{AddressFamily, Link, Macvlan, Netlink, NetlinkError, Refusal, Route};
use crate::kernel::netns::{self, Netns, NetnsError};
use crate::kernel::sysctl::{self, SysctlError, Writer};
use crate::plan::{self, Place, RouteVia, Setting, Step};
use crate::spec::Route as Added;

/// The calling thread's network namespace.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// Why a step failed; what was attempted is in the [`StepError`].
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The kernel refused a request.
    #[error(transparent)]
    Refused(Refusal),
    /// Netlink failed otherwise.
    #[error(transparent)]
    Netlink(NetlinkError),
    /// A namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A sysctl could not be read or written.
    #[error(transparent)]
    Sysctl(io::Error),
    /// An address is another's, or nobody could be asked.
    #[error(transparent)]
    Arp(#[from] ArpError),
}

impl From<NetlinkError> for Cause {
    fn from(error: NetlinkError) -> Self {
        match error {
            NetlinkError::Refused { source, .. } => Self::Refused(source),
            NetlinkError::Netns(error) => Self::Netns(error),
            error => Self::Netlink(error),
        }
    }
}

impl From<SysctlError> for Cause {
    fn from(error: SysctlError) -> Self {
        match error {
            SysctlError::Read { source, .. } | SysctlError::Write { source, .. } => Self::Sysctl(source),
        }
    }
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}{}", hint(step, source))]
pub struct StepError {
    /// What was attempted.
    pub step: Box<Step>,
    /// Why it failed.
    pub source: Cause,
}

impl StepError {
    fn new(step: &Step, source: Cause) -> Self {
        Self { step: Box::new(step.clone()), source }
    }

    /// The kernel's error number, where it refused.
    pub fn errno(&self) -> Option<i32> {
        errno(&self.source)
    }

    /// Whether an address is that of another interface on the network.
    pub fn is_conflict(&self) -> bool {
        match &self.source {
            Cause::Arp(error) => error.is_conflict(),
            Cause::Netlink(error) => error.is_conflict(),
            Cause::Refused(_) | Cause::Netns(_) | Cause::Sysctl(_) => false,
        }
    }
}

/// A step that failed, with what could not be undone of those before it.
#[derive(Debug)]
pub struct ExecError {
    /// The step that failed.
    pub failed: StepError,
    /// What is left behind: the undoing steps that failed in their turn.
    pub undo: Vec<StepError>,
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.failed)?;
        for error in &self.undo {
            write!(f, "; nor undo it: {error}: {}", error.source)?;
        }
        Ok(())
    }
}

impl std::error::Error for ExecError {
    /// The cause of the failed step: the text has all else.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.failed.source)
    }
}

/// What has been done and how to take it back; belongs to one ADD.
#[derive(Debug, Default)]
pub struct UndoStack(Vec<Step>);

impl UndoStack {
    /// Whether there is nothing to undo.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn deletes(&self, link: &str) -> bool {
        self.0.iter().any(|undo| matches!(undo, Step::DeleteLink { ifname } if ifname == link))
    }
}

/// What steps act on: the node's namespace, which is the caller's, and a sandbox.
#[derive(Debug)]
pub struct Effects {
    node: Netlink,
    sandbox: Netlink,
    netns: Netns,
    cookie: Option<u64>,
    /// The links of the sandbox that are known by index, so that a pod that renames one gains nothing.
    indexes: Vec<(String, u32)>,
}

impl Effects {
    /// Opens one socket in each namespace.
    pub fn open(netns: Netns) -> Result<Self, NetlinkError> {
        let (sandbox, cookie) = netns.within(|| (Netlink::open(), netns::cookie()))?;
        Ok(Self { node: Netlink::open()?, sandbox: sandbox?, netns, cookie, indexes: Vec::new() })
    }

    /// Cookie of the sandbox's namespace, where the kernel tells it.
    pub fn cookie(&self) -> Option<u64> {
        self.cookie
    }

    /// The node's namespace.
    pub fn node(&mut self) -> &mut Netlink {
        &mut self.node
    }

    /// The sandbox's namespace.
    pub fn sandbox(&mut self) -> &mut Netlink {
        &mut self.sandbox
    }

    /// The sandbox.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The namespace masters are looked up in.
    pub fn place(&mut self, place: Place) -> &mut Netlink {
        match place {
            Place::Node => &mut self.node,
            Place::Sandbox => &mut self.sandbox,
        }
    }

    /// Where the link below `link`, a link of the sandbox, is; `None` if it is in a third namespace.
    pub fn place_of_master(&mut self, link: &Link) -> Result<Option<Place>, NetlinkError> {
        let Some(id) = link.link_netnsid else {
            return Ok(Some(self.only_place()?.unwrap_or(Place::Sandbox)));
        };
        let node = Netns::open(Path::new(CURRENT))?;
        Ok((self.sandbox.namespace_id(&node)? == Some(id)).then_some(Place::Node))
    }

    /// Where sandbox and node are one namespace, everything is the node's.
    fn only_place(&self) -> Result<Option<Place>, NetlinkError> {
        let same = Netns::open(Path::new(CURRENT))?.identity()? == self.netns.identity()?;
        Ok(same.then_some(Place::Node))
    }

    /// A link of the sandbox, as it is now.
    pub fn link(&mut self, ifname: &str) -> Result<Link, NetlinkError> {
        match self.known(ifname) {
            Some(index) => self.sandbox.link_by_index(index),
            None => {
                let link = self.sandbox.link_by_name(ifname)?;
                self.indexes.push((ifname.to_owned(), link.index));
                Ok(link)
            }
        }
    }

    /// The routes of the sandbox that go through other links than `ifname` and are of a family that `added` has: what
    /// [`plan::routes`] leaves in force.
    pub fn other_routes(&mut self, ifname: &str, added: &[Added]) -> Result<Vec<RouteVia>, NetlinkError> {
        let index = self.index(ifname)?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            if added.iter().any(|route| route.dst.is_ipv4() == (family == AddressFamily::Inet)) {
                routes.extend(self.sandbox.routes_of(family)?);
            }
        }
        Ok(routes.into_iter().filter(|route| route.index != Some(index)).map(RouteVia::from).collect())
    }

    /// Waits until the IPv6 addresses of a link of the sandbox can be used.
    pub fn wait_dad(&mut self, index: u32, timeout: Duration) -> Result<(), NetlinkError> {
        self.sandbox.wait_dad(&self.netns, index, timeout)
    }

    fn known(&self, ifname: &str) -> Option<u32> {
        self.indexes.iter().find(|(name, _)| name == ifname).map(|(_, index)| *index)
    }

    fn index(&mut self, ifname: &str) -> Result<u32, NetlinkError> {
        match self.known(ifname) {
            Some(index) => Ok(index),
            None => self.link(ifname).map(|link| link.index),
        }
    }
}

/// Runs `steps`, recording in `undo` how to take each back; stops at the first that fails.
///
/// It undoes nothing itself: the caller may have other things to take back first. See [`abort`].
pub fn run(effects: &mut Effects, steps: &[Step], undo: &mut UndoStack) -> Result<(), StepError> {
    let mut rest = steps;
    while let [step, ..] = rest {
        rest = match do_next(effects, step, rest, undo)? {
            Done::One => &rest[1..],
            Done::Sysctls(count) => &rest[count..],
        };
    }
    Ok(())
}

/// Undoes everything in `undo` in reverse, attempting all; what is gone already counts as undone.
pub fn unwind(effects: &mut Effects, undo: UndoStack) -> Vec<StepError> {
    let mut failed = Vec::new();
    for step in plan::unwind(undo.0) {
        match run(effects, std::slice::from_ref(&step), &mut UndoStack::default()) {
            Err(error) if !is_absent(&error.source) => failed.push(error),
            Ok(()) | Err(_) => {}
        }
    }
    failed
}

/// Undoes everything after `failed`, and reports both.
pub fn abort(effects: &mut Effects, undo: UndoStack, failed: StepError) -> ExecError {
    ExecError { failed, undo: unwind(effects, undo) }
}

/// Runs `steps`; when one fails, those before it are undone.
pub fn run_or_undo(effects: &mut Effects, steps: &[Step]) -> Result<UndoStack, ExecError> {
    let mut undo = UndoStack::default();
    match run(effects, steps, &mut undo) {
        Ok(()) => Ok(undo),
        Err(failed) => Err(abort(effects, undo, failed)),
    }
}

/// How many of the steps that were due have been done.
enum Done {
    One,
    Sysctls(usize),
}

fn do_next(fx: &mut Effects, step: &Step, due: &[Step], undo: &mut UndoStack) -> Result<Done, StepError> {
    let done = match step {
        Step::SetSysctl { .. } => {
            // A row of them costs one entry into the sandbox.
            let count = due.iter().take_while(|step| matches!(step, Step::SetSysctl { .. })).count();
            set_sysctls(fx, &due[..count], undo)?;
            return Ok(Done::Sysctls(count));
        }
        Step::CreateMacvlan(macvlan) => create(fx, macvlan),
        Step::DeleteLink { ifname } => {
            let deleted = fx.index(ifname).and_then(|index| fx.sandbox.delete_link(index));
            fx.indexes.retain(|(name, _)| name != ifname);
            deleted
        }
        Step::AddAddress { ifname, address } => {
            fx.index(ifname).and_then(|index| fx.sandbox.add_address(index, *address))
        }
        Step::DeleteAddress { ifname, address } => {
            fx.index(ifname).and_then(|index| fx.sandbox.delete_address(index, *address))
        }
        Step::SetUp { ifname } => fx.index(ifname).and_then(|index| fx.sandbox.set_up(index)),
        Step::SetDown { ifname } => fx.index(ifname).and_then(|index| fx.sandbox.set_down(index)),
        Step::ProbeV4 { ifname, addresses, timeout } => {
            let probed = probe(fx, ifname, addresses, *timeout);
            return probed.map(|()| Done::One).map_err(|source| StepError::new(step, source));
        }
        Step::AnnounceV4 { ifname, addresses } => {
            let announced = announce(fx, ifname, addresses);
            return announced.map(|()| Done::One).map_err(|source| StepError::new(step, source));
        }
        Step::WaitDad { ifname, timeout } => {
            fx.index(ifname).and_then(|index| fx.sandbox.wait_dad(&fx.netns, index, *timeout))
        }
        Step::AddRoute { ifname, route } => {
            fx.index(ifname).and_then(|index| fx.sandbox.add_route(&through(index, route)))
        }
        Step::DeleteRoute { ifname, route } => {
            fx.index(ifname).and_then(|index| fx.sandbox.delete_route(&through(index, route)))
        }
    };
    done.map_err(|error| StepError::new(step, error.into()))?;
    undo.0.extend(step.undo());
    Ok(Done::One)
}

fn create(effects: &mut Effects, macvlan: &plan::Macvlan) -> Result<(), NetlinkError> {
    let link = Macvlan {
        ifname: macvlan.ifname.clone(),
        master: macvlan.master.index,
        mode: macvlan.mode,
        mac: macvlan.mac,
        mtu: macvlan.mtu,
        bc_queue_len: macvlan.bc_queue_len,
    };
    match macvlan.place {
        Place::Node => effects.node.add_macvlan(&link, Some(&effects.netns)),
        Place::Sandbox => effects.sandbox.add_macvlan(&link, None),
    }
}

fn probe(effects: &mut Effects, ifname: &str, addresses: &[Ipv4Addr], within: Duration) -> Result<(), Cause> {
    let interface = connected(effects, ifname)?;
    effects.netns.within(|| arp::probe(interface, addresses, within))??;
    // Silence says nothing where the cable was pulled meanwhile.
    connected(effects, ifname)?;
    Ok(())
}

fn announce(effects: &mut Effects, ifname: &str, addresses: &[Ipv4Addr]) -> Result<(), Cause> {
    let interface = connected(effects, ifname)?;
    Ok(effects.netns.within(|| arp::announce(interface, addresses))??)
}

/// A link of the sandbox over which somebody can be heard.
fn connected(effects: &mut Effects, ifname: &str) -> Result<arp::Interface, Cause> {
    let link = effects.link(ifname)?;
    let named = || ifname.to_owned();
    match (link.has_carrier(), link.mac) {
        (true, Some(mac)) => Ok(arp::Interface { index: link.index, mac }),
        (true, None) => Err(ArpError::NoMac { ifname: named() }.into()),
        (false, _) => Err(ArpError::NoCarrier { ifname: named() }.into()),
    }
}

/// Writes a row of sysctls, entering the sandbox once for all of them.
fn set_sysctls(effects: &Effects, steps: &[Step], undo: &mut UndoStack) -> Result<(), StepError> {
    let made = |ifname: &str| undo.deletes(ifname);
    let write_all = || {
        let (mut undos, mut writer) = (Vec::new(), Writer::default());
        for step in steps {
            match set_sysctl(&mut writer, step, made) {
                Ok(restore) => undos.extend(restore),
                Err(source) => return (undos, Err(StepError::new(step, source))),
            }
        }
        (undos, Ok(()))
    };
    let failed = |error| StepError::new(&steps[0], Cause::Netns(error));
    let (undos, result) = effects.netns.within(write_all).map_err(failed)?;
    undo.0.extend(undos);
    result
}

/// Writes one sysctl in the thread's namespace; returns what writes the old value back.
///
/// The settings of a link that was made by this plan go with it, so they are not read first.
fn set_sysctl(writer: &mut Writer, step: &Step, made: impl Fn(&str) -> bool) -> Result<Option<Step>, Cause> {
    let Step::SetSysctl { ifname, setting, value } = step else { return Ok(None) };
    let old = match made(ifname) {
        true => None,
        false => sysctl::read(&setting.key(ifname)).ok(),
    };
    if old.as_ref() == Some(value) {
        return Ok(None);
    }
    match writer.write(&setting.directory(ifname), setting.name(), value) {
        Err(SysctlError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            skip(ifname, *setting, source)?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
        Ok(()) => Ok(old.map(|value| Step::SetSysctl { ifname: ifname.clone(), setting: *setting, value })),
    }
}

/// Whether a missing setting may be passed over.
fn skip(ifname: &str, setting: Setting, missing: io::Error) -> Result<(), Cause> {
    let needless = match setting {
        // Courtesies, which old kernels do not know.
        Setting::ArpNotify | Setting::NdiscNotify | Setting::KeepAddrOnDown => true,
        // Without IPv6 there is nothing to guard.
        Setting::DropUnicastInMulticastV6 | Setting::AddrGenMode | Setting::AcceptRa | Setting::Autoconf => {
            !sysctl::exists(&setting.directory(ifname))
        }
        Setting::DropUnicastInMulticastV4 | Setting::DisableIpv6 => false,
    };
    if needless { Ok(()) } else { Err(Cause::Sysctl(missing)) }
}

fn through(index: u32, via: &RouteVia) -> Route {
    let route = Route::new(via.dst, via.gateway, index);
    Route {
        priority: via.priority,
        table: via.table.unwrap_or(route.table),
        scope: via.scope.unwrap_or(route.scope),
        mtu: via.mtu,
        advmss: via.advmss,
        protocol: via.protocol.unwrap_or(route.protocol),
        ..route
    }
}

impl From<Route> for RouteVia {
    fn from(route: Route) -> Self {
        Self {
            dst: route.dst,
            gateway: route.gateway,
            priority: route.priority,
            table: Some(route.table),
            scope: Some(route.scope),
            mtu: route.mtu,
            advmss: route.advmss,
            protocol: Some(route.protocol),
        }
    }
}

fn is_absent(cause: &Cause) -> bool {
    match cause {
        Cause::Netlink(error) => error.is_absent(),
        Cause::Refused(_) => {
            matches!(errno(cause), Some(libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENOENT))
        }
        Cause::Netns(error) => error.is_gone(),
        Cause::Sysctl(error) => error.kind() == io::ErrorKind::NotFound,
        Cause::Arp(_) => false,
    }
}

fn errno(cause: &Cause) -> Option<i32> {
    match cause {
        Cause::Refused(refusal) => Some(refusal.errno),
        Cause::Netlink(error) => error.errno(),
        Cause::Netns(_) | Cause::Arp(_) => None,
        Cause::Sysctl(error) => error.raw_os_error(),
    }
}

/// What the kernel means by an error number that says little.
fn hint(step: &Step, cause: &Cause) -> &'static str {
    match (step, errno(cause)) {
        (Step::CreateMacvlan(_), Some(libc::EBUSY)) => {
            " (the master is a port of a bridge or bond, or carries ipvlans; use another master)"
        }
        (Step::CreateMacvlan(_), Some(libc::EINVAL)) => {
            " (is there a passthru macvlan on the master, or any where this one is passthru?)"
        }
        (Step::CreateMacvlan(_), Some(libc::EOPNOTSUPP)) => {
            " (the kernel has no macvlan; load the module `macvlan`)"
        }
        (Step::SetUp { .. }, Some(libc::EBUSY | libc::EADDRINUSE)) => {
            " (its MAC is in use by its master, or by another macvlan on it; choose another `mac`)"
        }
        (Step::AddRoute { .. }, Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
            " (no address of the interface has the gateway in its network)"
        }
        _ => "",
    }
}
