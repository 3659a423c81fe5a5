//! Offloads as we read them, against `ethtool`.

use netpath::kernel::ethtool::active_features;

use super::common::{NetNs, veth};

#[test]
fn features_are_what_ethtool_shows() {
    let (here, there) = (NetNs::new("here"), NetNs::new("there"));
    veth(&here, "eno1", &there, "wire");
    let ours = || here.within(|| active_features("eno1")).expect("a veth tells");
    for (word, on) in [("off", false), ("on", true)] {
        here.exec(&format!(
            "ethtool -K eno1 tx-gso-partial off tx-checksum-ip-generic {word} tx-vlan-stag-hw-insert {word}"
        ));
        let ours = ours();
        for name in ["tx-checksum-ip-generic", "tx-vlan-stag-hw-insert"] {
            assert_eq!(ours.iter().any(|feature| feature == name), on, "{name} {word}");
        }
        // Each line of a feature that has no older name: `	name: on`, perhaps with a word behind.
        let shown = here.exec("ethtool -k eno1");
        let mut compared = 0;
        for line in shown.lines().skip(1) {
            let (name, state) = line.trim().split_once(": ").expect("name and state");
            if name.starts_with("tx-") && !matches!(name, "tx-checksumming" | "tx-vlan-offload") {
                compared += 1;
                assert_eq!(ours.iter().any(|feature| feature == name), state.starts_with("on"), "{line}");
            }
        }
        assert!(compared > 10, "{shown}");
    }
    let error = here.within(|| active_features("eno9")).expect_err("there is none");
    assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    here.within(|| active_features("a-name-too-long-for-a-link")).expect_err("nor can there be such a one");
}
