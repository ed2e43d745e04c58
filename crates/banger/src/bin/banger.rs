//! Placeholder until its first content lands.
fn main() {}
