//! QEMU's migration stream as a pure codec: bytes in, events out.
