//! `picloud up`: a server, an account, this device and its agent, all in one process.
//!
//! What it sets up is what the other commands know: a `server.toml` and an `agent.toml` beside each
//! other, which the three programs read as well. Run again, it finds them and goes on.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::account::how_to_join;
use super::agent::{look, status_of, told};
use super::args;
use super::failure::{Exit, Failure};
use super::join::{Plan, join_with};
use super::live::LiveArea;
use super::machine::{Machine, real_path};
use super::output::{Output, printable};
use super::status::{status_text, summary_line};
use crate::agent::config::{Authority, FolderConfig};
use crate::agent::{self, RunningAgent};
use crate::model::check_device_name;
use crate::server::config::Config as ServerConfig;
use crate::server::{RunningServer, ServerError};

/// The shortest time between two looks at the status.
const LOOK_PERIOD: Duration = Duration::from_millis(250);

/// How often the server looks after itself.
const CHECK_PERIOD: Duration = Duration::from_secs(10);

/// `picloud up`.
///
/// # Errors
/// When a part of it runs already or cannot start, or one ends by itself.
pub fn up(machine: &Machine, output: Output, args: &args::Up) -> Result<Exit, Failure> {
    machine.check_config()?;
    if let Ok(agent) = machine.agent()
        && status_of(&agent.socket, &agent.config).is_some()
    {
        return Err(Failure::failed(format!(
            "The agent of {:?} runs already",
            machine.config_path
        ))
        .hint(
            "`picloud status` shows how it stands and `picloud link` joins the next device; \
             or stop it first",
        ));
    }
    // The programs' own words go to standard error; beside a live status only errors do.
    let quiet = if output.live() { "error" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(quiet));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .try_init()
        .map_err(|error| Failure::failed("Cannot set up the log").caused_by(error.to_string()))?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("Cannot start").because(&error))?
        .block_on(Box::pin(run(machine, output, args)))
}

async fn run(machine: &Machine, output: Output, args: &args::Up) -> Result<Exit, Failure> {
    let no_signals = |error: io::Error| Failure::failed("Cannot listen to signals").because(&error);
    // From here on, an early Ctrl-C also ends it cleanly.
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.send_replace(true);
        // Held until the process ends: a closed channel would look like a stop as well.
        stop.closed().await;
    });
    let settings = server_settings(machine, args)?;
    let first = FirstDevice::check(machine, args, &settings)?;
    let server = start_server(machine, &settings).await?;
    let outcome = match settings.keep() {
        Ok(()) => {
            let joined = join_here(machine, args, first, &server).await;
            if joined.is_err() {
                settings.take_back();
            }
            match joined {
                Ok(user) => sync_here(machine, output, &user, &server, stopped).await,
                Err(failure) => Err(failure),
            }
        }
        Err(failure) => Err(failure),
    };
    server.stop().await;
    outcome?;
    if output.json() {
        told(output.object(&json!({"type": "stopped", "version": 1})))?;
    } else {
        told(output.line("Stopped. `picloud up` goes on where it was."))?;
    }
    Ok(Exit::Done)
}

/// Runs the device on this machine until it is to stop, or something fails.
async fn sync_here(
    machine: &Machine,
    output: Output,
    user: &str,
    server: &RunningServer,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let machine = Machine::read(Some(&machine.config_path))?;
    let agent = agent::start(agent::Options::new(&machine.config_path))
        .await
        .map_err(|error| Failure::from_error(Exit::Failed, &error))?;
    agent.opened().await;
    let watching = tokio::select! {
        watching = Box::pin(show(&machine, output, user, server, &agent)) => watching,
        _ = stopped.wait_for(|stop| *stop) => Ok(()),
    };
    agent.stop().await;
    watching
}

/// Where the server's settings are.
fn server_config_path(machine: &Machine) -> PathBuf {
    machine.config_path.with_file_name("server.toml")
}

/// The server's settings.
struct ServerSettings {
    config: ServerConfig,
    path: PathBuf,
    /// At the first start: what is to be written down once the server runs.
    text: Option<String>,
}

impl ServerSettings {
    /// Writes them down at the first start: from then on they are what is set up.
    fn keep(&self) -> Result<(), Failure> {
        let Some(text) = &self.text else { return Ok(()) };
        let write = || {
            if let Some(dir) = self.path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            agent::durable::replace(&self.path, text.as_bytes(), 0o644)
        };
        write().map_err(|error| Failure::file("Cannot write", &self.path, &error))
    }

    /// The first start came to nothing: the next is a first one again, with other options perhaps.
    fn take_back(&self) {
        if self.text.is_some() {
            // Left behind it only has to be edited, as its error says.
            std::fs::remove_file(&self.path).unwrap_or_default();
        }
    }
}

/// Reads the server's settings, or makes them at the first start.
fn server_settings(machine: &Machine, args: &args::Up) -> Result<ServerSettings, Failure> {
    let path = server_config_path(machine);
    let mut text = None;
    let mut config = if path.exists() {
        ServerConfig::load(&path).map_err(|error| Failure::from_error(Exit::Failed, &error))?
    } else {
        let data_dir = match &args.data_dir {
            Some(dir) => std::path::absolute(dir)
                .map_err(|error| Failure::file("Cannot use", dir, &error))?,
            None => default_data_dir()?,
        };
        let listen = match &args.listen {
            Some(text) => text.clone(),
            None => ServerConfig::default().server.listen.to_string(),
        };
        let first = first_server_config(&listen, args.public.as_deref(), &data_dir)?;
        // A mistyped address is the command line's fault, not the file's.
        let config = ServerConfig::parse(&first, &path).map_err(|error| {
            Failure::new(Exit::Usage, "--listen, --public or --data-dir cannot be used")
                .because(&error)
        })?;
        text = Some(first);
        config
    };
    let differs = |given: Option<&str>, kept: &str| given.is_some_and(|given| given != kept);
    let kept_public = config.server.public.clone().unwrap_or_default();
    let given_dir = args.data_dir.as_ref().map(std::path::absolute);
    if differs(args.listen.as_deref(), &config.server.listen.to_string())
        || differs(args.public.as_deref(), &kept_public)
        || given_dir.is_some_and(|given| given.ok().as_ref() != Some(&config.server.data_dir))
    {
        return Err(Failure::usage(
            "--listen, --public and --data-dir are for the first start; now they are settings",
        )
        .hint(format!("edit {}", path.display())));
    }
    if config.server.public.is_none() && config.server.listen.ip().is_unspecified() {
        config.server.public = Some(own_address(config.server.listen));
    }
    Ok(ServerSettings { config, path, text })
}

fn first_server_config(
    listen: &str,
    public: Option<&str>,
    data_dir: &Path,
) -> Result<String, Failure> {
    let data_dir = data_dir.to_str().ok_or_else(|| {
        Failure::usage(format!("{data_dir:?} is not UTF-8: choose another with --data-dir"))
    })?;
    let mut server = toml_edit::Table::new();
    server.insert("listen", toml_edit::value(listen));
    if let Some(public) = public {
        server.insert("public", toml_edit::value(public));
    }
    server.insert("data_dir", toml_edit::value(data_dir));
    let mut document = toml_edit::DocumentMut::new();
    document.insert("server", toml_edit::Item::Table(server));
    Ok(format!(
        "# The settings of the server that `picloud up` starts; `picloud-server --config` reads them \
         too.\n# All keys with their defaults: config/server.toml in the sources.\n\n{document}"
    ))
}

fn default_data_dir() -> Result<PathBuf, Failure> {
    let named = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    named
        .filter(|dir| dir.is_absolute())
        .or_else(|| std::env::home_dir().map(|home| home.join(".local/share")))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("picloud/server"))
        .ok_or_else(|| {
            Failure::failed("There is no home directory for the server's data")
                .hint("name a directory with --data-dir DIR")
        })
}

/// The address under which others can reach this machine, as far as it knows itself.
fn own_address(listen: SocketAddr) -> String {
    // Connecting a UDP socket sends nothing; it tells which address a packet would carry. The
    // target is an address for documentation.
    let source = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    let port = listen.port();
    match source().filter(|ip| !ip.is_unspecified() && !ip.is_loopback()) {
        Some(ip) => SocketAddr::new(ip, port).to_string(),
        None => {
            let uname = rustix::system::uname();
            match uname.nodename().to_str() {
                Ok(host) if !host.is_empty() && host != "(none)" => format!("{host}:{port}"),
                _ => format!("127.0.0.1:{port}"),
            }
        }
    }
}

async fn start_server(
    machine: &Machine,
    settings: &ServerSettings,
) -> Result<RunningServer, Failure> {
    let listen = settings.config.server.listen;
    crate::server::start(settings.config.clone()).await.map_err(|error| {
        let failure = Failure::from_error(Exit::Failed, &error);
        match &error {
            ServerError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                failure.hint(match settings.text {
                    Some(_) => format!(
                        "is a server running already? Else choose another port with --listen \
                         (now {listen})"
                    ),
                    None => format!(
                        "is a server running already? Else choose another port: `listen` in {} \
                         (now {listen})",
                        server_config_path(machine).display()
                    ),
                })
            }
            _ => failure,
        }
    })
}

/// What this machine becomes when it is no device of any server yet.
struct FirstDevice {
    plan: Plan,
    user: String,
}

impl FirstDevice {
    /// Checks what can be checked before anything is made. Nothing when this machine has folders.
    fn check(
        machine: &Machine,
        args: &args::Up,
        settings: &ServerSettings,
    ) -> Result<Option<Self>, Failure> {
        if let Some(folder) = machine.folders().first() {
            return match settings.text {
                Some(_) => Err(elsewhere(folder)),
                None => Ok(None),
            };
        }
        let plan = Plan::check(machine, args.folder.as_deref(), args.device.as_deref())?;
        let user = match &args.user {
            Some(user) if can_be_account(user) => user.clone(),
            Some(user) => {
                return Err(Failure::usage(format!("{user:?} cannot be the name of an account"))
                    .hint(
                        "it has 1 to 64 letters, digits or . _ @ - and begins with none of . -",
                    ));
            }
            None => login_name()?,
        };
        if let Err(reason) = check_device_name(&plan.device) {
            return Err(Failure::usage(format!("{:?} cannot be used: {reason}", plan.device))
                .hint("name this device with --device NAME"));
        }
        Ok(Some(Self { plan, user }))
    }
}

fn elsewhere(folder: &FolderConfig) -> Failure {
    Failure::failed(format!(
        "This machine syncs {:?} with the server {} already",
        folder.path, folder.server
    ))
    .hint("`picloud --config FILE up` with another FILE sets a second one up beside it")
}

/// Refuses options that say something else than what is set up: nobody would see that they came to
/// nothing.
fn check_same(machine: &Machine, args: &args::Up, folder: &FolderConfig) -> Result<(), Failure> {
    let given = match &args.folder {
        Some(path) => {
            let absolute = std::path::absolute(path)
                .map_err(|error| Failure::file("Cannot use the folder", path, &error))?;
            Some(real_path(&absolute))
        }
        None => None,
    };
    if given.is_some_and(|given| given != real_path(&folder.path))
        || args.user.as_ref().is_some_and(|user| !user.eq_ignore_ascii_case(&folder.user))
        || args.device.as_ref().is_some_and(|device| *device != folder.device_name)
    {
        return Err(Failure::usage(format!(
            "--folder, --user and --device are for the first start; {:?} is set up already, for {} \
             as {}",
            folder.path, folder.user, folder.device_name
        ))
        .hint(format!(
            "`picloud up` without them goes on; `picloud join \"$(picloud link --plain)\" --folder \
             PATH` adds a folder; another `--config FILE` (now {}) sets up a second one",
            machine.config_path.display()
        )));
    }
    Ok(())
}

/// Makes this machine a device of the server, unless it is one, and returns the account.
async fn join_here(
    machine: &Machine,
    args: &args::Up,
    first: Option<FirstDevice>,
    server: &RunningServer,
) -> Result<String, Failure> {
    let here = Authority::Fingerprint(server.fingerprint());
    let Some(FirstDevice { plan, user }) = first else {
        let mut ours = machine.folders().iter().filter(|folder| folder.authority == here);
        let Some(folder) = ours.next() else {
            return Err(machine.folders().first().map_or_else(
                || Failure::failed("This machine has no folder any more").hint("run it again"),
                elsewhere,
            ));
        };
        // One of several may be the one that is meant.
        let same = std::iter::once(folder).chain(ours).map(|one| check_same(machine, args, one));
        let same: Vec<_> = same.collect();
        if !same.iter().any(Result::is_ok) {
            same.into_iter().next().unwrap_or(Ok(()))?;
        }
        return Ok(folder.user.clone());
    };
    let mut link =
        server.invite(&user).await.map_err(|error| Failure::from_error(Exit::Failed, &error))?;
    // This device reaches the server wherever the machine is carried.
    let listens = server.address();
    let ip = match listens.ip() {
        ip if ip == Ipv6Addr::UNSPECIFIED || ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    };
    link.address = SocketAddr::new(ip, listens.port()).to_string();
    join_with(machine, &link, &plan).await?;
    Ok(user)
}

/// The login name, as the environment or else the system tells it.
fn login_name() -> Result<String, Failure> {
    let named = |name| std::env::var(name).ok().filter(|name: &String| !name.is_empty());
    let name = named("USER").or_else(|| named("LOGNAME")).or_else(ask_system);
    let unknown = || Failure::failed("Your login name cannot be found out");
    let name = name.ok_or_else(unknown).and_then(|name| match can_be_account(&name) {
        true => Ok(name),
        false => Err(Failure::failed(format!("Your login name {name:?} cannot be an account's"))),
    });
    name.map_err(|failure| failure.hint("name the account with --user NAME"))
}

/// Asks whatever knows the users of this machine, be it files, LDAP or something else. The one
/// portable way there is a program.
fn ask_system() -> Option<String> {
    let answer = std::process::Command::new("id").arg("-un").output().ok()?;
    let name = String::from_utf8(answer.stdout).ok()?;
    answer.status.success().then(|| name.trim().to_owned())
}

/// Returns whether a server would take the name.
fn can_be_account(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte))
        && !name.starts_with(['-', '.'])
}

/// Shows what runs and how to join the next device.
fn greet(
    output: Output,
    machine: &Machine,
    server: &RunningServer,
    link: &str,
) -> Result<(), Failure> {
    let config = machine.config.as_ref();
    let folder = config
        .and_then(|config| config.folders.first())
        .map(|folder| folder.path.to_string_lossy().into_owned())
        .unwrap_or_default();
    let life = ServerConfig::load(&server_config_path(machine))
        .unwrap_or_default()
        .accounts
        .link_expires_secs;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let expires = i64::try_from(now.as_secs().saturating_add(life)).ok();
    if output.json() {
        return told(output.object(&json!({
            "type": "up",
            "version": 1,
            "folder": folder,
            "listen": server.address().to_string(),
            "config": machine.config_path,
            "link": link,
            "link_expires": expires,
        })));
    }
    let text = format!(
        "PiCloud is up: {} syncs through the server on this machine, port {}\n\n{}\n\n\
         `picloud link` makes another link. Ctrl-C stops.\n",
        printable(&folder),
        server.address().port(),
        how_to_join(output, link, expires),
    );
    told(output.line(&text))
}

/// Shows how things stand until a part fails.
async fn show(
    machine: &Machine,
    output: Output,
    user: &str,
    server: &RunningServer,
    agent: &RunningAgent,
) -> Result<(), Failure> {
    let link =
        server.invite(user).await.map_err(|error| Failure::from_error(Exit::Failed, &error))?;
    greet(output, machine, server, &link.to_string())?;
    let mut area = LiveArea::new(output);
    let mut said = String::new();
    let mut changes = agent.changes();
    let mut checks = tokio::time::interval(CHECK_PERIOD);
    checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let status = agent.status();
        if output.live() {
            area.show(&status_text(look(output, false), &status));
        } else if !output.json() {
            let line = summary_line(&status);
            if line != said {
                told(output.line(&line))?;
                said = line;
            }
        }
        // At most a few looks per second, however much happens.
        tokio::time::sleep(LOOK_PERIOD).await;
        tokio::select! {
            _ = changes.changed() => {}
            _ = checks.tick() => server
                .check()
                .await
                .map_err(|error| Failure::from_error(Exit::Failed, &error))?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_first_start_writes_down_is_what_the_server_reads() {
        let dir = Path::new("/data/with \"quotes\"");
        let text = first_server_config("[::]:46001", Some("box:46001"), dir).unwrap();
        let config = ServerConfig::parse(&text, Path::new("server.toml")).unwrap();
        assert_eq!(config.server.listen.port(), 46001);
        assert_eq!(config.server.public.as_deref(), Some("box:46001"));
        assert_eq!(config.server.data_dir, dir);
    }
}
