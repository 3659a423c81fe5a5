//! What the meta-plugin adds to the plugins that it executes: ADD and DEL of a pod with its first network and one
//! more, beside the bare calls of the same plugins, all in turn.

mod server;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    Effort, binary,
    figures::{Figures, Unit},
    samples::Samples,
    say,
};

/// Where Debian has the standard plugins.
const STANDARD: &str = "/usr/lib/cni";
/// The plugin that both networks execute: a real one that does least, so that its own time spreads least.
const PLUGIN: &str = "loopback";

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
    fn name(self) -> &'static str {
        match self {
            Self::Bare => "the two plugins alone",
            Self::Directory => "netpath, NAD directory",
            Self::Api => "netpath, API server (GET, PATCH)",
            Self::ApiAndEvents => "netpath, API server, and two events",
        }
    }
}

/// A network namespace that goes with us.
struct Pod(String);

impl Pod {
    fn new() -> Result<Self> {
        let name = format!("npbench-{}", std::process::id());
        succeed(Command::new("ip").args(["netns", "add", &name]))?;
        Ok(Self(name))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // What a failed run leaves is named by its prefix.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

struct Bench {
    binary: PathBuf,
    root: PathBuf,
    netns: String,
}

/// Runs the suite.
pub(crate) fn run(effort: Effort, figures: &mut Figures) -> Result<()> {
    let binary = binary()?;
    ensure!(Path::new(STANDARD).join(PLUGIN).exists(), "{STANDARD}/{PLUGIN} is missing: cargo xtask setup");
    let pod = Pod::new()?;
    let root = std::env::temp_dir().join(format!("npbench-{}", std::process::id()));
    let result = measure(&Bench { binary, root: root.clone(), netns: format!("/run/netns/{}", pod.0) }, effort, figures);
    // The directory is of no use to anybody; that it stays is no failure of the benchmark.
    let _ = fs::remove_dir_all(root);
    result
}

fn measure(bench: &Bench, effort: Effort, figures: &mut Figures) -> Result<()> {
    let server = server::Server::start()?;
    bench.prepare(server.address())?;
    let rounds = match effort {
        Effort::Quick => 5,
        Effort::Usual => 100,
        Effort::Full => 200,
    };
    let mut times: Vec<(Samples, Samples)> = vec![Default::default(); ALL.len()];
    let (mut own, mut own_del): (Vec<Samples>, Vec<Samples>) =
        (vec![Samples::default(); ALL.len()], vec![Samples::default(); ALL.len()]);
    let mut starts = [Samples::default(), Samples::default(), Samples::default()];
    for round in 0..rounds {
        let mut bare = (0.0, 0.0);
        for (at, who) in ALL.into_iter().enumerate() {
            let id = format!("c{at}-{round}");
            let agent = (who == Who::Api).then(|| bench.agent()).transpose()?;
            let add = bench.time(who, "ADD", &id)?;
            let del = bench.time(who, "DEL", &id)?;
            drop(agent);
            if who == Who::Bare {
                bare = (add, del);
            }
            times[at].0.push(add);
            times[at].1.push(del);
            own[at].push(add - bare.0);
            own_del[at].push(del - bare.1);
        }
        starts[0].push(bench.start(Command::new("/bin/true"), "")?);
        starts[1].push(bench.start(&mut bench.netpath("VERSION", ""), r#"{"cniVersion": "1.0.0"}"#)?);
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
        figures.put(format!("cni/meta/{}/add", who.name()), Unit::Microseconds, times[at].0.clone());
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
    say(format_args!(
        "Start: /bin/true {} · netpath VERSION {}: {:.2} of it.",
        starts[0],
        starts[1],
        starts[1].median() / starts[0].median()
    ));
    Ok(())
}

impl Bench {
    fn prepare(&self, server: std::net::SocketAddr) -> Result<()> {
        let nad = json!({"kind": "NetworkAttachmentDefinition", "metadata": {"namespace": "web", "name": "a"},
            "spec": {"config": self.network("a").to_string()}});
        let kubeconfig = json!({"clusters": [{"name": "c", "cluster": {"server": format!("http://{server}")}}],
            "users": [{"name": "u", "user": {"token": "x"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
        for (path, text) in [
            ("nads/a.yaml", yaml(&nad)),
            ("etc/kubeconfig", kubeconfig.to_string()),
            ("etc/cni/net.d/10-first.conf", self.network("first").to_string()),
            ("run/netpath/agent.lock", String::new()),
        ] {
            let path = self.root.join(path);
            fs::create_dir_all(path.parent().context("is in a directory")?)?;
            fs::write(&path, text)?;
        }
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))?;
        Ok(())
    }

    fn network(&self, name: &str) -> Value {
        json!({"cniVersion": "1.0.0", "name": name, "type": PLUGIN})
    }

    /// Holds the lock that an agent holds.
    fn agent(&self) -> Result<nix::fcntl::Flock<fs::File>> {
        let file = fs::File::open(self.root.join("run/netpath/agent.lock"))?;
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
    }

    /// One ADD or DEL, in microseconds.
    fn time(&self, who: Who, command: &str, id: &str) -> Result<f64> {
        let mut meta = json!({"cniVersion": "1.0.0", "name": "cluster", "type": "netpath",
            "clusterNetwork": "/etc/cni/net.d/10-first.conf",
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"k8s.v1.cni.cncf.io/networks": "a"}}});
        match who {
            Who::Bare => {
                let begun = Instant::now();
                for (ifname, network) in [("eth0", "first"), ("net1", "a")] {
                    let program = Path::new(STANDARD).join(PLUGIN);
                    let mut plugin = self.plugin(&program, command, id);
                    plugin.env("CNI_IFNAME", ifname);
                    finish(plugin, &self.network(network).to_string())?;
                }
                return Ok(micros(begun));
            }
            Who::Directory => meta["networks"] = json!("/nads"),
            Who::Api | Who::ApiAndEvents => meta["kubeconfig"] = json!("/etc/kubeconfig"),
        }
        self.start(&mut self.netpath(command, id), &meta.to_string())
    }

    fn netpath(&self, command: &str, id: &str) -> Command {
        let mut netpath = self.plugin(&self.binary, command, id);
        netpath.env("NETPATH_ROOT", &self.root);
        netpath
    }

    fn plugin(&self, program: &Path, command: &str, id: &str) -> Command {
        let mut plugin = Command::new(program);
        plugin
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", &self.netns)
            .env("CNI_PATH", STANDARD)
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=p;K8S_POD_UID=u1");
        plugin
    }

    /// Runs a program to its end, in microseconds.
    fn start(&self, program: impl std::borrow::BorrowMut<Command>, stdin: &str) -> Result<f64> {
        let begun = Instant::now();
        finish(program, stdin)?;
        Ok(micros(begun))
    }
}

/// A manifest as people write it: its configuration in a block.
fn yaml(nad: &Value) -> String {
    format!(
        "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata:\n  name: a\n  namespace: web\nspec:\n  config: |\n    {}\n",
        nad["spec"]["config"].as_str().unwrap_or_default()
    )
}

fn micros(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6
}

fn finish(mut program: impl std::borrow::BorrowMut<Command>, stdin: &str) -> Result<()> {
    let program = program.borrow_mut();
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut pipe) = child.stdin.take() {
        // One that reads nothing closes its end.
        let _ = pipe.write_all(stdin.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{program:?} failed: {}", String::from_utf8_lossy(&said));
    }
    Ok(())
}

fn succeed(command: &mut Command) -> Result<()> {
    ensure!(command.status()?.success(), "{command:?} failed");
    Ok(())
}
