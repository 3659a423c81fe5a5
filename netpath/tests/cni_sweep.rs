//! What no runtime will send a DEL for: found by the runtime's list and the kernel, ended by the records alone.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/grpc.rs"]
mod grpc;
#[path = "common/meta.rs"]
mod meta;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use cni::{OURS, Site, conf, zoned};
use common::NetNs;
use grpc::{Reply, Server, field};
use meta::{MetaSite, NOTHING};
use serde_json::{Value, json};

/// A runtime that has these sandboxes.
fn runtime(site: &Site, sandboxes: &[&str]) -> Server {
    runtime_of(site, "runtime.v1", sandboxes)
}

fn runtime_of(site: &Site, package: &'static str, sandboxes: &[&str]) -> Server {
    let socket = site.root.join("run/containerd/containerd.sock");
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    // Of each the id, and a state that nobody here has a use for.
    let item = |id: &&str| field(1, &[field(1, id.as_bytes()), vec![3 << 3, 1]].concat());
    let list: Vec<u8> = sandboxes.iter().flat_map(item).collect();
    Server::new(&socket, move |path, _| match path == format!("/{package}.RuntimeService/ListPodSandbox") {
        true => Reply::Message(list.clone()),
        false => Reply::Refusal("12", "unknown service"),
    })
}

/// The tool in the node's namespace.
fn tool(site: &Site, words: &str) -> Output {
    let net = format!("--net={}", site.node.path().display());
    let mut command = Command::new("nsenter");
    command.args([&net, OURS, "--root", site.root.path().to_str().unwrap()]);
    command.args(words.split_whitespace()).output().unwrap()
}

/// It must fail and say this.
#[track_caller]
fn refuses(site: &Site, words: &str, text: &str) {
    let output = tool(site, words);
    let said = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(!output.status.success() && said.contains(text), "{words}: {output:?}");
}

/// What a sweep says of each container: `(container, kind, verdict)`.
#[track_caller]
fn verdicts(site: &Site, words: &str) -> Vec<(String, String, String)> {
    let output = tool(site, &format!("sweep -o json {words}"));
    assert!(output.status.success(), "{output:?}");
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
    let all = all.as_array().unwrap().iter();
    all.map(|it| (text(it, "containerID"), text(it, "kind"), text(it, "verdict"))).collect()
}

fn said(container: &str, kind: &str, verdict: &str) -> (String, String, String) {
    (container.to_owned(), kind.to_owned(), verdict.to_owned())
}

/// Makes everything that is recorded an hour older.
fn age(site: &Site) {
    for dir in ["", "sandboxes", "pending"] {
        let Ok(entries) = fs::read_dir(site.root.state().join(dir)) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            change(&path, |record| record["created"] = (record["created"].as_u64().unwrap() - 3600).into());
        }
    }
}

fn change(path: &Path, how: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    how(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// A sandbox `c1` that stands, and `c2` whose namespace is gone; each with the cluster network, a policed one and `a`.
fn two() -> MetaSite {
    let meta = MetaSite::new();
    meta.nad("priv", zoned(json!({})));
    let pool = json!({"type": "host-local", "subnet": "10.70.0.0/24"});
    meta.nad("a", json!({"cniVersion": "1.0.0", "type": "one", "ipam": pool}));
    let conf = meta.conf("priv,a", json!({}));
    let gone = NetNs::new("gone");
    meta.call("ADD", &conf).ok();
    meta.call("ADD", &conf).id("c2").netns(&gone.path()).ok();
    assert_eq!(meta.site.rows().len(), 2);
    meta.said();
    meta
}

#[test]
fn what_is_dead_is_ended_by_its_record_and_nothing_else_is() {
    let meta = two();
    let site = &meta.site;
    // Nobody but the records knows how it was made.
    fs::remove_dir_all(site.root.join("nads")).unwrap();
    fs::remove_dir_all(site.root.join("etc/cni/net.d")).unwrap();
    let untouched = |verdict: &str, words: &str| {
        let before = site.files();
        let expected = [said("c1", "sandbox", "alive"), said("c2", "sandbox", verdict)];
        assert_eq!(verdicts(site, words), expected);
        assert_eq!((site.files(), meta.said()), (before, vec![]));
    };
    let empty = runtime(site, &[]);
    untouched("young", "");
    age(site);
    untouched("dead", "--dry-run");
    assert_eq!(empty.calls(), ["/runtime.v1.RuntimeService/ListPodSandbox"; 2]);
    drop(empty);
    let listing = runtime(site, &["c2", "c3"]);
    untouched("alive", "");
    drop(listing);

    // The runtime is one of before 1.6, and knows nothing: c1 stands all the same.
    let _old = runtime_of(site, "runtime.v1alpha2", &[]);
    let expected = [said("c1", "sandbox", "alive"), said("c2", "sandbox", "ended")];
    assert_eq!(verdicts(site, ""), expected);
    let calls = meta.calls();
    assert_eq!(meta.said(), ["DEL one net2", "DEL first eth0"]);
    assert_eq!(calls[0].var("CNI_CONTAINERID"), "c2");
    assert_eq!(calls[0].stdin["prevResult"]["interfaces"][0]["name"], "net2");
    assert!(calls[1].var("CNI_ARGS").contains("K8S_POD_NAME=p"), "as its ADD had them");
    assert_eq!(site.rows().len(), 1);
    let left: Vec<String> = meta.remembered().into_iter().filter(|path| path.contains("c2")).collect();
    assert_eq!(left, NOTHING);
    assert_eq!(verdicts(site, ""), [said("c1", "sandbox", "alive")]);
    assert!(String::from_utf8_lossy(&tool(site, "sweep").stdout).starts_with("1 alive"));
}

/// A runtime may give an id to another sandbox between the look and the end.
#[test]
fn what_is_not_as_it_was_judged_is_left_alone() {
    let meta = two();
    let site = &meta.site;
    age(site);
    let known = netpath::plugin::sweep::known(&site.root).unwrap();
    let one = known.iter().find(|it| it.container_id.as_str() == "c2").unwrap();
    change(&site.root.state().join("sandboxes/c2.json"), |record| record["annotation"] = json!("other"));
    let before = site.files();
    assert_eq!(one.end(&site.root, &[]).unwrap(), netpath::plugin::sweep::End::Changed);
    assert_eq!((site.files(), meta.said()), (before, vec![]));
}

/// Of a namespace that is mounted elsewhere there is an ordinary file, or nothing.
#[test]
fn who_does_not_see_the_nodes_mounts_ends_nothing() {
    let meta = two();
    let site = &meta.site;
    let _empty = runtime(site, &[]);
    age(site);
    let before = site.files();
    let net = format!("--net={}", site.node.path().display());
    let root = site.root.path().to_str().unwrap();
    let pod = site.pod.path();
    let (pod, script) = (pod.to_str().unwrap(), "umount \"$1\" && exec \"$2\" --root \"$3\" sweep -o json");
    let mut command = Command::new("nsenter");
    command.args([
        &net,
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
        pod,
        OURS,
        root,
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdicts: Vec<_> = all.as_array().unwrap().iter().map(|it| it["verdict"].clone()).collect();
    assert_eq!(verdicts, ["alive", "alive"]);
    assert_eq!((site.files(), meta.said()), (before, vec![]));
}

#[test]
fn without_the_runtimes_word_nothing_is_ended() {
    let meta = two();
    let site = &meta.site;
    age(site);
    let before = site.files();
    refuses(site, "sweep", "no container runtime's socket is where they usually are");
    refuses(site, "sweep --runtime unix:///run/none.sock", "run/none.sock: is it running?");
    refuses(site, "sweep --runtime tcp://1.2.3.4", "write the socket's path");
    let silent = runtime_of(site, "another", &[]);
    refuses(site, "sweep", "does not say what it is asked");
    assert_eq!(silent.calls().len(), 2);
    drop(silent);
    assert_eq!((site.files(), meta.said()), (before, vec![]));
    // It is there no more, and its socket still is.
    refuses(site, "sweep", "is it running?");
    let expected = [said("c1", "sandbox", "alive"), said("c2", "sandbox", "ended")];
    assert_eq!(verdicts(site, "--no-runtime"), expected);
}

#[test]
fn an_attachment_that_a_runtime_made_itself_is_swept_by_its_record() {
    let site = Site::new();
    let gone = NetNs::new("gone");
    site.ours("ADD", &zoned(json!({}))).ok();
    site.ours("ADD", &zoned(json!({}))).id("gone").netns(&gone.path()).ok();
    drop(gone);
    // Of the boot before, with the runtime's word that it is needed.
    site.ours("ADD", &conf(json!({"name": "other"}))).id("c3").ifname("net3").ok();
    change(&site.root.state().join("c3-net3.json"), |it| it["boot_id"] = json!("earlier"));
    // A namespace that was given the number of the one that is gone.
    site.ours("ADD", &conf(json!({"name": "other"}))).id("c4").ifname("net4").ok();
    change(&site.root.state().join("c4-net4.json"), |it| {
        it["netns"]["cookie"] = (it["netns"]["cookie"].as_u64().unwrap() + 1).into();
    });
    age(&site);
    let _runtime = runtime(&site, &["c3"]);
    let expected = [
        said("c1", "attachment", "alive"),
        said("c3", "attachment", "alive"),
        said("c4", "attachment", "ended"),
        said("gone", "attachment", "ended"),
    ];
    assert_eq!(verdicts(&site, ""), expected);
    assert_eq!(site.rows().len(), 2, "those of c1 and c3");
    let left: Vec<_> = site.files().into_iter().filter(|(_, text)| text.contains("gone")).collect();
    assert_eq!(left, []);
}

#[test]
fn what_was_set_aside_is_ended_once_it_can_be() {
    let meta = MetaSite::new();
    meta.nad("a", json!({"cniVersion": "1.0.0", "type": "one"}));
    let (conf, site) = (meta.conf("a", json!({})), &meta.site);
    let gone = NetNs::new("gone");
    meta.call("ADD", &conf).netns(&gone.path()).ok();
    let (plugin, away) = (site.root.join("fake/bin/one"), site.root.join("fake/one"));
    fs::rename(&plugin, &away).unwrap();
    meta.call("DEL", &conf).netns(&gone.path()).ok();
    drop(gone);
    age(site);
    meta.said();
    let _runtime = runtime(site, &[]);
    for _ in 0..2 {
        assert_eq!(verdicts(site, ""), [said("c1", "set-aside", "set-aside")]);
    }
    fs::rename(&away, &plugin).unwrap();
    meta.said();
    assert_eq!(verdicts(site, ""), [said("c1", "set-aside", "ended")]);
    assert_eq!(meta.said(), ["DEL one net1", "DEL first eth0"]);
    assert_eq!(meta.remembered(), NOTHING);
    assert_eq!(verdicts(site, ""), []);
}

/// What the record does not say any more Multus's cache does; without that it is named, and drained is not.
#[test]
fn what_has_a_torn_record_is_known() {
    let meta = two();
    let site = &meta.site;
    let old = |path: &str, text: &str| {
        let file = site.root.state().join(path);
        fs::write(&file, text).unwrap();
        assert!(Command::new("touch").args(["-d", "-1 hour"]).arg(file).status().unwrap().success());
    };
    age(site);
    for id in ["c1", "c2"] {
        old(&format!("sandboxes/{id}.json"), "{");
    }
    old("c8-net1.json", "");
    let expected = |c2: &str| [said("c1", "torn", "alive"), said("c2", "torn", c2)];
    assert_eq!(verdicts(site, "--no-runtime --dry-run")[..2], expected("dead"));
    let listing = runtime(site, &["c1", "c8"]);
    let plugins = format!("--plugins {}", site.root.join("fake/bin").display());
    meta.said();
    let all = verdicts(site, &plugins);
    assert_eq!(all[..2], expected("ended"));
    assert_eq!(all.last(), Some(&said("c8", "torn", "alive")));
    assert_eq!(meta.said(), ["DEL one net2", "DEL first eth0"]);
    drop(listing);
    let _empty = runtime(site, &[]);
    let output = tool(site, &format!("sweep {plugins}"));
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && told.contains("c8-net1.json is torn"), "{output:?}");
    refuses(site, "uninstall --yes --drained", "container c8 (net1) lives");
}

#[test]
fn what_was_set_aside_stays_so_when_its_end_fails() {
    let meta = MetaSite::new();
    meta.nad("a", json!({"cniVersion": "1.0.0", "type": "one"}));
    let (conf, site) = (meta.conf("a", json!({})), &meta.site);
    meta.call("ADD", &conf).ok();
    let (plugin, away) = (site.root.join("fake/bin/one"), site.root.join("fake/one"));
    fs::rename(&plugin, &away).unwrap();
    meta.call("DEL", &conf).ok();
    age(site);
    change(&site.root.state().join("pending/c1.json"), |record| record["netns"] = Value::Null);
    fs::rename(&away, &plugin).unwrap();
    meta.answer("one", "DEL.fail", r#"{"code": 11, "msg": "busy"}"#);
    let _runtime = runtime(site, &[]);
    assert!(!tool(site, "sweep").status.success());
    meta.no_answer("one", "DEL.fail");
    assert_eq!(verdicts(site, ""), [said("c1", "set-aside", "ended")]);
}

#[test]
fn what_cannot_be_ended_stays_and_is_named() {
    let meta = two();
    let site = &meta.site;
    age(site);
    let _runtime = runtime(site, &[]);
    meta.answer("one", "DEL.fail", r#"{"code": 11, "msg": "busy"}"#);
    let output = tool(site, "sweep");
    let said_of = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said_of.contains("failed") && said_of.contains("busy"), "{output:?}");
    meta.no_answer("one", "DEL.fail");
    assert_eq!(verdicts(site, "")[1], said("c2", "sandbox", "ended"));
}

#[test]
fn a_node_is_uninstalled_drained_when_nothing_lives() {
    let meta = two();
    let site = &meta.site;
    age(site);
    let _runtime = runtime(site, &["c1"]);
    refuses(site, "uninstall --yes --drained", "web/p (eth0, net1, net2) lives: the runtime lists it");
    assert_eq!(site.rows().len(), 1, "what is dead is ended, and what lives is policed");
    // Without it the operator is told what nobody will give back.
    let output = tool(site, "uninstall --yes");
    let told = String::from_utf8_lossy(&output.stdout);
    let text = "web/p: 10.9.0.100 stays reserved in";
    assert!(output.status.success() && told.contains(text), "{output:?}");
    meta.call("DEL", &meta.conf("priv,a", json!({}))).ok();
    let output = tool(site, "uninstall --yes --drained");
    assert!(output.status.success(), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("stays reserved"), "{output:?}");
}
