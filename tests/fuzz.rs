//! Everything that reads bytes somebody else wrote, against the kept corpus and changes of it.
//!
//! The targets are those of `fuzz/`, where runs guided by coverage made the corpus. Here each input
//! is tried once, then changed ones for a share of `PICLOUD_FUZZ_SECONDS` (default 20) each, from a
//! seed that is printed and can be given again as `PICLOUD_FUZZ_SEED`.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use picloud::protocol::message::KINDS;
use targets::Target;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// A generator good enough to choose changes by (SplitMix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }
}

/// Numbers at which code changes its mind.
const NUMBERS: &[u64] =
    &[0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 1 << 20, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX];

/// Changes an input a little; `other` is one to take pieces of.
fn change(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len() + 1);
        let end = at + rng.below((bytes.len() - at).min(64) + 1);
        match rng.below(8) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << rng.below(8);
                }
            }
            1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = u8::try_from(rng.below(256)).unwrap();
                }
            }
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                let copies = 1 + rng.below(8);
                let to = rng.below(bytes.len() + 1);
                bytes.splice(to..to, piece.repeat(copies));
            }
            4 => {
                let from = rng.below(other.len() + 1);
                let piece = &other[from..from + rng.below(other.len() - from + 1)];
                bytes.splice(at..end, piece.iter().copied());
            }
            5 if !words.is_empty() => {
                let word = words[rng.below(words.len())].bytes();
                bytes.splice(at..end, word);
            }
            6 => bytes.truncate(at),
            _ => {
                let number = NUMBERS[rng.below(NUMBERS.len())].to_be_bytes();
                let len = [1, 2, 4, 8][rng.below(4)];
                let until = (at + len).min(bytes.len());
                bytes.splice(at..until, number[8 - len..].iter().copied());
            }
        }
    }
}

/// What is being tried, and since when.
type Current = Arc<Mutex<Option<(&'static str, Vec<u8>, Instant)>>>;

/// Keeps an input that breaks something, and returns where.
fn keep(target: &str, bytes: &[u8]) -> PathBuf {
    let hash = blake3::hash(bytes).to_hex();
    let path =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}-{}", &hash[..16]));
    fs::write(&path, bytes).unwrap();
    path
}

/// An input that never ends cannot be stopped: says which it is, and ends the process.
fn watch(current: Current) {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        if let Some((target, bytes, since)) = &*current.lock().unwrap()
            && since.elapsed() > 3 * targets::TIME_MAX
        {
            eprintln!("{target} does not come to an end with {:?}", keep(target, bytes));
            std::process::abort();
        }
    }
}

fn run(target: &'static Target, bytes: &[u8], current: &Current, seed: u64) {
    *current.lock().unwrap() = Some((target.name, bytes.to_vec(), Instant::now()));
    let outcome = catch_unwind(AssertUnwindSafe(|| targets::check(target, bytes, &HEAP)));
    *current.lock().unwrap() = None;
    if outcome.is_err() {
        let path = keep(target.name, bytes);
        panic!("{} breaks with {path:?} (PICLOUD_FUZZ_SEED={seed})", target.name);
    }
}

/// Returns the kept inputs of a target, as `fuzz/inputs` packs them.
fn corpus_of(target: &Target) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let path = dir.join(target.name).with_extension("inputs");
    let packed = fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let mut rest = packed.strip_prefix(b"PiCloud fuzz inputs 1\n").unwrap();
    let mut inputs = Vec::new();
    while let Some((len, after)) = rest.split_first_chunk() {
        let len = usize::try_from(u32::from_be_bytes(*len)).unwrap();
        let (input, after) = after.split_at(len);
        inputs.push(input.to_vec());
        rest = after;
    }
    assert!(rest.is_empty(), "{path:?} ends in the midst of an input");
    inputs
}

#[test]
fn every_kind_of_message_is_fuzzed() {
    let missing =
        KINDS.iter().filter(|(kind, _)| !targets::DECODERS.iter().any(|(k, _)| k == kind));
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&(u8, &str)>::new());
}

#[test]
fn nothing_that_reads_bytes_breaks_on_any() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let secs = number("PICLOUD_FUZZ_SECONDS").unwrap_or(20);
    let share = Duration::from_secs(secs) / u32::try_from(targets::ALL.len()).unwrap();
    let seed = number("PICLOUD_FUZZ_SEED").unwrap_or_else(|| {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).unwrap();
        u64::from_be_bytes(bytes)
    });
    println!("PICLOUD_FUZZ_SEED={seed}");
    let current = Current::default();
    let watched = Arc::clone(&current);
    std::thread::spawn(move || watch(watched));
    for target in targets::ALL {
        let started = Instant::now();
        let corpus = corpus_of(target);
        assert!(!corpus.is_empty(), "{} has no corpus", target.name);
        for bytes in &corpus {
            run(target, bytes, &current, seed);
        }
        let mut rng = Rng(seed);
        let mut changed = 0_u64;
        while started.elapsed() < share {
            let mut bytes = corpus[rng.below(corpus.len())].clone();
            let other = &corpus[rng.below(corpus.len())];
            change(&mut rng, &mut bytes, other, target.words);
            run(target, &bytes, &current, seed);
            changed += 1;
        }
        println!("{:<18} {:>5} kept, {changed:>7} changed", target.name, corpus.len());
    }
}
