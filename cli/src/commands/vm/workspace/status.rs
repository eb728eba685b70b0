//! `banger vm workspace status`.

use banger_workspace::{Change, ChangeKind};
use clap::Args;
use serde_json::json;

use super::collect;
use crate::commands::vm::OneVm;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{table, workspace};

/// Arguments of `banger vm workspace status`.
#[derive(Args, Debug)]
#[command(after_help = "Example: banger vm workspace status box")]
pub struct StatusArgs {
    #[command(flatten)]
    vm: OneVm,
    #[command(flatten)]
    json: crate::commands::JsonArgs,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: StatusArgs) -> Result<(), CliError> {
    let (_, vm, work) = collect(ui, &args.vm.vm).await?;
    let record = workspace::recorded(&vm)?;
    let moved = workspace::moved_head(record);
    let branches = work.moved_branches();
    if args.json.json {
        let changes: Vec<_> = work
            .changes()
            .iter()
            .map(|change| {
                json!({
                    "kind": kind(change.kind),
                    "name": String::from_utf8_lossy(&change.name),
                    "from": change.from.as_deref().map(String::from_utf8_lossy),
                })
            })
            .collect();
        return ui.json(&json!({
            "source_path": record.source_path,
            "guest_path": record.guest_path,
            "head_commit": record.head_commit,
            "host_head_commit": moved.as_ref().or(record.head_commit.as_ref()),
            "host_moved": moved.is_some(),
            "prepare_cut_off": work.is_cut_off(),
            "moved_branches": branches,
            "changes": changes,
        }));
    }
    ui.line(format_args!("{} from {}", record.guest_path, table::printable(&record.source_path)))?;
    match (&moved, &record.head_commit) {
        (Some(now), Some(then)) => ui.line(format_args!(
            "the host has gone on from {} to {}; banger vm workspace prepare {}",
            short(then),
            short(now),
            vm.name
        ))?,
        (Some(now), None) => {
            ui.line(format_args!("the host has its first commit, {}", short(now)))?
        }
        (None, Some(then)) => ui.line(format_args!("the host is at {}, as it was", short(then)))?,
        (None, None) => ui.line("the host has no commit yet")?,
    }
    for branch in branches {
        ui.line(format_args!("commits of the machine: {}", table::printable(branch)))?;
    }
    if work.changes().is_empty() {
        return ui.line("no file is different in the machine");
    }
    for change in work.changes() {
        ui.line(shown(change))?;
    }
    Ok(())
}

fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

fn kind(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "added",
        ChangeKind::Modified => "modified",
        ChangeKind::Deleted => "deleted",
        ChangeKind::Renamed => "renamed",
        ChangeKind::Retyped => "retyped",
    }
}

fn shown(change: &Change) -> String {
    let name = |bytes: &[u8]| table::printable(&String::from_utf8_lossy(bytes));
    let from = change.from.as_deref().map(|from| format!("{} -> ", name(from)));
    format!("{:8}  {}{}", kind(change.kind), from.unwrap_or_default(), name(&change.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_guest_chose_cannot_harm_a_terminal() {
        let change = Change {
            kind: ChangeKind::Renamed,
            name: b"a\x1b[2J\n".to_vec(),
            from: Some(b"\xff".to_vec()),
        };
        let text = shown(&change);
        assert!(text.starts_with("renamed ") && !text.contains(['\x1b', '\n']), "{text:?}");
    }
}
