//! Reading and writing JSON as Go's `encoding/json` does, since every other plugin is written in Go.
//!
//! Keys match whatever their case, and of several keys that match the last one counts: a configuration must
//! not mean one thing to us and another to the plugin that it is handed to. `null` is as good as absent.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::Serialize as _;
use serde_json::ser::PrettyFormatter;
use serde_json::{Map, Number, Value};

use super::error::ConfError;

/// Longest excerpt of a value in an error.
const EXCERPT: usize = 80;

/// How deep an annotation or a network's configuration may be that somebody else writes.
///
/// They are put into each other, and written down within other values: nobody reads JSON that is deeper than 128.
const DEPTH: usize = 64;
/// How deep what is made of them may be.
const WHOLE: usize = 96;

/// Parses a JSON object. A key that is given twice has its last value, and its last place.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ConfError> {
    match parse_value(bytes).map_err(|source| ConfError::Json { source })? {
        Value::Object(map) => {
            map.iter().try_for_each(|(key, value)| check(key, value, WHOLE, WHOLE - 1))?;
            Ok(map)
        }
        other => Err(wrong_type("the network configuration", &other, "a JSON object")),
    }
}

/// Parses any JSON value by the rules of [`parse_object`].
pub fn parse_value(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(bytes).map(|LastWins(value)| value)
}

/// Refuses a value that is nested too deep to be written down. It lies `outer` levels deep itself.
pub fn check_depth(field: &str, value: &Value, outer: usize) -> Result<(), ConfError> {
    check(field, value, DEPTH, DEPTH - outer)
}

fn check(field: &str, value: &Value, most: usize, left: usize) -> Result<(), ConfError> {
    fn is_deeper(value: &Value, left: usize) -> bool {
        match value {
            Value::Array(items) => left == 0 || items.iter().any(|item| is_deeper(item, left - 1)),
            Value::Object(map) => left == 0 || map.values().any(|item| is_deeper(item, left - 1)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }
    match is_deeper(value, left) {
        true => Err(ConfError::Depth { field: field.to_owned(), most }),
        false => Ok(()),
    }
}

/// What Go's encoder writes as an escape though JSON does not ask for it. They stand in strings only.
const ESCAPED: [(char, &str); 5] =
    [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")];

/// Whether Go takes two keys for one: besides the case of letters it overlooks that of two which look like none of ASCII.
pub fn is_same_key(one: &str, other: &str) -> bool {
    one.chars().map(folded).eq(other.chars().map(folded))
}

/// The keys that Go takes for one come to the last of them, at its place.
///
/// A structure that is given twice Go merges, field by field: another plugin would find in the first what we looked
/// for in the last.
pub fn keep_last(map: &mut Map<String, Value>) {
    let folded = |key: &str| key.chars().map(folded).collect::<String>();
    let mut last: HashMap<String, usize> = HashMap::new();
    for (place, key) in map.keys().enumerate() {
        last.insert(folded(key), place);
    }
    if last.len() < map.len() {
        let mut place = 0..;
        map.retain(|key, _| last.get(&folded(key)).copied() == place.next());
    }
}

fn folded(letter: char) -> char {
    match letter {
        // A long s, and the sign of Kelvin.
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    }
}

/// The text of a result, an error or a status, as a plugin in Go writes it: 4 spaces of indentation, no newline at the
/// end.
pub fn to_text(value: &Value) -> String {
    let mut text = Vec::new();
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut serializer).expect("a JSON value is written to memory without fail");
    let mut text = String::from_utf8(text).expect("serde_json writes UTF-8");
    for (character, escape) in ESCAPED {
        if text.contains(character) {
            text = text.replace(character, escape);
        }
    }
    text
}

/// A JSON object that knows where it lies, so that errors can name the whole path.
#[derive(Clone, Debug)]
pub struct View<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> View<'a> {
    /// The outermost object.
    pub fn root(map: &'a Map<String, Value>) -> Self {
        Self { path: String::new(), map }
    }

    /// `value`, which lies at `path`, as an object.
    pub fn at(path: impl Into<String>, value: &'a Value) -> Result<Self, ConfError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(wrong_type(path, other, "a JSON object")),
        }
    }

    /// The object itself.
    pub fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// Path of a key of this object.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of `key`; `null` is absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map
            .iter()
            .rev()
            .find(|(candidate, _)| is_same_key(candidate, key))
            .map(|(_, value)| value)
            .filter(|value| !value.is_null())
    }

    /// A text; the empty one is absent.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ConfError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(wrong_type(self.path_of(key), other, "a string")),
        }
    }

    /// A text that is copied, or nothing.
    pub fn owned(&self, key: &str) -> Result<Option<String>, ConfError> {
        Ok(self.text(key)?.map(str::to_owned))
    }

    /// A text read by `parse`, which is given its path.
    pub fn parsed<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str, &str) -> Result<T, ConfError>,
    ) -> Result<Option<T>, ConfError> {
        self.text(key)?.map(|text| parse(&self.path_of(key), text)).transpose()
    }

    /// A truth value; absent is false.
    pub fn bool(&self, key: &str) -> Result<bool, ConfError> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(wrong_type(self.path_of(key), other, "true or false")),
        }
    }

    /// A whole number, which may be 0.
    pub fn number<T: TryFrom<u64> + Bounded>(&self, key: &str) -> Result<Option<T>, ConfError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Number(number) = value else {
            return Err(wrong_type(self.path_of(key), value, "a number"));
        };
        if number.is_f64() {
            return Err(wrong_type(self.path_of(key), value, "a whole number"));
        }
        number.as_u64().and_then(|it| T::try_from(it).ok()).map(Some).ok_or_else(|| {
            ConfError::field(
                self.path_of(key),
                number.to_string(),
                format!("must lie between 0 and {}", T::LARGEST),
            )
        })
    }

    /// A whole number; 0 is absent, as in Go.
    pub fn nonzero(&self, key: &str) -> Result<Option<u32>, ConfError> {
        Ok(self.number(key)?.filter(|value| *value != 0))
    }

    /// An object.
    pub fn object(&self, key: &str) -> Result<Option<View<'a>>, ConfError> {
        self.get(key).map(|value| View::at(self.path_of(key), value)).transpose()
    }

    /// The elements of an array with their paths; absent is empty.
    pub fn array(&self, key: &str) -> Result<Vec<(String, &'a Value)>, ConfError> {
        self.get(key).map_or_else(|| Ok(Vec::new()), |value| elements(&self.path_of(key), value))
    }

    /// The objects in an array.
    pub fn objects(&self, key: &str) -> Result<Vec<View<'a>>, ConfError> {
        self.array(key)?.into_iter().map(|(path, value)| View::at(path, value)).collect()
    }

    /// The texts in an array with their paths.
    pub fn texts(&self, key: &str) -> Result<Vec<(String, &'a str)>, ConfError> {
        self.array(key)?
            .into_iter()
            .map(|(path, value)| match value {
                Value::String(text) => Ok((path, text.as_str())),
                other => Err(wrong_type(path, other, "a string")),
            })
            .collect()
    }
}

/// The elements of an array with their paths.
pub fn elements<'a>(path: &str, value: &'a Value) -> Result<Vec<(String, &'a Value)>, ConfError> {
    match value {
        Value::Array(items) => {
            Ok(items.iter().enumerate().map(|(i, item)| (format!("{path}[{i}]"), item)).collect())
        }
        other => Err(wrong_type(path, other, "a list")),
    }
}

/// Types of [`View::number`]: their largest value is part of the error.
pub trait Bounded {
    /// The largest value.
    const LARGEST: u64;
}

impl Bounded for u8 {
    const LARGEST: u64 = u8::MAX as u64;
}

impl Bounded for u32 {
    const LARGEST: u64 = u32::MAX as u64;
}

/// An index into a list; bounded so that it is the same on every machine.
impl Bounded for usize {
    const LARGEST: u64 = usize::MAX as u64;
}

fn wrong_type(field: impl Into<String>, value: &Value, expected: &'static str) -> ConfError {
    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(EXCERPT) {
        text.truncate(end);
        text.push('…');
    }
    ConfError::Type { field: field.into(), value: text, expected }
}

/// A value whose objects keep the last of equal keys at the place of the last: `serde_json` keeps the first
/// place, which would hide the order of `mtu`, `MTU`, `mtu`.
struct LastWins(Value);

impl<'de> Deserialize<'de> for LastWins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LastWinsVisitor).map(Self)
    }
}

struct LastWinsVisitor;

impl<'de> Visitor<'de> for LastWinsVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(LastWins(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, LastWins(value))) = entries.next_entry::<String, LastWins>()? {
            map.shift_remove(&key);
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn number(text: &str) -> String {
        let map = parse_object(text.as_bytes()).expect("is an object");
        match View::root(&map).nonzero("mtu") {
            Ok(value) => format!("{value:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn keys_match_whatever_their_case_and_the_last_one_counts() {
        assert_eq!(number(r#"{"MTU": 1400}"#), "Some(1400)");
        assert_eq!(number(r#"{"mtu": 1, "Mtu": 2}"#), "Some(2)");
        assert_eq!(number(r#"{"Mtu": 2, "mtu": 1}"#), "Some(1)");
        assert_eq!(number(r#"{"mtu": 1, "MTU": 2, "mtu": 3}"#), "Some(3)");
        assert_eq!(number(r#"{"mtux": 1}"#), "None");
    }

    #[test]
    fn keys_match_as_go_matches_them() {
        for (one, other) in [("master", "ma\u{17f}Ter"), ("kind", "\u{212a}IND"), ("İ", "İ"), ("", "")] {
            assert!(is_same_key(one, other), "{one} {other}");
        }
        for (one, other) in [("master", "masters"), ("i", "İ"), ("i", "ı"), ("", "a")] {
            assert!(!is_same_key(one, other), "{one} {other}");
        }
    }

    #[test]
    fn of_keys_that_match_the_last_is_kept() {
        let mut map =
            parse_object("{\"ipam\": 1, \"s\": 2, \"IPAM\": 3, \"\u{17f}\": 4, \"x\": 5}".as_bytes())
                .expect("object");
        keep_last(&mut map);
        assert_eq!(Value::Object(map), json!({"IPAM": 3, "\u{17f}": 4, "x": 5}));
    }

    #[test]
    fn null_and_zero_are_absent() {
        assert_eq!(number(r#"{"mtu": null}"#), "None");
        assert_eq!(number(r#"{"mtu": 0}"#), "None");
    }

    #[test]
    fn numbers_are_whole_and_in_range() {
        assert_eq!(number(r#"{"mtu": 4294967295}"#), "Some(4294967295)");
        assert_eq!(number(r#"{"mtu": 4294967296}"#), "mtu `4294967296`: must lie between 0 and 4294967295");
        assert_eq!(number(r#"{"mtu": -1}"#), "mtu `-1`: must lie between 0 and 4294967295");
        assert_eq!(number(r#"{"mtu": 1500.0}"#), "mtu `1500.0` is not a whole number");
        assert_eq!(number(r#"{"mtu": "1500"}"#), r#"mtu `"1500"` is not a number"#);
    }

    #[test]
    fn errors_name_the_whole_path() {
        let map = parse_object(br#"{"Ipam": {"ROUTES": [{"dst": "x"}, {"dst": 5}]}}"#).expect("is an object");
        let ipam = View::root(&map).object("ipam").expect("is an object").expect("is there");
        let routes = ipam.objects("routes").expect("are objects");
        assert_eq!(routes[0].text("dst").expect("is a string"), Some("x"));
        let error = routes[1].text("dst").expect_err("is no string");
        assert_eq!(error.to_string(), "ipam.routes[1].dst `5` is not a string");
        assert_eq!(error.cni_code(), 6);
        let error = View::root(&map).array("ipam").expect_err("is no list");
        assert!(error.to_string().ends_with("is not a list"), "{error}");
        assert_eq!(View::root(&map).path_of("ipam"), "ipam");
    }

    #[test]
    fn long_values_are_cut_in_errors() {
        let map = parse_object(format!(r#"{{"name": ["{}"]}}"#, "é".repeat(500)).as_bytes()).expect("object");
        let error = View::root(&map).text("name").expect_err("is no string").to_string();
        assert!(error.chars().count() < 120, "{error}");
        assert!(error.ends_with("…` is not a string"), "{error}");
    }

    #[test]
    fn what_could_not_be_written_down_is_refused() {
        let nested = |depth: usize| format!(r#"{{"a": {}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(parse_object(nested(95).as_bytes()).is_ok());
        let error = parse_object(nested(96).as_bytes()).expect_err("is too deep");
        assert_eq!(error.to_string(), "a is nested deeper than 96 levels: write it flatter");
        assert_eq!(error.cni_code(), 7);
        let map = parse_object(nested(64).as_bytes()).expect("is written by us");
        assert!(check_depth("a", &map["a"], 0).is_ok() && check_depth("a", &map["a"], 1).is_err());
    }

    #[test]
    fn only_one_object_is_a_configuration() {
        for text in ["", "{", "{} x", "{\"a\":}", "\u{feff}{}"] {
            let error = parse_object(text.as_bytes()).expect_err("is not JSON");
            assert!(matches!(error, ConfError::Json { .. }), "{text}: {error}");
        }
        for text in ["null", "[]", "\"x\"", "1"] {
            let error = parse_object(text.as_bytes()).expect_err("is no object");
            assert_eq!(error.to_string(), format!("the network configuration `{text}` is not a JSON object"));
        }
    }

    #[test]
    fn text_is_indented_by_four() {
        assert_eq!(
            to_text(&json!({"a": {"b": [1, "x"]}, "c": [], "d": {}})),
            "{\n    \"a\": {\n        \"b\": [\n            1,\n            \"x\"\n        ]\n    },\n    \"c\": \
             [],\n    \"d\": {}\n}"
        );
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no such number", |it| it.is_finite()).prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(".{0,6}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_was_read(value in values()) {
            let object = json!({ "x": value });
            let compact = parse_object(object.to_string().as_bytes()).expect("our own text");
            let pretty = parse_object(to_text(&object).as_bytes()).expect("our own text");
            let standard: Value = serde_json::from_str(&object.to_string()).expect("our own text");
            prop_assert_eq!(Value::Object(compact), standard.clone());
            prop_assert_eq!(Value::Object(pretty), standard);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = parse_object(&bytes);
        }
    }
}
