//! JSON as `serde_json` reads it, but for what an image is built on: QEMU nests each
//! backing image in the one above it, a long chain deeper than anybody should follow.
//! Nothing here needs it, so it is passed over, whatever its depth.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The key that is left out.
const NESTED: &str = "backing-image";

/// A message without what would nest without end.
pub(super) struct Shallow(pub Map<String, Value>);

impl<'de> Deserialize<'de> for Shallow {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Part::deserialize(from)?.0 {
            Value::Object(map) => Ok(Self(map)),
            _ => Err(serde::de::Error::custom("not an object")),
        }
    }
}

struct Part(Value);

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PartVisitor).map(Part)
    }
}

struct PartVisitor;

impl<'de> Visitor<'de> for PartVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Part(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key == NESTED {
                entries.next_value::<IgnoredAny>()?;
            } else {
                all.insert(key, entries.next_value::<Part>()?.0);
            }
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Shallow;

    #[test]
    fn all_but_backing_images_is_read_as_it_stands() {
        let message = json!({
            "return": [null, true, -1, u64::MAX, 0.5, "\u{e9}\n", {"image": {"filename": "a"}}],
            "id": 7
        });
        let Shallow(read) = serde_json::from_str(&message.to_string()).unwrap();
        assert_eq!(Value::Object(read), message);
    }

    #[test]
    fn a_chain_of_any_length_is_passed_over_and_no_other_nesting_is() {
        let nested = |key: &str| {
            let (open, close) = (format!("{{\"{key}\":").repeat(5_000), "}".repeat(5_000));
            serde_json::from_str::<Shallow>(&format!("{{\"image\":{open}1{close},\"id\":2}}"))
        };
        assert_eq!(
            Value::Object(nested("backing-image").unwrap().0),
            json!({"image": {}, "id": 2})
        );
        assert!(nested("file").is_err());
        assert!(serde_json::from_str::<Shallow>("[1]").is_err());
    }
}
