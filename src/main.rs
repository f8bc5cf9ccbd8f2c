//! Fieldstream.
fn main() {}
