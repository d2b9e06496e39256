//! Random 128-bit ids, one type for each thing that has one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text is not 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id of 32 hexadecimal digits")]
pub struct ParseIdError {
    text: String,
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            /// Draws an id from the operating system's random source.
            pub fn random() -> Self {
                let mut bytes = [0; 16];
                getrandom::fill(&mut bytes).expect("the kernel always has random bytes");
                Self(bytes)
            }

            /// Makes an id of its 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Returns the 16 bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// Returns the first 12 hexadecimal digits, which is how people see the id.
            pub fn short(&self) -> String {
                self.to_string()[..12].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

random_id! {
    /// Names one snapshot, in every repository that holds it.
    SnapshotId
}

random_id! {
    /// Names one registered VM, however often its name changes.
    VmId
}

random_id! {
    /// Names one repository.
    RepositoryId
}

fn parse_hex(text: &str) -> Result<[u8; 16], ParseIdError> {
    let error = || ParseIdError { text: text.chars().take(64).collect() };
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return Err(error());
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte =
            hex_digit(pair[0]).ok_or_else(error)? << 4 | hex_digit(pair[1]).ok_or_else(error)?;
    }
    Ok(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text() {
        let id = SnapshotId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().starts_with(&id.short()));
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in ["", "12", &"g".repeat(32), &"A".repeat(32), &"é".repeat(16), &"0".repeat(33)]
        {
            assert!(text.parse::<VmId>().is_err(), "{text}");
        }
    }
}
