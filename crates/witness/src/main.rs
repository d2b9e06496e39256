//! The program that runs inside guests and notices when memory and disks are not
//! from the same instant.

fn main() {}
