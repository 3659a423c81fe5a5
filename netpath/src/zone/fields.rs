//! Reads the keys of our own JSON objects: `zone` and the entries of `masters.json`.
//!
//! Keys are matched without regard to case, as everywhere in CNI; unlike elsewhere an unknown key is an
//! error here, since a misspelt `deny` would open the zone.

use serde_json::{Map, Value};

use super::ValueError;

/// The known keys of one object. A key whose value is `null` counts as absent.
pub(super) struct Fields<'a> {
    path: &'static str,
    values: Vec<(&'static str, &'a Value)>,
}

impl<'a> Fields<'a> {
    /// Reads `object`, which errors call `path` (empty for an object that has no name of its own).
    pub(super) fn read(
        path: &'static str,
        known: &'static [&'static str],
        object: &'a Map<String, Value>,
    ) -> Result<Self, ValueError> {
        let mut fields = Self { path, values: Vec::new() };
        for (key, value) in object {
            let Some(&name) = known.iter().find(|name| name.eq_ignore_ascii_case(key)) else {
                return Err(ValueError::UnknownKey { key: fields.name_of(key), known });
            };
            if fields.values.iter().any(|(other, _)| *other == name) {
                return Err(ValueError::SameKey { key: fields.name_of(key) });
            }
            fields.values.push((name, value));
        }
        Ok(fields)
    }

    /// The value of `key` and its full name.
    pub(super) fn get(&self, key: &'static str) -> Option<(String, &'a Value)> {
        let (_, value) = self.values.iter().find(|(name, value)| *name == key && !value.is_null())?;
        Some((self.name_of(key), value))
    }

    /// The value of `key` where it must be one of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Result<Option<T>, ValueError> {
        let Some((key, value)) = self.get(key) else { return Ok(None) };
        let word = string(&key, value)?;
        match choices.iter().find(|(choice, _)| *choice == word) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => Err(ValueError::Choice {
                key,
                value: word.to_owned(),
                choices: choices.iter().map(|(choice, _)| *choice).collect(),
            }),
        }
    }

    /// The value of `key` where it must be `true` or `false`.
    pub(super) fn flag(&self, key: &'static str) -> Result<Option<bool>, ValueError> {
        match self.get(key) {
            None => Ok(None),
            Some((_, Value::Bool(flag))) => Ok(Some(*flag)),
            Some((key, value)) => {
                Err(ValueError::Type { key, value: value.to_string(), expected: "`true` or `false`" })
            }
        }
    }

    /// The value of `key` where it must be a string, with the key's full name.
    pub(super) fn string(&self, key: &'static str) -> Result<Option<(String, &'a str)>, ValueError> {
        let Some((key, value)) = self.get(key) else { return Ok(None) };
        let text = string(&key, value)?;
        Ok(Some((key, text)))
    }

    /// The value of `key` where it must be a list of strings, with the key's full name.
    pub(super) fn strings(&self, key: &'static str) -> Result<Option<(String, Vec<&'a str>)>, ValueError> {
        let Some((key, items)) = self.list(key, "a list of strings")? else { return Ok(None) };
        let items = items.iter().map(|item| string(&key, item)).collect::<Result<_, _>>()?;
        Ok(Some((key, items)))
    }

    /// The value of `key` where it must be a list, with the key's full name; `expected` says of what.
    pub(super) fn list(
        &self,
        key: &'static str,
        expected: &'static str,
    ) -> Result<Option<(String, &'a [Value])>, ValueError> {
        match self.get(key) {
            None => Ok(None),
            Some((key, Value::Array(items))) => Ok(Some((key, items))),
            Some((key, value)) => Err(ValueError::Type { key, value: value.to_string(), expected }),
        }
    }

    fn name_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

fn string<'a>(key: &str, value: &'a Value) -> Result<&'a str, ValueError> {
    value.as_str().ok_or_else(|| ValueError::Type {
        key: key.to_owned(),
        value: value.to_string(),
        expected: "a string",
    })
}
