//! `picloud undo`: which bursts of changes there were, and taking one back.

use serde_json::{Value, json};

use super::agent::told;
use super::args::Undo;
use super::failure::{Exit, Failure};
use super::machine::Machine;
use super::output::{Output, Tone, count, counted, moment, printable};
use super::prompt;
use crate::client::Session;
use crate::model::{BatchId, RelPath, Rev};
use crate::protocol::message::{Batch, BatchCounts, Undone};

/// How many paths of each sort are shown to a person.
const SHOWN_MAX: usize = 20;

/// `picloud undo`.
///
/// # Errors
/// When the server cannot be reached or refuses, there is no such batch, or a person did not agree.
pub async fn undo(machine: &Machine, output: Output, args: &Undo) -> Result<Exit, Failure> {
    let account = machine.account_of(args.folder.as_deref())?;
    let session = account.connect().await?;
    match args.batch {
        Some(batch) => undo_batch(&session, output, batch, args).await,
        None => list(&session, output, args).await,
    }
}

async fn list(session: &Session, output: Output, args: &Undo) -> Result<Exit, Failure> {
    let upto = args.before.map(|batch| Rev(batch.last.0 - 1));
    let listed = session.batches(upto, args.lines).await;
    let listed = listed.map_err(|error| Failure::of_client(&error))?;
    if output.json() {
        for batch in &listed.batches {
            told(output.object(&batch_json(batch)))?;
        }
        return Ok(Exit::Done);
    }
    for batch in &listed.batches {
        told(output.line(&batch_text(output, batch)))?;
    }
    let hint = match listed.batches.last() {
        None => "Nothing was changed".to_owned(),
        Some(last) if listed.more => {
            format!(
                "`picloud undo BATCH` takes one back; `picloud undo --before {}` lists older ones",
                last.id
            )
        }
        Some(_) => "`picloud undo BATCH` takes one back".to_owned(),
    };
    told(output.line(&output.paint(Tone::Faint, &hint)))?;
    Ok(Exit::Done)
}

fn paths(paths: &[RelPath]) -> Vec<String> {
    paths.iter().map(ToString::to_string).collect()
}

fn batch_json(batch: &Batch) -> Value {
    json!({
        "type": "batch",
        "version": 1,
        "batch": batch.id.to_string(),
        "device": batch.device_name,
        "device_id": batch.device,
        "began": batch.began.secs,
        "ended": batch.ended.secs,
        "created": batch.counts.created,
        "edited": batch.counts.edited,
        "moved": batch.counts.moved,
        "deleted": batch.counts.deleted,
        "examples": paths(&batch.examples),
        "undoes": batch.undoes.map(|batch| batch.to_string()),
        "undone_by": batch.undone_by.map(|batch| batch.to_string()),
    })
}

fn batch_text(output: Output, batch: &Batch) -> String {
    let mut text = format!(
        "{:<14} {}  {:<14} {}",
        batch.id.to_string(),
        moment(batch.ended.secs),
        printable(&batch.device_name),
        counts_text(&batch.counts),
    );
    if let Some(of) = batch.undoes {
        text.push_str(&format!(", undoes {of}"));
    }
    if let Some(by) = batch.undone_by {
        text.push_str(&output.paint(Tone::Wait, &format!(", undone by {by}")));
    }
    for path in &batch.examples {
        let path = printable(&path.to_string());
        text.push_str(&format!("\n    {}", output.paint(Tone::Faint, &path)));
    }
    text
}

fn counts_text(counts: &BatchCounts) -> String {
    let BatchCounts { created, edited, moved, deleted } = *counts;
    let parts: Vec<String> =
        [(created, "created"), (edited, "edited"), (moved, "moved"), (deleted, "deleted")]
            .into_iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{} {what}", count(number)))
            .collect();
    if parts.is_empty() { "nothing in the end".to_owned() } else { parts.join(", ") }
}

async fn undo_batch(
    session: &Session,
    output: Output,
    batch: BatchId,
    args: &Undo,
) -> Result<Exit, Failure> {
    let refused = |error| Failure::of_client(&error);
    let mut approved = args.approve;
    if !args.yes {
        let plan = session.preview_undo(batch).await.map_err(refused)?;
        if let Some(exit) = settled(output, batch, &plan)? {
            return Ok(exit);
        }
        if output.json() {
            told(output.object(&undone_json(batch, &plan, false)))?;
        } else {
            told(output.line(&undone_text(output, batch, &plan, false)))?;
        }
        if plan.counts == BatchCounts::default() && plan.act_count == 0 {
            return Ok(Exit::Done);
        }
        if !prompt::interactive() {
            return Err(Failure::new(Exit::Person, "Nothing is undone: nobody is there to ask")
                .hint("`--yes` does it without a question"));
        }
        approved |= plan.needs_approval;
        if !agreed(&plan)? {
            return Err(Failure::new(Exit::Person, "Nothing is undone"));
        }
    }
    let undone = session.undo(batch, approved).await.map_err(refused)?;
    if let Some(exit) = settled(output, batch, &undone)? {
        return Ok(exit);
    }
    if undone.needs_approval {
        return Err(Failure::new(
            Exit::Person,
            format!(
                "Nothing is undone: that would delete {}, which needs a person's approval",
                counted(undone.counts.deleted, "file or directory", "files and directories")
            ),
        )
        .hint("`--approve` says that it is meant"));
    }
    if output.json() {
        told(output.object(&undone_json(batch, &undone, true)))?;
    } else {
        told(output.line(&undone_text(output, batch, &undone, true)))?;
    }
    Ok(Exit::Done)
}

/// Says so when the batch was undone before.
fn settled(output: Output, batch: BatchId, undone: &Undone) -> Result<Option<Exit>, Failure> {
    let Some(by) = undone.undone_by else {
        return Ok(None);
    };
    if output.json() {
        told(output.object(&undone_json(batch, undone, false)))?;
    } else if undone.redone {
        told(output.line(&format!(
            "{batch} was undone, and that was taken back: `picloud undo {by}` undoes it again"
        )))?;
    } else {
        told(output.line(&format!(
            "{batch} is undone already: `picloud undo {by}` would take that back"
        )))?;
    }
    Ok(Some(Exit::Done))
}

/// Asks the person.
fn agreed(plan: &Undone) -> Result<bool, Failure> {
    let answer = if plan.needs_approval {
        let deletes = counted(plan.counts.deleted, "file or directory", "files and directories");
        let question =
            format!("This deletes {deletes}, a large part of the drive. Type yes to do it");
        return Ok(prompt::ask(&question)?.trim() == "yes");
    } else {
        prompt::ask("Undo it? [y/N]")?
    };
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn undone_json(batch: BatchId, undone: &Undone, done: bool) -> Value {
    let acts: Vec<Value> = undone
        .acts
        .iter()
        .map(|act| json!({"path": act.path.to_string(), "act": act.act}))
        .collect();
    let beside: Vec<Value> = undone
        .beside
        .iter()
        .map(|one| json!({"path": one.path.to_string(), "name": one.name.to_string()}))
        .collect();
    let left: Vec<Value> = undone
        .left
        .iter()
        .map(|one| json!({"path": one.path.to_string(), "reason": one.reason}))
        .collect();
    json!({
        "type": "undo",
        "version": 1,
        "batch": batch.to_string(),
        "device": undone.device_name,
        "device_id": undone.device,
        "done": done && undone.undo.is_some(),
        "undo": undone.undo.map(|batch| batch.to_string()),
        "undone_by": undone.undone_by.map(|batch| batch.to_string()),
        "redone": undone.redone,
        "needs_approval": undone.needs_approval,
        "restored": undone.counts.created,
        "reverted": undone.counts.edited,
        "moved": undone.counts.moved,
        "deleted": undone.counts.deleted,
        "same": undone.same,
        "act_count": undone.act_count,
        "acts": acts,
        "beside_count": undone.beside_count,
        "beside": beside,
        "left_count": undone.left_count,
        "left": left,
    })
}

/// What is done, or would be: a summary, and the paths that need a look.
fn undone_text(output: Output, batch: BatchId, undone: &Undone, done: bool) -> String {
    let BatchCounts { created, edited, moved, deleted } = undone.counts;
    let mut parts = Vec::new();
    for (number, what) in [
        (created, "brought back"),
        (edited, "set back to the version before"),
        (moved, "moved back"),
        (deleted, "deleted (the history keeps them)"),
    ] {
        if number > 0 {
            parts.push(format!("{} {what}", count(number)));
        }
    }
    let what = match (parts.is_empty(), done) {
        (true, _) => format!("There is nothing to undo of {batch}"),
        (false, true) => format!("Undone {batch}: {}", parts.join(", ")),
        (false, false) => format!(
            "{batch}, of {}, would be undone: {}",
            printable(&undone.device_name),
            parts.join(", ")
        ),
    };
    let mut text = what;
    if !done {
        let lines = undone.acts.iter().map(|act| (act.act.as_str(), &act.path, String::new()));
        list_paths(&mut text, output, lines, undone.act_count);
    }
    if undone.beside_count > 0 {
        text.push_str("\nThe name is taken, so this comes back under another:");
        let lines = undone.beside.iter().map(|one| {
            let name = printable(&one.name.to_string());
            ("", &one.path, format!(", as {name}"))
        });
        list_paths(&mut text, output, lines, undone.beside_count);
    }
    if undone.left_count > 0 {
        text.push_str("\nThis is left alone:");
        let lines =
            undone.left.iter().map(|one| ("", &one.path, format!(": {}", printable(&one.reason))));
        list_paths(&mut text, output, lines, undone.left_count);
    }
    if let Some(by) = undone.undo {
        text.push('\n');
        let hint = format!("`picloud undo {by}` takes this back");
        text.push_str(&output.paint(Tone::Faint, &hint));
    }
    text
}

/// Lists paths, each after a word and before a remark, and how many more there are.
fn list_paths<'a>(
    text: &mut String,
    output: Output,
    lines: impl Iterator<Item = (&'a str, &'a RelPath, String)>,
    total: u64,
) {
    let mut shown = 0;
    for (word, path, remark) in lines.take(SHOWN_MAX) {
        let path = printable(&path.to_string());
        let space = if word.is_empty() { "" } else { " " };
        text.push_str(&format!("\n    {}{space}{path}{remark}", output.paint(Tone::Faint, word)));
        shown += 1;
    }
    if total > shown {
        text.push_str(&format!("\n    and {} more", count(total - shown)));
    }
}
