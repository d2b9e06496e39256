//! The value of an option as keys with values, however it is written: as
//! `driver=qcow2,file.filename=a` or as JSON.

use serde_json::Value;

use crate::arguments::parts;

/// The value of one option, to look at and to change.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fields {
    /// `key=value` between commas; a word alone has no key.
    Words(Vec<(Option<String>, String)>),
    /// The same as JSON.
    Json(Value),
}

impl Fields {
    /// Reads an option's value.
    pub(crate) fn read(value: &str) -> Self {
        if let Some(json) = value.starts_with('{').then(|| serde_json::from_str(value).ok()) {
            return json.map_or_else(|| Self::Words(vec![(None, value.to_owned())]), Self::Json);
        }
        let word = |part: String| match part.split_once('=') {
            Some((key, value)) => (Some(key.to_owned()), value.to_owned()),
            None => (None, part),
        };
        Self::Words(parts(value).map(word).collect())
    }

    /// Returns the option's value as QEMU reads it.
    pub(crate) fn write(&self) -> String {
        let double = |text: &str| text.replace(',', ",,");
        match self {
            Self::Json(json) => json.to_string(),
            Self::Words(words) => {
                let words = words.iter().map(|(key, value)| match key {
                    Some(key) => format!("{key}={}", double(value)),
                    None => double(value),
                });
                words.collect::<Vec<_>>().join(",")
            }
        }
    }

    /// Returns the word that comes first without a key, such as a device's driver.
    pub(crate) fn first(&self) -> Option<&str> {
        match self {
            Self::Words(words) => {
                let (key, value) = words.first()?;
                key.is_none().then_some(value)
            }
            Self::Json(_) => None,
        }
    }

    /// Returns the value of a key; below another one it is `file.filename`.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        match self {
            Self::Words(words) => {
                let has_key = |(own, _): &&(Option<String>, String)| own.as_deref() == Some(key);
                words.iter().find(has_key).map(|(_, value)| value.as_str())
            }
            Self::Json(json) => json.get(key).or_else(|| json.pointer(&pointer(key)))?.as_str(),
        }
    }

    /// Gives a key a value, which it may have had or not.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        match self {
            Self::Words(words) => {
                let known = words.iter_mut().find(|(own, _)| own.as_deref() == Some(key));
                match known {
                    Some((_, old)) => value.clone_into(old),
                    None => words.push((Some(key.to_owned()), value.to_owned())),
                }
            }
            Self::Json(json) => {
                let (above, name) = key.rsplit_once('.').unwrap_or(("", key));
                let above = if above.is_empty() { String::new() } else { pointer(above) };
                // In the name of a file JSON may have keys with points, too.
                match json.pointer_mut(&above) {
                    Some(Value::Object(object)) => object.insert(name.to_owned(), value.into()),
                    _ => json.as_object_mut().and_then(|all| all.insert(key.into(), value.into())),
                };
            }
        }
    }

    /// Tells whether a key has any value.
    pub(crate) fn has(&self, key: &str) -> bool {
        match self {
            Self::Words(_) => self.get(key).is_some(),
            Self::Json(json) => json.pointer(&pointer(key)).is_some(),
        }
    }

    /// Gives a key a value that is no text where the notation knows others.
    pub(crate) fn set_value(&mut self, key: &str, value: Value) {
        match (&mut *self, value) {
            (_, Value::String(text)) => self.set(key, &text),
            (Self::Words(_), value) => self.set(key, &value.to_string()),
            (Self::Json(json), value) => json[key] = value,
        }
    }

    /// Takes a key away, if it is there.
    pub(crate) fn remove(&mut self, key: &str) {
        match self {
            Self::Words(words) => words.retain(|(own, _)| own.as_deref() != Some(key)),
            Self::Json(json) => {
                let (above, name) = key.rsplit_once('.').unwrap_or(("", key));
                let above = if above.is_empty() { String::new() } else { pointer(above) };
                if let Some(Value::Object(object)) = json.pointer_mut(&above) {
                    object.remove(name);
                }
            }
        }
    }

    /// Takes a key away with all that is below it.
    pub(crate) fn remove_whole(&mut self, key: &str) {
        self.remove(key);
        let is_below = |own: &str| own.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
        match self {
            Self::Words(words) => words.retain(|(own, _)| !own.as_deref().is_some_and(is_below)),
            Self::Json(json) => {
                json.as_object_mut()
                    .into_iter()
                    .for_each(|all| all.retain(|own, _| !is_below(own)));
            }
        }
    }

    /// Shows every text with its key, to be changed; a word alone has the key ``.
    pub(crate) fn visit(&mut self, visit: &mut dyn FnMut(&str, &mut String)) {
        match self {
            Self::Words(words) => {
                for (key, value) in words {
                    visit(key.as_deref().unwrap_or_default(), value);
                }
            }
            Self::Json(json) => visit_json(json, "", visit),
        }
    }
}

fn visit_json(json: &mut Value, key: &str, visit: &mut dyn FnMut(&str, &mut String)) {
    match json {
        Value::String(text) => visit(key, text),
        Value::Array(values) => values.iter_mut().for_each(|value| visit_json(value, key, visit)),
        Value::Object(object) => {
            for (name, value) in object {
                let below = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                visit_json(value, &below, visit);
            }
        }
        _ => {}
    }
}

fn pointer(key: &str) -> String {
    format!("/{}", key.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_are_read_and_changed() {
        let check = |given: &str, expected: &str| {
            let mut fields = Fields::read(given);
            assert_eq!(fields.get("file.filename"), Some("/a,b"), "{given}");
            fields.set("file.filename", "/c,d");
            fields.set("driver", "raw");
            let mut seen = Vec::new();
            fields.visit(&mut |key, value| seen.push(format!("{key}={value}")));
            assert!(seen.contains(&"file.filename=/c,d".to_owned()), "{seen:?}");
            assert_eq!(fields.write(), expected);
        };
        check("driver=qcow2,file.filename=/a,,b", "driver=raw,file.filename=/c,,d");
        check(
            r#"{"driver":"qcow2","file":{"filename":"/a,b"}}"#,
            r#"{"driver":"raw","file":{"filename":"/c,d"}}"#,
        );
        let removed = |given: &str| {
            let mut fields = Fields::read(given);
            assert!(fields.has("b") && !fields.has("c"), "{given}");
            fields.remove("b");
            fields.remove("c.d");
            fields.set_value("e", 5.into());
            fields.write()
        };
        assert_eq!(removed("a=1,b=2"), "a=1,e=5");
        assert_eq!(removed(r#"{"a":"1","b":2}"#), r#"{"a":"1","e":5}"#);
        assert_eq!(Fields::read("virtio-net,mac=1").first(), Some("virtio-net"));
        assert_eq!(Fields::read("{broken").write(), "{broken");
    }
}
