#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shoal::node::fuzz_autonat(bytes));
