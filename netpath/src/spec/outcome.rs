//! What an executed plugin says when it fails: an error object, mostly.

use super::error::ErrorObject;
use super::version::CniVersion;

/// Longest excerpt of what a plugin said, short enough for an event.
const LIMIT: usize = 512;

/// Why a plugin failed, by its own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It printed an error object.
    Said(ErrorObject),
    /// It printed none.
    Mute {
        /// How it ended.
        how: String,
        /// The end of its output, else of its stderr.
        said: String,
    },
}

impl Failure {
    /// Reads the output of a plugin that ended with `status`, or by `signal`.
    pub fn read(
        version: CniVersion,
        (status, signal): (Option<i32>, Option<i32>),
        stdout: &[u8],
        stderr: &[u8],
    ) -> Self {
        let object =
            serde_json::from_slice(stdout).ok().and_then(|value| ErrorObject::parse(version, &value));
        match object {
            Some(object) => Self::Said(object),
            None => Self::Mute {
                how: match (status, signal) {
                    (Some(status), _) => format!("with status {status}"),
                    (None, Some(signal)) => format!("by signal {signal}"),
                    (None, None) => "in an unknown way".to_owned(),
                },
                said: excerpt(if stdout.trim_ascii().is_empty() { stderr } else { stdout }),
            },
        }
    }
}

/// The end of what a plugin said.
pub fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    let start = (text.len().saturating_sub(LIMIT)..text.len()).find(|&at| text.is_char_boundary(at));
    text[start.unwrap_or(0)..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_keep_the_end_and_whole_characters() {
        assert_eq!(excerpt(b" a\n"), "a");
        let long = format!("{}end", "\u{e4}".repeat(600));
        let cut = excerpt(long.as_bytes());
        assert!(cut.len() <= 512 && cut.len() > 500 && cut.ends_with("end"), "{cut}");
        assert_eq!(excerpt(&[0xff; 2]), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn an_error_object_counts_and_else_the_last_words() {
        let read = |stdout: &[u8]| Failure::read(CniVersion::LATEST, (Some(1), None), stdout, b"on stderr");
        let Failure::Said(object) = read(br#"{"code": 7, "msg": "m"}"#) else { panic!("is an error object") };
        assert_eq!((object.code, object.msg.as_str()), (7, "m"));
        let mute = |said: &str| Failure::Mute { how: "with status 1".into(), said: said.into() };
        assert_eq!(read(b"panic"), mute("panic"));
        assert_eq!(read(b" \n"), mute("on stderr"));
        let killed = Failure::read(CniVersion::LATEST, (None, Some(9)), b"", b"");
        assert_eq!(killed, Failure::Mute { how: "by signal 9".into(), said: String::new() });
    }
}
