//! What a person types and sees: the `picloud` command.
//!
//! Only this room prints. It decides wording and exit codes; everything it does is done by
//! [`crate::client`], by a running agent, or, for `up`, by an agent and a server in this process.

mod account;
mod agent;
mod args;
mod compare;
mod conflicts;
mod control;
mod dial;
mod doctor;
mod failure;
mod files;
mod join;
mod kept;
mod layout;
mod live;
mod log;
mod machine;
mod output;
mod prompt;
mod qr;
mod scope;
mod setup;
mod spoken;
mod status;
mod undo;
mod units;
mod up;
mod why;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};

use args::{Cli, Command};
use failure::{Exit, Failure};
use kept::Wish;
use machine::Machine;
use output::Output;

use crate::server::command::usage_text;

/// Returns what can be typed, for man pages and completions.
#[must_use]
pub fn parser() -> clap::Command {
    Cli::command()
}

/// Runs the `picloud` command with the arguments of this process.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Also where the command line cannot be understood.
            let words = std::env::args_os().skip(1).take_while(|word| word != "--");
            if error.use_stderr() && words.into_iter().any(|word| word == "--json") {
                let failure = Failure::usage(usage_text(&error.to_string()));
                agent::told(Output::detect(true).object(&failure.json())).unwrap_or_default();
            }
            error.exit();
        }
    };
    let output = Output::detect(cli.json);
    match execute(&cli, output) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            if output.json() {
                agent::told(output.object(&failure.json())).unwrap_or_default();
            }
            eprint!("{}", failure.render());
            ExitCode::from(failure.exit().code())
        }
    }
}

fn execute(cli: &Cli, output: Output) -> Result<Exit, Failure> {
    let machine = Machine::read(cli.config.as_deref())?;
    let machine = &machine;
    match &cli.command {
        Command::Up(args) => up::up(machine, output, args),
        Command::Status { watch: false, plain } => machine.agent()?.status(output, *plain),
        Command::Status { watch: true, plain } => machine.agent()?.watch(output, *plain),
        Command::Sync { timeout, plain } => {
            machine.agent()?.sync(output, *plain, timeout.map(Duration::from_secs))
        }
        Command::Doctor => doctor::doctor(machine, output),
        Command::Why { path } => why::why(machine, output, path),
        Command::Exclude { dirs } if dirs.is_empty() => scope::list(machine, output),
        Command::Exclude { dirs } => scope::exclude(machine, output, dirs),
        Command::Include { dirs } => scope::include(machine, output, dirs),
        Command::Revert(args) => kept::end(machine, output, Wish::Revert, args),
        Command::Override(args) => kept::end(machine, output, Wish::Override, args),
        Command::Conflicts => conflicts::conflicts(machine, output),
        Command::Resolve(args) => conflicts::resolve(machine, output, args),
        Command::Pause => machine.agent()?.set_paused(output, true),
        Command::Resume => machine.agent()?.set_paused(output, false),
        Command::Log(args) => log::log(machine, output, args),
        Command::Setup(args) => setup::setup(machine, output, args),
        Command::Join(args) => wait(join::join(machine, output, args)),
        Command::Put { file, remote } => wait(files::put(machine, output, file, remote.as_deref())),
        Command::Get { remote, file } => wait(files::get(machine, output, remote, file.as_deref())),
        Command::Ls { long, path } => wait(files::list(machine, output, *long, path.as_deref())),
        Command::Undo(args) => wait(undo::undo(machine, output, args)),
        Command::Register(args) => wait(account::log_in(machine, output, args, true)),
        Command::Login(args) => wait(account::log_in(machine, output, args, false)),
        Command::Logout(of) => wait(account::log_out(machine, output, of)),
        Command::Whoami(of) => wait(account::who_am_i(machine, output, of)),
        Command::Devices { command } => wait(account::devices(machine, output, command.as_ref())),
        Command::Link { plain } => wait(account::link(machine, output, *plain)),
        Command::Passwd { password_file } => {
            wait(account::change_password(machine, output, password_file.as_deref()))
        }
        Command::Totp { command } => wait(account::totp(machine, output, command)),
        Command::Held => wait(account::held(machine, output)),
        Command::Approve { device } => wait(account::decide(machine, output, device, true)),
        Command::Reject { device } => wait(account::decide(machine, output, device, false)),
    }
}

/// Runs a conversation with the server to its end.
fn wait<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("Cannot start").because(&error))?
        .block_on(Box::pin(work))
}
