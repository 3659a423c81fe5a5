//! Pods of a real container runtime, made as kubelet makes them, with netpath as the CNI plugin.

mod common;
#[path = "common/cri.rs"]
mod cri;
#[path = "common/site.rs"]
mod site;

use std::collections::BTreeSet;
use std::thread;

use serde_json::{Value, json};
use site::{IMAGE, Site, macvlan, private};

const NOTHING: [&str; 0] = [];

#[test]
fn a_pod_has_two_networks_and_its_zone_is_enforced() {
    let site = Site::new();
    site.nad("priv", &private());
    let pod = site.pod("p", "priv");
    let id = site.cri.run(&pod).unwrap();
    let (ip, _) = site.cri.status(&id);
    assert!(ip.starts_with("10.244.101."), "the pod's address is that of the first network: {ip}");
    let status = site.network_status(&id);
    assert_eq!(
        (&status[0]["name"], &status[0]["ips"], &status[0]["default"]),
        (&json!("cbr0"), &json!([ip]), &json!(true))
    );
    assert_eq!((&status[1]["name"], &status[1]["interface"]), (&json!("web/priv"), &json!("net1")));
    assert_eq!(status[1]["ips"], json!(["10.12.34.120"]));

    let container = site.cri.container(&id, &pod, IMAGE);
    let ping = |words: &str| site.cri.exec(&container, &format!("ping -c 3 -i 0.2 -W 2 {words}"));
    for (reached, words) in [
        (true, "10.12.34.254"),
        (true, "8.8.8.8"),
        (true, "-I net1 10.12.34.254"),
        (false, "-I net1 8.8.8.8"),
    ] {
        let answer = ping(words);
        assert_eq!(answer.exit_code == 0, reached, "{words}: {}", answer.text());
    }
    let drops = site.node.tool("drops");
    let drops = drops["drops"].as_array().unwrap();
    let ours: Vec<_> = drops.iter().filter(|drop| drop["container_id"] == json!(id)).collect();
    assert_eq!(ours.len(), 1, "{drops:?}");
    let told =
        ["namespace", "name", "ifname", "direction", "reason"].map(|key| ours[0][key].as_str().unwrap());
    assert_eq!(told, ["web", "p", "net1", "tx", "zone-deny"]);
    assert_eq!(ours[0]["dropped"], 3);
    let rows = site.node.pods();
    assert_eq!((rows.len(), &rows[0]["mode"]), (1, &json!("enforce")), "{rows:?}");

    site.end(&id);
    assert_eq!(site.node.leftovers(), NOTHING);
    assert_eq!(site.cri.sandboxes(), NOTHING);
}

#[test]
fn fifty_pods_at_once_come_and_go() {
    const PODS: usize = 50;
    let site = Site::new();
    site.nad("priv", &private());
    let ids: Vec<String> = thread::scope(|scope| {
        let runs: Vec<_> = (0..PODS)
            .map(|number| {
                let (site, pod) = (&site, site.pod(&format!("p{number}"), "priv"));
                scope.spawn(move || site.connect().run(&pod).unwrap())
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let addresses: BTreeSet<String> =
        ids.iter().map(|id| site.network_status(id)[1]["ips"][0].as_str().unwrap().to_owned()).collect();
    assert_eq!(addresses.len(), PODS, "each has an address of its own: {addresses:?}");
    let rows = site.node.pods();
    let macs: BTreeSet<&str> = rows.iter().map(|row| row["mac"].as_str().unwrap()).collect();
    assert_eq!((rows.len(), macs.len()), (PODS, PODS));
    let status = site.node.tool("status");
    assert_eq!(status["alerts"], json!([]), "{status}");

    thread::scope(|scope| {
        for id in &ids {
            scope.spawn(|| {
                let cri = site.connect();
                cri.stop(id).unwrap();
                cri.remove(id).unwrap();
            });
        }
    });
    assert_eq!(site.node.leftovers(), NOTHING);
}

#[test]
fn an_add_that_fails_says_why_and_leaves_nothing() {
    let site = Site::new();
    site.nad("full", &macvlan(&json!({"zone": {"policy": "private"}, "ipam": {"type": "host-local",
        "subnet": "10.12.34.0/24", "rangeStart": "10.12.34.120", "rangeEnd": "10.12.34.120", "gateway": "10.12.34.254"}})));
    site.nad("lost", &macvlan(&json!({"master": "enp0s9"})));
    site.nad("odd", &macvlan(&json!({"zone": {"policy": "privat"}})));
    let holder = site.cri.run(&site.pod("holder", "full")).unwrap();
    for (networks, text) in [
        ("missing", "cannot find a network-attachment-definition (missing) in namespace (web)"),
        ("full", "no IP addresses available in range set"),
        ("lost", "enp0s9"),
        ("odd", "privat"),
        ("full@net1,lost@net1", "net1"),
        ("[{\"nam\": \"full\"}]", "name"),
        ("priv,,", "a name is missing"),
    ] {
        let error = site.cri.run(&site.pod("p", networks)).expect_err(networks);
        let message = error.message();
        assert!(message.contains(text), "`{text}` is not in what kubelet is told for {networks}: {message}");
    }
    // None of these is the node's fault.
    assert!(site.cri.is_network_ready());
    let plain = site.cri.run(&site.pod("plain", "")).unwrap();
    assert!(site.cri.status(&plain).0.starts_with("10.244.101."));
    let ids = site.cri.sandboxes();
    for id in &ids {
        site.end(id);
    }
    assert!(ids.contains(&holder));
    assert_eq!(site.node.leftovers(), NOTHING);
}

#[test]
fn a_policed_network_without_a_data_path_fails_and_no_other_pod_does() {
    let site = Site::new();
    site.nad("priv", &private());
    site.nad("open", &macvlan(&json!({})));
    // What an administrator does in an emergency; a BPF file system that is missing is mounted.
    site.node.sh("touch /etc/netpath/disable");
    let error = site.cri.run(&site.pod("p", "priv")).expect_err("there is no data path");
    assert!(error.message().contains("/etc/netpath/disable"), "{error:?}");
    assert!(site.cri.is_network_ready());
    for (name, networks) in [("plain", ""), ("open", "open")] {
        let id = site.cri.run(&site.pod(name, networks)).unwrap();
        site.end(&id);
    }
    site.node.sh("rm /etc/netpath/disable; umount /sys/fs/bpf");
    let id = site.cri.run(&site.pod("p", "priv")).unwrap();
    assert_eq!(site.node.pods().len(), 1);
    site.end(&id);
    assert_eq!(site.node.leftovers(), NOTHING);
}

#[test]
fn an_edited_annotation_is_for_the_next_sandbox() {
    let site = Site::new();
    site.nad("one", &private());
    site.nad("two", &macvlan(&json!({})));
    let first = site.pod("p", "one");
    let old = site.cri.run(&first).unwrap();
    // The pod's sandbox dies; meanwhile somebody has edited the annotation. The runtime keeps the old one for
    // the DEL of the old sandbox, which kubelet ends once more after the new one is there.
    site.cri.stop(&old).unwrap();
    let mut second = site.pod("p", "two@other0");
    second.metadata.as_mut().unwrap().attempt = 1;
    let new = site.cri.run(&second).unwrap();
    site.cri.stop(&old).unwrap();
    site.cri.remove(&old).unwrap();
    let status = site.network_status(&new);
    assert_eq!((&status[1]["name"], &status[1]["interface"]), (&json!("web/two"), &json!("other0")));
    let container = site.cri.container(&new, &second, IMAGE);
    let ping = site.cri.exec(&container, "ping -c 1 -W 2 -I other0 10.12.34.254");
    assert_eq!(ping.exit_code, 0, "{}", ping.text());
    site.end(&new);
    assert_eq!(site.node.leftovers(), NOTHING);
}

#[test]
fn the_runtime_says_that_our_configuration_is_in_force() {
    let site = Site::new();
    let (_, info) = site.cri.runtime();
    let config: Value = serde_json::from_str(&info["config"]).unwrap();
    assert_eq!(config["cni"]["confDir"], "/etc/cni/net.d");
    let cni: Value = serde_json::from_str(&info["cniconfig"]).unwrap();
    let networks = cni["Networks"].as_array().unwrap();
    let names: Vec<&str> = networks.iter().map(|it| it["Config"]["Name"].as_str().unwrap()).collect();
    assert!(names.contains(&"netpath"), "{names:?}");
}
