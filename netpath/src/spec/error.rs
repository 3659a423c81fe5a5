//! Why an input cannot be used, and how failures are told to the caller.

use std::borrow::Cow;
use std::error::Error;

use serde_json::{Map, Value};

use super::version::CniVersion;

/// Error codes of the CNI specification. Codes of our own begin at 100.
pub mod code {
    /// The configuration's `cniVersion` is not supported, or does not have the command.
    pub const VERSION: u32 = 1;
    /// A field of the configuration is not supported; the message names it.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown: the caller need not do anything about it.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A necessary environment variable is missing or wrong.
    pub const ENV: u32 = 4;
    /// stdin or stdout failed.
    pub const IO: u32 = 5;
    /// The content cannot be decoded.
    pub const DECODE: u32 = 6;
    /// The network configuration is invalid.
    pub const CONF: u32 = 7;
    /// The sandbox's network namespace is the plugin's own.
    pub const NETNS: u32 = 8;
    /// A passing trouble: the caller should try again.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: the plugin cannot serve ADD.
    pub const UNAVAILABLE: u32 = 50;
    /// STATUS: the plugin cannot serve ADD, and existing containers may have lost connectivity.
    pub const LIMITED: u32 = 51;
}

/// Longest excerpt of a text in an error.
const EXCERPT: usize = 256;

/// What a failed call prints on stdout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorObject {
    /// Version of the configuration that failed.
    pub cni_version: CniVersion,
    /// One of [`code`], or a code of a plugin from 100 on.
    pub code: u32,
    /// What was attempted, and on what.
    pub msg: String,
    /// Why it failed; may be empty.
    pub details: String,
}

impl ErrorObject {
    /// `msg` is the error's text, `details` the texts of its causes.
    pub fn from_error(cni_version: CniVersion, code: u32, error: &(dyn Error + 'static)) -> Self {
        let causes: Vec<String> =
            std::iter::successors(error.source(), |&cause| cause.source()).map(ToString::to_string).collect();
        Self { cni_version, code, msg: error.to_string(), details: causes.join(": ") }
    }

    /// Reads what an executed plugin printed; `None` where it is not an error object.
    ///
    /// `version` is assumed where the object has no usable `cniVersion`: Go's plugins print none.
    pub fn parse(version: CniVersion, value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        Some(Self {
            cni_version: text("cniVersion").and_then(|it| CniVersion::parse(it).ok()).unwrap_or(version),
            code: value.get("code").and_then(Value::as_u64).and_then(|it| u32::try_from(it).ok())?,
            msg: text("msg")?.to_owned(),
            details: text("details").unwrap_or_default().to_owned(),
        })
    }

    /// The object as the specification wants it.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("cniVersion".into(), self.cni_version.as_str().into());
        map.insert("code".into(), self.code.into());
        map.insert("msg".into(), self.msg.as_str().into());
        if !self.details.is_empty() {
            map.insert("details".into(), self.details.as_str().into());
        }
        Value::Object(map)
    }
}

/// Why an input cannot be used. The text names the field, its value and what to write instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfError {
    /// Not JSON at all; the cause has line and column.
    #[error("the network configuration is not valid JSON")]
    Json {
        /// Where and why.
        source: serde_json::Error,
    },
    /// An annotation that is meant to be JSON and is not; the cause has line and column.
    #[error(
        "annotation {key} `{text}` is not valid JSON: write a list such as [{{\"name\": \"mv\"}}], or names with commas between them"
    )]
    Annotation {
        /// Its key.
        key: &'static str,
        /// Its text.
        text: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field that cannot do without a value has none.
    #[error("{field} is missing: {fix}")]
    Missing {
        /// Path of the field.
        field: String,
        /// What to write.
        fix: &'static str,
    },
    /// A value of the wrong JSON type.
    #[error("{field} `{value}` is not {expected}")]
    Type {
        /// Path of the field.
        field: String,
        /// The value, as JSON, perhaps cut short.
        value: String,
        /// What is wanted, with its article.
        expected: &'static str,
    },
    /// A value of the right type that breaks a rule.
    #[error("{field} `{value}`: {rule}")]
    Field {
        /// Path of the field.
        field: String,
        /// The value.
        value: String,
        /// The rule, and so the fix.
        rule: Cow<'static, str>,
    },
    /// A value within values within values.
    #[error("{field} is nested deeper than {most} levels: write it flatter")]
    Depth {
        /// Path of the field.
        field: String,
        /// How deep it may be.
        most: usize,
    },
    /// A version of CNI that is not ours.
    #[error("cniVersion `{value}` is not supported: use one of {}", CniVersion::ALL.map(CniVersion::as_str).join(", "))]
    Version {
        /// What the configuration says.
        value: String,
    },
    /// The configuration's version does not have the command.
    #[error("cniVersion `{version}` does not allow {command}: use {since} or later")]
    Command {
        /// Version of the configuration.
        version: CniVersion,
        /// The command.
        command: &'static str,
        /// First version that has it.
        since: CniVersion,
    },
    /// CNI 0.2 and older know no result without an address.
    #[error(
        "cniVersion `{version}` cannot express an interface without an address: use 0.3.0 or later, or an IPAM"
    )]
    NoAddress {
        /// Version of the result that was wanted.
        version: CniVersion,
    },
}

impl ConfError {
    /// A value that breaks a rule.
    pub fn field(
        field: impl Into<String>,
        value: impl Into<String>,
        rule: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Field { field: field.into(), value: excerpt(value.into()), rule: rule.into() }
    }

    /// Code of the CNI error object, where the fault lies in the network configuration.
    pub fn cni_code(&self) -> u32 {
        match self {
            Self::Json { .. } | Self::Annotation { .. } | Self::Type { .. } => code::DECODE,
            Self::Missing { .. } | Self::Field { .. } | Self::Depth { .. } => code::CONF,
            Self::Version { .. } | Self::Command { .. } | Self::NoAddress { .. } => code::VERSION,
        }
    }
}

/// A value as errors quote it: whoever wrote it knows the rest.
pub(super) fn excerpt(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(EXCERPT) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What VERSION prints: the version it was asked in, and all that are supported.
pub fn supported_versions_json(requested: CniVersion) -> Value {
    let supported: Vec<Value> = CniVersion::ALL.into_iter().map(|it| it.as_str().into()).collect();
    let mut map = Map::new();
    map.insert("cniVersion".into(), requested.as_str().into());
    map.insert("supportedVersions".into(), supported.into());
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::json::{parse_object, to_text};

    #[test]
    fn text_becomes_msg_and_causes_become_details() {
        let error = parse_object(b"{").expect_err("is cut short");
        let object = ErrorObject::from_error(CniVersion::V0_4_0, error.cni_code(), &error);
        assert_eq!(
            to_text(&object.to_json()),
            "{\n    \"cniVersion\": \"0.4.0\",\n    \"code\": 6,\n    \"msg\": \"the network configuration is not \
             valid JSON\",\n    \"details\": \"EOF while parsing an object at line 1 column 1\"\n}"
        );
    }

    #[test]
    fn details_are_left_out_when_there_are_none() {
        let error = ConfError::Version { value: "0.9.0".into() };
        let object = ErrorObject::from_error(CniVersion::LATEST, error.cni_code(), &error);
        let msg =
            "cniVersion `0.9.0` is not supported: use one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";
        assert_eq!(object.to_json(), json!({"cniVersion": "1.1.0", "code": 1, "msg": msg}));
    }

    #[test]
    fn an_error_object_of_a_go_plugin_is_read() {
        let printed = json!({"code": 999, "msg": "no IP addresses available", "details": "why"});
        let read = ErrorObject::parse(CniVersion::V0_3_1, &printed).expect("is an error object");
        assert_eq!((read.cni_version, read.code), (CniVersion::V0_3_1, 999));
        assert_eq!((read.msg.as_str(), read.details.as_str()), ("no IP addresses available", "why"));
    }

    #[test]
    fn other_output_is_no_error_object() {
        for value in [
            json!(null),
            json!("boom"),
            json!({"code": 1}),
            json!({"msg": "x"}),
            json!({"code": -1, "msg": "x"}),
        ] {
            assert_eq!(ErrorObject::parse(CniVersion::LATEST, &value), None, "{value}");
        }
    }

    #[test]
    fn an_error_object_survives_its_own_json() {
        let object =
            ErrorObject { cni_version: CniVersion::V1_0_0, code: 101, msg: "a".into(), details: "b".into() };
        assert_eq!(ErrorObject::parse(CniVersion::V0_1_0, &object.to_json()), Some(object));
    }

    #[test]
    fn version_output_has_the_shape_that_runtimes_read() {
        assert_eq!(
            supported_versions_json(CniVersion::V0_4_0).to_string(),
            r#"{"cniVersion":"0.4.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#
        );
    }
}
