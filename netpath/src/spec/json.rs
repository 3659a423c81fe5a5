//! Reading JSON as Go's `encoding/json` does.
use serde_json::{Map, Value};
use super::error::ConfError;
/// Object with keys matched without regard to case, that knows its own path for errors. `null` = absent.
#[derive(Clone, Debug)]
pub struct View<'a> { path: String, map: &'a Map<String, Value> }
impl<'a> View<'a> {
    pub fn root(map: &'a Map<String, Value>) -> Self { todo!() }
    pub fn get(&self, key: &str) -> Option<&'a Value> { todo!() }
    /// Absent, null or "" = None.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ConfError> { todo!() }
    pub fn bool(&self, key: &str) -> Result<bool, ConfError> { todo!() }
    /// 0 = None
    pub fn u32(&self, key: &str) -> Result<Option<u32>, ConfError> { todo!() }
    pub fn object(&self, key: &str) -> Result<Option<View<'a>>, ConfError> { todo!() }
}
/// Parses an object; a key given twice has its last value (and place).
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ConfError> { todo!() }
/// 4-space indentation, no newline at the end: how CNI results and errors are printed.
pub fn to_text(value: &Value) -> String { todo!() }
