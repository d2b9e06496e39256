//! A second reader of streams, written plainly and apart from the crate's own:
//! it needs the whole stream, trusts it, and finds device sections only by
//! adding up the lengths in their description.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::memory::Saved;

struct Judge<'s> {
    stream: &'s [u8],
    at: usize,
    block: String,
    pages: BTreeMap<(String, u64), Vec<u8>>,
}

/// Checks that both readers find the same pages and the same device sections.
pub(crate) fn assert_agrees(stream: &[u8], saved: &Saved) {
    let mut judge = Judge { stream, at: 8, block: String::new(), pages: BTreeMap::new() };
    let sections = judge.walk();
    let blocks = saved.state.ram_blocks();
    assert_eq!(judge.pages.len(), saved.pages.len());
    for (&(block, page), bytes) in &saved.pages {
        let key = (blocks[block.index()].name.clone(), page.offset());
        assert!(judge.pages[&key] == bytes.as_slice(), "{key:?}");
    }
    let found: Vec<_> = saved.state.sections().unwrap();
    let found = found.iter().map(|section| (section.name.to_owned(), section.state.to_vec()));
    assert!(found.eq(sections));
}

impl<'s> Judge<'s> {
    fn take(&mut self, len: usize) -> &'s [u8] {
        self.at += len;
        &self.stream[self.at - len..self.at]
    }

    fn number(&mut self, len: usize) -> u64 {
        self.take(len).iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn size(&mut self, len: usize) -> usize {
        usize::try_from(self.number(len)).unwrap()
    }

    fn name(&mut self) -> String {
        let len = self.size(1);
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }

    /// Returns the device sections that follow the pages.
    fn walk(&mut self) -> Vec<(String, Vec<u8>)> {
        // JSON has no zero byte: the last one ends the stream or is in the length.
        let last_zero = self.stream.iter().rposition(|&byte| byte == 0).unwrap();
        let text = last_zero + self.stream[last_zero..].iter().position(|b| *b == b'{').unwrap();
        let description: Value = serde_json::from_slice(&self.stream[text..]).unwrap();
        let mut described = description["devices"].as_array().unwrap().iter();
        let mut sections = Vec::new();
        loop {
            match self.number(1) {
                0 => {
                    assert_eq!((self.number(1), self.at + 4), (6, text));
                    assert_eq!(described.next(), None);
                    return sections;
                }
                1 => {
                    self.take(4);
                    assert_eq!(self.name(), "ram");
                    self.take(8);
                    self.records();
                }
                2 | 3 => {
                    self.take(4);
                    self.records();
                    sections.clear();
                }
                4 => {
                    let device = described.next().unwrap();
                    self.take(4);
                    let name = self.name();
                    assert_eq!(name, device["name"]);
                    self.take(8);
                    let state = self.take(length(device)).to_vec();
                    assert_eq!(self.number(1), 0x7e, "footer of {name}");
                    self.take(4);
                    sections.push((name, state));
                }
                5 => match self.name().as_str() {
                    "configuration/uuid" => drop(self.take(4 + 16)),
                    name => panic!("{name}"),
                },
                7 => {
                    let len = self.size(4);
                    self.take(len);
                }
                8 => {
                    self.take(2);
                    let len = self.size(2);
                    self.take(len);
                }
                kind => panic!("{kind} at {}", self.at),
            }
        }
    }

    fn records(&mut self) {
        loop {
            let word = self.number(8);
            if word & 0x10 != 0 {
                self.take(5);
                return;
            }
            if word & 0x04 != 0 {
                let mut left = word & !0xfff;
                while left > 0 {
                    self.name();
                    left -= self.number(8);
                }
                continue;
            }
            if word & 0x20 == 0 {
                self.block = self.name();
            }
            let bytes = match word & 0x0a {
                0x02 => vec![self.take(1)[0]; 4096],
                _ => self.take(4096).to_vec(),
            };
            self.pages.insert((self.block.clone(), word & !0xfff), bytes);
        }
    }
}

fn length(device: &Value) -> usize {
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    if !device["size"].is_null() {
        return number(&device["size"]);
    }
    let fields = device["fields"].as_array().into_iter().flatten();
    let field = |field: &Value| {
        let count = if field["array_len"].is_null() { 1 } else { number(&field["array_len"]) };
        count * number(&field["size"])
    };
    let subsections = device["subsections"].as_array().into_iter().flatten();
    let subsection = |part: &Value| 6 + part["vmsd_name"].as_str().unwrap().len() + length(part);
    fields.map(field).sum::<usize>() + subsections.map(subsection).sum::<usize>()
}
