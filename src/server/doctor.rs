//! `picloud-server doctor`: what commonly goes wrong with a server and its data. It only reads, takes no
//! lock and binds no port, so it is safe while a server runs or starts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, access};
use tokio::time::timeout;

use super::admin;
use super::clock::{now_ms, timestamp};
use super::config::{Config, ConfigError};
use super::packs::{Location, Packs, RecordKind};
use super::store::examine::{Examination, Placed};
use super::store::{Layout, StoreError};
use crate::checkup::{Finding, bytes, counted, in_words, lock_holder, process, space};
use crate::model::{ChunkId, ContentList};
use crate::protocol::certificate::Validity;
use crate::protocol::{ALPN, ConnectError, Connection, Endpoint, ServerIdentity, Trust};

/// A certificate that is renewed by machine has been by then.
const EXPIRES_SOON_SECS: i64 = 14 * 24 * 3600;

/// Rows that are gone through at once; sorted, the packs are read nearly from end to end.
const ROWS_MAX: usize = 65_536;

/// The most damaged records that are named.
const NAMED_MAX: usize = 3;

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the doctor looks at.
#[derive(Debug)]
pub struct Patient<'a> {
    /// The settings, or what is wrong with them.
    pub config: Result<Config, ConfigError>,
    /// Where they are, if anywhere.
    pub path: Option<&'a Path>,
    /// Whether everything stored is read and checked.
    pub deep: bool,
}

/// Looks, and tells each finding as it comes.
pub fn examine(patient: &Patient<'_>, tell: &mut dyn FnMut(Finding)) {
    let config = match &patient.config {
        Ok(config) => config,
        Err(error) => {
            let fix = "correct it; a running server goes on with the settings it started with";
            return tell(Finding::problem("settings", in_words(error), fix.to_owned()));
        }
    };
    tell(match patient.path {
        Some(path) => Finding::good("settings", format!("{path:?}")),
        None => Finding::good("settings", "there is no file: the defaults are in force"),
    });
    let data_dir = &config.server.data_dir;
    let layout = Layout::at(data_dir);
    let is_there = match std::fs::metadata(data_dir) {
        Ok(_) => {
            tell(data_directory(data_dir));
            tell(room(config));
            true
        }
        Err(error) => {
            tell(no_data_directory(data_dir, &error));
            false
        }
    };
    if is_there {
        contents(&layout, patient.deep, tell);
    }
    let identity = certificate(config, &layout, tell);
    listening(config, &layout, identity.as_ref(), tell);
}

fn no_data_directory(path: &Path, error: &std::io::Error) -> Finding {
    const CHECK: &str = "data directory";
    if error.kind() == std::io::ErrorKind::NotFound {
        return Finding::skipped(
            CHECK,
            format!("{path:?} is not there: the server makes it at its first start"),
        );
    }
    Finding::problem(
        CHECK,
        format!("{path:?}: {}", in_words(error)),
        "run this as root: sudo picloud-server doctor".to_owned(),
    )
}

fn data_directory(path: &Path) -> Finding {
    const CHECK: &str = "data directory";
    let needed = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    if access(path, needed).is_err() {
        let fix = format!(
            "run this as root (sudo picloud-server doctor); if the server cannot write there either: \
             sudo chown -R picloud: {}",
            path.display()
        );
        return Finding::problem(CHECK, format!("{path:?} cannot be read and written"), fix);
    }
    let Ok(found) = std::fs::metadata(path) else {
        return Finding::problem(CHECK, format!("{path:?} is gone"), None);
    };
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let text = format!("others can look into {path:?} (mode {mode:03o})");
        return Finding::problem(CHECK, text, format!("sudo chmod 700 {}", path.display()));
    }
    // Root's own files there cannot be read by the server.
    let strangers = std::fs::read_dir(path).into_iter().flatten().flatten();
    for entry in strangers {
        if entry.metadata().is_ok_and(|file| file.uid() != found.uid()) {
            let text = format!("{:?} does not belong to the owner of the directory", entry.path());
            let fix = format!("sudo chown -R --reference={0} {0}", path.display());
            return Finding::problem(CHECK, text, fix);
        }
    }
    Finding::good(CHECK, format!("{path:?} is its owner's only"))
}

fn room(config: &Config) -> Finding {
    const CHECK: &str = "space";
    let dir = &config.server.data_dir;
    let space = match space(dir) {
        Ok(space) => space,
        Err(error) => return Finding::problem(CHECK, in_words(&error), None),
    };
    let kept_free = config.limits.disk_free_min_mib.saturating_mul(1024 * 1024);
    let fix =
        "give it a larger disk (docs/operations.md): every version is kept, so deleting synced \
               files frees nothing"
            .to_owned();
    let text =
        format!("{} of {} are free on the disk of {dir:?}", bytes(space.free), bytes(space.total));
    if space.free < kept_free {
        let text = format!(
            "{text}, less than the {} of disk_free_min_mib: nothing new is taken",
            bytes(kept_free)
        );
        return Finding::problem(CHECK, text, fix);
    }
    // A tenth of the disk, or as much again as is kept free.
    if space.free < kept_free.saturating_mul(2).max(space.total / 10) {
        return Finding::warning(CHECK, text, fix);
    }
    Finding::good(CHECK, text)
}

/// The database and the packs.
fn contents(layout: &Layout, deep: bool, tell: &mut dyn FnMut(Finding)) {
    let database = layout.database();
    if !database.exists() {
        return tell(Finding::skipped(
            "database",
            format!("{database:?} is made at the first start"),
        ));
    }
    let restore = "stop the server, keep a copy of the data directory as it is, and restore a backup \
                   (docs/operations.md)";
    let fault = |check, error: &StoreError| {
        let fix = match error {
            // What to do is part of what it says.
            StoreError::TooNew { .. } => None,
            _ => Some(restore.to_owned()),
        };
        Finding::problem(check, in_words(error), fix)
    };
    let examination = match Examination::open(&database) {
        Ok(examination) => examination,
        Err(error) => return tell(fault("database", &error)),
    };
    let looked = examination.faults(deep).and_then(|faults| Ok((faults, examination.format()?)));
    match looked {
        Ok((faults, format)) if faults.is_empty() => {
            let how = if deep { "looked through, with its indexes" } else { "looked through" };
            tell(Finding::good("database", format!("{how}; format {format}")));
        }
        Ok((faults, _)) => {
            let text = format!("it is damaged: {}", faults.join("; "));
            tell(Finding::problem("database", text, restore.to_owned()));
        }
        Err(error) => tell(fault("database", &error)),
    }
    match examination.wrong_sums() {
        Ok(wrong) if wrong.is_empty() => {}
        Ok(wrong) => {
            let of = |(drive, kept, real): &(i64, i64, i64)| {
                format!("the files of drive {drive} are {real} bytes together, and {kept} are kept")
            };
            let wrong: Vec<String> = wrong.iter().map(of).collect();
            tell(Finding::problem("quota", wrong.join("; "), restore.to_owned()));
        }
        Err(error) => tell(fault("quota", &error)),
    }
    let packs = Packs::at(&layout.packs());
    match examination.ends() {
        Ok(ends) => tell(packs_hold(&packs, &ends, restore)),
        Err(error) => tell(fault("packs", &error)),
    }
    if deep {
        match records(&examination, &packs) {
            Ok(Checked { damaged: 0, records, bytes: read, .. }) => {
                let records = counted(records, "record is", "records are");
                let text = format!("{records} as they should be ({})", bytes(read));
                tell(Finding::good("contents", text));
            }
            Ok(checked) => {
                let text = format!(
                    "{} of {} records are damaged: {}",
                    checked.damaged,
                    checked.records,
                    checked.named.join("; ")
                );
                tell(Finding::problem("contents", text, restore.to_owned()));
            }
            Err(error) => tell(fault("contents", &error)),
        }
    }
}

/// Every row has to point into a pack that is there and reaches so far.
fn packs_hold(packs: &Packs, ends: &[Location], restore: &str) -> Finding {
    const CHECK: &str = "packs";
    let (mut total, mut wrong) = (0, Vec::new());
    for end in ends {
        match packs.len(end.pack) {
            Ok(Some(len)) if len >= Packs::end_of(*end) => total += len,
            Ok(Some(len)) => wrong.push(format!(
                "pack {} has {len} bytes, and the database names some up to {}",
                end.pack,
                Packs::end_of(*end)
            )),
            Ok(None) => wrong.push(format!("pack {} is not there", end.pack)),
            Err(error) => wrong.push(in_words(&error)),
        }
    }
    if wrong.is_empty() {
        let packs = counted(ends.len() as u64, "pack is", "packs are");
        return Finding::good(CHECK, format!("{packs} there, {} in all", bytes(total)));
    }
    let count = wrong.len();
    wrong.truncate(NAMED_MAX);
    let more = if count > wrong.len() { format!("; {count} in all") } else { String::new() };
    Finding::problem(
        CHECK,
        format!("{}{more}", wrong.join("; ")),
        format!("is the disk of the packs mounted? Else {restore}"),
    )
}

#[derive(Debug, Default)]
struct Checked {
    records: u64,
    bytes: u64,
    damaged: u64,
    named: Vec<String>,
}

/// Reads everything that rows point to, and compares it with its id.
fn records(examination: &Examination, packs: &Packs) -> Result<Checked, StoreError> {
    let mut checked = Checked::default();
    let mut last: Option<Placed> = None;
    loop {
        let mut rows = examination.placed(last.as_ref(), ROWS_MAX)?;
        let Some(end) = rows.last().copied() else {
            return Ok(checked);
        };
        rows.sort_unstable_by_key(|row| (row.at.pack, row.at.offset));
        for row in &rows {
            checked.records += 1;
            checked.bytes += u64::from(row.at.stored_len);
            // A row that went meanwhile says nothing of the disk.
            if let Err(error) = record(packs, row)
                && examination.is_still(row)?
            {
                checked.damaged += 1;
                if checked.named.len() < NAMED_MAX {
                    checked.named.push(in_words(&error));
                }
            }
        }
        last = Some(end);
    }
}

fn record(packs: &Packs, row: &Placed) -> Result<(), StoreError> {
    let record = packs.read(row.at, &row.id)?;
    let damaged = |what: String| StoreError::Damaged(format!("pack {}: {what}", row.at.pack));
    match row.kind {
        RecordKind::Chunk => {
            let chunk = super::packs::chunk_data(record)?;
            crate::content::unpack(&chunk).map_err(|error| damaged(error.to_string()))?;
        }
        RecordKind::List => {
            if *ContentList::id_of_encoded(&record.data).as_bytes() != row.id {
                return Err(damaged(format!("a list is not {}", ChunkId::from_bytes(row.id))));
            }
        }
    }
    Ok(())
}

fn certificate(
    config: &Config,
    layout: &Layout,
    tell: &mut dyn FnMut(Finding),
) -> Option<ServerIdentity> {
    const CHECK: &str = "certificate";
    let identity = match admin::existing_identity(config, layout) {
        Ok(Some(identity)) => identity,
        Ok(None) => {
            tell(Finding::skipped(CHECK, "the server makes its own at its first start"));
            return None;
        }
        Err(error) => {
            let fix =
                "see [tls] in the settings; the server must be able to read both files".to_owned();
            tell(Finding::problem(CHECK, in_words(&error), fix));
            return None;
        }
    };
    if let Err(error) = identity.acceptor(&[ALPN]) {
        let fix = "name the key that belongs to the certificate".to_owned();
        tell(Finding::problem(CHECK, in_words(&error), fix));
        return None;
    }
    let fingerprint = identity.fingerprint();
    if config.tls.certificate.is_none() {
        let text =
            format!("its own, {fingerprint}, as the join links name it; its dates do not matter");
        tell(Finding::good(CHECK, text));
        return Some(identity);
    }
    tell(dates(identity.validity(), now_ms() / 1000));
    let host = admin::public_host(config);
    if !identity.is_for(&host) {
        let text = format!("it is not for {host:?}, which is how devices reach this server");
        let fix = "set `public` in [server] to a name that is in the certificate".to_owned();
        tell(Finding::warning(CHECK, text, fix));
    }
    Some(identity)
}

fn day(secs: i64) -> String {
    let moment = timestamp(secs.saturating_mul(1000));
    jiff::Timestamp::from_second(moment.secs)
        .map_or_else(|_| format!("@{secs}"), |time| time.to_string())
}

fn dates(validity: Option<Validity>, now: i64) -> Finding {
    const CHECK: &str = "certificate";
    let renew =
        "renew it, and restart the server: sudo systemctl restart picloud-server".to_owned();
    match validity {
        None => Finding::warning(CHECK, "its dates cannot be read", None),
        Some(Validity { from, .. }) if now < from => {
            let text = format!("it is valid from {} on only", day(from));
            Finding::problem(CHECK, text, "is this machine's clock right?".to_owned())
        }
        Some(Validity { until, .. }) if now > until => {
            Finding::problem(CHECK, format!("it has ended on {}", day(until)), renew)
        }
        Some(Validity { until, .. }) if until - now < EXPIRES_SOON_SECS => {
            Finding::warning(CHECK, format!("it ends on {}", day(until)), renew)
        }
        Some(Validity { until, .. }) => {
            Finding::good(CHECK, format!("it is valid until {}", day(until)))
        }
    }
}

/// Whether a server runs and answers, or could.
fn listening(
    config: &Config,
    layout: &Layout,
    identity: Option<&ServerIdentity>,
    tell: &mut dyn FnMut(Finding),
) {
    const CHECK: &str = "server";
    let holder = lock_holder(&layout.lock()).ok().flatten();
    let listen = config.server.listen;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tell(Finding::problem(CHECK, in_words(&error), None)),
    };
    let near = reached_at(listen);
    let asked = identity.map(|identity| {
        let trust = Trust::Pinned(identity.fingerprint());
        let endpoint = Endpoint { address: near.to_string(), trust };
        let opened = async { Box::pin(Connection::open(&endpoint, super::PROGRAM)).await };
        runtime.block_on(async { timeout(PATIENCE, opened).await })
    });
    match (asked, holder) {
        (Some(Ok(Ok((connection, _)))), _) => {
            tell(version(&connection.hello().program, listen));
            tell(public(config, &runtime));
        }
        // A free port is as good as it can be while no server runs.
        (Some(Ok(Err(ConnectError::Unreachable { .. }))) | None, None) => tell(Finding::warning(
            CHECK,
            format!("it does not run; nothing listens at {listen}"),
            "sudo systemctl enable --now picloud-server".to_owned(),
        )),
        (_, None) => tell(Finding::problem(
            CHECK,
            format!("another program listens at {listen}, and no server uses {:?}", layout.dir()),
            format!("find it with `sudo ss -ltnp sport = :{}`, or set another port", listen.port()),
        )),
        (_, Some(holder)) => tell(Finding::problem(
            CHECK,
            format!("{} uses {:?}, but does not answer at {listen}", process(holder), layout.dir()),
            "was `listen` or the certificate changed since it started? sudo systemctl restart \
             picloud-server"
                .to_owned(),
        )),
    }
}

/// Where a server that listens there is reached from this machine.
fn reached_at(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        ip if ip.is_unspecified() => (IpAddr::from(Ipv4Addr::LOCALHOST), listen.port()).into(),
        _ => listen,
    }
}

fn version(program: &str, listen: SocketAddr) -> Finding {
    const CHECK: &str = "server";
    if program == super::PROGRAM {
        return Finding::good(CHECK, format!("it answers at {listen}: {program}"));
    }
    Finding::warning(
        CHECK,
        format!("it answers at {listen} as {program}, and this command is {}", super::PROGRAM),
        "sudo systemctl restart picloud-server, so that the installed version runs".to_owned(),
    )
}

/// Whether the address in the join links leads here.
fn public(config: &Config, runtime: &tokio::runtime::Runtime) -> Finding {
    const CHECK: &str = "public address";
    let address = admin::public_address(config, config.server.listen.port());
    let connecting = tokio::net::TcpStream::connect(&address);
    match runtime.block_on(async { timeout(PATIENCE, connecting).await }) {
        Ok(Ok(_)) => Finding::good(CHECK, format!("{address} can be reached from this machine")),
        failed => {
            let why = match failed {
                Ok(Err(error)) => in_words(&error),
                _ => "no answer".to_owned(),
            };
            Finding::warning(
                CHECK,
                format!("{address}, which join links name, cannot be reached from this machine: {why}"),
                "if devices cannot reach it either: see `public` in the settings, the firewall, and the \
                 router's port forwarding (docs/operations.md)"
                    .to_owned(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkup::Verdict;

    #[test]
    fn a_certificate_is_told_of_two_weeks_before_its_end() {
        const DAY: i64 = 86_400;
        let validity = Some(Validity { from: 100 * DAY, until: 200 * DAY });
        let verdicts = [99, 150, 187, 201].map(|day| dates(validity, day * DAY).verdict);
        assert_eq!(verdicts, [Verdict::Problem, Verdict::Good, Verdict::Warning, Verdict::Problem]);
        assert_eq!(dates(None, 0).verdict, Verdict::Warning);
    }
}
