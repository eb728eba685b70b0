//! What a shell's completion offers for names: asks the running daemon, never starts one.

use std::ffi::OsStr;
use std::time::Duration;

use banger_daemon_api::artifact::{Image, Kernel};
use banger_daemon_api::config::KEYS;
use banger_daemon_api::routes;
use banger_daemon_api::vm::Vm;
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use serde::de::DeserializeOwned;

use crate::{daemon, environment};

/// A shell's user waits for this.
const DEADLINE: Duration = Duration::from_millis(500);

/// Offers VM names.
pub fn vms() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        list(routes::VMS, |vm: Vm| {
            CompletionCandidate::new(vm.name.as_str().to_owned())
                .help(Some(vm.state.to_string().into()))
        })
    })
}

/// Offers what `vm cp` takes: VM names with a colon, and files of this host.
pub fn vms_and_files() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let begun = current.to_string_lossy().into_owned();
        let mut all = list(routes::VMS, |vm: Vm| {
            CompletionCandidate::new(format!("{}:", vm.name))
                .help(Some(vm.state.to_string().into()))
        });
        all.retain(|one| one.get_value().to_string_lossy().starts_with(&begun));
        all.extend(PathCompleter::any().complete(current));
        all
    })
}

/// Offers image names.
pub fn images() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        list(routes::IMAGES, |image: Image| {
            CompletionCandidate::new(image.name.as_str().to_owned())
        })
    })
}

/// Offers the daemon's settings, which need no daemon.
pub fn settings() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        KEYS.iter()
            .map(|(key, what)| CompletionCandidate::new(*key).help(Some((*what).into())))
            .collect()
    })
}

/// Offers kernel names.
pub fn kernels() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        list(routes::KERNELS, |kernel: Kernel| {
            CompletionCandidate::new(kernel.name.as_str().to_owned())
        })
    })
}

fn list<T: DeserializeOwned>(
    path: &str,
    candidate: impl Fn(T) -> CompletionCandidate,
) -> Vec<CompletionCandidate> {
    let items = || -> Option<Vec<T>> {
        let client = daemon::client(&environment::site().ok()?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let answer = async { tokio::time::timeout(DEADLINE, client.get(path)).await };
        runtime.block_on(answer).ok()?.ok()
    };
    items().unwrap_or_default().into_iter().map(candidate).collect()
}
