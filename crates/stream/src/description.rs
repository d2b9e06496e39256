//! The description of the device sections that QEMU puts at a stream's end.
//!
//! It is JSON (`vmsd_desc_field_start` in `migration/vmstate.c`). Only names and
//! lengths are taken from it. The text repeats keys within an object where a
//! device has a list, so it is read by hand and not derived.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::Error;

/// What the description says about all devices.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Description {
    /// The size of the guest's pages, in bytes.
    pub page_size: u64,
    /// The devices, in the order of their sections.
    pub devices: Vec<DeviceDescription>,
}

/// What the description says about one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceDescription {
    /// The section's name, such as `0000:00:02.0/virtio-blk`.
    pub name: String,
    /// Tells sections of one name apart.
    pub instance: u32,
    /// The length of its state in bytes. QEMU describes some lists by their
    /// first element only, so a section can be longer or shorter than this.
    pub length: u64,
}

impl Description {
    /// Reads only the size of the guest's pages: a device that is described in an
    /// unexpected way does not matter to it.
    pub(crate) fn page_size(text: &[u8]) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct PageSize {
            page_size: u64,
        }
        serde_json::from_slice(text)
            .map(|PageSize { page_size }| page_size)
            .map_err(|source| Error::Description { source })
    }

    /// Reads the JSON text.
    ///
    /// # Errors
    /// The text is not JSON, or not a description.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(text).map_err(|source| Error::Description { source })
    }
}

impl<'de> Deserialize<'de> for DeviceDescription {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = deserializer.deserialize_map(ObjectVisitor)?;
        let length = object.size.unwrap_or(object.contents);
        Ok(Self { name: object.name, instance: object.instance, length })
    }
}

/// What matters of a device, a field or a subsection: they share their keys.
#[derive(Default)]
struct Object {
    name: String,
    state_name: String,
    instance: u32,
    /// The length that QEMU measured.
    size: Option<u64>,
    /// How many elements of that length follow each other.
    elements: u64,
    /// The lengths of all fields and subsections within.
    contents: u64,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a device, a field or a subsection")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut object = Object { elements: 1, ..Object::default() };
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "name" => object.name = map.next_value()?,
                "vmsd_name" => object.state_name = map.next_value()?,
                "instance_id" => object.instance = map.next_value()?,
                "size" => object.size = Some(map.next_value()?),
                "array_len" => object.elements = map.next_value()?,
                "fields" => add(&mut object.contents, map.next_value_seed(Lengths(field_len))?),
                "subsections" => {
                    add(&mut object.contents, map.next_value_seed(Lengths(subsection_len))?);
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(object)
    }
}

/// Adds up the lengths of the objects in an array.
struct Lengths(fn(&Object) -> u64);

impl<'de> DeserializeSeed<'de> for Lengths {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Lengths {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of fields or subsections")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<u64, A::Error> {
        let mut length = 0;
        while let Some(object) = list.next_element::<Object>()? {
            add(&mut length, self.0(&object));
        }
        Ok(length)
    }
}

fn add(length: &mut u64, more: u64) {
    *length = length.saturating_add(more);
}

fn field_len(field: &Object) -> u64 {
    field.size.unwrap_or(field.contents).saturating_mul(field.elements)
}

/// A subsection has its type, counted name and version in front of its contents.
fn subsection_len(subsection: &Object) -> u64 {
    let header = 1 + 1 + subsection.state_name.len() as u64 + 4;
    subsection.contents.saturating_add(header)
}
