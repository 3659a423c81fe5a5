//! Figures as lines of JSON, appended to a file: what a machine said over time.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    Effort,
    figures::{Figure, Figures},
    machine::Machine,
};

/// Opens the file, which is to be found out before anything is measured for it.
pub(crate) fn open(file: &Path) -> Result<File> {
    let opened = File::options().create(true).append(true).open(file);
    opened.with_context(|| format!("--json {}: cannot be written; name another file", file.display()))
}

/// Appends a line for each figure; each says by itself where, when and how it was taken.
pub(crate) fn append(file: &mut File, machine: &Machine, effort: Effort, figures: &Figures) -> Result<()> {
    let taken =
        SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?.as_secs();
    let text: String =
        figures.iter().map(|(name, figure)| line(name, figure, machine, effort, taken)).collect();
    file.write_all(text.as_bytes()).context("--json: cannot be written")
}

fn line(name: &str, figure: &Figure, machine: &Machine, effort: Effort, taken: u64) -> String {
    let suite = name.split('/').next().unwrap_or_default();
    let flag = match effort {
        Effort::Quick => " --quick",
        Effort::Usual => "",
        Effort::Full => " --full",
    };
    let mut line =
        json!({ "figure": name, "taken": taken, "repeat": format!("cargo xtask bench {suite}{flag}") });
    let more = match figure {
        Figure::Taken { unit, samples } => {
            let (low, high) = samples.spread();
            json!({ "unit": unit.symbol(), "median": samples.median(), "low": low, "high": high,
                "samples": samples.len() })
        }
        Figure::Missing(why) => json!({ "missing": why }),
    };
    if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
        line.extend(more);
        line.insert("machine".to_owned(), machine.json());
    }
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Unit;

    #[test]
    fn a_line_says_what_where_and_how_to_repeat_it() {
        let figure =
            Figure::Taken { unit: Unit::Microseconds, samples: [1.0, 2.0, 4.0].into_iter().collect() };
        let text = line("cni/exec", &figure, &Machine::default(), Effort::Full, 7);
        let line: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(line["repeat"], "cargo xtask bench cni --full");
        assert_eq!(
            (&line["median"], &line["samples"], &line["unit"]),
            (&json!(2.0), &json!(3), &json!("us"))
        );
        assert!(line["machine"].get("kernel").is_some(), "{line}");
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn what_is_missing_says_why() {
        let figure = Figure::Missing("not in this kernel".to_owned());
        let line: Value =
            serde_json::from_str(&line("live/x", &figure, &Machine::default(), Effort::Usual, 7))
                .expect("JSON");
        assert_eq!((&line["missing"], line.get("median")), (&json!("not in this kernel"), None));
    }
}
