//! What `picloud doctor` looks at on this machine's disk: folders, the state beside them, limits of the
//! system. Nothing of it needs an agent, and an agent may be at work meanwhile.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{Access, access};

use super::config::{Config, FolderConfig};
use super::credentials;
use super::disk::{Contents, Examined, FolderError, Identity, Named};
use crate::checkup::{Finding, bytes, count, counted, in_words, process, space};

/// Less room than this is told of, and less than that does not suffice for the agent's own files.
const SPACE_LOW: u64 = 1 << 30;
const SPACE_NONE: u64 = 64 << 20;

/// The least that a limit on watches is raised to.
const WATCHES_MIN: u64 = 524_288;

const WATCHES: &str = "/proc/sys/fs/inotify/max_user_watches";

/// What became of the looks at one folder.
#[derive(Debug)]
pub struct FolderReport {
    /// For a person.
    pub findings: Vec<Finding>,
    /// How many directories the agent watches there, at most.
    pub dirs: u64,
}

/// Looks at the permissions of the settings and of the secrets beside them.
#[must_use]
pub fn permissions(config: &Path) -> Finding {
    const CHECK: &str = "permissions";
    if let Ok(found) = std::fs::metadata(config)
        && found.permissions().mode() & 0o022 != 0
    {
        let mode = found.permissions().mode() & 0o777;
        let text =
            format!("Others can write {config:?} (mode {mode:03o}): they choose what is synced");
        return Finding::problem(CHECK, text, format!("chmod 644 {}", config.display()));
    }
    for path in [credentials::path_beside(config), config.with_file_name("session.toml")] {
        let Ok(found) = std::fs::metadata(&path) else { continue };
        let mode = found.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let text = format!("Others can read {path:?} (mode {mode:03o}), which holds secrets");
            let fix = format!(
                "chmod 600 {}; if others use this machine, revoke this device and join it again",
                path.display()
            );
            return Finding::problem(CHECK, text, fix);
        }
        if found.uid() != rustix::process::geteuid().as_raw() {
            let text = format!("{path:?} belongs to another user");
            let fix = format!("sudo chown \"$USER\" {}", path.display());
            return Finding::problem(CHECK, text, fix);
        }
    }
    Finding::good(CHECK, "nobody else can change the settings or read the secrets")
}

/// Looks at the directory of the agent's databases.
#[must_use]
pub fn state(dir: &Path) -> Finding {
    const CHECK: &str = "state";
    if !dir.exists() {
        return Finding::skipped(CHECK, format!("{dir:?} is made when the agent runs"));
    }
    if access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let fix = format!("sudo chown -R \"$USER\" {}", dir.display());
        return Finding::problem(CHECK, format!("{dir:?} cannot be written"), fix);
    }
    room(CHECK, dir)
}

/// Looks at the room on the disk of a path.
fn room(check: &'static str, path: &Path) -> Finding {
    match space(path) {
        Ok(space) if space.free < SPACE_LOW => {
            let text = format!("only {} are free on the disk of {path:?}", bytes(space.free));
            let fix = "make room: what does not fit waits, and is shown by `picloud status`";
            match space.free < SPACE_NONE {
                true => Finding::problem(check, text, fix.to_owned()),
                false => Finding::warning(check, text, fix.to_owned()),
            }
        }
        Ok(space) => Finding::good(
            check,
            format!(
                "{} of {} are free on the disk of {path:?}",
                bytes(space.free),
                bytes(space.total)
            ),
        ),
        Err(error) => Finding::problem(check, in_words(&error), None),
    }
}

/// Looks at a folder. `agent` is the process that should have it open, if it runs.
#[must_use]
pub fn folder(folder: &FolderConfig, config: &Path, agent: Option<u32>) -> FolderReport {
    const CHECK: &str = "folder";
    let path = &folder.path;
    let identity = Identity { folder: folder.id, drive: folder.drive };
    let examined = match Examined::look(path, identity) {
        Ok(examined) => examined,
        Err(error) => {
            // What to do is part of what it says.
            let findings = vec![Finding::problem(CHECK, in_words(&error), None)];
            return FolderReport { findings, dirs: 0 };
        }
    };
    let mut findings = Vec::new();
    if access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let fix = format!("chmod u+rwx {0}, or sudo chown \"$USER\" {0}", path.display());
        findings.push(Finding::problem(CHECK, format!("{path:?} cannot be written"), fix));
    } else {
        findings.push(room(CHECK, path));
    }
    findings.push(other_agent(path, config, &examined, agent));
    findings.push(file_system(path, &examined, agent));
    let contents = examined.contents();
    findings.push(readable(path, &contents));
    findings.push(names(path, &contents));
    FolderReport { findings, dirs: contents.dirs }
}

fn other_agent(path: &Path, config: &Path, examined: &Examined, agent: Option<u32>) -> Finding {
    const CHECK: &str = "other agents";
    match examined.holder {
        // Which process it is, is not told everywhere.
        Some(holder) if holder != 0 && ![Some(holder), Some(0)].contains(&agent) => {
            let text = format!(
                "{} has {path:?} open, and is not the agent of these settings",
                process(holder)
            );
            return Finding::problem(
                CHECK,
                text,
                "stop it, or end the folder in its settings with `picloud logout`".to_owned(),
            );
        }
        _ => {}
    }
    match &examined.linked.config {
        Some(other) if other.exists() && !is_same(other, config) => Finding::warning(
            CHECK,
            format!("{path:?} says that it belongs to the settings {other:?}"),
            format!(
                "run the agent with one of the two only: picloud-agent --config {}",
                other.display()
            ),
        ),
        _ => Finding::good(CHECK, format!("no other has {path:?} open")),
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(one) == real(other)
}

fn file_system(path: &Path, examined: &Examined, agent: Option<u32>) -> Finding {
    const CHECK: &str = "file system";
    if agent.is_some() && examined.holder.is_some() {
        return Finding::good(
            CHECK,
            format!("the agent uses {path:?}, so it can do what is needed"),
        );
    }
    match examined.try_file_system() {
        Ok(()) => Finding::good(CHECK, format!("files in {path:?} can be exchanged in one step")),
        // What to do is part of what it says.
        Err(error @ (FolderError::Unsupported { .. } | FolderError::RewritesNames { .. })) => {
            Finding::problem(CHECK, in_words(&error), None)
        }
        Err(error) => Finding::problem(
            CHECK,
            in_words(&error),
            format!("look at {}/.picloud", path.display()),
        ),
    }
}

fn some(named: &Named) -> String {
    let more = named.count - named.first.len() as u64;
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.first.join("; "))
}

fn readable(path: &Path, contents: &Contents) -> Finding {
    const CHECK: &str = "contents";
    if contents.unreadable.count > 0 {
        return Finding::problem(
            CHECK,
            format!("in {path:?} cannot be looked into: {}", some(&contents.unreadable)),
            "give yourself permission with chmod u+rwx, or leave it out in .picloudignore"
                .to_owned(),
        );
    }
    let dirs = counted(contents.dirs, "directory", "directories");
    let entries = counted(contents.entries, "entry", "entries");
    let cut = if contents.is_whole { "" } else { " or more: the look was cut short" };
    Finding::good(CHECK, format!("{path:?} has {entries} in {dirs}{cut}"))
}

fn names(path: &Path, contents: &Contents) -> Finding {
    const CHECK: &str = "names";
    let mut parts = Vec::new();
    if contents.not_portable.count > 0 {
        parts.push(format!(
            "{} that not every system can hold: {}",
            contents.not_portable.count,
            some(&contents.not_portable)
        ));
    }
    if contents.clashing.count > 0 {
        parts.push(format!(
            "{} that differ from another by case or Unicode form only: {}",
            contents.clashing.count,
            some(&contents.clashing)
        ));
    }
    if parts.is_empty() {
        return Finding::good(CHECK, format!("every system can hold the names in {path:?}"));
    }
    Finding::warning(
        CHECK,
        format!("{path:?} has names: {}", parts.join("; ")),
        "rename them if they are to come to Windows or macOS; between Linux machines all is well"
            .to_owned(),
    )
}

/// Compares the system's limit on watches with the number of directories.
#[must_use]
pub fn watches(dirs: u64) -> Finding {
    const CHECK: &str = "watches";
    let limit = std::fs::read_to_string(WATCHES).ok().and_then(|text| text.trim().parse().ok());
    let Some(limit) = limit else {
        return Finding::skipped(CHECK, format!("{WATCHES} cannot be read"));
    };
    watches_of(dirs, limit)
}

fn watches_of(dirs: u64, limit: u64) -> Finding {
    const CHECK: &str = "watches";
    let watched = counted(dirs, "directory is", "directories are");
    let text = format!("{watched} watched, and the system allows {}", count(limit));
    // Editors, file managers and the like want some of them.
    if dirs <= limit - limit / 4 {
        return Finding::good(CHECK, text);
    }
    let wanted = dirs.saturating_mul(2).max(WATCHES_MIN).next_power_of_two();
    let file = "/etc/sysctl.d/60-picloud.conf";
    let fix = format!(
        "echo fs.inotify.max_user_watches={wanted} | sudo tee {file} && sudo sysctl -p {file}"
    );
    if dirs > limit {
        let text = format!("{text}: changes in the others are seen after a minute only");
        Finding::problem(CHECK, text, fix)
    } else {
        Finding::warning(CHECK, format!("{text}, for all programs of a user together"), fix)
    }
}

/// Returns whether these settings have a token for each of their folders.
#[must_use]
pub fn tokens(config: &Config, path: &Path) -> Option<Finding> {
    let credentials = credentials::path_beside(path);
    config.folders.iter().find_map(|folder| {
        let error = credentials::token(&credentials, folder.id).err()?;
        Some(Finding::problem("credentials", in_words(&error), None))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkup::Verdict;

    #[test]
    fn the_limit_on_watches_is_told_with_the_line_that_raises_it() {
        assert_eq!(watches_of(100, 8192).verdict, Verdict::Good);
        assert_eq!(watches_of(7000, 8192).verdict, Verdict::Warning);
        let over = watches_of(600_000, 8192);
        assert_eq!(over.verdict, Verdict::Problem);
        assert_eq!(
            over.fix.unwrap(),
            "echo fs.inotify.max_user_watches=2097152 | sudo tee /etc/sysctl.d/60-picloud.conf && \
             sudo sysctl -p /etc/sysctl.d/60-picloud.conf"
        );
        assert_eq!(watches_of(0, 0).verdict, Verdict::Good);
    }
}
