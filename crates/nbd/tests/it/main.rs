//! Client and server against QEMU's tools, a model, each other and hostile peers.

#![cfg(test)]

mod client;
mod hostile;
mod model;
mod server;
mod tools;
