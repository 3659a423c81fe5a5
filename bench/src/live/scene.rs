//! All sites of a run, each with what polices it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::UdpSocket,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::TcAttachType;

use super::{
    lab::{GATEWAY, Site, frame_to_pod},
    peers::{self, DOWN, Drop, Kind, Peer, Rules},
    policed::Policed,
    programs::Programs,
    verdict::Verdict,
};
use crate::netns::Namespace;

/// A site, and what is held against it.
pub(super) struct Place {
    pub(super) site: Site,
    /// The pod's.
    pub(super) socket: UdpSocket,
    /// Where netpath polices it.
    pub(super) policed: Option<Policed>,
}

/// Everything that traffic is measured on.
pub(super) struct Scene {
    /// A site for each peer that this machine has. One that cannot both pass and drop has one for each verdict.
    places: BTreeMap<(Peer, Verdict), Place>,
    /// The others, and why not.
    pub(super) missing: BTreeMap<Kind, String>,
    pub(super) programs: Programs,
    pub(super) outside: Namespace,
    /// The masters that netpath does not police.
    pub(super) node: Namespace,
    /// Sites that were made, also those that came to nothing.
    sites: usize,
    /// How `tc` was told to drop.
    pub(super) drop: Option<Drop>,
    /// Why there is no generator.
    pub(super) no_generator: Option<String>,
}

impl Scene {
    /// Makes the sites of `peers`; of each kind, the smallest size comes first.
    pub(super) fn new(binary: &Path, reference: &Path, peers: &BTreeSet<Peer>) -> Result<Self> {
        let mut scene = Self {
            places: BTreeMap::new(),
            missing: BTreeMap::new(),
            programs: Programs::load(reference)?,
            outside: Namespace::quiet("outside")?,
            node: Namespace::quiet("node")?,
            sites: 0,
            drop: None,
            no_generator: None,
        };
        let frame = frame_to_pod(GATEWAY, 53)?;
        scene.no_generator = scene.programs.send_nowhere(&frame, 1).err().map(|error| lacks(&error));
        scene.node.ip(&[format!("link add {DOWN} type veth peer name down1")])?;
        for peer in peers {
            if !scene.missing.contains_key(&peer.kind) {
                scene.add(binary, *peer).with_context(|| format!("the site of {peer}"))?;
            }
        }
        Ok(scene)
    }

    /// Where `peer` is held against a packet that is to have this verdict.
    pub(super) fn place(&self, peer: Peer, verdict: Verdict) -> Option<&Place> {
        self.places.get(&(peer, verdict)).or_else(|| self.places.get(&(peer, Verdict::Allowed)))
    }

    fn add(&mut self, binary: &Path, peer: Peer) -> Result<()> {
        match peer.kind {
            Kind::Netpath => {
                let netns = Namespace::quiet("node")?;
                self.sites += 1;
                let site = Site::new(self.sites, &netns, &self.outside)?;
                let policed = Policed::new(binary, netns, &site, peer.size)?;
                self.keep(peer, Verdict::Allowed, site, Some(policed))
            }
            Kind::TcEmpty => {
                let site = self.plain()?;
                self.programs.attach_tc("tc_empty", &self.node, &site.master, TcAttachType::Egress)?;
                self.keep(peer, Verdict::Allowed, site, None)?;
                let site = self.plain()?;
                for way in [TcAttachType::Egress, TcAttachType::Ingress] {
                    self.programs.attach_tc("tc_drop", &self.node, &site.master, way)?;
                }
                self.keep(peer, Verdict::Denied, site, None)
            }
            Kind::XdpEmpty => {
                let site = self.plain()?;
                self.programs.attach_xdp("xdp_drop", &self.node, &site.master)?;
                self.keep(peer, Verdict::Denied, site, None)
            }
            Kind::BothEmpty => {
                let site = self.plain()?;
                self.programs.attach_xdp("xdp_empty", &self.node, &site.master)?;
                self.programs.attach_tc("tc_empty", &self.node, &site.master, TcAttachType::Ingress)?;
                self.keep(peer, Verdict::Allowed, site, None)
            }
            kind => {
                let site = self.plain()?;
                if let Err(error) = self.load(peer, &site) {
                    // What it has not got for the smallest size, it has not got. What comes later is a mistake of ours, and what the
                    // tool itself does not understand.
                    let sizes = self.places.keys().filter(|(peer, _)| peer.kind == kind).count();
                    ensure!(sizes == 0 && !is_mistake(&format!("{error:#}")), error);
                    self.missing.insert(kind, lacks(&error));
                    return Ok(());
                }
                self.keep(peer, Verdict::Allowed, site, None)?;
                if kind == Kind::MnpEstablished { self.answer(peer) } else { Ok(()) }
            }
        }
    }

    /// A site that nothing polices yet.
    fn plain(&mut self) -> Result<Site> {
        self.sites += 1;
        let site = Site::new(self.sites, &self.node, &self.outside)?;
        site.plain_pod(&self.node)?;
        Ok(site)
    }

    fn load(&mut self, peer: Peer, site: &Site) -> Result<()> {
        if peer.kind == Kind::U32 && self.drop.is_none() {
            let works = load(&site.pod, &peers::probe_of_drop()).is_ok();
            self.drop = Some(if works { Drop::Action } else { Drop::ToDown });
        }
        let namespace = if peer.kind.is_in_pod() { &site.pod } else { &self.node };
        let rules = peer.rules(&site.master, self.drop.unwrap_or(Drop::Action));
        rules.map_or(Ok(()), |rules| load(namespace, &rules))
    }

    fn keep(&mut self, peer: Peer, verdict: Verdict, site: Site, policed: Option<Policed>) -> Result<()> {
        self.programs.attach_tc("tc_sink", &self.outside, &site.wire, TcAttachType::Ingress)?;
        let socket = site.connect()?;
        self.places.insert((peer, verdict), Place { site, socket, policed });
        Ok(())
    }

    /// Has the pod call the gateway and be answered, so that conntrack knows the connection.
    fn answer(&mut self, peer: Peer) -> Result<()> {
        let Self { places, programs, outside, node, no_generator, .. } = self;
        let place = places.get(&(peer, Verdict::Allowed)).context("just kept")?;
        let lacking = no_generator.clone().or_else(|| place.site.poll(node).err().map(|error| lacks(&error)));
        if let Some(why) = lacking {
            self.missing.insert(peer.kind, why);
            self.places.retain(|(other, _), _| other.kind != peer.kind);
            return Ok(());
        }
        place.socket.send_to(&[0; 18], (GATEWAY, 53))?;
        let frame = frame_to_pod(GATEWAY, 53)?;
        let wire = place.site.wire_index;
        outside.within(|| programs.send(wire, &frame, 1))??;
        let answered = super::eventually(|| Ok(place.socket.recv(&mut [0; 64]).is_ok()))?;
        ensure!(answered, "the answer did not come");
        Ok(())
    }
}

/// Whether that is how nft, iptables or tc name a rule that they cannot read.
fn is_mistake(said: &str) -> bool {
    const WORDS: [&str; 8] = [
        "syntax error",
        "Bad argument",
        "unknown option",
        "unknown arguments",
        "host/network",
        "What is \"",
        "Illegal \"",
        "Command line is not complete",
    ];
    WORDS.iter().any(|words| said.contains(words))
}

/// What a tool's failure says of this machine.
pub(super) fn lacks(error: &anyhow::Error) -> String {
    match error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => format!("not on this machine: {error}"),
        _ => format!("not in this kernel: {error:#}"),
    }
}

/// Has a tool load rules in `namespace`.
pub(super) fn load(namespace: &Namespace, rules: &Rules) -> Result<()> {
    let Rules { program, arguments, text } = rules;
    namespace.run(Command::new(program).args(*arguments), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_cannot_be_read_is_not_what_a_kernel_lacks() {
        for said in [
            "nft: Error: syntax error, unexpected drop",
            "Bad argument `--dport'\nError occurred at line: 3",
            "What is \"dorp\"?\nTry \"filter help\"",
        ] {
            assert!(is_mistake(said), "{said}");
        }
        for said in [
            "Error: Could not process rule: No such file or directory",
            "iptables-restore: line 4 failed",
            "Error: Operation not supported",
        ] {
            assert!(!is_mistake(said), "{said}");
        }
    }
}
