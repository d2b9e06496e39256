//! Reads and writes disk images through the block layer of the VM's own QEMU.
