//! A runtime that speaks CNI 1.1: which version it and netpath agree on, and STATUS.

mod common;
#[path = "common/cri.rs"]
mod cri;
#[path = "common/site.rs"]
mod site;

use std::fs;
use std::time::Duration;

use common::eventually;
use serde_json::{Value, json};
use site::{IMAGE, Site, private};

const NOTHING: [&str; 0] = [];

/// Longer than three times the time between two calls of STATUS.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes down command and version of each call of netpath.
const RECORDER: &str = r#"#!/bin/sh
stdin=$(cat)
version=$(printf %s "$stdin" | sed 's/.*"cniVersion":"\([^"]*\)".*/\1/')
printf %s "$stdin" | /opt/cni/bin/netpath.real
code=$?
echo "$CNI_COMMAND $version $code" >> /var/lib/netpath-calls
exit $code
"#;

/// A first network that knows STATUS, as none of Debian's plugins do: the bridge plugin behind it does the rest.
const FIRST: &str = r#"#!/bin/sh
if [ "$CNI_COMMAND" = STATUS ]; then
    echo asked >> /var/lib/netpath-asked
    [ -e /run/broken ] || exit 0
    echo '{"cniVersion": "1.1.0", "code": 50, "msg": "not now"}'
    exit 1
fi
sed 's/"cniVersion":"1.1.0"/"cniVersion":"1.0.0"/; s/"type":"first"/"type":"bridge"/' | /opt/cni/bin/bridge
"#;

fn site() -> Site {
    let dir = std::env::var("NETPATH_NEWER_CONTAINERD");
    Site::with(&["--containerd", &dir.expect("`cargo xtask test runtime` says where a newer containerd is")])
}

#[track_caller]
fn lines(site: &Site, file: &str) -> Vec<String> {
    let text = fs::read_to_string(site.node.path(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_newer_runtime_gets_the_newest_version_and_the_cluster_networks_status() {
    let site = site();
    site.node.sh("cp /opt/cni/bin/netpath /opt/cni/bin/netpath.real");
    site.plugin("netpath", RECORDER);
    site.plugin("first", FIRST);
    let conf: Value =
        serde_json::from_str(&fs::read_to_string(site.node.path("/etc/cni/net.d/10-cbr0.conflist")).unwrap())
            .unwrap();
    let mut first = conf["plugins"][0].clone();
    first["type"] = json!("first");
    let cluster = json!({"cniVersion": "1.1.0", "name": "cbr0", "plugins": [first]});
    fs::write(site.node.path("/etc/cni/net.d/10-cbr0.conflist"), cluster.to_string()).unwrap();

    site.nad("priv", &private());
    let pod = site.pod("p", "priv");
    let id = site.cri.run(&pod).unwrap();
    let container = site.cri.container(&id, &pod, IMAGE);
    for (reached, words) in [(true, "-I net1 10.12.34.254"), (false, "-I net1 8.8.8.8"), (true, "8.8.8.8")] {
        let answer = site.cri.exec(&container, &format!("ping -c 1 -W 2 {words}"));
        assert_eq!(answer.exit_code == 0, reached, "{words}: {}", answer.text());
    }
    site.end(&id);

    // STATUS is asked for when somebody asks the runtime how it is, as kubelet does every five seconds.
    let asked = lines(&site, "/var/lib/netpath-asked").len();
    assert!(site.cri.is_network_ready());
    assert!(lines(&site, "/var/lib/netpath-asked").len() > asked, "STATUS reaches the cluster network");
    fs::write(site.node.path("/run/broken"), "").unwrap();
    let is_down = || (!site.cri.is_network_ready()).then_some(());
    eventually(PATIENCE, "what the cluster network says of itself is the node's state", is_down);
    let conditions = site.cri.runtime().0;
    let network = conditions.iter().find(|it| it.kind == "NetworkReady").unwrap();
    assert!(network.message.contains("not now"), "{network:?}");
    fs::remove_file(site.node.path("/run/broken")).unwrap();
    eventually(PATIENCE, "and so when it has recovered", || site.cri.is_network_ready().then_some(()));

    let calls = lines(&site, "/var/lib/netpath-calls");
    for command in ["ADD", "DEL", "STATUS"] {
        let of: Vec<_> = calls.iter().filter(|call| call.starts_with(command)).collect();
        assert!(!of.is_empty(), "no {command} in {calls:?}");
        assert!(of.iter().all(|call| call.contains(" 1.1.0 ")), "the newest of cniVersions: {calls:?}");
    }
    assert!(
        calls.contains(&"STATUS 1.1.0 0".to_owned()) && calls.contains(&"STATUS 1.1.0 1".to_owned()),
        "{calls:?}"
    );
    assert_eq!(site.node.leftovers(), NOTHING);
}

#[test]
fn a_full_pool_or_a_missing_master_is_not_the_nodes_fault() {
    let site = site();
    let mut conf = private();
    conf["ipam"]["rangeEnd"] = conf["ipam"]["rangeStart"].clone();
    site.nad("full", &conf);
    conf["master"] = json!("enp0s9");
    site.nad("gone", &conf);
    let holder = site.cri.run(&site.pod("holder", "full")).unwrap();
    for networks in ["full", "gone"] {
        site.cri.run(&site.pod("p", networks)).expect_err(networks);
        assert!(site.cri.is_network_ready());
    }
    site.node.sh("umount /sys/fs/bpf; ip link set enp0s8 down");
    assert!(site.cri.is_network_ready());
    let plain = site.cri.run(&site.pod("plain", "")).unwrap();
    site.end(&plain);
    site.end(&holder);
    // What our own configuration cannot do is the node's fault: no pod could be started.
    site.node.sh("mv /etc/cni/net.d/10-cbr0.conflist /etc/cni/net.d/.moved");
    eventually(PATIENCE, "no pod can be started", || (!site.cri.is_network_ready()).then_some(()));
    site.node.sh("mv /etc/cni/net.d/.moved /etc/cni/net.d/10-cbr0.conflist");
    eventually(PATIENCE, "the node is ready again", || site.cri.is_network_ready().then_some(()));
}
