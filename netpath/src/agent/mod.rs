//! The agent: keeps the node true to what the cluster says, and says what the node does.
//!
//! Nothing that a pod needs goes through it: programs and maps enforce and count, and the plugin adds and deletes, while
//! it is down. One thread looks at wish and reality and brings them together, each time anew; watches and timers only
//! wake it. One thread reads drop events, one hears who claims addresses of pods. The rest, which waits for others, is asynchronous.

mod conflicts;
mod credentials;
mod drops;
mod exposition;
mod guards;
mod http;
mod installer;
mod ledger;
mod listing;
mod metrics;
mod networks;
mod notice;
mod repair;
mod report;
mod tell;
mod watch;
mod wish;
mod work;

use std::{
    fs::{self, DirBuilder, File},
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

use kube::{Client, Config, config::Kubeconfig};
use nix::fcntl::{Flock, FlockArg};

use self::{
    listing::{Listing, Outlines},
    report::Report,
    watch::What,
    wish::Wish,
};
use crate::{causes::full, install::Site, kernel::allocator, root::Root, state::StateError};

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the node in the cluster.
    pub node: String,
    /// Where metrics and health are served.
    pub listen: SocketAddr,
    /// How the API is reached; without one by what a pod is given, or `networks`.
    pub kubeconfig: Option<PathBuf>,
    /// A directory of manifests that stands in for the API.
    pub networks: Option<PathBuf>,
    /// Namespace of the ConfigMap `masters`.
    pub namespace: String,
    /// The kubeconfig by which events and network-status are written: the plugin's.
    pub plugin_kubeconfig: Option<PathBuf>,
    /// Where the plugin is installed, if it is the agent that does that.
    pub install: Option<Site>,
    /// Whether runtimes are asked by which configuration they make networks.
    pub asks_runtimes: bool,
    /// Name of the service account whose tokens the plugin is given, in [`Self::namespace`].
    pub account: String,
}

/// Why the agent ends.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The lock file.
    #[error("cannot take {}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody has the port.
    #[error("cannot serve metrics at {address}: choose another one by --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The process cannot be set up.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// No way to the API.
    #[error("cannot read how the Kubernetes API is reached")]
    Kubeconfig(#[source] Box<kube::config::KubeconfigError>),
    /// Neither in a pod nor told.
    #[error(
        "not in a pod, so the Kubernetes API is not known: name a kubeconfig by --kubeconfig, or a directory of \
         networks by --networks"
    )]
    InCluster(#[source] kube::config::InClusterError),
    /// The client cannot be made.
    #[error("cannot ask the Kubernetes API")]
    Client(#[source] Box<kube::Error>),
}

/// What the threads share.
struct Shared {
    root: Root,
    options: Options,
    wish: Mutex<Wish>,
    report: Mutex<Report>,
    listing: Mutex<Listing>,
    waiting: Mutex<tell::Waiting>,
    notices: Mutex<notice::Notices>,
    began: Instant,
    kick: SyncSender<()>,
}

impl Shared {
    fn wish(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The records of the attachments of this boot.
    fn records(&self) -> Result<Outlines, StateError> {
        self.listing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).read(&self.root)
    }

    fn waiting(&self) -> MutexGuard<'_, tell::Waiting> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Wakes the thread that works. One that is to be woken already will see all that there is.
    fn wake(&self) {
        match self.kick.try_send(()) {
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }

    /// A watch has something to tell.
    fn heard(&self, what: What, change: Option<impl FnOnce(&mut Wish)>) {
        self.report().watches.insert(what, None);
        if let Some(change) = change {
            change(&mut self.wish());
            // Pods come and go all the time, and nothing that they need waits for the agent.
            if what != What::Pods {
                self.wake();
            }
        }
    }

    /// A watch is broken, and is being made again.
    fn broken(&self, what: What, error: &(dyn std::error::Error + 'static)) {
        let text = full(error);
        let mut report = self.report();
        *report.watch_errors.entry(what).or_default() += 1;
        if report.watches.insert(what, Some(text.clone())).flatten().as_ref() != Some(&text) {
            tracing::warn!(what = what.label(), error = text, "a watch is broken; what is in force stays");
        }
    }
}

/// Runs the agent until it is told to end.
pub fn run(root: &Root, options: Options) -> Result<(), AgentError> {
    allocator::share_memory();
    let _lock = lock(root)?;
    let (kick, kicked) = mpsc::sync_channel(1);
    let shared = Arc::new(Shared {
        root: root.clone(),
        options,
        wish: Mutex::default(),
        report: Mutex::default(),
        listing: Mutex::default(),
        waiting: Mutex::default(),
        notices: Mutex::default(),
        began: Instant::now(),
        kick,
    });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AgentError::Start)?;
    runtime.block_on(serve(&shared, kicked))
}

async fn serve(shared: &Arc<Shared>, kicked: Receiver<()>) -> Result<(), AgentError> {
    let address = shared.options.listen;
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|source| AgentError::Listen { address, source })?;
    let client = client(shared).await?;
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.to_owned()).spawn(work).map_err(AgentError::Start)
    };
    let own = Arc::clone(shared);
    spawn("work", Box::new(move || work::run(&own, &kicked)))?;
    let own = Arc::clone(shared);
    spawn("drops", Box::new(move || drops::run(&own)))?;
    let own = Arc::clone(shared);
    spawn("conflicts", Box::new(move || conflicts::run(&own)))?;
    let watches = async {
        match client {
            Some((client, server)) => {
                let (node, namespace) = (&shared.options.node, &shared.options.namespace);
                let all = What::ALL.map(|what| watch::follow(client.clone(), what, node, namespace, shared));
                let watches = futures_util::future::join_all(all);
                futures_util::future::join(watches, credentials::keep(&client, &server, shared)).await;
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = http::serve(listener, shared) => {}
        () = watches => {}
        () = ended() => tracing::info!("ending; what is in force stays"),
    }
    Ok(())
}

/// Waits for a signal that asks the process to end.
async fn ended() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        },
        // Without a handler the signal ends the process by itself.
        _ => std::future::pending().await,
    }
}

/// The API, unless a directory stands in for it.
async fn client(shared: &Shared) -> Result<Option<(Client, credentials::Server)>, AgentError> {
    let options = &shared.options;
    if options.networks.is_some() {
        return Ok(None);
    }
    // The client of the plugin chooses as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = match &options.kubeconfig {
        Some(path) => {
            let failed = |error| AgentError::Kubeconfig(Box::new(error));
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &Default::default()).await.map_err(failed)?
        }
        None => Config::incluster().map_err(AgentError::InCluster)?,
    };
    if config.cluster_url.scheme_str() == Some("http") {
        // Without a word on whom to trust the system's authorities are looked for, which a node need not have.
        config.root_cert.get_or_insert_default();
    }
    let server = credentials::Server::of(&config);
    let client = Client::try_from(config).map_err(|error| AgentError::Client(Box::new(error)))?;
    Ok(Some((client, server)))
}

/// Waits until no other agent runs on this node: in a rolling update the next one comes before the last is gone.
fn lock(root: &Root) -> Result<Flock<File>, AgentError> {
    let path = root.agent_lock();
    let failed = |source: io::Error| AgentError::Lock { path: path.clone(), source };
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    }
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed)?;
    let mut known = None;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                lock.set_len(0).map_err(failed)?;
                fs::write(&path, format!("{}\n", std::process::id())).map_err(failed)?;
                return Ok(lock);
            }
            Err((file, nix::Error::EWOULDBLOCK | nix::Error::EINTR)) => file,
            Err((_, error)) => return Err(failed(error.into())),
        };
        let holder = fs::read_to_string(&path).unwrap_or_default();
        if known.as_ref() != Some(&holder) {
            tracing::info!(holder = holder.trim(), "another agent runs on this node; waiting for its end");
            known = Some(holder);
        }
        // Nobody tells of the end of a lock with a name.
        thread::park_timeout(Duration::from_millis(200));
    }
}
