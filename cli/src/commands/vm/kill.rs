//! `banger vm kill`.

use banger_daemon_api::routes;
use banger_daemon_api::vm::KillVm;
use clap::Args;

use super::SomeVms;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{artifacts, daemon};

const SIGNALS: [&str; 8] = ["TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "ABRT"];

/// Arguments of `banger vm kill`.
#[derive(Args, Debug)]
pub struct KillArgs {
    #[command(flatten)]
    vms: SomeVms,
    /// The signal: TERM, KILL, INT, HUP, QUIT, USR1, USR2 or ABRT
    #[arg(short, long, default_value = "KILL", value_parser = parse_signal)]
    signal: String,
}

fn parse_signal(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if SIGNALS.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(format!("use one of {}", SIGNALS.join(", ")))
}

/// Sends the signal to each machine's VMM.
pub async fn run(ui: &Ui, args: &KillArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let body = KillVm { signal: args.signal.clone() };
    let mut failures = Vec::new();
    for reference in &args.vms.resolve(&client, super::is_up).await? {
        let killed = async {
            let vm = super::get(&client, reference).await?;
            let path = routes::vm(&(&vm.id).into(), "/kill");
            client
                .post::<serde_json::Value>(&path, &body)
                .await
                .map_err(|error| client.explain(error))?;
            Ok(vm.name)
        };
        match killed.await {
            Ok(name) => ui.line(name)?,
            Err(error) => failures.push(error),
        }
    }
    artifacts::report_all(ui, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_signal_names_are_taken() {
        assert_eq!(parse_signal("sigterm").unwrap(), "TERM");
        assert_eq!(parse_signal("Usr1").unwrap(), "USR1");
        for bad in ["", "9", "STOP", "CONT", "RTMIN", "SIGSIGTERM"] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
