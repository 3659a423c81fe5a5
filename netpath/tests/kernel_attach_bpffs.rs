//! The BPF file system that pins lie on is unmounted, is another one, or is none: what is in force is mended or the
//! refusal says why; nothing of it ends in silence.

mod common;

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::enforce::{
    POD, alerts, all_live, is_enforced, is_enforced_for, is_well, mend, policed, private, ways,
};
use common::node::{MASTER, Node, conf};
use common::{NetNs, run};
use serde_json::json;

/// Until it is dropped no other test here runs: a copy of the mounts keeps those of every node alive, and the number
/// of a file system that is gone goes to the next that is mounted.
fn alone() -> MutexGuard<'static, ()> {
    static MOUNTS: Mutex<()> = Mutex::new(());
    MOUNTS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn an_unmounted_bpf_file_system_is_mounted_again() {
    let _alone = alone();
    for by_add in [false, true] {
        let entry = json!({ "unknownSource": "drop", "xdp": "native" });
        let node = Node::new(&entry);
        let pod = policed(&node);
        run(&["umount", node.root.bpffs().to_str().expect("text")]);
        alerts(&node, "container nptest-");
        mend(&node, by_add);
        all_live(&node, &entry);
        assert!(is_enforced(&node, &pod));
        assert!(is_enforced_for(&node, &pod, POD));
        is_well(&node);
    }
}

/// A shell in a mount namespace of its own, on the node's network.
fn elsewhere(node: &Node, script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-euc", script, "sh"]);
    command.args([env!("CARGO_BIN_EXE_netpath"), node.root.bpffs().to_str().expect("text")]);
    command.env_clear().env("NETPATH_ROOT", node.root.path()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

#[test]
fn from_another_bpf_file_system_nothing_is_put_in_force() {
    let _alone = alone();
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let mount = "mount -t bpf bpf $2";
    let refused = |script: &str, what: &str| {
        let output = node.netns.within(|| elsewhere(&node, script).output()).expect("it can be run");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(what), "{script}: {said}");
    };
    // The node would not see what is mounted here.
    refused("$1 attach enp0s8", "netpath mounts one only where process 1 sees it");
    let pod = policed(&node);
    for verb in ["attach enp0s8", "pods", "status", "upgrade", "uninstall --yes"] {
        refused(
            &format!("{mount}; $1 {verb}"),
            "what is in force is pinned on the BPF file system of device",
        );
        refused(&format!("umount $2; $1 {verb}"), "is no BPF file system, and what is in force is pinned on");
    }
    assert!(is_enforced(&node, &pod));
    is_well(&node);
}

/// A process that is ended with the test.
struct Held(std::process::Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn one_that_is_mounted_elsewhere_still_is_not_replaced() {
    let _alone = alone();
    for entry in ways() {
        let node = Node::new(&entry);
        let pod = policed(&node);
        let mut command = elsewhere(&node, "echo; exec sleep 600");
        let mut held = Held(command.stdout(Stdio::piped()).spawn().expect("it can be run"));
        let mut line = [0];
        held.0.stdout.as_mut().expect("piped").read_exact(&mut line).expect("it has begun");
        run(&["umount", node.root.bpffs().to_str().expect("text")]);
        let netns = NetNs::new("pod");
        let output = node.call("ADD", &netns, &conf(&["10.12.34.201/24"], Some(&private())));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success() && said.contains("what is in force is pinned on"), "{said}");
        assert!(!netns.ip("link").contains("net1"), "a refused ADD leaves nothing behind");
        assert!(is_enforced(&node, &pod), "by what is pinned there");
        drop(held);
        mend(&node, false);
        all_live(&node, &entry);
        assert!(is_enforced(&node, &pod));
        is_well(&node);
    }
}

/// A file system other than the one that pins lie on, unmounted when the test ends.
struct Wrong(String);

impl Drop for Wrong {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).stderr(Stdio::null()).status();
    }
}

#[test]
fn nothing_is_mounted_over_another_file_system_or_over_files() {
    let _alone = alone();
    for mounted in [true, false] {
        let node = Node::new(&json!({}));
        let path = node.root.bpffs();
        std::fs::create_dir_all(&path).expect("a directory");
        let text = path.to_str().expect("text").to_owned();
        let (wrong, what) = match mounted {
            true => {
                run(&["mount", "-t", "tmpfs", "none", &text]);
                (Some(Wrong(text.clone())), "another file system is mounted there")
            }
            false => {
                std::fs::write(path.join("file"), "").expect("a file");
                (None, "there are files in it")
            }
        };
        let netns = NetNs::new("pod");
        let output = node.call("ADD", &netns, &conf(&["10.12.34.200/24"], Some(&private())));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(
            said.contains("is no BPF file system") && said.contains(what) && said.contains(&text),
            "{said}"
        );
        assert!(!netns.ip("link").contains("net1"), "a refused ADD leaves nothing behind");
        let output = node.try_netpath(&["attach", MASTER]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(what), "{said}");
        drop(wrong);
        if !mounted {
            std::fs::remove_file(path.join("file")).expect("removed");
        }
        let pod = policed(&node);
        assert!(is_enforced(&node, &pod));
    }
}
