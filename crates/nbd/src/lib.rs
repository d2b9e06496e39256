//! The NBD wire protocol: a codec, a small client and a small server.
