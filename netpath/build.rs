//! Finds the eBPF object to embed. Without one the crate still builds; loading then fails and says what to run.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(no_bpf_object)");
    println!("cargo::rerun-if-env-changed=NETPATH_BPF_OBJECT");
    let object = env::var_os("NETPATH_BPF_OBJECT").map_or_else(
        || {
            let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
            manifest.join("../target/netpath.bpf.o")
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    if object.exists() {
        println!("cargo::rustc-env=NETPATH_BPF_OBJECT={}", object.display());
    } else {
        println!("cargo::rustc-cfg=no_bpf_object");
    }
}
