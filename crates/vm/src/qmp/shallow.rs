//! JSON as `serde_json` reads it, but for what an image is built on: QEMU nests each
//! backing image in the one above it, a long chain deeper than anybody should follow.
//! What is below the first few is passed over, whatever its depth.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

/// The key under which each nests.
const NESTED: &str = "backing-image";

/// How many of them are followed.
const FOLLOWED: usize = 32;

/// A message without what would nest without end.
pub(super) struct Shallow(pub Map<String, Value>);

impl<'de> Deserialize<'de> for Shallow {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match (Part { depth: 0 }).deserialize(from)? {
            Value::Object(map) => Ok(Self(map)),
            _ => Err(serde::de::Error::custom("not an object")),
        }
    }
}

/// A value that lies in so many backing images.
#[derive(Clone, Copy)]
struct Part {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part {
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
        while let Some(item) = items.next_element_seed(self)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let depth = self.depth + usize::from(key == NESTED);
            if depth > FOLLOWED {
                entries.next_value::<IgnoredAny>()?;
            } else {
                all.insert(key, entries.next_value_seed(Self { depth })?);
            }
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{FOLLOWED, Shallow};

    #[test]
    fn what_is_not_deep_is_read_as_it_stands() {
        let message = json!({
            "return": [null, true, -1, u64::MAX, 0.5, "\u{e9}\n", {"image": {"filename": "a"}}],
            "id": 7
        });
        let Shallow(read) = serde_json::from_str(&message.to_string()).unwrap();
        assert_eq!(Value::Object(read), message);
    }

    #[test]
    fn a_chain_of_any_length_is_followed_for_a_while_and_no_other_nesting_is() {
        let nested = |key: &str, levels: usize| {
            let (open, close) = (format!("{{\"{key}\":").repeat(levels), "}".repeat(levels));
            serde_json::from_str::<Shallow>(&format!("{{\"image\":{open}1{close},\"id\":2}}"))
        };
        let Shallow(short) = nested("backing-image", FOLLOWED).unwrap();
        assert_eq!(short["image"].pointer(&"/backing-image".repeat(FOLLOWED)), Some(&json!(1)));
        let Shallow(long) = nested("backing-image", 5_000).unwrap();
        assert_eq!(long["image"].pointer(&"/backing-image".repeat(FOLLOWED)), Some(&json!({})));
        assert_eq!(long["id"], 2);
        assert!(nested("file", 5_000).is_err());
        assert!(serde_json::from_str::<Shallow>("[1]").is_err());
    }
}
