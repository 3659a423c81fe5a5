//! `deploy/netpath.yaml`: what `kubectl apply --kustomize deploy` would apply, in one file, for who has no kustomize.
//!
//! It is made of the files that the kustomizations name, as they stand. What changes files (patches, generators) is not
//! used below `deploy/`, and is refused here.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::{process::say, workspace};

const FILE: &str = "deploy/netpath.yaml";
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

/// Adds what the kustomization of a directory names.
fn gather(dir: &str, text: &mut String) -> Result<()> {
    let read = |path: &str| -> Result<String> {
        let path = workspace::root()?.join(path);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let path = format!("{dir}/kustomization.yaml");
    let kustomization: Kustomization = serde_saphyr::from_str(&read(&path)?)
        .with_context(|| format!("{path} uses what {FILE} cannot be made of"))?;
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
