//! What `docs/troubleshooting.md` and `docs/operations.md` quote is so: messages that the programs really
//! show, numbers that the server really tells, links that lead somewhere.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All of `src/` as one text, with string literals that go over several lines put together.
fn sources() -> String {
    let mut text = String::new();
    let files = walkdir::WalkDir::new(root().join("src")).into_iter().filter_map(Result::ok);
    for file in files.filter(|file| file.path().extension().is_some_and(|it| it == "rs")) {
        let mut rest = &*fs::read_to_string(file.path()).unwrap();
        while let Some((before, after)) = rest.split_once("\\\n") {
            text.push_str(before);
            rest = after.trim_start();
        }
        text.push_str(rest);
    }
    text
}

#[test]
fn every_message_in_troubleshooting_is_one_that_is_shown() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let (sources, mut read) = (sources(), 0);
    for heading in page.lines().filter_map(|line| line.strip_prefix("### ")) {
        let message = heading.strip_prefix('`').and_then(|it| it.strip_suffix('`'));
        let message = message.unwrap_or_else(|| panic!("not quoted: {heading}"));
        read += 1;
        for part in message.split('…').map(str::trim).filter(|part| part.len() > 3) {
            // Around what differs there may be anything that belongs to a placeholder.
            let part = part.trim_matches(['"', '(', ')']);
            assert!(sources.contains(part), "nobody says {part:?}, of {message:?}");
        }
    }
    assert!(read > 20, "only {read} messages are read");
}

#[test]
fn every_number_is_described_and_every_one_described_is_told() {
    let page = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let code = fs::read_to_string(root().join("src/server/metrics.rs")).unwrap();
    let names = |text: &str, quote: char| -> BTreeSet<String> {
        let quoted = text.split(quote);
        let is_name = |word: &&str| {
            ["picloud_", "process_"].iter().any(|start| word.starts_with(start))
                && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        };
        quoted.filter(is_name).map(str::to_owned).collect()
    };
    assert_eq!(names(&page, '`'), names(&code, '"'));
}

#[test]
fn links_between_pages_lead_somewhere() {
    let pages = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    for page in pages.chain([root().join("README.md")]) {
        if page.extension().is_none_or(|it| it != "md") {
            continue;
        }
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{page:?} links to {link}");
            if !heading.is_empty() {
                let headings = fs::read_to_string(&target).unwrap();
                let is_there = headings.lines().filter(|line| line.starts_with('#')).any(|line| {
                    let plain = line.trim_start_matches('#').trim().to_lowercase();
                    let kept = plain.chars().filter(|c| c.is_alphanumeric() || " -".contains(*c));
                    kept.collect::<String>().replace(' ', "-") == heading
                });
                assert!(is_there, "{page:?} links to {link}");
            }
        }
    }
}
