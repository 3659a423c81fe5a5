//! docs/threat-model.md against the attack suite: what the page says is shown by a test is shown by one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use netpath_ebpf::drop_reason::DropReason;

const ATTACKS: u32 = 30;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// Names of the tests of the suite.
fn tests() -> BTreeSet<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel_attacks");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).expect("the suite") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("text");
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line == "#[test]" {
                let name = lines.next().and_then(|line| line.strip_prefix("fn ")).expect("a function");
                found.insert(name.split('(').next().expect("a name").to_owned());
            }
        }
    }
    found
}

/// The rows of the table of attacks: number, cell of reasons, cell of tests.
fn rows(page: &str) -> Vec<(String, String, String)> {
    let start = page.find("## The list").expect("the list");
    let lines = page[start..].lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells =
        lines.map(|line| line.trim_matches('|').split(" |").map(|cell| cell.trim().to_owned()).collect());
    cells
        .take_while(|cells: &Vec<String>| cells.len() == 5)
        .map(|cells| (cells[0].clone(), cells[3].clone(), cells[4].clone()))
        .collect()
}

/// The words in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_attack_has_a_row_with_a_test_and_every_test_a_row() {
    let (page, tests) = (read("../docs/threat-model.md"), tests());
    let rows = rows(&page);
    let numbers: BTreeSet<u32> =
        rows.iter().map(|row| row.0.trim_end_matches(['a', 'b']).parse().expect("a number")).collect();
    assert_eq!(numbers, (1..=ATTACKS).collect());
    let mut shown = BTreeSet::new();
    for (number, _, cell) in &rows {
        let beginnings: Vec<_> = quoted(cell).collect();
        assert!(!beginnings.is_empty(), "{number} names no test");
        for beginning in beginnings {
            let found: Vec<_> = tests.iter().filter(|test| test.starts_with(beginning)).collect();
            assert!(!found.is_empty(), "{number}: no test begins with {beginning}");
            shown.extend(found);
        }
    }
    let missing: Vec<_> =
        tests.iter().filter(|test| test.starts_with("row_") && !shown.contains(test)).collect();
    assert!(missing.is_empty(), "no row names {missing:?}");
}

#[test]
fn reasons_on_the_page_exist() {
    let page = read("../docs/threat-model.md");
    for (number, cell, _) in rows(&page) {
        for word in quoted(&cell) {
            assert!(
                DropReason::ALL.iter().any(|reason| reason.label() == word),
                "{number}: no reason is called {word}"
            );
        }
    }
}

#[test]
fn what_is_out_of_reach_is_explained_and_shown() {
    let (page, tests) = (read("../docs/threat-model.md"), tests());
    let start = page.find("## The list").expect("the list");
    let explained = page.find("## Out of reach").expect("the explanations");
    for line in page[start..explained].lines().filter(|line| line.contains("**out of reach**")) {
        let number = line.trim_matches('|').split(" |").next().expect("a cell").trim();
        let alone = [format!("**{number}."), format!("**{number},"), format!(" {number}. ")];
        assert!(alone.iter().any(|head| page[explained..].contains(head)), "{number} is not explained");
        let digits = number.trim_end_matches(['a', 'b']);
        let shown = tests.iter().any(|test| test.starts_with(&format!("row_{digits:0>2}")));
        assert!(shown, "{number} is not shown");
    }
}
