//! The command line: `--name value` pairs, and words for `query`.

use crate::block::BLOCK_SIZE;

/// What stands after the mode.
#[derive(Default)]
pub(crate) struct Arguments {
    pairs: Vec<(String, String)>,
    words: Vec<String>,
}

impl Arguments {
    /// Reads the command line after the mode.
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self::default();
        let mut words = words;
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                Some(name) => {
                    let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
                    arguments.pairs.push((name.to_owned(), value));
                }
                None => arguments.words.push(word),
            }
        }
        Ok(arguments)
    }

    /// Refuses whatever a mode does not know.
    pub(crate) fn allow(&self, names: &[&str]) -> Result<(), String> {
        if let Some(word) = self.words.first() {
            return Err(format!("`{word}` means nothing here"));
        }
        match self.pairs.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            Some((name, _)) => Err(format!("--{name} means nothing here")),
            None => Ok(()),
        }
    }

    /// Returns the words without a name.
    pub(crate) fn words(&self) -> &[String] {
        &self.words
    }

    /// Returns every value of a name, in order.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Returns the name that the process goes by.
    pub(crate) fn name(&self, default: &str) -> String {
        self.all("name").last().unwrap_or(default).to_owned()
    }

    /// Returns the value of a name as a number.
    pub(crate) fn number(&self, name: &str, default: u64) -> Result<u64, String> {
        let Some(text) = self.all(name).last() else { return Ok(default) };
        text.parse().map_err(|_| format!("--{name} needs a number, not `{text}`"))
    }

    /// Returns `--bytes` in whole pages, two at least.
    pub(crate) fn pages(&self) -> Result<usize, String> {
        let pages = usize::try_from(self.number("bytes", 0)?).map_or(0, |bytes| bytes / BLOCK_SIZE);
        if pages < 2 {
            Err("--bytes needs two pages of 4096 bytes or more".to_owned())
        } else {
            Ok(pages)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned))
    }

    #[test]
    fn values_are_found() {
        let arguments = parse("--disk /dev/vdb --slot 3 --disk /dev/vdc --bytes 12287").unwrap();
        assert_eq!(arguments.all("disk").collect::<Vec<_>>(), ["/dev/vdb", "/dev/vdc"]);
        assert_eq!(arguments.number("slot", 0), Ok(3));
        assert_eq!(arguments.number("workers", 1), Ok(1));
        assert_eq!(arguments.pages(), Ok(2));
        assert_eq!(arguments.name("pair"), "pair");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse("--slot").is_err());
        assert!(parse("--slot x").unwrap().number("slot", 0).is_err());
        assert!(parse("--bytes 4096").unwrap().pages().is_err());
        assert!(parse("--what 1").unwrap().allow(&["slot"]).is_err());
        assert!(parse("what").unwrap().allow(&["slot"]).is_err());
    }
}
