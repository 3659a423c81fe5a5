//! `deploy/netpath.yaml`: what `kubectl apply --kustomize deploy` would apply, in one file, for who has no kustomize.
//!
//! It is made of the files that the kustomizations name, as they stand. What changes files (patches, generators) is not
//! used below `deploy/`, and is refused here.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::{process::say, workspace};

const FILE: &str = "deploy/netpath.yaml";
const NAME: &str = "kustomization.yaml";
const HEAD: &str = "# Written by `cargo xtask codegen`: all of `kubectl apply -k deploy`, for who has no kustomize. The definition of
# NetworkAttachmentDefinitions is not in it, since all networks go with it when it is deleted: deploy/crd.
";

/// A kustomization, as far as it is used here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    resources: Vec<String>,
    /// Says again what stands in the files, for overlays to change.
    #[serde(default)]
    images: Vec<Image>,
    /// What changes or makes objects, as `deploy/monitoring` does.
    namespace: Option<String>,
    config_map_generator: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Image {
    name: String,
    new_tag: String,
}

/// Fails when the file is not what the others say.
pub(crate) fn check() -> Result<()> {
    let path = workspace::root()?.join(FILE);
    let found = fs::read_to_string(&path).unwrap_or_default();
    ensure!(found == text()?, "{FILE} is out of date: run `cargo xtask codegen`");
    walk("deploy")
}

/// Looks at every kustomization below a directory: what it names is there, and can be named.
fn walk(dir: &str) -> Result<()> {
    let root = workspace::root()?;
    let here = root.join(dir);
    if here.join(NAME).exists() {
        let path = format!("{dir}/{NAME}");
        for resource in Kustomization::read(&path)?.resources {
            let named = here.join(&resource);
            let named = fs::canonicalize(&named).with_context(|| format!("{path} names {resource}"))?;
            ensure!(named.is_file() || named.join(NAME).exists(), "{path}: {resource} has no {NAME}");
            let above = fs::canonicalize(&here).context("it is there")?.starts_with(&named);
            ensure!(!above, "{path}: {resource} is above it, which kustomize takes for a cycle");
        }
    }
    for entry in fs::read_dir(&here).with_context(|| format!("cannot list {}", here.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", here.display()))?;
        if entry.path().is_dir() {
            walk(&format!("{dir}/{}", entry.file_name().to_string_lossy()))?;
        }
    }
    Ok(())
}

/// Writes the file.
pub(crate) fn write() -> Result<()> {
    let path = workspace::root()?.join(FILE);
    let text = text()?;
    if !fs::read_to_string(&path).is_ok_and(|old| old == text) {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        say(format_args!("wrote {FILE}"));
    }
    Ok(())
}

fn text() -> Result<String> {
    let mut text = HEAD.to_owned();
    gather("deploy", &mut text)?;
    Ok(text)
}

impl Kustomization {
    fn read(path: &str) -> Result<Self> {
        serde_saphyr::from_str(&read(path)?)
            .with_context(|| format!("{path} uses what `cargo xtask codegen` does not know"))
    }
}

fn read(path: &str) -> Result<String> {
    let path = workspace::root()?.join(path);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Adds what the kustomization of a directory names.
fn gather(dir: &str, text: &mut String) -> Result<()> {
    let path = format!("{dir}/{NAME}");
    let kustomization = Kustomization::read(&path)?;
    let is_plain = kustomization.namespace.is_none() && kustomization.config_map_generator.is_none();
    ensure!(is_plain, "{path} changes or makes objects, which {FILE} cannot show");
    let before = text.len();
    for resource in &kustomization.resources {
        let path = format!("{dir}/{resource}");
        if resource.ends_with(".yaml") {
            *text += &format!("---\n# {path}\n{}", read(&path)?);
        } else {
            gather(&path, text)?;
        }
    }
    for Image { name, new_tag } in kustomization.images {
        let image = format!("image: {name}:{new_tag}\n");
        let all = text[before..].matches(&format!("image: {name}:")).count();
        if all == 0 || all != text[before..].matches(&image).count() {
            bail!("{path} has the tag {new_tag} for {name}, and its resources have another");
        }
    }
    Ok(())
}
