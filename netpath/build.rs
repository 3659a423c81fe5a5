//! Tells the crate where the eBPF object is, if there is one.
//!
//! `cargo xtask build-ebpf` writes it into the target directory. Without it everything but loading compiles and
//! is tested: `cfg(no_bpf_object)` is set, and a loader says which command makes the object.

use std::{
    env,
    error::Error,
    fs,
    hash::{DefaultHasher, Hasher as _},
    path::PathBuf,
    process::Command,
};

/// Names another object than the one that xtask built.
const OVERRIDE: &str = "NETPATH_BPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    instruct("rustc-check-cfg=cfg(no_bpf_object)");
    instruct("rerun-if-changed=build.rs");
    instruct(&format!("rerun-if-env-changed={OVERRIDE}"));
    instruct("rerun-if-env-changed=CARGO_TARGET_DIR");
    let object = match env::var_os(OVERRIDE).map(PathBuf::from) {
        Some(object) if !object.is_file() => {
            return Err(format!("{OVERRIDE}={}: no such file", object.display()).into());
        }
        Some(object) => {
            instruct(&format!("rerun-if-changed={}", object.display()));
            object
        }
        None => {
            let dir = target_directory()?.join("bpf");
            // Cargo takes a watched path that does not exist for changed, and would build netpath anew each time.
            fs::create_dir_all(&dir).map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
            instruct(&format!("rerun-if-changed={}", dir.display()));
            dir.join("netpath.bpf.o")
        }
    };
    match object.exists() {
        true => {
            // Taken here, since every ADD asks for it.
            let mut hasher = DefaultHasher::new();
            hasher.write(&fs::read(&object)?);
            instruct(&format!("rustc-env=NETPATH_BPF_DIGEST={}", hasher.finish().max(1)));
            instruct(&format!("rustc-env=NETPATH_BPF_OBJECT={}", object.display()));
        }
        false => instruct("rustc-cfg=no_bpf_object"),
    }
    Ok(())
}

/// The directory that xtask writes to: both ask `cargo metadata`, since OUT_DIR can be somewhere else.
fn target_directory() -> Result<PathBuf, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").ok_or("cargo did not set CARGO")?;
    let mut command = Command::new(cargo);
    command.args(["metadata", "--no-deps", "--offline", "--format-version=1"]);
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let target = metadata["target_directory"].as_str().ok_or("`cargo metadata` names no target_directory")?;
    Ok(PathBuf::from(target))
}

fn instruct(instruction: &str) {
    println!("cargo::{instruction}");
}
