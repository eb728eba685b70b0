//! `banger doctor`: what this host can do, and what is in the way.

use banger_daemon_api::daemon::{Check, CheckStatus, DoctorReport};
use banger_daemon_api::orphan::{Orphan, OrphanKind, OrphansRemoved};
use banger_daemon_api::routes;
use clap::Args;
use serde_json::json;

use super::JsonArgs;
use crate::environment::Site;
use crate::error::{self, CliError};
use crate::firewall;
use crate::host_checks;
use crate::table;
use crate::ui::{Style, Ui};
use crate::{daemon, environment};

/// Arguments of `banger doctor`.
#[derive(Args, Debug)]
#[command(after_help = "\
Ends with 1 where a check fails, or something could not be removed.

What belongs to no machine (processes, taps, mounts, jails, cgroups, device-mapper and loop devices,
directories, records without a disk) is listed as a leftover. --fix removes that, and nothing else.
As root it also finds what the firewall has of taps that are gone.")]
pub struct DoctorArgs {
    /// Remove what belongs to no machine
    #[arg(long)]
    fix: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// Runs all checks, ours and the daemon's; returns the exit code.
pub async fn run(ui: &Ui, args: &DoctorArgs) -> Result<u8, CliError> {
    let mut checks = host_checks::run();
    let removal = if args.fix { Some(fix(ui).await?) } else { None };
    match daemon_checks(ui).await {
        Ok(more) => checks.extend(more),
        Err(error) => checks.push(Check {
            name: "bangerd".to_owned(),
            status: CheckStatus::Fail,
            detail: std::iter::once(error.message)
                .chain(error.causes)
                .collect::<Vec<_>>()
                .join(": "),
            hint: error.hints.into_iter().next(),
        }),
    }
    let kept = removal.as_ref().is_some_and(|removal| !removal.kept.is_empty());
    let failed = kept || checks.iter().any(|check| check.status == CheckStatus::Fail);
    if args.json.json {
        let mut answer = json!({ "checks": checks, "ok": !failed });
        if let Some(removal) = &removal {
            answer["fix"] = json!(removal);
        }
        ui.json(&answer)?;
    } else {
        if let Some(removal) = &removal {
            ui.line(removed(ui, removal))?;
        }
        ui.line(render(ui, &checks))?;
    }
    Ok(if failed { error::FAILED } else { 0 })
}

/// Has bangerd remove what belongs to no machine.
async fn fix(ui: &Ui) -> Result<OrphansRemoved, CliError> {
    let client = daemon::connect(ui).await?;
    client.delete(&orphans_path()).await.map_err(|error| client.explain(error))
}

/// The path that tells what only root sees.
fn orphans_path() -> String {
    match firewall::taps() {
        taps if taps.is_empty() => routes::ORPHANS.to_owned(),
        taps => format!("{}?tap={}", routes::ORPHANS, taps.join(",")),
    }
}

async fn daemon_checks(ui: &Ui) -> Result<Vec<Check>, CliError> {
    let client = daemon::connect(ui).await?;
    let ping = client.ping().await.map_err(|error| client.explain(error))?;
    let who = match environment::site()? {
        Site::Direct(mode) if mode.dropped => "root's own bangerd, dropped to",
        Site::Direct(_) => "your own bangerd,",
        Site::System { .. } => "the installed bangerd,",
    };
    let mut checks = vec![Check {
        name: "bangerd".to_owned(),
        status: CheckStatus::Pass,
        detail: format!(
            "{who} uid {}, pid {}, version {}, at {}",
            ping.uid,
            ping.pid,
            ping.version,
            client.socket().display()
        ),
        hint: None,
    }];
    let report: DoctorReport =
        client.get(routes::DOCTOR).await.map_err(|error| client.explain(error))?;
    checks.extend(report.checks);
    // bangerd has all other leftovers in its report.
    let orphans: Vec<Orphan> =
        client.get(&orphans_path()).await.map_err(|error| client.explain(error))?;
    let of_firewall = orphans.iter().filter(|orphan| orphan.kind == OrphanKind::Firewall);
    checks.extend(of_firewall.map(|orphan| Check {
        name: "leftovers".to_owned(),
        status: CheckStatus::Warn,
        detail: format!("{orphan} belong to no VM"),
        hint: Some("`banger doctor --fix` removes them".to_owned()),
    }));
    Ok(checks)
}

fn removed(ui: &Ui, removal: &OrphansRemoved) -> String {
    let mut lines: Vec<String> = removal
        .removed
        .iter()
        .map(|orphan| format!("removed {}", table::printable(&orphan.to_string())))
        .collect();
    lines.extend(removal.kept.iter().map(|kept| {
        let text = table::printable(&format!("{}: {}", kept.orphan, kept.reason));
        format!("{} {text}", ui.styled(Style::Bad, "not removed"))
    }));
    if lines.is_empty() {
        lines.push("nothing to remove".to_owned());
    }
    lines.join("\n")
}

fn render(ui: &Ui, checks: &[Check]) -> String {
    let mut lines = Vec::new();
    for check in checks {
        let (style, word) = match check.status {
            CheckStatus::Pass => (Style::Good, "PASS"),
            CheckStatus::Warn => (Style::Caution, "WARN"),
            CheckStatus::Fail => (Style::Bad, "FAIL"),
        };
        let text = table::printable(&format!("{}: {}", check.name, check.detail));
        lines.push(format!("{}  {text}", ui.styled(style, word)));
        if let Some(hint) = &check.hint {
            lines.push(format!(
                "      {} {}",
                ui.styled(Style::Hint, "hint:"),
                table::printable(hint)
            ));
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    lines.push(format!(
        "{} passed, {} with a warning, {} failed",
        count(CheckStatus::Pass),
        count(CheckStatus::Warn),
        count(CheckStatus::Fail)
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_word_and_its_hint_below() {
        let check = |name: &str, status, hint: Option<&str>| Check {
            name: name.to_owned(),
            status,
            detail: "as found\x1b".to_owned(),
            hint: hint.map(str::to_owned),
        };
        let checks = [
            check("git", CheckStatus::Pass, None),
            check("VMM", CheckStatus::Warn, Some("do this")),
            check("disk", CheckStatus::Fail, Some("do that")),
        ];
        let ui = Ui::new(false, false);
        insta::assert_snapshot!(render(&ui, &checks), @r"
        PASS  git: as found�
        WARN  VMM: as found�
              hint: do this
        FAIL  disk: as found�
              hint: do that
        1 passed, 1 with a warning, 1 failed
        ");
    }
}
