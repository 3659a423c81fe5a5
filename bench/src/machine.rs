//! What the figures were taken on: without it they say nothing to anybody else.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde_json::{Value, json};

/// A machine, and the state it was in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    cpu: String,
    cpus: usize,
    is_virtual: bool,
    kernel: String,
    jit: String,
    hardening: String,
    mitigations: String,
    load: String,
    object: String,
    commit: String,
}

/// This machine.
pub(crate) fn describe() -> Machine {
    let cpuinfo = read("/proc/cpuinfo");
    let cpu = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim()).to_owned()
    };
    let sys = |name: &str| read(&format!("/proc/sys/{name}")).trim().to_owned();
    Machine {
        cpu: cpu("model name"),
        cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        is_virtual: cpu("flags").split(' ').any(|flag| flag == "hypervisor"),
        kernel: format!("{} ({})", sys("kernel/osrelease"), sys("kernel/version")),
        jit: sys("net/core/bpf_jit_enable"),
        hardening: sys("net/core/bpf_jit_harden"),
        mitigations: mitigations(),
        load: read("/proc/loadavg").trim().to_owned(),
        object: format!("{:016x}", netpath::kernel::bpf::object::digest()),
        commit: commit(),
    }
}

impl Machine {
    /// A line each, as a Markdown list.
    pub(crate) fn lines(&self) -> Vec<String> {
        let Self { cpu, cpus, is_virtual, kernel, jit, hardening, mitigations, load, object, commit } = self;
        let hypervisor = if *is_virtual { "a virtual machine" } else { "no hypervisor" };
        vec![
            format!("- CPU: {cpus} × {cpu}, {hypervisor}"),
            format!("- kernel: {kernel}, BPF JIT {jit}, hardening {hardening}"),
            format!("- mitigations: {mitigations}"),
            format!("- load average at the start: {load}"),
            format!("- netpath object: {object}, commit {commit}"),
            String::new(),
        ]
    }

    /// The same for the history.
    pub(crate) fn json(&self) -> Value {
        let Self { cpu, cpus, is_virtual, kernel, jit, hardening, mitigations, load, object, commit } = self;
        json!({ "cpu": cpu, "cpus": cpus, "virtual": is_virtual, "kernel": kernel, "jit": jit, "hardening": hardening,
            "mitigations": mitigations, "load": load, "object": object, "commit": commit })
    }
}

/// The CPUs that this thread may run on.
pub(crate) fn allowed_cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect())
}

/// Keeps this thread on one CPU.
pub(crate) fn stay_on(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("cannot run on CPU {cpu}"))
}

/// Of which commit the sources are.
fn commit() -> String {
    let directory = env!("CARGO_MANIFEST_DIR");
    let output = Command::new("git").args(["-C", directory, "describe", "--always", "--dirty"]).output();
    let output = output.ok().filter(|output| output.status.success());
    output.map_or_else(
        || "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// What the kernel does about the weaknesses that the CPU has; `Vulnerable` where it does nothing.
fn mitigations() -> String {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return "not told by this kernel".to_owned();
    };
    let mut found: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let state = read(&entry.path().display().to_string());
            let state = state.trim().trim_start_matches("Mitigation: ");
            (state != "Not affected").then(|| format!("{} {state}", entry.file_name().display()))
        })
        .collect();
    found.sort();
    if found.is_empty() { "none".to_owned() } else { found.join(", ") }
}

/// A file of the kernel; empty where this kernel has none such.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
