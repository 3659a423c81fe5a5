//! `netpath sweep`

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{
    say,
    table::{Align::Left, Table},
    view::{self, Format, Output},
};
use crate::{
    cri,
    plugin::sweep::{self, End, Known, Life, What},
    root::Root,
    spec::meta::BIN_DIR,
    state,
};

/// Arguments of `netpath sweep`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    witness: Witness,
    /// Only show what would be ended.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

/// Who is asked besides the kernel, and with what things are ended.
#[derive(Debug, clap::Args)]
pub(super) struct Witness {
    /// Socket of a container runtime's CRI, as often as there are runtimes; without any, those where runtimes usually
    /// serve.
    #[arg(long, value_name = "SOCKET")]
    runtime: Vec<String>,
    /// Ask no runtime: there is none with CRI, and a network namespace that is gone is enough.
    #[arg(long, conflicts_with = "runtime")]
    no_runtime: bool,
    /// Directory of plugins, where the records name none that has them.
    #[arg(long, value_name = "DIR", default_value = BIN_DIR)]
    plugins: Vec<PathBuf>,
}

/// One thing that is known, and what came of it.
pub(super) struct Swept {
    pub(super) known: Known,
    pub(super) life: Life,
    /// What came of ending it, where that was tried.
    pub(super) end: Option<anyhow::Result<End>>,
}

pub(super) fn run(root: &Root, args: &Args) -> anyhow::Result<ExitCode> {
    view::check_rights(root)?;
    let all = sweep(root, &args.witness, args.dry_run)?;
    match args.output.output {
        Format::Json => {
            let all: Vec<Value> = all.iter().map(Swept::to_json).collect();
            say(crate::spec::json::to_text(&all.into()));
        }
        Format::Table => tell(&all),
    }
    Ok(if all.iter().any(Swept::failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Looks at everything that is known, and ends what is dead.
pub(super) fn sweep(root: &Root, witness: &Witness, dry_run: bool) -> anyhow::Result<Vec<Swept>> {
    // First what is known, then who lists it: what comes in between is no candidate.
    let known = sweep::known(root).context("cannot read the records")?;
    let listed = witness.listed(root)?;
    let boot = state::boot_id()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if !dry_run {
        sweep::drafts(root, &root.multus_cache())?;
    }
    let swept = known.into_iter().map(|known| {
        let life = known.life(listed.as_ref(), &boot, now);
        let is_due = life == Life::Dead && !dry_run;
        let end = is_due.then(|| known.end(root, &witness.plugins).map_err(anyhow::Error::from));
        Swept { known, life, end }
    });
    Ok(swept.collect())
}

impl Witness {
    /// What the runtimes list, all of them together; `None` where none is to be asked.
    fn listed(&self, root: &Root) -> anyhow::Result<Option<BTreeSet<String>>> {
        if self.no_runtime {
            return Ok(None);
        }
        let mut sockets = Vec::new();
        for text in &self.runtime {
            let path = text.strip_prefix("unix://").unwrap_or(text);
            if !path.starts_with('/') {
                bail!(
                    "--runtime: `{text}`: write the socket's path, like unix:///run/containerd/containerd.sock"
                );
            }
            sockets.push(root.join(path));
        }
        if sockets.is_empty() {
            sockets = cri::sockets(root);
        }
        if sockets.is_empty() {
            bail!(
                "no container runtime's socket is where they usually are, and without its word nothing is ended: name \
                 it by --runtime, or give --no-runtime where no runtime has CRI"
            );
        }
        let mut listed = BTreeSet::new();
        for socket in sockets {
            let own = cri::sandboxes(&socket).context(
                "without the runtime's word nothing is ended: name the right socket by --runtime, or give --no-runtime \
                 where no runtime has CRI",
            )?;
            listed.extend(own);
        }
        Ok(Some(listed))
    }
}

impl Swept {
    fn failed(&self) -> bool {
        matches!(self.end, Some(Err(_)))
    }

    /// Whether something of it is there now that its pod may need.
    pub(super) fn lives(&self) -> bool {
        match &self.end {
            None => !matches!(self.known.what, What::SetAside(_)),
            Some(end) => matches!(end, Err(_) | Ok(End::Changed)),
        }
    }

    /// What came of it, in a word that stays.
    fn verdict(&self) -> &'static str {
        match (self.life, &self.end) {
            (_, Some(Ok(End::Whole))) => "ended",
            (_, Some(Ok(End::SetAside))) => "set-aside",
            (_, Some(Err(_))) => "failed",
            (Life::Dead, None) => "dead",
            (Life::Young, None) => "young",
            (Life::Listed | Life::Stands, None) | (_, Some(Ok(End::Changed))) => "alive",
        }
    }

    /// Why, in words.
    pub(super) fn why(&self) -> String {
        match (self.life, &self.end) {
            (_, Some(Err(error))) => format!("{error:#}"),
            (_, Some(Ok(End::SetAside))) => "a plugin that it needs is gone".to_owned(),
            (_, Some(Ok(End::Changed))) => "it was attached or ended meanwhile".to_owned(),
            (Life::Listed, _) => "the runtime lists it".to_owned(),
            (Life::Stands, _) if matches!(self.known.what, What::Torn(_)) => {
                "its record cannot be read, and nobody says that it is gone".to_owned()
            }
            (Life::Stands, _) => "its network namespace stands".to_owned(),
            (Life::Young, _) => "it is not ten minutes old".to_owned(),
            (Life::Dead, _) => "namespace gone, and not listed".to_owned(),
        }
    }

    fn kind(&self) -> &'static str {
        match self.known.what {
            What::Sandbox(_) => "sandbox",
            What::SetAside(_) => "set-aside",
            What::Attachment => "attachment",
            What::Torn(_) => "torn",
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "containerID": self.known.container_id.as_str(),
            "interfaces": self.known.interfaces(),
            "pod": self.known.pod(),
            "kind": self.kind(),
            "verdict": self.verdict(),
            "why": self.why(),
        })
    }

    /// How people know it.
    pub(super) fn name(&self) -> String {
        let id = self.known.container_id.to_string();
        self.known.pod().unwrap_or_else(|| format!("container {}", id.get(..12).unwrap_or(&id)))
    }
}

/// The living are counted; each other one is named.
fn tell(all: &[Swept]) {
    let (quiet, others): (Vec<&Swept>, Vec<&Swept>) =
        all.iter().partition(|it| matches!(it.verdict(), "alive" | "young"));
    if !others.is_empty() {
        let columns = ["POD", "CONTAINER", "INTERFACES", "KIND", "VERDICT", "WHY"];
        let mut table = Table::new(&columns.map(|name| (name, Left)));
        for it in &others {
            let id = it.known.container_id.to_string();
            table.row(vec![
                it.name(),
                id.get(..12).unwrap_or(&id).to_owned(),
                it.known.interfaces().join(","),
                it.kind().to_owned(),
                it.verdict().to_owned(),
                it.why(),
            ]);
        }
        say(table);
    }
    say(format_args!("{} alive or younger than ten minutes, {} not", quiet.len(), others.len()));
}
