//! Secrets and answers: from a prompt, a file or standard input, never from an argument.

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;

use super::failure::Failure;
use crate::protocol::limits;

/// The longest file of secrets read: what a log-in frame can carry.
const FILE_LEN_MAX: u64 = limits::BODY_LEN_MAX_GUEST as u64;

/// Whether there is a person to ask.
#[must_use]
pub fn interactive() -> bool {
    io::stdin().is_terminal()
}

/// Reads a secret: the lines of `file` (`-` is standard input), of which the first counts, else by a
/// prompt.
///
/// # Errors
/// When the file cannot be read, or there is neither a file nor a terminal.
pub fn secret(prompt: &str, file: Option<&Path>, option: &str) -> Result<String, Failure> {
    match file {
        Some(file) => lines(file).map(|lines| lines.into_iter().next().unwrap_or_default()),
        None if interactive() => ask_secret(prompt),
        None => Err(Failure::failed(format!("There is no terminal to ask for: {prompt}")).hint(
            format!("give it in a file with {option} FILE, or {option} - for standard input"),
        )),
    }
}

/// Reads a new secret, twice when it is typed.
///
/// # Errors
/// As [`secret`], and when the two differ.
pub fn new_secret(prompt: &str, file: Option<&Path>, option: &str) -> Result<String, Failure> {
    let first = secret(prompt, file, option)?;
    if file.is_none() && ask_secret("The same again")? != first {
        return Err(Failure::failed("The two passwords differ"));
    }
    Ok(first)
}

/// Asks on the terminal without showing what is typed.
///
/// # Errors
/// When the terminal cannot be used.
pub fn ask_secret(prompt: &str) -> Result<String, Failure> {
    rpassword::prompt_password(format!("{prompt}: "))
        .map_err(|error| Failure::failed("Cannot read from the terminal").because(&error))
}

/// Asks on the terminal.
///
/// # Errors
/// When the terminal cannot be used or was closed.
pub fn ask(prompt: &str) -> Result<String, Failure> {
    let fail = |error: &io::Error| Failure::failed("Cannot read from the terminal").because(error);
    let mut terminal = io::stderr().lock();
    write!(terminal, "{prompt}: ").map_err(|error| fail(&error))?;
    terminal.flush().map_err(|error| fail(&error))?;
    let mut line = String::new();
    let read =
        io::stdin().lock().take(FILE_LEN_MAX).read_line(&mut line).map_err(|error| fail(&error))?;
    if read == 0 {
        return Err(Failure::failed("Nothing was typed"));
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Reads the lines of a file of secrets or answers; `-` is standard input.
///
/// # Errors
/// When it cannot be read, is no text, or is too long.
pub fn lines(file: &Path) -> Result<Vec<String>, Failure> {
    let text = if file == Path::new("-") {
        bounded(file, io::stdin().lock())?
    } else {
        let opened =
            File::open(file).map_err(|error| Failure::file("Cannot read", file, &error))?;
        bounded(file, opened)?
    };
    Ok(text.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect())
}

fn bounded(file: &Path, reader: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    let read = reader
        .take(FILE_LEN_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| Failure::file("Cannot read", file, &error))?;
    if read as u64 > FILE_LEN_MAX {
        return Err(Failure::failed(format!("{file:?} is longer than {FILE_LEN_MAX} bytes")));
    }
    Ok(text)
}

/// Reads an ID file of the 2015 program: the account is its name without the extension, the password
/// its content without the newline at the end.
///
/// # Errors
/// When the name is no text or the file cannot be read.
pub fn id_file(file: &Path) -> Result<(String, String), Failure> {
    let user = file.file_stem().and_then(|stem| stem.to_str()).ok_or_else(|| {
        Failure::failed(format!("The name of the ID file {file:?} is no account name"))
            .hint("it is the account's name with an extension: alice.id")
    })?;
    let opened = File::open(file).map_err(|error| Failure::file("Cannot read", file, &error))?;
    let content = bounded(file, opened)?;
    let password = content.strip_suffix('\n').unwrap_or(&content);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(Failure::failed(format!("The ID file {file:?} is empty")));
    }
    Ok((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_file_is_user_and_password() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("alice.b.id");
        std::fs::write(&file, " pass word \n").unwrap();
        let expected = ("alice.b".to_owned(), " pass word ".to_owned());
        assert_eq!(id_file(&file).unwrap(), expected);
        std::fs::write(&file, "\n").unwrap();
        assert!(id_file(&file).unwrap_err().to_string().contains("is empty"));
    }
}
