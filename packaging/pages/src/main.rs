//! Writes man pages and completions of the three programs into a directory, from the parsers that the
//! programs themselves use: `man/`, `bash/`, `zsh/` and `fish/`, named as they are installed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("Usage: picloud-pages DIRECTORY");
        return ExitCode::from(2);
    };
    match write_all(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: Cannot write the pages into {dir:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_all(dir: &Path) -> io::Result<()> {
    // The server is for who administers a machine: section 8.
    let programs = [
        (picloud::cli::parser(), "1"),
        (picloud::agent::args::parser(), "1"),
        (picloud::server::command::parser(), "8"),
    ];
    let man = dir.join("man");
    fs::create_dir_all(&man)?;
    for (mut command, section) in programs {
        complete(&command, dir)?;
        // Subcommands get to know the options that hold for all of them.
        command.build();
        write_pages(&command, command.get_name(), section, &man)?;
    }
    Ok(())
}

/// Writes the page of a command and, named PROGRAM-COMMAND, of each one below it.
fn write_pages(command: &Command, name: &str, section: &str, dir: &Path) -> io::Result<()> {
    // The usage shows what is typed, with a space; the page is looked up by its name, with a dash.
    let command = command.clone().display_name(name.to_owned());
    let man = Man::new(command.clone()).section(section).manual("PiCloud").date("");
    let mut page = Vec::new();
    man.render(&mut page)?;
    fs::write(dir.join(format!("{name}.{section}")), page)?;
    for below in command.get_subcommands() {
        if below.get_name() != "help" && !below.is_hide_set() {
            write_pages(below, &format!("{name}-{}", below.get_name()), section, dir)?;
        }
    }
    Ok(())
}

/// Writes the completions of a program for each shell, under the name by which the shell finds them.
fn complete(command: &Command, dir: &Path) -> io::Result<()> {
    let name = command.get_name();
    for (shell, within, file) in [
        (Shell::Bash, "bash", name.to_owned()),
        (Shell::Zsh, "zsh", format!("_{name}")),
        (Shell::Fish, "fish", format!("{name}.fish")),
    ] {
        let within = dir.join(within);
        fs::create_dir_all(&within)?;
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), name, &mut text);
        fs::write(within.join(file), text)?;
    }
    Ok(())
}
