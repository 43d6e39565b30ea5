//! `picloud-server`: the arguments, a call, and what it says.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let outcome = picloud::server::command::execute(&arguments);
    let mut stdout = std::io::stdout();
    let printed = stdout.write_all(outcome.stdout.as_bytes()).and_then(|()| stdout.flush());
    // Where not even the complaint can be printed, the exit code has to do.
    std::io::stderr().write_all(outcome.stderr.as_bytes()).unwrap_or_default();
    if outcome.code == 0 && printed.is_err() {
        return ExitCode::FAILURE;
    }
    ExitCode::from(outcome.code)
}
