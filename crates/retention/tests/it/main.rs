//! The policies against another implementation's answers, and against what must hold for
//! every policy.

#![cfg(test)]

mod oracle;
mod properties;
