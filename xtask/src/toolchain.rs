//! The compiler and linker for the eBPF programs, by one of two routes.
//!
//! rustup's stable has no `core` for BPF. Debian has a compiler with a prebuilt one, which is tried first: no
//! nightly, nothing built from source but the linker. Elsewhere a nightly builds `core` from `rust-src`.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    packages,
    process::{find_program, is_executable, output},
    setup::{Item, Remedy, State},
    workspace::{self, RUST_VERSION},
};

/// The target of the programs: the machine's byte order is little endian wherever netpath runs.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Forces a route, by its name.
const ROUTE_VARIABLE: &str = "NETPATH_EBPF_ROUTE";
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";
/// Releases of LLVM that this version of the linker can be built with.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// Sections and flags of a real program, so that a linker of another LLVM release is found out.
const PROBE: &str = r#"#![no_std]
#![no_main]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
pub extern "C" fn probe() -> u32 {
    2
}
"#;

/// Where `core` for BPF comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Debian's `rustc-web` with the prebuilt `core` of `libstd-rust-web-dev-bpf`.
    Debian,
    /// rustup's nightly, which builds `core` from `rust-src`.
    Rustup,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "debian",
            Self::Rustup => "rustup",
        })
    }
}

/// A compiler as it describes itself.
#[derive(Debug, PartialEq, Eq)]
struct Compiler {
    release: String,
    llvm: u32,
}

/// A compiler and a linker that work together.
pub(crate) struct Toolchain {
    route: Route,
    linker: PathBuf,
}

impl Toolchain {
    /// The toolchain of this machine; what is missing is named together with the command that installs it.
    pub(crate) fn find() -> Result<Self> {
        let (route, why) = choose()?;
        let missing =
            |what: String| anyhow::anyhow!("{what} ({route} route: {why}); run `cargo xtask setup`");
        let compiler = match route {
            Route::Debian => debian_ready(),
            Route::Rustup => rustup_ready(),
        };
        let compiler = compiler.map_err(missing)?;
        let linker = linker(route, &compiler).map_err(missing)?;
        Ok(Self { route, linker })
    }

    /// `cargo build` for the programs' target, without package and profile.
    pub(crate) fn cargo_build(&self, target: &Path) -> Result<Command> {
        let mut command = match self.route {
            Route::Debian => Command::new(DEBIAN_CARGO),
            Route::Rustup => Command::new("rustup"),
        };
        // What the cargo that runs us sets for its own toolchain must not reach another one.
        for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH"] {
            command.env_remove(variable);
        }
        // 32-bit registers and jumps, which every kernel has that netpath runs on: a tenth fewer instructions.
        let flags = format!("-Clinker={}\x1f-Clink-arg=--btf\x1f-Ctarget-cpu=v3", self.linker.display());
        command.current_dir(workspace::root()?).env("CARGO_ENCODED_RUSTFLAGS", flags);
        match self.route {
            // Programs need inline assembly of the BPF target, which is unstable in a release compiler.
            Route::Debian => command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1").arg("build"),
            Route::Rustup => command.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]),
        };
        command.args(["--locked", "--target", TARGET, "--target-dir"]).arg(target);
        Ok(command)
    }
}

/// Whether a route is ready but, perhaps, for the linker.
pub(crate) fn has_compiler() -> bool {
    debian_ready().is_ok() || rustup_ready().is_ok()
}

/// The route to take on this machine, and why.
pub(crate) fn choose() -> Result<(Route, String)> {
    if let Some(name) = env::var_os(ROUTE_VARIABLE) {
        let route = [Route::Debian, Route::Rustup].into_iter().find(|route| name == *route.to_string());
        let route = route
            .with_context(|| format!("{ROUTE_VARIABLE}={}: must be `debian` or `rustup`", name.display()))?;
        return Ok((route, format!("{ROUTE_VARIABLE} asks for it")));
    }
    let no_debian = match debian_ready() {
        Ok(compiler) => {
            return Ok((
                Route::Debian,
                format!("{DEBIAN_RUSTC} {} has a prebuilt core for {TARGET}", compiler.release),
            ));
        }
        Err(reason) => reason,
    };
    if let Ok(compiler) = rustup_ready() {
        return Ok((Route::Rustup, format!("nightly {} has rust-src, and {no_debian}", compiler.release)));
    }
    let offer =
        packages::offered("libstd-rust-web-dev-bpf")?.filter(|version| at_least(version, RUST_VERSION));
    if let Some(version) = offer {
        return Ok((
            Route::Debian,
            format!("apt offers a compiler with a prebuilt core for {TARGET}, {version}"),
        ));
    }
    if find_program("rustup").is_some() {
        return Ok((Route::Rustup, format!("no package here has a prebuilt core for {TARGET}")));
    }
    bail!(
        "no compiler for {TARGET}: {no_debian}; apt offers no libstd-rust-web-dev-bpf of {RUST_VERSION} or newer \
         (Debian 12 has it in bookworm-security; are the lists older than `apt-get update`?); there is no rustup \
         to install a nightly with rust-src"
    )
}

/// What the route needs, in the order in which it is installed.
pub(crate) fn items(route: Route) -> Vec<Item> {
    let (mut items, compiler) = match route {
        Route::Debian => debian_items(),
        Route::Rustup => rustup_items(),
    };
    items.extend(linker_items(route, compiler));
    items
}

fn debian_items() -> (Vec<Item>, Option<Compiler>) {
    let ready = debian_ready().ok();
    let item = |package: &str, why: String, found: Option<String>| {
        let missing = || State::Missing(Remedy::Apt(package.to_owned()));
        Item { name: package.to_owned(), why, state: found.map_or_else(missing, State::Present) }
    };
    let release = debian_compiler().ok().map(|compiler| format!("{DEBIAN_RUSTC} {}", compiler.release));
    let core = ready.as_ref().map(|_| format!("core for {TARGET}"));
    let cargo = is_executable(Path::new(DEBIAN_CARGO)).then(|| DEBIAN_CARGO.to_owned());
    let items = vec![
        item("rustc-web", format!("compiles for {TARGET}, which rustup's stable cannot"), release),
        item(
            "libstd-rust-web-dev-bpf",
            "has core for BPF prebuilt: no nightly, no rust-src".to_owned(),
            core,
        ),
        item("cargo-web", "the cargo of rustc-web's release".to_owned(), cargo),
    ];
    (items, ready)
}

fn rustup_items() -> (Vec<Item>, Option<Compiler>) {
    let compiler = nightly_compiler().ok();
    let words = |line: &str| line.split(' ').map(str::to_owned).collect();
    let rustup = |line: &str| match find_program("rustup") {
        Some(_) => State::Missing(Remedy::Rustup(words(line))),
        None => State::Missing(Remedy::ByHand("rustup, which this route is named after".to_owned())),
    };
    let nightly = match &compiler {
        Some(compiler) => State::Present(compiler.release.clone()),
        None => rustup("toolchain install nightly --profile minimal --component rust-src"),
    };
    let source = match (&compiler, rustup_ready()) {
        (None, _) => State::Missing(Remedy::Later("nightly".to_owned())),
        (Some(_), Ok(_)) => State::Present("core's source".to_owned()),
        (Some(_), Err(_)) => rustup("component add rust-src --toolchain nightly"),
    };
    let items = vec![
        Item {
            name: "nightly".to_owned(),
            why: format!("compiles for {TARGET} with -Zbuild-std"),
            state: nightly,
        },
        Item { name: "rust-src".to_owned(), why: "core for BPF is built from it".to_owned(), state: source },
    ];
    (items, compiler)
}

/// The linker, and the LLVM that it is built with, which must be of the compiler's release.
fn linker_items(route: Route, compiler: Option<Compiler>) -> Vec<Item> {
    let why = "links the programs and makes their BTF".to_owned();
    let name = format!("{LINKER} {LINKER_VERSION}");
    let Some(compiler) = compiler else {
        let state = State::Missing(Remedy::Later("the compiler".to_owned()));
        return vec![Item { name, why, state }];
    };
    let broken = match linker(route, &compiler) {
        Ok(path) => return vec![Item { name, why, state: State::Present(path.display().to_string()) }],
        Err(reason) => reason,
    };
    let why = format!("{why}; {broken}");
    let llvm = compiler.llvm;
    if !LINKER_LLVM.contains(&llvm) {
        let state = State::Missing(Remedy::ByHand(format!(
            "a {LINKER} for LLVM {llvm}, which is the release of the compiler ({}): version {LINKER_VERSION} knows {} to {}",
            compiler.release,
            LINKER_LLVM.start(),
            LINKER_LLVM.end(),
        )));
        return vec![Item { name, why, state }];
    }
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let library = format!("{prefix}/lib/libLLVM.so");
    let package = format!("llvm-{llvm}-dev");
    if !Path::new(&library).exists() {
        let llvm = Item {
            why: format!("{LINKER} is built with the compiler's LLVM"),
            state: State::Missing(Remedy::Apt(package.clone())),
            name: package.clone(),
        };
        return vec![llvm, Item { name, why, state: State::Missing(Remedy::Later(package)) }];
    }
    let feature = format!("llvm-{llvm}");
    let args =
        ["install", LINKER, "--version", LINKER_VERSION, "--locked", "--force", "--no-default-features"];
    let args = args.into_iter().chain(["--features", &feature]).map(str::to_owned).collect();
    let install = Remedy::CargoInstall { llvm_prefix: prefix, args };
    vec![
        Item { name: package, why: format!("{LINKER} is built with it"), state: State::Present(library) },
        Item { name, why, state: State::Missing(install) },
    ]
}

/// Debian's compiler, if it can compile for this machine (build scripts) and for BPF; else what is wrong.
fn debian_ready() -> Result<Compiler, String> {
    let compiler = debian_compiler()?;
    let sysroot = sysroot(Command::new(DEBIAN_RUSTC))?;
    if !has_library(&sysroot, TARGET, "libcore-") {
        return Err(format!("{DEBIAN_RUSTC} has no core for {TARGET}"));
    }
    if !is_executable(Path::new(DEBIAN_CARGO)) {
        return Err(format!("there is no {DEBIAN_CARGO}"));
    }
    Ok(compiler)
}

fn debian_compiler() -> Result<Compiler, String> {
    if !is_executable(Path::new(DEBIAN_RUSTC)) {
        return Err(format!("there is no {DEBIAN_RUSTC}"));
    }
    let compiler = compiler(Command::new(DEBIAN_RUSTC))?;
    if !at_least(&compiler.release, RUST_VERSION) {
        return Err(format!("{DEBIAN_RUSTC} is {}, the workspace needs {RUST_VERSION}", compiler.release));
    }
    Ok(compiler)
}

/// rustup's nightly, if it has the source of `core`; else what is wrong.
fn rustup_ready() -> Result<Compiler, String> {
    let compiler = nightly_compiler()?;
    let source = sysroot(nightly_rustc())?.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    match source.exists() {
        true => Ok(compiler),
        false => Err("rustup's nightly has no rust-src".to_owned()),
    }
}

fn nightly_compiler() -> Result<Compiler, String> {
    if find_program("rustup").is_none() {
        return Err("there is no rustup".to_owned());
    }
    compiler(nightly_rustc())
}

fn nightly_rustc() -> Command {
    let mut command = Command::new("rustup");
    // Without this rustup may try to install what is not there.
    command.env("RUSTUP_AUTO_INSTALL", "0").args(["run", "nightly", "rustc"]);
    command
}

fn compiler(mut rustc: Command) -> Result<Compiler, String> {
    let text = output(without_our_toolchain(&mut rustc).arg("-vV")).map_err(|error| format!("{error:#}"))?;
    parse_compiler(&text).ok_or_else(|| format!("`rustc -vV` prints no release or LLVM version:\n{text}"))
}

fn parse_compiler(text: &str) -> Option<Compiler> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some(Compiler { release: field("release: ")?.to_owned(), llvm })
}

fn sysroot(mut rustc: Command) -> Result<PathBuf, String> {
    let text = output(without_our_toolchain(&mut rustc).args(["--print", "sysroot"]));
    text.map(|text| PathBuf::from(text.trim())).map_err(|error| format!("{error:#}"))
}

fn without_our_toolchain(command: &mut Command) -> &mut Command {
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("LD_LIBRARY_PATH")
}

fn has_library(sysroot: &Path, target: &str, prefix: &str) -> bool {
    let Ok(entries) = fs::read_dir(sysroot.join("lib/rustlib").join(target).join("lib")) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(prefix) && name.ends_with(".rlib")
    })
}

/// The linker, if there is one that understands this compiler; else what is wrong.
fn linker(route: Route, compiler: &Compiler) -> Result<PathBuf, String> {
    let mut reason = format!("there is no {LINKER} yet");
    for path in find_program(LINKER).into_iter().chain(workspace::cargo_bin(LINKER)) {
        let works = match route {
            Route::Debian => links_a_program(&path),
            // There is no prebuilt core to try it with.
            Route::Rustup => is_new_enough(&path),
        };
        match works {
            Ok(()) => return Ok(path),
            Err(error) => {
                reason =
                    format!("{} does not fit the compiler (LLVM {}): {error}", path.display(), compiler.llvm);
            }
        }
    }
    Err(reason)
}

/// Gives the linker one small program, not `core`, which takes it seconds: what can fail is reading bitcode.
fn links_a_program(linker: &Path) -> Result<(), String> {
    let dir = env::temp_dir().join(format!("netpath-xtask-{}", std::process::id()));
    let result = fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join("probe.rs"), PROBE));
    let result = result.map_err(|error| format!("cannot write {}: {error}", dir.display())).and_then(|()| {
        let mut rustc = Command::new(DEBIAN_RUSTC);
        rustc.args(["--edition=2024", "--crate-type=bin", "-O", "-Cdebuginfo=2", "--target", TARGET]);
        rustc.args(["--emit=llvm-bc", "-o", "probe.bc", "probe.rs"]).current_dir(&dir);
        let mut link = Command::new(linker);
        link.args(["--btf", "--target=bpfel", "--export=probe", "-o", "probe.o", "probe.bc"])
            .current_dir(&dir);
        let output =
            output(without_our_toolchain(&mut rustc)).and_then(|_| output(without_our_toolchain(&mut link)));
        output.map(drop).map_err(|error| format!("{error:#}"))
    });
    // What went wrong before is worth more than a directory that stays behind.
    drop(fs::remove_dir_all(&dir));
    result
}

fn is_new_enough(linker: &Path) -> Result<(), String> {
    let text = output(Command::new(linker).arg("--version")).map_err(|error| format!("{error:#}"))?;
    match text.split_whitespace().last() {
        Some(version) if at_least(version, LINKER_VERSION) => Ok(()),
        _ => Err(format!("it is {}, {LINKER_VERSION} is needed", text.trim())),
    }
}

/// Whether a version is not older than `least`, by its leading numbers.
fn at_least(version: &str, least: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        text[..end].split('.').filter_map(|number| number.parse().ok()).collect()
    };
    numbers(version) >= numbers(least)
}

#[test]
fn versions_compare_by_their_numbers() {
    assert!(at_least("1.96.0+dfsg1-1~deb12u2", "1.95"));
    assert!(at_least("1.95.0", "1.95"));
    assert!(at_least("1.100.0-nightly", "1.95"));
    assert!(!at_least("1.85.0+dfsg3-1~deb12u3", "1.95"));
    assert!(!at_least("0.9.14", "0.13.0"));
    assert!(!at_least("", "1.95"));
}

#[test]
fn compilers_describe_themselves() {
    let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
    assert_eq!(parse_compiler(text), Some(Compiler { release: "1.96.0".to_owned(), llvm: 22 }));
    assert_eq!(parse_compiler("release: 1.96.0\n"), None);
}
