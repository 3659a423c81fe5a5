//! What happens to a node and its runtime: power failures, plugins that hang, runtimes that ask for their state.

mod common;
#[path = "common/cri.rs"]
mod cri;
#[path = "common/site.rs"]
mod site;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use common::{PATIENCE, eventually};
use serde_json::{Value, json};
use site::{IMAGE, OURS, Site, macvlan, private};

const NOTHING: [&str; 0] = [];

/// Writes down each call of netpath, then makes it.
const RECORDER: &str = r#"#!/bin/sh
calls=/var/lib/netpath-calls
mkdir -p $calls
call=$(mktemp -d $calls/$(date +%s%N).XXXXXX)
env > "$call/env"
cat > "$call/stdin"
/opt/cni/bin/netpath.real < "$call/stdin"
code=$?
echo $code > "$call/exit"
exit $code
"#;

/// A call that the recorder wrote down.
struct Call {
    env: BTreeMap<String, String>,
    exit: String,
}

impl Call {
    fn var(&self, name: &str) -> &str {
        self.env.get(name).map(String::as_str).unwrap_or_default()
    }
}

/// Puts the recorder in netpath's place.
#[track_caller]
fn record(site: &Site) {
    site.node.sh("cp /opt/cni/bin/netpath /opt/cni/bin/netpath.real");
    site.plugin("netpath", RECORDER);
}

/// The calls that have ended, in their order.
#[track_caller]
fn calls(site: &Site) -> Vec<Call> {
    let mut dirs: Vec<_> = fs::read_dir(site.node.path("/var/lib/netpath-calls"))
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect();
    dirs.sort();
    dirs.retain(|dir| dir.join("exit").exists());
    let text = |path| fs::read_to_string(path).unwrap();
    let call = |dir: &std::path::PathBuf| Call {
        env: text(dir.join("env"))
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        exit: text(dir.join("exit")).trim().to_owned(),
    };
    dirs.iter().map(call).collect()
}

#[test]
fn a_power_failure_leaves_nothing_that_the_runtime_does_not_end() {
    let mut site = Site::new();
    site.nad("priv", &private());
    let pod = site.pod("p", "priv");
    let old = site.cri.run(&pod).unwrap();
    assert_eq!(site.network_status(&old)[1]["ips"], json!(["10.12.34.120"]));

    site.reboot();
    assert_eq!(
        site.node.sh("ls /sys/fs/bpf /run/netns; ls /run/netpath 2>/dev/null || :"),
        "/run/netns:\n\n/sys/fs/bpf:\nmaps.debug\nprogs.debug\n"
    );
    assert_eq!(site.cri.sandboxes(), std::slice::from_ref(&old), "the runtime remembers the sandbox");
    record(&site);
    // What kubelet does first, before and after it has made the pod's new sandbox.
    site.cri.stop(&old).unwrap();
    let mut again = pod.clone();
    again.metadata.as_mut().unwrap().attempt = 1;
    let new = site.cri.run(&again).unwrap();
    site.cri.remove(&old).unwrap();

    let made = calls(&site);
    let said: Vec<_> = made.iter().map(|call| (call.var("CNI_COMMAND"), call.exit.as_str())).collect();
    assert_eq!(said.iter().filter(|(command, _)| *command == "ADD").count(), 1, "{said:?}");
    assert!(said.iter().all(|(_, exit)| *exit == "0"), "{said:?}");
    assert_eq!((said[0].0, made[0].var("CNI_NETNS")), ("DEL", ""), "the namespace is gone");

    let container = site.cri.container(&new, &again, IMAGE);
    let ping = |words: &str| site.cri.exec(&container, &format!("ping -c 1 -W 2 {words}")).exit_code;
    assert_eq!(ping("-I net1 10.12.34.254"), 0);
    assert_ne!(ping("-I net1 8.8.8.8"), 0, "the zone is in force again");
    assert_eq!(site.node.pods().len(), 1);
    let reserved = site.node.sh("cd /var/lib/cni/networks; ls -d */10.*");
    assert_eq!(reserved.lines().count(), 2, "one address of each network: {reserved}");
    site.end(&new);
    assert_eq!(site.node.leftovers(), NOTHING);
}

#[test]
fn a_runtime_that_was_killed_finds_its_pods_as_they_were() {
    let mut site = Site::new();
    site.nad("priv", &private());
    let pod = site.pod("p", "priv");
    let id = site.cri.run(&pod).unwrap();
    let container = site.cri.container(&id, &pod, IMAGE);
    site.cluster("stop worker01 containerd");
    site.cluster("start worker01 containerd");
    site.cri = site.connect();
    let ping = site.cri.exec(&container, "ping -c 1 -W 2 -I net1 10.12.34.254");
    assert_eq!(ping.exit_code, 0, "{}", ping.text());
    site.end(&id);
    assert_eq!(site.node.leftovers(), NOTHING);
}

#[test]
fn a_plugin_that_hangs_blocks_neither_the_sandbox_nor_its_end() {
    let site = Site::new();
    // One that would hold whatever it inherits, and what it starts does as well.
    let hangs = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\nsleep 4711 &\nsleep 4712\n";
    site.plugin("hangs", hangs);
    site.nad("stuck", &json!({"cniVersion": "1.0.0", "type": "hangs"}));
    let pod = site.pod("p", "stuck");
    let start = Instant::now();
    let patience = Duration::from_secs(6);
    site.cri.run_within(&pod, patience).expect_err("kubelet gives up");
    assert!(start.elapsed() >= patience);
    // The runtime has killed netpath by now. What it had started must be gone as well: it would keep the call, and
    // with it the name of the sandbox, for as long as it lives.
    let is_quiet = || (!site.processes().values().any(|line| line.contains("sleep 471"))).then_some(());
    eventually(PATIENCE, "no process of the plugin is left", is_quiet);
    let is_free = || match site.cri.run_within(&site.pod("p", ""), Duration::from_secs(60)) {
        Ok(id) => Some(id),
        Err(error) => {
            assert!(error.message().contains("reserved"), "{error:?}");
            None
        }
    };
    let id = eventually(PATIENCE, "the name of the sandbox is free", is_free);
    for id in site.cri.sandboxes() {
        site.end(&id);
    }
    assert!(!id.is_empty());
    assert_eq!(site.node.leftovers(), NOTHING);
}

#[test]
fn a_plugin_that_hangs_at_the_end_does_not_keep_the_sandbox() {
    let site = Site::new();
    let script = "#!/bin/sh\nif [ \"$CNI_COMMAND\" = ADD ]; then\n\
        echo '{\"cniVersion\": \"1.0.0\", \"interfaces\": [], \"ips\": []}'; exit 0\nfi\n\
        [ -e /run/may-end ] && exit 0\nsleep 4713 &\nsleep 4714\n";
    site.plugin("hangs", script);
    site.nad("stuck", &json!({"cniVersion": "1.0.0", "type": "hangs"}));
    let id = site.cri.run(&site.pod("p", "stuck")).unwrap();
    site.cri.stop_within(&id, Duration::from_secs(6)).expect_err("the plugin hangs");
    let is_quiet = || (!site.processes().values().any(|line| line.contains("sleep 471"))).then_some(());
    eventually(PATIENCE, "no process of the plugin is left", is_quiet);
    fs::write(site.node.path("/run/may-end"), "").unwrap();
    site.end(&id);
    assert_eq!(site.node.leftovers(), NOTHING);
}

#[test]
fn faults_of_one_network_are_not_the_nodes() {
    let site = Site::new();
    site.nad("gone", &macvlan(&json!({"master": "enp0s9"})));
    site.cri.run(&site.pod("p", "gone")).expect_err("there is no such master");
    assert!(site.cri.is_network_ready());
    let running = site.cri.run(&site.pod("running", "")).unwrap();
    let (address, _) = site.cri.status(&running);
    // The cluster network's plugin is everybody's.
    site.node.sh("mv /opt/cni/bin/bridge /opt/cni/bin/.bridge");
    let error = site.cri.run(&site.pod("q", "")).expect_err("the cluster network cannot be made");
    assert!(error.message().contains("bridge"), "{error:?}");
    // What cannot be ended without it keeps no pod from ending, and is not forgotten.
    site.end(&running);
    site.node.sh("mv /opt/cni/bin/.bridge /opt/cni/bin/bridge");
    let id = site.cri.run(&site.pod("q", "")).unwrap();
    site.end(&id);
    let kept = format!("/var/lib/netpath/v1/pending/{running}.json");
    let left = site.node.leftovers();
    let is_its = |it: &String| it.contains(&running) || it.ends_with(&address);
    assert!(left.contains(&kept) && left.iter().all(is_its), "{left:?}");
}

#[test]
fn pods_of_the_stock_configuration_end_through_netpath() {
    let site = Site::new();
    let switch = |there: bool| {
        let (from, to) =
            if there { (".saved", "00-netpath.conflist") } else { ("00-netpath.conflist", ".saved") };
        site.node.sh(&format!("cd /etc/cni/net.d; mv {from} {to}"));
        let in_force = || {
            let cni: Value = serde_json::from_str(&site.cri.runtime().1["cniconfig"]).unwrap();
            let networks = cni["Networks"].as_array().unwrap().clone();
            networks
                .iter()
                .any(|it| {
                    (it["Config"]["Name"] == "netpath") == there && it["Config"]["Name"] != "cni-loopback"
                })
                .then_some(())
        };
        eventually(PATIENCE, "the runtime has taken note of the configuration", in_force);
    };
    site.nad("priv", &private());
    switch(false);
    let stock = site.cri.run(&site.pod("stock", "")).unwrap();
    let (address, _) = site.cri.status(&stock);
    switch(true);
    let ours = site.cri.run(&site.pod("ours", "priv")).unwrap();
    let path = format!("/var/lib/cni/networks/cbr0/{address}");
    assert!(site.node.path(&path).exists());
    site.end(&stock);
    assert!(!site.node.path(&path).exists(), "DEL without a record is the cluster network's DEL");
    // And back. The way back says what still lives; the sandbox of ours ends by its own network.
    site.end(&ours);
    switch(false);
    let back = site.cri.run(&site.pod("back", "priv")).unwrap();
    site.end(&back);
    assert_eq!(site.node.leftovers(), NOTHING);
    assert!(fs::exists(OURS).unwrap());
}
