//! kill -9 of agents and server at random moments during traffic: nothing is lost, nothing is left.
//!
//! Every write carries a token of its own. A token that was the last of its file when the file came
//! to rest must be found afterwards, in the file or in a conflict copy. `PICLOUD_KILLS` sets how many
//! kills there are, `PICLOUD_SEED` repeats a run.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Device, Dice, World, number, settle};

/// What a device's writer last wrote to each of its files.
type Tokens = Arc<Mutex<BTreeMap<String, String>>>;

/// A person at one device: creates, edits, renames, moves and deletes files, until told to stop.
/// Each writer has directories of its own and one that all share.
fn traffic(
    root: std::path::PathBuf,
    who: String,
    seed: u64,
    stop: Arc<AtomicBool>,
    tokens: Tokens,
) {
    let mut dice = Dice::new(seed);
    let mut serial = 0;
    while !stop.load(Ordering::SeqCst) {
        let dir = match dice.below(3) {
            0 => "shared".to_owned(),
            other => format!("{who}{other}"),
        };
        let file = format!("{dir}/{}", dice.below(12));
        let path = root.join(&file);
        let mut tokens = tokens.lock().unwrap();
        match dice.below(10) {
            0 => {
                // A deletion by someone who saw the file ends what was in it; in the shared
                // directory another's newer version may be what is deleted, seen or not, so there
                // only own names are deleted.
                if dir != "shared" && fs::remove_file(&path).is_ok() {
                    tokens.remove(&file);
                }
            }
            1 => {
                let to = format!("{who}{}/moved {}", 1 + dice.below(2), dice.below(1_000_000));
                let target = root.join(&to);
                if dir != "shared"
                    && !target.exists()
                    && fs::rename(&path, &target).is_ok()
                    && let Some(token) = tokens.remove(&file)
                {
                    tokens.insert(to, token);
                }
            }
            kind => {
                serial += 1;
                let token = format!("<{who} {serial}>");
                let filler = dice.below(if kind == 2 { 600_000 } else { 3_000 });
                let content = format!("{token}{}", "x".repeat(usize::try_from(filler).unwrap()));
                fs::create_dir_all(path.parent().unwrap()).ok();
                // Half as editors save, half in place.
                let written = if kind % 2 == 0 {
                    let temporary = root.join(format!("{dir}/.{who}.tmp"));
                    fs::write(&temporary, &content).and_then(|()| fs::rename(&temporary, &path))
                } else {
                    fs::write(&path, &content)
                };
                // In the shared directory what it replaces may be another's version that this
                // one has seen on its disk: replaced knowingly. Only one's own directories
                // hold promises.
                if written.is_ok() && dir != "shared" {
                    tokens.insert(file, token);
                }
            }
        }
        drop(tokens);
        std::thread::sleep(Duration::from_millis(2 + dice.below(20)));
    }
}

fn all_content(device: &Device) -> String {
    let mut all = String::new();
    for entry in walkdir::WalkDir::new(&device.folder) {
        let entry = entry.unwrap();
        if entry.file_type().is_file()
            && !entry.path().components().any(|c| c.as_os_str() == ".picloud")
        {
            let text = fs::read(entry.path()).unwrap();
            let head = &text[..text.len().min(64)];
            all.push_str(&String::from_utf8_lossy(head));
            all.push('\n');
        }
    }
    all
}

#[test]
fn kills_at_random_moments_lose_nothing_and_leave_nothing() {
    let kills = number("PICLOUD_KILLS", 8);
    let seed = number("PICLOUD_SEED", 1);
    println!("PICLOUD_KILLS={kills} PICLOUD_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut world = World::new();
    let mut devices = ["a", "b", "c"].map(|name| world.device("ann", name));
    let stop = Arc::new(AtomicBool::new(false));
    let tokens: Vec<Tokens> = devices.iter().map(|_| Tokens::default()).collect();
    let writers: Vec<_> = devices
        .iter()
        .zip(&tokens)
        .enumerate()
        .map(|(index, (device, tokens))| {
            let (root, who) = (device.folder.clone(), device.name.clone());
            let (stop, tokens) = (Arc::clone(&stop), Arc::clone(tokens));
            let seed = seed * 1_000 + index as u64;
            std::thread::spawn(move || traffic(root, who, seed, stop, tokens))
        })
        .collect();
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(100 + dice.below(900)));
        match dice.below(4) {
            0 => {
                world.kill_server();
                std::thread::sleep(Duration::from_millis(dice.below(200)));
                world.start_server();
            }
            victim => {
                let device = &mut devices[usize::try_from(victim).unwrap() - 1];
                device.kill();
                std::thread::sleep(Duration::from_millis(dice.below(200)));
                device.start_without_waiting();
            }
        }
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.join().unwrap();
    }
    for device in &devices {
        device.wait_status("agent", |status| {
            status["folders"].as_array().is_some_and(|f| !f.is_empty())
        });
    }
    let all: Vec<&Device> = devices.iter().collect();
    settle(&all);
    for (device, tokens) in devices.iter().zip(&tokens) {
        let content = all_content(device);
        for (file, token) in tokens.lock().unwrap().iter() {
            assert!(
                content.contains(token.as_str()),
                "{token}, the last version of {file}, is lost; seed {seed}\n{}",
                device.tree()
            );
        }
    }
    for device in &devices {
        crate::support::eventually("nothing is left in staging", || {
            device.leftovers().is_empty().then_some(())
        });
        device.wait_status("agreement", |status| status["folders"][0]["agrees"] != false);
    }
    println!("kills {kills} survived");
}
