//! `picloud`: what a person types.

use std::process::ExitCode;

fn main() -> ExitCode {
    picloud::cli::run()
}
