//! The project's own chores: demo, test, tidy, guests, bench.

fn main() {}
