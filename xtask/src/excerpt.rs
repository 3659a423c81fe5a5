//! What failed tests said, kept to be repeated where a long run ends.

/// Lines of one test that are kept: the panic's message and where it came from stand first.
const LINES: usize = 12;
/// Characters of one line that are kept.
const CHARACTERS: usize = 600;

/// The excerpts of one run of libtest, which prints what a test said between `---- NAME stdout ----` and the next of
/// these or `failures:`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Excerpts {
    ended: Vec<String>,
    current: Option<Vec<String>>,
}

impl Excerpts {
    /// Takes a line of the output in.
    pub(crate) fn take(&mut self, line: &str) {
        let begins = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if begins.is_some() || line == "failures:" {
            self.end();
        }
        match (begins, &mut self.current) {
            (Some(name), _) => self.current = Some(vec![format!("{name}:")]),
            (None, Some(lines)) if !line.is_empty() && lines.len() <= LINES => {
                lines.push(format!("    {}", line.chars().take(CHARACTERS).collect::<String>()));
            }
            _ => {}
        }
    }

    fn end(&mut self) {
        self.ended.extend(self.current.take().map(|lines| lines.join("\n")));
    }

    /// One text for each test that failed.
    pub(crate) fn into_texts(mut self) -> Vec<String> {
        self.end();
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failed_test_is_kept_shortened() {
        let mut excerpts = Excerpts::default();
        let long = "x".repeat(CHARACTERS + 1);
        let output = format!(
            "running 3 tests\n..F\nfailures:\n\n---- one stdout ----\n\nthread 'one' panicked at a.rs:1:2:\n{long}\n\
             ---- two stdout ----\n{}\nfailures:\n    one\n    two\n\ntest result: FAILED.",
            "line\n".repeat(LINES + 1)
        );
        output.lines().for_each(|line| excerpts.take(line));
        let texts = excerpts.into_texts();
        let first = format!("one:\n    thread 'one' panicked at a.rs:1:2:\n    {}", &long[1..]);
        assert_eq!(texts, [first, format!("two:{}", "\n    line".repeat(LINES))]);
    }

    #[test]
    fn a_run_without_failures_has_none() {
        let mut excerpts = Excerpts::default();
        "running 1 test\ntest one ... ok\ntest result: ok.".lines().for_each(|line| excerpts.take(line));
        assert!(excerpts.into_texts().is_empty());
    }
}
