//! Names that people give. They become file names and object keys, so what is
//! allowed is narrow and checked here once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes.
const MAX_LEN: usize = 64;

/// Text cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty or longer than 64 bytes.
    #[error("a name has 1 to 64 characters, not {len}")]
    Length {
        /// Its length in bytes.
        len: usize,
    },
    /// A character is not allowed where it stands.
    #[error(
        "`{name}` cannot be a name: it may have a-z, 0-9, `.`, `_` and `-`, and starts with a letter or digit"
    )]
    Character {
        /// The name as given.
        name: String,
    },
    /// The name is kept for another meaning.
    #[error("`{name}` cannot be a name: in `VM@{name}` it means the newest snapshot")]
    Reserved {
        /// The name as given.
        name: String,
    },
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, reserved: $reserved:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the text and makes a name of it.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check(name, $reserved).map(|()| Self(name.to_owned()))
            }

            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

name! {
    /// The name of a VM: `web`, `build-7`.
    VmName, reserved: &[]
}

name! {
    /// The name of a snapshot within its VM: `before-upgrade`.
    SnapshotName, reserved: &["latest"]
}

fn check(name: &str, reserved: &[&str]) -> Result<(), NameError> {
    if name.is_empty() || name.len() > MAX_LEN {
        return Err(NameError::Length { len: name.len() });
    }
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c);
    let first = name.as_bytes()[0];
    if !name.bytes().all(inner) || b"._-".contains(&first) {
        return Err(NameError::Character { name: name.to_owned() });
    }
    if reserved.contains(&name) {
        return Err(NameError::Reserved { name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, allowed: bool) {
        assert_eq!(SnapshotName::new(name).is_ok(), allowed, "{name:?}");
    }

    #[test]
    fn names_are_safe_as_file_names_and_keys() {
        check("before-upgrade", true);
        check("7", true);
        check("a.b_c-d", true);
        check("", false);
        check(".", false);
        check("..", false);
        check("-rf", false);
        check("a/b", false);
        check("a\0", false);
        check("Über", false);
        check("latest", false);
        check(&"a".repeat(64), true);
        check(&"a".repeat(65), false);
    }
}
