#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shoal::oci::docker_archive::fuzz(bytes));
