//! Puts the plugin and its configuration on the node, keeps them there, and makes sure that the runtime uses them.

use std::time::{Duration, Instant};

use super::{Shared, repair::Repairs};
use crate::{
    causes::full,
    cri,
    install::{self, Site, State},
    kernel::bpf::object,
    root::Root,
    spec::install::{NETWORK, Source},
    state::Lock,
};

/// How often the runtime is asked by which configuration it makes networks.
const ASK: Duration = Duration::from_secs(60);
/// The same until it has said what it should: it takes note of a new file within a second or two.
const ASK_SOON: Duration = Duration::from_secs(2);

type Done = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// What has been done for the node so far.
#[derive(Debug, Default)]
pub(super) struct Installer {
    /// The data path was tried on this kernel.
    is_tried: bool,
    /// What is to be taken back one day is noted.
    has_begun: bool,
    /// The file was compared since this process began.
    has_plugin: bool,
    /// When runtimes were last asked, and for how long that is enough.
    asked: Option<(Instant, Duration)>,
    /// Why the configuration is not the one in force.
    doubt: Option<String>,
}

impl Installer {
    /// Does what is missing. The order matters: a plugin never meets a data path that it does not know, and a runtime no
    /// configuration that cannot work.
    pub(super) fn install(
        &mut self,
        shared: &Shared,
        site: &Site,
        repairs: &mut Repairs,
        now: Duration,
    ) -> Done {
        let root = &shared.root;
        if !self.is_tried {
            object::verify()?;
            self.is_tried = true;
        }
        // Also where somebody removed what was noted, or uninstalled meanwhile.
        if !self.has_begun || !root.installed().exists() {
            let _lock = held(root)?;
            for done in install::begin(root, site)? {
                tracing::info!(done, "the site of the installation was another one");
            }
            self.has_begun = true;
        }
        let path = root.join(&site.bin_dir.join(install::PLUGIN).to_string_lossy());
        if !self.has_plugin || !path.exists() {
            if install::plugin(root, site)? {
                tracing::info!(path = %path.display(), "the plugin is of this version");
            }
            self.has_plugin = true;
        }
        match install::look(root, site)? {
            State::Stands => {}
            State::Absent => {
                ready(shared, site)?;
                configure(root, site)?;
                self.asked = None;
                tracing::info!(directory = %site.conf_dir.display(), "pods get their networks by netpath from now on");
            }
            State::Displaced(what) => {
                if !repairs.allow("cni configuration", now) {
                    return Err(format!(
                        "{what}: netpath's configuration was put back three times within ten minutes: find out who \
                         takes its place; pods that start now get no secondary networks"
                    )
                    .into());
                }
                configure(root, site)?;
                self.asked = None;
                tracing::warn!(what, "netpath's configuration did not stand first, and does again");
                *shared.report().repairs.entry((String::new(), "cni-configuration")).or_default() += 1;
            }
            State::Preceded(file) => {
                return Err(format!(
                    "{} comes before {}: pods that start now get no secondary networks: remove or rename it, or, if it is the \
                     cluster network's, give it a later name and install again",
                    file.display(),
                    crate::spec::install::CONF
                )
                .into());
            }
            State::Other(network) => {
                return Err(format!(
                    "--cluster-network names another file than the configuration that is in force, {}: `netpath uninstall` on \
                     this node, then install again",
                    network.display()
                )
                .into());
            }
            State::Without(file) => {
                return Err(format!(
                    "the cluster network's configuration {} is gone, so no pod can start: put it back, or \
                     `netpath uninstall` on this node and install again",
                    file.display()
                )
                .into());
            }
        }
        self.confirm(shared, site)
    }

    /// Has the runtime say that pods get their networks by this configuration.
    fn confirm(&mut self, shared: &Shared, site: &Site) -> Done {
        if self.asked.is_none_or(|(then, pause)| pause <= then.elapsed()) {
            let (doubt, pause) = match doubt(shared, site) {
                Ok(None) => (None, ASK),
                Ok(doubt) => (doubt, ASK_SOON),
                // Waiting for one that does not answer keeps the rest waiting: asked as seldom as one that is well.
                Err(error) => (Some(full(&error)), ASK),
            };
            self.doubt = doubt;
            self.asked = Some((Instant::now(), pause));
        }
        self.doubt.clone().map_or(Ok(()), |doubt| Err(doubt.into()))
    }
}

/// The lock, unless netpath is being uninstalled.
pub(super) fn held(root: &Root) -> Result<Lock, Box<dyn std::error::Error + Send + Sync>> {
    let lock = Lock::acquire(root)?;
    match root.uninstalled().exists() {
        true => Err(format!("{} says that netpath is uninstalled", root.uninstalled().display()).into()),
        false => Ok(lock),
    }
}

fn configure(root: &Root, site: &Site) -> Done {
    let _lock = held(root)?;
    Ok(install::configure(root, site)?)
}

/// Whether pods can be given networks: without these the configuration would only make them fail.
fn ready(shared: &Shared, site: &Site) -> Done {
    if let Source::Api(kubeconfig) = &site.source {
        if shared.wish().definitions.is_none() {
            return Err("waits for the API server before the runtime is given netpath's configuration".into());
        }
        // Without the administrator's word a network without a zone would be let through.
        if shared.wish().masters.is_none() {
            return Err("waits for the ConfigMap `masters`, or for the word that there is none".into());
        }
        if shared.report().errors.contains_key("masters.json") && !shared.root.masters().exists() {
            return Err(
                "the ConfigMap `masters` cannot be put in force, and nothing older bounds the NICs".into()
            );
        }
        let kubeconfig = shared.root.join(&kubeconfig.to_string_lossy());
        if !kubeconfig.exists() {
            return Err(format!("waits for the credentials of the plugin, {}", kubeconfig.display()).into());
        }
    }
    Ok(())
}

/// What speaks against the configuration being the one in force, as runtimes say. One that does not say is believed.
fn doubt(shared: &Shared, site: &Site) -> Result<Option<String>, cri::CriError> {
    if !shared.options.asks_runtimes {
        return Ok(None);
    }
    let sockets = cri::sockets(&shared.root);
    if sockets.is_empty() {
        return Ok(Some(
            "no runtime's socket is there to ask by which configuration it makes networks: mount its directory below /run, \
             or give --no-runtime"
                .to_owned(),
        ));
    }
    for socket in sockets {
        let Some(cni) = cri::cni(&socket)? else { continue };
        let socket = socket.display();
        if cni.conf_dir != site.conf_dir {
            return Ok(Some(format!(
                "the runtime at {socket} reads configurations from {}, and netpath's is in {}: set --cni-conf-dir, and \
                 mount that directory",
                cni.conf_dir.display(),
                site.conf_dir.display()
            )));
        }
        if !cni.bin_dirs.contains(&site.bin_dir) {
            let dirs: Vec<_> = cni.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
            return Ok(Some(format!(
                "the runtime at {socket} looks for plugins in {}, and netpath is in {}: set --cni-bin-dir, and mount that \
                 directory",
                dirs.join(", "),
                site.bin_dir.display()
            )));
        }
        if !cni.networks.iter().any(|network| network == NETWORK) {
            let why = cni.error.unwrap_or_else(|| format!("it has {}", cni.networks.join(", ")));
            return Ok(Some(format!("the runtime at {socket} does not make networks by netpath: {why}")));
        }
    }
    Ok(None)
}
