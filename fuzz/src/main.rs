//! libFuzzer over one target, named by the environment variable PICLOUD_FUZZ_TARGET.
//!
//! The targets and what they check are shared with `tests/fuzz.rs`. `../run` builds and runs this.

#![no_main]

mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

#[global_allocator]
static HEAP: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

static TARGET: OnceLock<&targets::Target> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("PICLOUD_FUZZ_TARGET").unwrap_or_default();
        targets::ALL.iter().find(|target| target.name == name).unwrap_or_else(|| {
            let names: Vec<_> = targets::ALL.iter().map(|target| target.name).collect();
            panic!("PICLOUD_FUZZ_TARGET is {name:?}, not one of {names:?}")
        })
    });
    targets::check(target, bytes, &HEAP);
});
