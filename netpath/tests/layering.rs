//! The architecture's rules that a compiler does not hold, read off the source text.
//!
//! Each rule is in [`breaches`]; the first test runs it on the repository, the second on samples that break each
//! rule, so that a rule that has stopped working is noticed as well.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What a top-level module of netpath may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    /// Values only: no input, no output, no time.
    Pure,
    /// A setting that everybody may hold.
    Setting,
    /// A means that several effects share; knows nothing of ours.
    Tool,
    /// Touches the machine in one way.
    Effect,
    /// Runs plans on effects.
    Exec,
    /// Order of calls.
    Journey,
}

/// Every top-level module. A new one is put here by whoever decides its layer.
const MODULES: &[(&str, Layer)] = &[
    ("spec", Layer::Pure),
    ("zone", Layer::Pure),
    ("plan", Layer::Pure),
    ("observe", Layer::Pure),
    ("root", Layer::Setting),
    ("causes", Layer::Tool),
    ("child", Layer::Tool),
    ("flock", Layer::Tool),
    ("grpc", Layer::Tool),
    ("whole", Layer::Tool),
    ("kernel", Layer::Effect),
    ("cri", Layer::Effect),
    ("install", Layer::Effect),
    ("kubelet", Layer::Effect),
    ("ipam", Layer::Effect),
    ("state", Layer::Effect),
    ("cluster", Layer::Effect),
    ("delegate", Layer::Effect),
    ("exec", Layer::Exec),
    ("police", Layer::Journey),
    ("plugin", Layer::Journey),
    ("agent", Layer::Journey),
    ("cli", Layer::Journey),
    ("lab", Layer::Journey),
];

/// Paths that reach out of a pure module, as they start, or (from `*`) as they end.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::process",
    "std::env",
    "std::thread",
    "std::os",
    "std::io::stdin",
    "std::io::stdout",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::net::*",
    "std::*",
    "tokio",
    "nix",
    "libc",
    "aya",
    "rtnetlink",
    "*::SystemTime",
    "SystemTime",
    "*Instant::now",
    "*Utc::now",
];

/// Lines a source file may have.
const MAX_LINES: usize = 600;

/// A source file: its path in the repository and its text.
struct Source {
    path: String,
    text: String,
}

/// Everything that breaks a rule, as `path: what`.
fn breaches(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let mut breach = |what: String| found.push(format!("{}: {what}", source.path));
        if source.path.ends_with("Cargo.toml") {
            if !inherits_lints(&source.text) {
                breach("does not inherit the lint table: add `[lints]` with `workspace = true`".to_owned());
            }
            continue;
        }
        let lines = source.text.lines().count();
        if MAX_LINES < lines {
            breach(format!("has {lines} lines, at most {MAX_LINES} are allowed"));
        }
        let tokens = tokens(&source.text);
        catch_alls(&tokens).into_iter().for_each(&mut breach);
        hidden_skips(&tokens).into_iter().for_each(&mut breach);
        if let Some(inside) = source.path.strip_prefix("netpath/src/") {
            let code = if is_test_file(inside) { &[][..] } else { without_tests(&tokens) };
            if !inside.starts_with("kernel/") && tokens.iter().any(|token| token == "unsafe") {
                breach("uses `unsafe`, which only netpath/src/kernel may".to_owned());
            }
            if has(code, &["to_string", "(", ")", ".", "contains"]) {
                breach("matches an error by its text: match its type or errno".to_owned());
            }
            layers(inside, code).into_iter().for_each(&mut breach);
        }
    }
    found
}

/// Who imports whom, and what pure modules reach for.
fn layers(inside: &str, code: &[String]) -> Vec<String> {
    let own = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    if own == "lib" || own == "main" {
        return Vec::new();
    }
    let Some(layer) = layer_of(own) else {
        return vec![format!("module `{own}` has no layer: add it to MODULES in netpath/tests/layering.rs")];
    };
    let mut found = BTreeSet::new();
    for path in paths(code) {
        let first = path.first().map(String::as_str).unwrap_or_default();
        if layer == Layer::Pure {
            let text = path.join("::");
            if let Some(rule) = IMPURE.iter().find(|rule| reaches(&text, rule)) {
                found.insert(format!("a pure module uses `{text}` (rule `{rule}`)"));
            }
        }
        let target = match first {
            "crate" | "netpath" => path.get(1).cloned(),
            "super" => above(inside, &path),
            _ => None,
        };
        let Some(target) = target.filter(|target| target != own) else { continue };
        let Some(other) = layer_of(&target) else { continue };
        if !may_know(layer, other) {
            found.insert(format!("{layer:?} module `{own}` imports {other:?} module `{target}`"));
        }
    }
    found.into_iter().collect()
}

fn layer_of(module: &str) -> Option<Layer> {
    MODULES.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

fn may_know(layer: Layer, other: Layer) -> bool {
    match layer {
        Layer::Setting | Layer::Tool => false,
        Layer::Pure => matches!(other, Layer::Pure | Layer::Setting),
        Layer::Effect => matches!(other, Layer::Pure | Layer::Setting | Layer::Tool),
        Layer::Exec => other != Layer::Journey,
        Layer::Journey => true,
    }
}

fn reaches(path: &str, rule: &str) -> bool {
    match rule.strip_prefix('*') {
        Some(end) => path.ends_with(end) || path.contains(&format!("{end}::")),
        None => path == rule || path.strip_prefix(rule).is_some_and(|rest| rest.starts_with("::")),
    }
}

/// The top-level module that a `super::…` path of this file leads to, if it leaves its own.
fn above(inside: &str, path: &[String]) -> Option<String> {
    let file = inside.trim_end_matches(".rs").trim_end_matches("/mod");
    let depth = file.split('/').count();
    let supers = path.iter().take_while(|segment| *segment == "super").count();
    (supers == depth).then(|| path.get(supers).cloned()).flatten()
}

/// Error variants that hold nothing but text.
fn catch_alls(tokens: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for start in positions(tokens, "enum") {
        let Some(name) = tokens.get(start + 1) else { continue };
        let Some(body) = block(tokens, start + 2) else { continue };
        if !name.ends_with("Error") && !has(body, &["#", "[", "error", "("]) {
            continue;
        }
        for at in positions(body, "(") {
            let before =
                |back: usize| at.checked_sub(back).map(|index| body[index].as_str()).unwrap_or_default();
            let starts_variant = matches!(before(2), "{" | "," | "]");
            let text = ["String", "str", "Cow"];
            let fields: Vec<&str> =
                body[at + 1..].iter().take_while(|token| *token != ")").map(String::as_str).collect();
            let is_text =
                fields.len() < 8 && fields.iter().any(|field| text.contains(field)) && !fields.contains(&",");
            if starts_variant && before(1).starts_with(|c: char| c.is_ascii_uppercase()) && is_text {
                found.push(format!(
                    "`{name}::{}` holds only text: give it fields for what, which and cause",
                    before(1)
                ));
            }
        }
    }
    found
}

/// Tests that pass without having tested.
fn hidden_skips(tokens: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    if has(tokens, &["#", "[", "ignore"]) {
        found.push("has an ignored test: a test that cannot run fails".to_owned());
    }
    for start in positions(tokens, "fn") {
        let name = tokens.get(start + 1).map(String::as_str).unwrap_or_default();
        let attribute = tokens[..start].iter().rposition(|token| matches!(token.as_str(), "}" | ";" | "{"));
        let is_test = has(&tokens[attribute.unwrap_or(0)..start], &["test", "]"]);
        let Some(body) = block(tokens, start + 2).filter(|_| is_test) else { continue };
        let early = positions(body, "return").any(|at| {
            let rest: Vec<&str> = body[at + 1..].iter().take(5).map(String::as_str).collect();
            rest.first() == Some(&";") || rest == ["Ok", "(", "(", ")", ")"]
        });
        if early {
            found.push(format!("test `{name}` returns early: a test that cannot run fails"));
        }
    }
    found
}

/// The tokens between the first `{` at or after `from`, before any `;`, and its `}`.
fn block(tokens: &[String], from: usize) -> Option<&[String]> {
    let rest = tokens.get(from..)?;
    let open = rest.iter().position(|token| token == "{" || token == ";").filter(|at| rest[*at] == "{")?;
    let mut depth = 0_usize;
    for (at, token) in rest.iter().enumerate().skip(open) {
        match token.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => return Some(&rest[open..at]),
            "}" => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Every path in the code, with `use` groups expanded: `std::{fs, io::Read}` is `std::fs` and `std::io::Read`.
fn paths(code: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < code.len() {
        at = if is_word(&code[at]) { path_at(code, at, &[], &mut found) } else { at + 1 };
    }
    found
}

/// Reads one path (or group of paths) and returns where the reading went on.
fn path_at(code: &[String], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match code.get(at).map(String::as_str) {
            Some("{") if !path.is_empty() => {
                at += 1;
                while at < code.len() && code[at] != "}" {
                    let starts_path = is_word(&code[at]) || code[at] == "*" || code[at] == "{";
                    at = if starts_path { path_at(code, at, &path, found) } else { at + 1 };
                }
                return at + 1;
            }
            Some(word) if is_word(word) || word == "*" => path.push(word.to_owned()),
            _ => {
                found.push(path);
                return at;
            }
        }
        at += 1;
        if code.get(at).map(String::as_str) != Some("::") {
            found.push(path);
            return at;
        }
        at += 1;
    }
}

/// The code up to its test module, which by custom comes last.
fn without_tests(tokens: &[String]) -> &[String] {
    let marker = ["#", "[", "cfg", "(", "test", ")", "]"];
    let end = tokens.windows(marker.len()).position(|window| window == marker);
    &tokens[..end.unwrap_or(tokens.len())]
}

fn is_test_file(inside: &str) -> bool {
    inside.split('/').any(|part| part == "tests" || part == "tests.rs")
}

fn inherits_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.any(|line| line == "[lints]") && lines.next() == Some("workspace = true")
}

fn has(tokens: &[String], wanted: &[&str]) -> bool {
    tokens.windows(wanted.len()).any(|window| window == wanted)
}

fn positions<'a>(tokens: &'a [String], wanted: &'a str) -> impl Iterator<Item = usize> + 'a {
    tokens.iter().enumerate().filter(move |(_, token)| *token == wanted).map(|(at, _)| at)
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words and punctuation of Rust source, without comments, and without what is inside literals.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        at += match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['"', ..] | ['b' | 'c', '"', ..] => string(rest),
            ['r', '"' | '#', ..] | ['b' | 'c', 'r', '"' | '#', ..] if let Some(length) = raw_string(rest) => {
                length
            }
            ['\'', '\\', _, tail @ ..] => 4 + tail.iter().position(|c| *c == '\'').unwrap_or(tail.len()),
            ['\'', _, '\'', ..] => 3,
            [':', ':', ..] => {
                tokens.push("::".to_owned());
                2
            }
            [c, ..] if c.is_alphanumeric() || *c == '_' => {
                let word: String = rest.iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
                let length = word.chars().count();
                tokens.push(word);
                length
            }
            [c, ..] => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                1
            }
            [] => 1,
        };
    }
    tokens
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => depth += 1,
            ['*', '/', ..] if depth == 1 => return at + 2,
            ['*', '/', ..] => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
    }
    rest.len()
}

fn string(rest: &[char]) -> usize {
    let mut at = rest.iter().position(|c| *c == '"').unwrap_or_default() + 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn raw_string(rest: &[char]) -> Option<usize> {
    let start = rest.iter().position(|c| *c == 'r')? + 1;
    let hashes = rest[start..].iter().take_while(|c| **c == '#').count();
    // `r#type` is a word.
    (rest.get(start + hashes) == Some(&'"')).then_some(())?;
    let mut end = vec!['"'];
    end.extend(std::iter::repeat_n('#', hashes));
    let body = start + hashes + 1;
    let length = rest[body..].windows(end.len()).position(|window| window == end)?;
    Some(body + length + end.len())
}

/// The members' manifests and Rust files.
fn repository() -> Vec<Source> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("netpath is a directory of the repository");
    let manifest =
        fs::read_to_string(root.join("Cargo.toml")).expect("the workspace's Cargo.toml is readable");
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ["));
    let members =
        members.and_then(|line| line.strip_suffix(']')).expect("`members` is on one line of Cargo.toml");
    let mut files = Vec::new();
    for member in members.split(',').map(|member| root.join(member.trim().trim_matches('"'))) {
        files.push(member.join("Cargo.toml"));
        rust_files(&member, &mut files);
    }
    let read = |path: PathBuf| Source {
        text: fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        path: path.strip_prefix(root).expect("members are inside the repository").display().to_string(),
    };
    files.into_iter().map(read).collect()
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for path in entries.map(|entry| entry.expect("the directory stays readable").path()) {
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn the_repository_keeps_its_rules() {
    let sources = repository();
    for known in
        ["netpath/src/spec/mod.rs", "netpath/Cargo.toml", "netpath-ebpf/src/abi.rs", "xtask/src/main.rs"]
    {
        assert!(sources.iter().any(|source| source.path == known), "{known} was not read");
    }
    let breaches = breaches(&sources);
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn every_rule_can_be_broken() {
    let pure = "a pure module uses";
    broken("netpath/src/spec/a.rs", "use std::{io, fs};", &format!("{pure} `std::fs` (rule `std::fs`)"));
    broken(
        "netpath/src/zone.rs",
        "fn f() { std::env::var(\"A\"); }",
        &format!("{pure} `std::env::var` (rule `std::env`)"),
    );
    broken(
        "netpath/src/plan/a.rs",
        "fn f() { Instant::now(); }",
        &format!("{pure} `Instant::now` (rule `*Instant::now`)"),
    );
    broken(
        "netpath/src/plan/a.rs",
        "use std::time::SystemTime;",
        &format!("{pure} `std::time::SystemTime` (rule `*::SystemTime`)"),
    );
    broken(
        "netpath/src/observe/a.rs",
        "use std::net::{IpAddr, UdpSocket};",
        &format!("{pure} `std::net::UdpSocket` (rule `std::net::UdpSocket`)"),
    );
    broken("netpath/src/spec/a.rs", "use nix::unistd;", &format!("{pure} `nix::unistd` (rule `nix`)"));

    broken(
        "netpath/src/plan/a.rs",
        "use crate::{spec, kernel::netns};",
        "Pure module `plan` imports Effect module `kernel`",
    );
    broken(
        "netpath/src/spec/mod.rs",
        "use super::exec::run;",
        "Pure module `spec` imports Exec module `exec`",
    );
    broken(
        "netpath/src/ipam/mod.rs",
        "fn f() { crate::state::lock(); }",
        "Effect module `ipam` imports Effect module `state`",
    );
    broken(
        "netpath/src/kernel/bpf/a.rs",
        "use super::super::super::plugin;",
        "Effect module `kernel` imports Journey module `plugin`",
    );
    broken("netpath/src/exec.rs", "use crate::cli;", "Exec module `exec` imports Journey module `cli`");
    broken("netpath/src/root.rs", "use crate::spec;", "Setting module `root` imports Pure module `spec`");
    broken(
        "netpath/src/misc.rs",
        "",
        "module `misc` has no layer: add it to MODULES in netpath/tests/layering.rs",
    );

    broken(
        "netpath/src/cli/a.rs",
        "fn f() { unsafe { g() } }",
        "uses `unsafe`, which only netpath/src/kernel may",
    );
    broken(
        "netpath/src/cli/a.rs",
        "fn f() { e.to_string().contains(\"x\"); }",
        "matches an error by its text: match its type or errno",
    );
    broken(
        "xtask/Cargo.toml",
        "[package]\nname = \"xtask\"\n",
        "does not inherit the lint table: add `[lints]` with `workspace = true`",
    );
    broken("xtask/src/a.rs", &"\n".repeat(MAX_LINES + 1), "has 601 lines, at most 600 are allowed");
    let variant = "holds only text: give it fields for what, which and cause";
    broken(
        "netpath/src/cli/a.rs",
        "enum ConfError { A { b: u8 }, #[error(\"{0}\")] Other(String) }",
        &format!("`ConfError::Other` {variant}"),
    );
    broken(
        "netpath/src/cli/a.rs",
        "enum Why { #[error(\"m\")] Message(Box<str>), }",
        &format!("`Why::Message` {variant}"),
    );

    let early = "test `t` returns early: a test that cannot run fails";
    broken(
        "netpath/tests/lab.rs",
        "#[test]\nfn t() { if !root() { eprintln!(\"skipped\"); return; } }",
        early,
    );
    broken("netpath/tests/lab.rs", "#[test]\nfn t() -> R { if a { return Ok(()); } b() }", early);
    broken(
        "netpath/tests/lab.rs",
        "#[test]\n#[ignore]\nfn t() {}",
        "has an ignored test: a test that cannot run fails",
    );
}

#[test]
fn what_only_looks_like_a_breach_is_none() {
    let fine = [
        (
            "netpath/src/spec/a.rs",
            "// std::fs\n/* use nix; */ const A: &str = \"std::env::var\"; use std::net::IpAddr;",
        ),
        (
            "netpath/src/spec/a.rs",
            "fn f<'a>(x: &'a str) -> char { '\"' }\n#[cfg(test)]\nmod tests { use std::fs; }",
        ),
        ("netpath/src/spec/tests.rs", "use std::fs;"),
        (
            "netpath/src/ipam/host_local.rs",
            "use super::delegate; use crate::spec::{self, names::IfName}; use std::fs;",
        ),
        ("netpath/src/kernel/bpf/mod.rs", "use super::netns; fn f() { unsafe { g() } }"),
        ("netpath/src/plugin.rs", "use crate::{exec, ipam, kernel, state};"),
        (
            "netpath/src/zone/a.rs",
            "enum ConfError { Field { value: String }, Json(serde_json::Error) } enum Value { Text(String) }",
        ),
        ("netpath/src/zone/a.rs", "const A: &str = r#\"a \" std::fs\"#; struct B { r#type: u8 }"),
        ("netpath/tests/lab.rs", "fn wait() { loop { if done() { return; } } }\n#[test]\nfn t() { wait(); }"),
        ("xtask/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n"),
    ];
    for (path, text) in fine {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        assert_eq!(breaches(&[source]), Vec::<String>::new(), "{text}");
    }
}

fn broken(path: &str, text: &str, breach: &str) {
    let source = Source { path: path.to_owned(), text: text.to_owned() };
    assert_eq!(breaches(&[source]), [format!("{path}: {breach}")], "{text}");
}
