//! What an administrator sees with `bpftool`, which shares no code with this project: names, not hex.

use std::{path::Path, process::Command};

use netpath::kernel::bpf::{Hook, maps::NAMES};

use crate::{
    node::Node,
    verdict::{
        frames::{POD_MAC, udp, v4},
        image::Layout,
        model::{FAR4, POD4, Setup},
    },
};

#[track_caller]
fn bpftool(args: &[&str], path: &Path) -> String {
    let out = Command::new("bpftool").args(args).arg(path).output().expect("`bpftool` is installed");
    assert!(out.status.success(), "{args:?} {}: {}", path.display(), String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("`bpftool` prints UTF-8")
}

#[test]
fn map_dump_prints_field_names() {
    let (mut node, _) = Node::in_setup(Setup::Dual, Layout::Tries);
    // The tries still have the first generation, the second is inline.
    node.add(POD_MAC, Setup::Dual, Layout::Fit);
    assert!(!node.passes(Hook::Egress, &v4(POD4, FAR4, udp(1, 2)).frame()));
    for (map, fields) in [
        ("meta", &["\"abi_version\": 4", "\"cpus\"", "\"last_endpoint_id\"", "\"zone_rows\""][..]),
        (
            "masters",
            &["\"netns_cookie\"", "\"ifindex\": 7", "\"unknown_source\"", "\"host_macs\"", "\"object\""],
        ),
        (
            "endpoints",
            &[
                "\"mac\"",
                "\"master\": 1",
                "\"generation\"",
                "\"zone\": 1",
                "\"mode\": 2",
                "\"gateway_v4\"",
                "\"link_local\"",
            ],
        ),
        ("owners", &["\"key\"", "\"mac\"", "\"generation\": 1"]),
        ("zone_words", &["\"value\": 1"]),
        (
            "zone_slots",
            &["\"generation\"", "\"flags\"", "\"near_v4\"", "\"words_v6\"", "\"net\"", "\"mask\""],
        ),
        ("zone_info", &["\"name\"", "\"digest\"", "\"flipped_ns\""]),
        ("rules", &["\"generation\"", "\"prefix_len\"", "\"kind\"", "\"protocol\""]),
        ("rule_counters", &["\"cpu\": 0", "\"tx_packets\": 1", "\"rx_bytes\""]),
        ("zone_trie_v4", &["\"slot\"", "\"addr\"", "\"value\": 3"]),
        ("zone_trie_v6", &["\"slot\"", "\"addr\"", "\"value\": 3"]),
        ("epoch", &["\"value\""]),
        ("flows", &["\"who\"", "\"addresses\"", "\"epoch\"", "\"outcome\""]),
        ("counters", &["\"tx_packets\"", "\"rx_bytes\"", "\"tx_dropped\": 1", "\"rx_audited\""]),
        (
            "master_counters",
            &["\"host_packets\"", "\"host_dropped\"", "\"group_packets\"", "\"events_emitted\": 1"],
        ),
        ("drops", &["\"tx_dropped\"", "\"rx_dropped\"", "\"tx_audited\"", "\"rx_audited\""]),
        ("budgets", &["\"tx\"", "\"rx\""]),
    ] {
        let dump = bpftool(&["map", "dump", "pinned"], &node.pin(map));
        for field in fields {
            assert!(dump.contains(field), "{map} without {field}:\n{dump}");
        }
    }
}

#[test]
fn map_show_knows_every_pin() {
    let node = Node::new();
    for map in NAMES {
        let shown = bpftool(&["map", "show", "pinned"], &node.pin(map));
        // The kernel keeps fifteen bytes of a name.
        let name = &map[..map.len().min(15)];
        assert!(shown.contains(&format!("name {name}")), "{map}: {shown}");
    }
}

#[test]
fn prog_show_names_programs_and_their_maps() {
    let mut node = Node::new();
    let directory = node.pins().join("shown");
    std::fs::create_dir_all(&directory).expect("a directory of pins");
    for hook in Hook::ALL {
        let path = directory.join(hook.name());
        node.program(hook).pin(&path).expect("a pin");
        let shown = bpftool(&["prog", "show", "pinned"], &path);
        let kind = if hook == Hook::Xdp { "xdp" } else { "sched_cls" };
        for word in [kind, &format!("name {}", hook.name()), "tag ", "gpl", "jited", "map_ids", "btf_id"] {
            assert!(shown.contains(word), "{} without {word}: {shown}", hook.name());
        }
    }
}
