//! What the fuzzer checks, on inputs with names: those it begins with, and those it found something by.

use std::{
    collections::BTreeMap,
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use netpath_fuzz::{TARGETS, Target};

fn directory(kind: &str, target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target.name)
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeMap::new() };
    let mut files = BTreeMap::new();
    for entry in entries {
        let path = entry.expect("the directory stays readable").path();
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        files.insert(name, fs::read(&path).expect("a file"));
    }
    files
}

/// Runs all of them, so that one run names everything that is wrong.
fn hold(inputs: impl IntoIterator<Item = (String, Vec<u8>)>, target: &Target) -> Vec<String> {
    let fails = |(name, bytes): (String, Vec<u8>)| {
        let outcome = catch_unwind(AssertUnwindSafe(|| (target.check)(&bytes)));
        outcome.is_err().then(|| format!("{}/{name}", target.name))
    };
    inputs.into_iter().filter_map(fails).collect()
}

#[test]
fn every_seed_holds() {
    let wrong: Vec<String> = TARGETS.iter().flat_map(|target| hold((target.seeds)(), target)).collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_regression_holds() {
    let wrong: Vec<String> =
        TARGETS.iter().flat_map(|target| hold(files(&directory("regressions", target)), target)).collect();
    assert_eq!(wrong, Vec::<String>::new());
}

/// The files are what the code says, so that a changed table changes them: `UPDATE_SEEDS=1` writes them.
#[test]
fn the_seeds_are_those_of_the_tables() {
    for target in TARGETS {
        let expected: BTreeMap<String, Vec<u8>> = (target.seeds)().into_iter().collect();
        assert_eq!(expected.len(), (target.seeds)().len(), "{}: two seeds of one name", target.name);
        let directory = directory("seeds", target);
        if env::var_os("UPDATE_SEEDS").is_some() {
            let _ = fs::remove_dir_all(&directory);
            fs::create_dir_all(&directory).expect("a directory");
            for (name, bytes) in &expected {
                fs::write(directory.join(name), bytes).expect("a file");
            }
        }
        assert!(files(&directory) == expected, "{}: run it with UPDATE_SEEDS=1", directory.display());
    }
}

/// A check that cannot fail would find nothing.
#[test]
fn a_check_can_fail() {
    let cannot = Target { name: "cannot", check: |data| assert!(data.is_empty()), seeds: Vec::new };
    assert_eq!(hold([("full".to_owned(), vec![1]), ("empty".to_owned(), vec![])], &cannot), ["cannot/full"]);
}
