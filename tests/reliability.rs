//! What `docs/reliability.md` says of tests is so: each that it names is there, in the file it names.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("../docs/reliability.md");

/// The file of a test as the page names it: below `src/`, or a file or binary of `tests/`.
fn file_of(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if name.starts_with("src/") {
        return root.join(name);
    }
    let file = root.join("tests").join(format!("{name}.rs"));
    if file.exists() { file } else { root.join("tests").join(name).join("main.rs") }
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let (mut missing, mut found) = (Vec::new(), 0);
    for line in PAGE.lines() {
        // `…` repeats the file named before on the line.
        let mut file = "";
        for quoted in line.split('`').skip(1).step_by(2) {
            let Some((at, test)) = quoted.split_once("::") else { continue };
            if at == "FILE" {
                continue;
            }
            if at != "…" {
                file = at;
            }
            let text = fs::read_to_string(file_of(file)).unwrap_or_default();
            // A name may be cut short where the page has it in full elsewhere.
            let wanted =
                test.strip_suffix('…').map_or(format!("fn {test}("), |start| format!("fn {start}"));
            found += 1;
            if !text.contains(&wanted) {
                missing.push(quoted);
            }
        }
    }
    assert!(missing.is_empty(), "not there: {missing:#?}");
    assert!(found > 80, "only {found} names are read");
}
