//! `picloud log`: what happened to which file, in plain words.

use serde_json::json;

use super::agent::told;
use super::args::Log;
use super::control::{Next, stopped, unexpected};
use super::failure::{Exit, Failure};
use super::machine::Machine;
use super::output::{Output, Tone, moment, printable};
use crate::protocol::control::{LogFilter, LogLine, Reply, Request};

/// How many lines are told when nobody says how many, and from when.
const LINES: u32 = 20;

/// `picloud log`.
///
/// # Errors
/// When the agent does not run or answers wrongly, or a time cannot be understood.
pub fn log(machine: &Machine, output: Output, args: &Log) -> Result<Exit, Failure> {
    let agent = machine.agent()?;
    let only = filter(machine, args)?;
    let lines = args.lines.unwrap_or(if only.since.is_some() { u32::MAX } else { LINES });
    let shows_folder = machine.folders().len() > 1;
    let mut conversation = agent.ask(&Request::Log { lines, follow: args.follow, only })?;
    loop {
        match conversation.next(None)? {
            Next::Reply(Reply::Log(line)) => told(show(output, &line, shows_folder))?,
            Next::Reply(Reply::Ok) => return Ok(Exit::Done),
            Next::Reply(_) => return Err(unexpected()),
            Next::Closed | Next::TimeUp => return Err(stopped()),
        }
    }
}

fn filter(machine: &Machine, args: &Log) -> Result<LogFilter, Failure> {
    let spot = match &args.path {
        Some(path) => Some(
            machine
                .find(path)?
                .ok_or_else(|| Failure::failed(format!("{path:?} is not in a synced folder")))?,
        ),
        None => None,
    };
    let zone = jiff::tz::TimeZone::system();
    let now = jiff::Zoned::now().with_time_zone(zone);
    let time = |text: &Option<String>, is_end| {
        text.as_deref().map(|text| moment_of(text, &now, is_end)).transpose()
    };
    Ok(LogFilter {
        folder: spot.as_ref().map(|spot| spot.folder.clone()),
        path: spot.as_ref().map(|spot| spot.path.to_string()),
        since: time(&args.since, false)?,
        until: time(&args.until, true)?,
        device: args.device.clone(),
    })
}

/// Reads a time: so long ago (`2h`, `3 days`), or a date, with a time of day or without. A date
/// alone is its beginning, or its end.
fn moment_of(text: &str, now: &jiff::Zoned, is_end: bool) -> Result<i64, Failure> {
    let wrong = || {
        Failure::usage(format!("{text:?} is no time"))
            .hint("write so long ago, as 2h or 3d, or a time as 2026-11-24 or 2026-11-24T10:30")
    };
    let text = text.trim();
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_second());
    }
    if let Ok(span) = text.parse::<jiff::Span>() {
        return Ok(now.checked_sub(span.abs()).map_err(|_| wrong())?.timestamp().as_second());
    }
    let zone = now.time_zone().clone();
    let is_date = text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok();
    let time = match text.parse::<jiff::civil::Time>() {
        Ok(time) if text.contains(':') && !text.contains('-') => now.date().to_datetime(time),
        _ => text.parse::<jiff::civil::DateTime>().map_err(|_| wrong())?,
    };
    let time = match is_date && is_end {
        true => time.date().at(23, 59, 59, 0),
        false => time,
    };
    Ok(time.to_zoned(zone).map_err(|_| wrong())?.timestamp().as_second())
}

fn show(output: Output, line: &LogLine, shows_folder: bool) -> std::io::Result<()> {
    if output.json() {
        return output.object(&json!({
            "type": "log",
            "version": 1,
            "time": line.time,
            "folder": line.folder,
            "event": line.event,
            "path": line.path,
            "detail": line.detail,
            "device": line.device,
        }));
    }
    let time = output.paint(Tone::Faint, &moment(line.time));
    output.line(&format!("{time}  {}", words(line, shows_folder)))
}

/// Returns what happened, in plain words.
fn words(line: &LogLine, shows_folder: bool) -> String {
    let full = |path: &str| match shows_folder {
        true => {
            printable(format!("{}/{path}", line.folder.trim_end_matches('/')).trim_end_matches('/'))
        }
        false if path.is_empty() => printable(&line.folder),
        false => printable(path),
    };
    let path = full(&line.path);
    let device = line.device.as_deref().map(printable);
    let before = (!line.detail.is_empty()).then(|| full(&line.detail));
    let detail = printable(&line.detail);
    let as_on = device.as_ref().map(|device| format!(", as on {device}")).unwrap_or_default();
    match line.event.as_str() {
        "received" => {
            let from = device.map(|device| format!(" from {device}"));
            format!("received {path}{}", from.unwrap_or_default())
        }
        "moved" => match before {
            Some(before) => format!("moved {before} to {path}"),
            None => format!("moved {path}"),
        },
        "moved here" => match before {
            Some(before) => format!("moved {before} to {path}{as_on}"),
            None => format!("moved {path}{as_on}"),
        },
        "deleted here" => format!("deleted {path} here{as_on}"),
        "moved aside" => format!("moved {path} aside for a moment"),
        "conflict" => match before {
            Some(before) => format!(
                "conflict: {before} was changed on two devices; {path} is the other version"
            ),
            None => format!("conflict: {path} is the other version"),
        },
        "resolved" => format!("removed {path}: it was not kept of a conflict"),
        "problem" => format!("problem with {path}: {detail}"),
        event if detail.is_empty() => format!("{event} {path}"),
        event => format!("{event} {path}: {detail}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(event: &str, detail: &str, device: Option<&str>, expected: &str) {
        let line = LogLine {
            time: 0,
            folder: "/f".into(),
            event: event.into(),
            path: "d/new\n".into(),
            detail: detail.into(),
            device: device.map(str::to_owned),
        };
        assert_eq!(words(&line, false), expected);
    }

    #[test]
    fn what_happened_is_said_in_plain_words() {
        check("received", "", Some("desk"), "received d/new\\n from desk");
        check("received", "", None, "received d/new\\n");
        check("sent", "", Some("me"), "sent d/new\\n");
        check("moved here", "d/old", Some("desk"), "moved d/old to d/new\\n, as on desk");
        check("deleted here", "", Some("desk"), "deleted d/new\\n here, as on desk");
        check("problem", "It is bad", None, "problem with d/new\\n: It is bad");
        check(
            "conflict",
            "d/x",
            Some("me"),
            "conflict: d/x was changed on two devices; d/new\\n is the other version",
        );
    }

    #[test]
    fn times_are_taken_as_people_write_them() {
        let now: jiff::Zoned = "2026-11-24T12:00:00+01:00[Europe/Berlin]".parse().unwrap();
        let at = |text: &str, is_end| {
            let secs = moment_of(text, &now, is_end).unwrap();
            jiff::Timestamp::from_second(secs).unwrap().to_string()
        };
        assert_eq!(at("2h", false), "2026-11-24T09:00:00Z");
        assert_eq!(at("3 days", false), "2026-11-21T11:00:00Z");
        assert_eq!(at("2026-11-24", false), "2026-11-23T23:00:00Z");
        assert_eq!(at("2026-11-24", true), "2026-11-24T22:59:59Z");
        assert_eq!(at("2026-11-24T10:30", false), "2026-11-24T09:30:00Z");
        assert_eq!(at("2026-11-24 10:30:05", true), "2026-11-24T09:30:05Z");
        assert_eq!(at("2026-11-24T10:30:00Z", false), "2026-11-24T10:30:00Z");
        assert_eq!(at("10:30", false), "2026-11-24T09:30:00Z");
        assert_eq!(moment_of("soon", &now, false).unwrap_err().exit(), Exit::Usage);
    }
}
