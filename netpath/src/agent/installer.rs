//! Puts the plugin and its configuration on the node, keeps them there, and makes sure that the runtime uses them.

use std::time::{Duration, Instant};

use super::{Shared, repair::Repairs};
use crate::{
    cri,
    install::{self, Site, State},
    kernel::bpf::object,
    root::Root,
    spec::install::{NETWORK, Source},
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
    /// The file was compared since this process began.
    has_plugin: bool,
    /// When a runtime was last asked.
    asked: Option<Instant>,
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
                install::configure(root, site)?;
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
                install::configure(root, site)?;
                self.asked = None;
                tracing::warn!(what, "netpath's configuration did not stand first, and does again");
                *shared.report().repairs.entry((String::new(), "cni-configuration")).or_default() += 1;
            }
            State::Preceded(file) => {
                return Err(format!(
                    "{} comes before {}: pods that start now get no secondary networks: remove or rename it",
                    file.display(),
                    crate::spec::install::CONF
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
        self.confirm(root, site)
    }

    /// Has the runtime say that pods get their networks by this configuration.
    fn confirm(&mut self, root: &Root, site: &Site) -> Done {
        let pause = if self.doubt.is_some() { ASK_SOON } else { ASK };
        if self.asked.is_none_or(|then| pause <= then.elapsed()) {
            self.doubt = doubt(root, site)?;
            self.asked = Some(Instant::now());
        }
        self.doubt.clone().map_or(Ok(()), |doubt| Err(doubt.into()))
    }
}

/// Whether pods can be given networks: without these the configuration would only make them fail.
fn ready(shared: &Shared, site: &Site) -> Done {
    if let Source::Api(kubeconfig) = &site.source {
        if shared.wish().definitions.is_none() {
            return Err("waits for the API server before the runtime is given netpath's configuration".into());
        }
        let kubeconfig = shared.root.join(&kubeconfig.to_string_lossy());
        if !kubeconfig.exists() {
            return Err(format!("waits for the credentials of the plugin, {}", kubeconfig.display()).into());
        }
    }
    Ok(())
}

/// What speaks against the configuration being the one in force, as runtimes say. One that does not say is believed.
fn doubt(root: &Root, site: &Site) -> Result<Option<String>, cri::CriError> {
    for socket in cri::sockets(root) {
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
