//! What both kinds of ADD need to police an interface.

use super::{Call, PluginError};
use crate::{
    ipam,
    kernel::netlink::{Link, Netlink},
    plan::Place,
    police::{self, MasterLink, Neighbours, PoliceError, Wanted},
    spec::{IfName, IpConfig, Mac},
    state::{Endpoint, Lock},
    zone::{Zone, ZoneConf, resolve},
};

/// What the configuration and the administrator say of an attachment, before anything is done.
pub(super) struct Rules {
    pub(super) master: MasterLink,
    pub(super) zone: Option<Zone>,
}

/// A row that is in force, for the record and for the way back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entered {
    pub(super) master: u16,
    pub(super) mac: Mac,
    pub(super) endpoint: Endpoint,
}

impl Rules {
    /// Holds the call against `masters.json`. `master` is the link that was resolved.
    ///
    /// The file is about the node's links; one in a pod is not meant, whatever its name.
    pub(super) fn read(call: &Call<'_>, master: Link, place: Place) -> Result<Self, PluginError> {
        let ifname = call.attachment()?.1;
        let policed = |error: PoliceError| failed(ifname, error);
        let masters = police::masters(call.root).map_err(policed)?;
        let names = master.names();
        let entry = match place {
            Place::Node => masters.find(&names).map_err(|error| policed(error.into()))?.cloned(),
            Place::Sandbox => None,
        };
        let conf = ZoneConf::from_conf(&call.conf.raw)?;
        if let Some(entry) = &entry {
            entry.check_type(&call.conf.kind)?;
            let namespace = call.nad.and_then(|nad| nad.split_once('/')).map(|(namespace, _)| namespace);
            entry.check_namespaces(namespace, call.env.args.k8s_pod_namespace.as_deref())?;
        }
        let zone = resolve(conf.as_ref(), call.ipam.local_subnets().as_deref(), entry.as_ref())?;
        for warning in zone.iter().flat_map(Zone::warnings) {
            tracing::warn!(network = %call.conf.name, "{warning}");
        }
        Ok(Self { master: MasterLink { link: master, entry }, zone })
    }

    /// Refuses addresses outside what the administrator gave the master, and, where the interface is policed,
    /// addresses that the pod asked for outside what the network names.
    pub(super) fn check_addresses(&self, call: &Call<'_>, ips: &[IpConfig]) -> Result<(), PluginError> {
        if let Some(entry) = &self.master.entry {
            let addresses: Vec<_> = ips.iter().map(|ip| ip.address).collect();
            entry.check_addresses("ipam", &addresses)?;
        }
        match &self.zone {
            Some(zone) if call.asks_for_addresses() => {
                // Where IPAM names no subnet, what is local is the network's own word on it.
                let subnets = call.ipam.local_subnets().unwrap_or_else(|| zone.local().to_vec());
                Ok(ipam::check_asked(ips, &subnets, &call.ipam.gateways())?)
            }
            _ => Ok(()),
        }
    }

    /// Whether the interface must have a row in force before it goes up.
    ///
    /// With a zone always. Without one it is counted where the master is under police already, or the
    /// administrator named it; elsewhere it is a plain macvlan, and nothing of the node is touched.
    pub(super) fn is_counted(&self, call: &Call<'_>) -> bool {
        self.zone.is_some() || self.master.entry.is_some() || self.is_attached(call)
    }

    /// Whether the master is a macvlan of a link in another namespace.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.master.link.is_macvlan() && self.master.link.link_netnsid.is_some()
    }

    /// Who has which address on the master, where it matters.
    pub(super) fn neighbours(&self, call: &Call<'_>) -> Neighbours {
        let watched = self.zone.as_ref().and(call.attachment().ok());
        match watched {
            Some((container_id, ifname)) => {
                Neighbours::read(call.root, self.master.link.index, container_id, ifname)
            }
            None => Neighbours::default(),
        }
    }

    fn is_attached(&self, call: &Call<'_>) -> bool {
        police::is_under_police(call.root, self.master.link.index)
    }

    /// Puts programs, zone and row in force.
    pub(super) fn enter(
        &self,
        call: &Call<'_>,
        node: &mut Netlink,
        link: &Attachment<'_>,
    ) -> Result<Entered, PluginError> {
        let ifname = call.attachment()?.1;
        let policed = |error: PoliceError| failed(ifname, error);
        let wanted = self.wanted(call, link)?;
        // Before anything is attached for an interface that cannot have a row.
        wanted.check().map_err(policed)?;
        let _lock = Lock::acquire(call.root)?;
        let mut attached = police::attach(call.root, node, &self.master, false).map_err(policed)?;
        let row =
            police::enter(call.root, node, &mut attached, &self.master.link, &wanted).map_err(policed)?;
        Ok(Entered {
            master: attached.id,
            mac: link.mac,
            endpoint: Endpoint { id: row.id, generation: row.generation },
        })
    }

    /// Gives a row that is in force the addresses that were found since.
    pub(super) fn readdress(
        &self,
        call: &Call<'_>,
        entered: Entered,
        link: &Attachment<'_>,
    ) -> Result<Entered, PluginError> {
        let ifname = call.attachment()?.1;
        let policed = |error: PoliceError| failed(ifname, error);
        let wanted = self.wanted(call, link)?;
        let _lock = Lock::acquire(call.root)?;
        police::readdress(call.root, entered.master, entered.endpoint.id, &wanted).map_err(policed)?;
        Ok(entered)
    }

    fn wanted<'a>(&'a self, call: &'a Call<'_>, link: &Attachment<'a>) -> Result<Wanted<'a>, PluginError> {
        let (container_id, ifname) = call.attachment()?;
        Ok(Wanted {
            container_id,
            ifname,
            network: call.conf.name.as_str(),
            zone: self.zone.as_ref(),
            mac: link.mac,
            ips: link.ips,
            cookie: link.cookie,
            dhcp: call.has_dhcp(),
            passthru: link.passthru,
        })
    }
}

/// The interface to be policed.
pub(super) struct Attachment<'a> {
    pub(super) mac: Mac,
    pub(super) ips: &'a [IpConfig],
    pub(super) cookie: Option<u64>,
    pub(super) passthru: bool,
}

/// Takes a row out of force again.
pub(super) fn leave(call: &Call<'_>, entered: &Entered) -> Result<(), PluginError> {
    let ifname = call.attachment()?.1;
    let _lock = Lock::acquire(call.root)?;
    let Some(mut maps) = police::maps(call.root).map_err(|error| failed(ifname, error))? else {
        return Ok(());
    };
    let left = police::leave(&mut maps, entered.master, entered.mac, entered.endpoint.id);
    left.map_err(|error| failed(ifname, error))
}

pub(super) fn failed(ifname: &IfName, error: PoliceError) -> PluginError {
    PluginError::Police { ifname: ifname.to_string(), source: Box::new(error) }
}
