//! `picloud doctor`: what commonly goes wrong, looked for from one end to the other: the settings, the
//! agent, each folder, the limits of the system, the server, the unit. It changes nothing, needs no
//! agent and no terminal, and asks nobody anything.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::agent::{status_of, told};
use super::dial::Server;
use super::failure::{Exit, Failure};
use super::machine::Machine;
use super::output::{Output, Tone, bytes, counted, moment};
use super::units::{self, Enabled};
use super::wait;
use crate::agent::checkup;
use crate::agent::config::{Authority, FolderConfig};
use crate::agent::control::connect;
use crate::checkup::{Finding, Summary, Verdict};
use crate::protocol::message::{HelloReply, Space};

/// Clocks that differ by more are told of; the agent itself does not mind.
const CLOCK_WARNING_SECS: i64 = 30;

/// Clocks that differ by so much make one-time codes and certificates fail, and times misleading.
const CLOCK_PROBLEM_SECS: i64 = 3600;

/// Of an account that has used more of its room than this, in percent, a person is warned.
const QUOTA_WARNING_PERCENT: u128 = 90;

/// A certificate that is renewed by machine has been by then.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// `picloud doctor`.
///
/// # Errors
/// When the answer cannot be written. What is wrong with the machine is the answer.
pub fn doctor(machine: &Machine, output: Output) -> Result<Exit, Failure> {
    let mut report = Report { output, summary: Summary::default() };
    report.add(settings(machine))?;
    if machine.config_path.exists() || !machine.folders().is_empty() {
        report.add(checkup::permissions(&machine.config_path))?;
    }
    let (finding, agent) = agent(machine);
    report.add(finding)?;
    if let Some(config) = &machine.config {
        report.add(checkup::state(&config.state_dir))?;
        if let Some(finding) = checkup::tokens(config, &machine.config_path) {
            report.add(finding)?;
        }
        let mut dirs = 0;
        for folder in &config.folders {
            let found = checkup::folder(folder, &machine.config_path, agent);
            dirs += found.dirs;
            for finding in found.findings {
                report.add(finding)?;
            }
        }
        report.add(checkup::watches(dirs))?;
    }
    for finding in wait(async { Ok(servers(machine).await) })? {
        report.add(finding)?;
    }
    report.add(unit(machine))?;
    report.finish()
}

/// Writes findings as they come.
struct Report {
    output: Output,
    summary: Summary,
}

impl Report {
    fn add(&mut self, finding: Finding) -> Result<(), Failure> {
        self.summary.add(&finding);
        told(if self.output.json() {
            self.output.object(&finding.to_json())
        } else {
            let paint = |verdict, word: &str| self.output.paint(tone(verdict), word);
            self.output.line(&finding.to_text(paint))
        })
    }

    fn finish(self) -> Result<Exit, Failure> {
        told(if self.output.json() {
            self.output.object(&self.summary.to_json())
        } else {
            self.output.line(&self.summary.to_text())
        })?;
        Ok(if self.summary.problems > 0 { Exit::Person } else { Exit::Done })
    }
}

const fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Good => Tone::Good,
        Verdict::Warning => Tone::Wait,
        Verdict::Problem => Tone::Bad,
        Verdict::Skipped => Tone::Faint,
    }
}

/// Makes a problem of a failure, with its advice.
fn failed(check: &'static str, failure: &Failure) -> Finding {
    Finding::problem(check, failure.line(), failure.advice().map(str::to_owned))
}

fn settings(machine: &Machine) -> Finding {
    const CHECK: &str = "settings";
    if let Err(failure) = machine.check_config() {
        let fix = "correct that line; a running agent goes on with the settings it had".to_owned();
        return Finding::problem(CHECK, failure.line(), fix);
    }
    let path = &machine.config_path;
    match &machine.config {
        Some(config) if config.folders.is_empty() => Finding::warning(
            CHECK,
            format!("{path:?} names no folder"),
            "picloud setup LINK".to_owned(),
        ),
        Some(config) => {
            let folders = counted(config.folders.len() as u64, "folder", "folders");
            Finding::good(CHECK, format!("{path:?}, {folders}"))
        }
        None if machine.account().is_ok() => {
            Finding::good(CHECK, "this machine is logged in, without a folder")
        }
        None => Finding::problem(
            CHECK,
            format!("there are none: {path:?} is not there"),
            "picloud setup LINK, with a link of `picloud link` or `picloud-server invite`"
                .to_owned(),
        ),
    }
}

/// Returns the process of the agent as well, if it runs.
fn agent(machine: &Machine) -> (Finding, Option<u32>) {
    const CHECK: &str = "agent";
    if machine.config.is_some() && machine.folders().is_empty() {
        return (Finding::skipped(CHECK, "there is no folder to sync"), None);
    }
    let agent = match machine.agent() {
        Ok(agent) => agent,
        Err(_) if machine.config.is_none() => {
            return (Finding::skipped(CHECK, "without settings there is none"), None);
        }
        Err(failure) => return (failed(CHECK, &failure), None),
    };
    let Ok(stream) = connect(&agent.socket) else {
        return (failed(CHECK, &Failure::no_agent(&agent.config)), None);
    };
    let pid = rustix::net::sockopt::socket_peercred(&stream)
        .map_or(0, |peer| u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0));
    drop(stream);
    let Some(status) = status_of(&agent.socket, &agent.config) else {
        let fix = "systemctl --user restart picloud-agent, or end it and start it again".to_owned();
        return (Finding::problem(CHECK, "it runs, but does not answer", fix), Some(pid));
    };
    let own = env!("CARGO_PKG_VERSION");
    let version = status.program.rsplit('/').next().unwrap_or_default();
    let problems = status.problems.len() as u64
        + status.folders.iter().map(|folder| folder.problem_count).sum::<u64>();
    let finding = if version != own {
        let found = if version.is_empty() { "an earlier version" } else { version };
        Finding::warning(
            CHECK,
            format!("it runs, but is {found}, and this command is {own}"),
            "systemctl --user restart picloud-agent, so that the installed version runs".to_owned(),
        )
    } else if problems > 0 {
        let text = format!("it runs, and shows {}", counted(problems, "problem", "problems"));
        Finding::warning(CHECK, text, "picloud status names them".to_owned())
    } else {
        Finding::good(CHECK, format!("it runs, version {version}"))
    };
    (finding, Some(pid))
}

/// Asks each server once, as each device.
async fn servers(machine: &Machine) -> Vec<Finding> {
    if machine.check_config().is_err() {
        return vec![Finding::skipped("server", "the settings that name it cannot be read")];
    }
    let mut findings = Vec::new();
    let mut asked: Vec<Server> = Vec::new();
    let folders: Vec<Option<&FolderConfig>> = match machine.folders() {
        [] => vec![None],
        folders => folders.iter().map(Some).collect(),
    };
    for folder in folders {
        let account = match machine.account_of(folder.map(|folder| folder.path.as_path())) {
            Ok(account) => account,
            // Told already.
            Err(_) if folder.is_none() || machine.config.is_some() => continue,
            Err(failure) => {
                findings.push(failed("credentials", &failure));
                continue;
            }
        };
        if !asked.contains(&account.server) {
            asked.push(account.server.clone());
            if !server(&account.server, &mut findings).await {
                continue;
            }
        }
        match account.connect().await {
            Ok(session) => {
                let admitted = session.admitted();
                findings.push(Finding::good(
                    "log-in",
                    format!("{:?}, as device {:?}", admitted.user_name, admitted.device_name),
                ));
                // A server of an earlier version cannot be asked.
                if let Ok(Space { used: Some(used), quota: Some(quota), .. }) =
                    session.space().await
                {
                    findings.push(quota_left(used, quota));
                }
            }
            // Told already.
            Err(failure) if failure.exit() == Exit::Offline => {}
            Err(failure) => {
                let fix = "picloud logout, then picloud join LINK with a new link: the files stay";
                let advice = failure.advice().unwrap_or(fix).to_owned();
                findings.push(Finding::problem("log-in", failure.line(), advice));
            }
        }
    }
    findings
}

/// Looks at a server before any log-in. Returns whether it is worth going on.
async fn server(server: &Server, findings: &mut Vec<Finding>) -> bool {
    let address = &server.address;
    let connection = match server.open().await {
        Ok(connection) => connection,
        Err(failure) => {
            findings.push(failed("server", &failure));
            return false;
        }
    };
    let now = SystemTime::now();
    let hello = connection.hello();
    findings.push(Finding::good("server", format!("{address} answers: {}", hello.program)));
    findings.push(certificate(server.authority, connection.certificate().map(|v| v.until), now));
    findings.push(clock(hello, now));
    true
}

fn quota_left(used: u64, quota: u64) -> Finding {
    const CHECK: &str = "quota";
    let text = format!("{} of {} used on the server", bytes(used), bytes(quota));
    let is_nearly_full = u128::from(used) * 100 > u128::from(quota) * QUOTA_WARNING_PERCENT;
    if is_nearly_full {
        let fix = "delete what is not needed, or ask whoever runs the server for more".to_owned();
        return Finding::warning(CHECK, text, fix);
    }
    Finding::good(CHECK, text)
}

fn secs(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |secs| -secs),
    }
}

fn certificate(authority: Authority, until: Option<i64>, now: SystemTime) -> Finding {
    const CHECK: &str = "certificate";
    match (authority, until) {
        (Authority::Fingerprint(fingerprint), _) => Finding::good(
            CHECK,
            format!("it is the one of the join link, {fingerprint}; its dates do not matter"),
        ),
        (Authority::Public, Some(until)) if until < secs(now + EXPIRES_SOON) => Finding::warning(
            CHECK,
            format!("it ends on {}; no device can connect then", moment(until)),
            "renew it on the server, and restart picloud-server".to_owned(),
        ),
        (Authority::Public, Some(until)) => {
            Finding::good(CHECK, format!("an authority vouches for it until {}", moment(until)))
        }
        (Authority::Public, None) => Finding::good(CHECK, "an authority vouches for it"),
    }
}

fn clock(hello: &HelloReply, now: SystemTime) -> Finding {
    const CHECK: &str = "clock";
    let ahead = secs(now).saturating_sub(hello.time.secs);
    let off = ahead.saturating_abs();
    let direction = if ahead > 0 { "ahead of" } else { "behind" };
    let text = format!("this machine is {} {direction} the server", spoken(off));
    let fix = "sudo timedatectl set-ntp true, on the machine that is wrong".to_owned();
    match off {
        CLOCK_PROBLEM_SECS.. => Finding::problem(CHECK, text, fix),
        CLOCK_WARNING_SECS.. => Finding::warning(CHECK, text, fix),
        _ => Finding::good(CHECK, "this machine and the server agree"),
    }
}

fn spoken(secs: i64) -> String {
    let secs = secs.unsigned_abs();
    match secs {
        0..120 => counted(secs, "second", "seconds"),
        120..7200 => counted(secs / 60, "minute", "minutes"),
        7200..172_800 => counted(secs / 3600, "hour", "hours"),
        _ => counted(secs / 86_400, "day", "days"),
    }
}

fn unit(machine: &Machine) -> Finding {
    const CHECK: &str = "unit";
    if machine.folders().is_empty() {
        return Finding::skipped(CHECK, "there is no folder to sync");
    }
    match units::enabled(machine) {
        Enabled::User { lingers: true } => {
            Finding::good(CHECK, "the agent starts with the machine, as your own service")
        }
        Enabled::User { lingers: false } => Finding::good(
            CHECK,
            "the agent starts when you log in (`loginctl enable-linger` starts it with the machine)",
        ),
        Enabled::System(unit) => Finding::good(CHECK, format!("{unit} starts with the machine")),
        Enabled::No => Finding::warning(
            CHECK,
            "nothing starts the agent after a restart of this machine",
            "systemctl --user enable --now picloud-agent".to_owned(),
        ),
        Enabled::Unknown(why) => Finding::skipped(CHECK, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn clocks_are_compared_in_both_directions() {
        let at = |secs| HelloReply {
            protocol: 1,
            program: String::new(),
            features: vec![],
            time: Timestamp::new(secs, 0).unwrap(),
        };
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let found = |server| {
            let finding = clock(&at(server), now);
            (finding.verdict, finding.text)
        };
        assert_eq!(found(1_800_000_002).0, Verdict::Good);
        assert_eq!(
            found(1_800_000_000 - 90),
            (Verdict::Warning, "this machine is 90 seconds ahead of the server".to_owned())
        );
        assert_eq!(
            found(1_800_000_000 + 3 * 86_400),
            (Verdict::Problem, "this machine is 3 days behind the server".to_owned())
        );
        // A machine without a clock of its own begins at the epoch.
        assert_eq!(clock(&at(1_800_000_000), UNIX_EPOCH).verdict, Verdict::Problem);
    }

    #[test]
    fn nine_tenths_of_the_room_are_told_of() {
        let verdict = |used| quota_left(used, 1000).verdict;
        assert_eq!(
            (verdict(900), verdict(901), verdict(5000)),
            (Verdict::Good, Verdict::Warning, Verdict::Warning)
        );
        assert_eq!(quota_left(u64::MAX, u64::MAX).verdict, Verdict::Warning);
    }

    #[test]
    fn only_an_authority_s_certificate_can_end() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let soon = Some(1_800_000_000 + 86_400);
        let pinned = Authority::Fingerprint(crate::model::Fingerprint([1; 32]));
        assert_eq!(certificate(pinned, soon, now).verdict, Verdict::Good);
        assert_eq!(certificate(Authority::Public, soon, now).verdict, Verdict::Warning);
        let later = Some(1_800_000_000 + 90 * 86_400);
        assert_eq!(certificate(Authority::Public, later, now).verdict, Verdict::Good);
    }
}
