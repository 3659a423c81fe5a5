//! docs/compatibility.md against the tests: what the page says is so is shown by a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Rows of features, the last of which is about logging.
const ROWS: u32 = 71;

/// Names of all tests of the crate.
fn tests() -> BTreeSet<String> {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for directory in ["src", "tests"] {
        collect(&crate_directory.join(directory), &mut found);
    }
    assert!(300 < found.len(), "only {} tests were found", found.len());
    found
}

fn collect(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).expect("text");
            let mut lines = text.lines().map(str::trim);
            while let Some(line) = lines.next() {
                if line == "#[test]" {
                    let name = lines.by_ref().find_map(|line| line.strip_prefix("fn ")).expect("a function");
                    found.insert(name.split('(').next().expect("a name").to_owned());
                }
            }
        }
    }
}

/// The rows: number, outcome, cell of tests.
fn rows() -> Vec<(String, String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility.md");
    let page = fs::read_to_string(path).expect("the page");
    let lines = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| # "));
    lines
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 4, "{line}");
            (cells[0].to_owned(), cells[2].to_owned(), cells[3].to_owned())
        })
        .collect()
}

#[test]
fn every_row_is_there_once_and_in_its_order() {
    let numbers: Vec<u32> =
        rows().iter().filter_map(|(number, _, _)| number.strip_prefix('F')?.parse().ok()).collect();
    assert_eq!(numbers, (1..=ROWS).collect::<Vec<_>>());
}

#[test]
fn what_is_the_same_or_better_is_shown_by_a_test_that_exists() {
    let tests = tests();
    for (number, outcome, cell) in rows() {
        let words: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        for word in &words {
            assert!(tests.contains(*word), "{number}: there is no test {word}");
        }
        let begins = |words: &[&str]| words.iter().any(|word| outcome.starts_with(word));
        let is_left_out = begins(&["not", "**not yet**"]);
        assert!(is_left_out || !words.is_empty(), "{number} names no test for: {outcome}");
        assert!(!outcome.is_empty(), "{number} says nothing");
    }
}
