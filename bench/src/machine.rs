//! What the figures were taken on: without it they say nothing to anybody else.

use std::fs;

/// The machine, a line each, as a Markdown list.
pub(crate) fn describe() -> Vec<String> {
    let cpuinfo = read("/proc/cpuinfo");
    let cpu = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim()).to_owned()
    };
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let virtual_machine = match cpu("flags").split(' ').any(|flag| flag == "hypervisor") {
        true => "a virtual machine",
        false => "no hypervisor",
    };
    let (release, version) = (read("/proc/sys/kernel/osrelease"), read("/proc/sys/kernel/version"));
    let jit = read("/proc/sys/net/core/bpf_jit_enable");
    let harden = read("/proc/sys/net/core/bpf_jit_harden");
    vec![
        format!("- CPU: {count} × {}, {virtual_machine}", cpu("model name")),
        format!(
            "- kernel: {} ({}), BPF JIT {}, hardening {}",
            release.trim(),
            version.trim(),
            jit.trim(),
            harden.trim()
        ),
        format!("- mitigations: {}", mitigations()),
        format!("- load average at the start: {}", read("/proc/loadavg").trim()),
        format!("- netpath object: {:016x}", netpath::kernel::bpf::object::digest()),
        String::new(),
    ]
}

/// What the kernel does about the CPU's weaknesses, where it does something.
fn mitigations() -> String {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return "not told by this kernel".to_owned();
    };
    let mut found: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let state = read(&entry.path().display().to_string());
            let state = state.trim().strip_prefix("Mitigation: ")?.to_owned();
            Some(format!("{} {state}", entry.file_name().display()))
        })
        .collect();
    found.sort();
    if found.is_empty() { "none".to_owned() } else { found.join(", ") }
}

/// A file of the kernel; empty where this kernel has none such.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
