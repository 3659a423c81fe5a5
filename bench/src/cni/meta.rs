//! What the meta-plugin adds to the plugins that it executes: ADD and DEL of a pod with its first network and one
//! more, beside the bare calls of the same plugins, all in turn.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    PLUGIN, STANDARD,
    call::{Call, timed},
    lab::nad,
    server,
};
use crate::{
    Effort,
    figures::{Figures, Unit},
    http,
    netns::Namespace,
    order::order,
    root::Directory,
    samples::Samples,
    say,
};

/// Who is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// The two plugins, one after the other.
    Bare,
    /// The meta-plugin, networks in a directory.
    Directory,
    /// The meta-plugin before an API server, with an agent that will post events.
    Api,
    /// The same without an agent: it posts two events.
    ApiAndEvents,
}

const ALL: [Who; 4] = [Who::Bare, Who::Directory, Who::Api, Who::ApiAndEvents];

impl Who {
    /// Its part of a figure's name.
    fn slug(self) -> &'static str {
        match self {
            Self::Bare => "plugins",
            Self::Directory => "directory",
            Self::Api => "api",
            Self::ApiAndEvents => "api-and-events",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bare => "the two plugins alone",
            Self::Directory => "netpath, NAD directory",
            Self::Api => "netpath, API server (GET, PATCH)",
            Self::ApiAndEvents => "netpath, API server, and two events",
        }
    }
}

struct Bench<'a> {
    binary: &'a Path,
    directory: Directory,
    netns: PathBuf,
}

/// Runs the cases.
pub(super) fn run(effort: Effort, figures: &mut Figures, binary: &Path) -> Result<()> {
    let pod = Namespace::new("meta")?;
    measure(&Bench { binary, directory: Directory::with_memory("meta")?, netns: pod.path() }, effort, figures)
}

fn measure(bench: &Bench<'_>, effort: Effort, figures: &mut Figures) -> Result<()> {
    let server = server::Server::start()?;
    bench.prepare(server.address)?;
    let rounds = match effort {
        Effort::Quick => 5,
        Effort::Usual => 100,
        Effort::Full => 200,
    };
    let mut times: Vec<(Samples, Samples)> = vec![Default::default(); ALL.len()];
    let (mut own, mut own_del): (Vec<Samples>, Vec<Samples>) =
        (vec![Samples::default(); ALL.len()], vec![Samples::default(); ALL.len()]);
    for round in 0..rounds {
        let mut took = [(0.0, 0.0); ALL.len()];
        for at in order(usize::try_from(round)?, ALL.len()) {
            let who = ALL[at];
            let id = format!("c{at}-{round}");
            let agent = (who == Who::Api).then(|| bench.agent()).transpose()?;
            let add = bench.time(who, "ADD", &id)?;
            let del = bench.time(who, "DEL", &id)?;
            drop(agent);
            took[at] = (add, del);
        }
        // The first one is of the bare plugins.
        for (at, (add, del)) in took.into_iter().enumerate() {
            times[at].0.push(add);
            times[at].1.push(del);
            own[at].push(add - took[0].0);
            own_del[at].push(del - took[0].1);
        }
    }
    let calls = server.calls();
    let adds = rounds * 2;
    ensure!(
        (calls.gets, calls.patches, calls.posts) == (adds, adds, rounds * 2),
        "{adds} ADDs before the API made {calls:?}"
    );
    say("\n## cni: default network and one NAD, microseconds\n");
    say("| what | ADD | DEL | ADD, above the plugins | DEL, above the plugins |");
    say("|---|---|---|---|---|");
    for (at, who) in ALL.into_iter().enumerate() {
        figures.put(format!("cni/meta/{}/add", who.slug()), Unit::Microseconds, times[at].0.clone());
        figures.put(format!("cni/meta/{}/del", who.slug()), Unit::Microseconds, times[at].1.clone());
        say(format_args!(
            "| {} | {} | {} | {} | {} |",
            who.name(),
            times[at].0,
            times[at].1,
            own[at],
            own_del[at]
        ));
    }
    say(format_args!(
        "\nAPI calls: {} GET, {} PATCH for {adds} ADDs and as many DELs; {} POST of events.",
        calls.gets, calls.patches, calls.posts
    ));
    Ok(())
}

impl Bench<'_> {
    fn prepare(&self, server: SocketAddr) -> Result<()> {
        for (path, text) in [
            ("nads/a.yaml", nad("a", "web", &network("a").to_string())),
            ("etc/kubeconfig", http::kubeconfig(server)),
            ("etc/cni/net.d/10-first.conf", network("first").to_string()),
            ("run/netpath/agent.lock", String::new()),
        ] {
            self.directory.write(path, &text)?;
        }
        Ok(())
    }

    /// Holds the lock that an agent holds.
    fn agent(&self) -> Result<nix::fcntl::Flock<fs::File>> {
        let file = fs::File::open(self.directory.root().agent_lock())?;
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
    }

    /// One ADD or DEL, in microseconds.
    fn time(&self, who: Who, command: &str, id: &str) -> Result<f64> {
        let mut meta = json!({"cniVersion": "1.0.0", "name": "cluster", "type": "netpath",
            "clusterNetwork": "/etc/cni/net.d/10-first.conf",
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"k8s.v1.cni.cncf.io/networks": "a"}}});
        match who {
            Who::Bare => {
                let program = Path::new(STANDARD).join(PLUGIN);
                return timed(|| {
                    [("eth0", "first"), ("net1", "a")].into_iter().try_for_each(|(ifname, name)| {
                        let mut plugin = self.plugin(&program, command, id, network(name).to_string());
                        plugin.command.env("CNI_IFNAME", ifname);
                        plugin.run()
                    })
                });
            }
            Who::Directory => meta["networks"] = json!("/nads"),
            Who::Api | Who::ApiAndEvents => meta["kubeconfig"] = json!("/etc/kubeconfig"),
        }
        self.netpath(command, id, &meta.to_string()).time()
    }

    fn netpath(&self, command: &str, id: &str, stdin: &str) -> Call {
        let mut netpath = self.plugin(self.binary, command, id, stdin.to_owned());
        netpath.command.env("NETPATH_ROOT", self.directory.path());
        netpath
    }

    fn plugin(&self, program: &Path, verb: &str, id: &str, stdin: String) -> Call {
        let mut command = Command::new(program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", &self.netns)
            .env("CNI_PATH", STANDARD)
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=p;K8S_POD_UID=u1");
        Call { command, stdin }
    }
}

fn network(name: &str) -> Value {
    json!({"cniVersion": "1.0.0", "name": name, "type": PLUGIN})
}
