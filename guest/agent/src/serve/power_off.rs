//! Powering the machine off on the host's request.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use banger_agent_api::{InitKind, PowerOffCall};
use rustix::process::{Pid, Signal};

use super::calls::{Server, init_kind};
use crate::{console, power};

/// What execs get between SIGTERM and SIGKILL. One that ignores SIGTERM would delay systemd's
/// shutdown by its own patience of 90 s.
const EXEC_GRACE: Duration = Duration::from_millis(500);
const EXEC_PAUSE: Duration = Duration::from_millis(10);

/// What is left of the grace for everything but the main process.
const REST_TIME: Duration = Duration::from_secs(5);

/// How long PID 1, which is ours, may take where the main process has ended by itself.
const AFTER_MAIN_GRACE: Duration = Duration::from_secs(10);

/// How long PID 1 gets to act before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Lets the answer leave for the host before anything ends.
const ANSWER_TIME: Duration = Duration::from_millis(20);

/// Ends the main process and the execs, asks the image's init, and after the grace ends the machine by force.
pub(super) async fn run(server: &Rc<Server>, call: PowerOffCall) {
    tokio::time::sleep(ANSWER_TIME).await;
    let grace = Duration::from_secs(u64::from(call.grace_seconds));
    let begun = tokio::time::Instant::now();
    server.main.stop(grace.saturating_sub(REST_TIME).max(grace / 2)).await;
    end(server, grace.saturating_sub(begun.elapsed()).max(grace / 4)).await
}

/// Powers the machine off whose main process has ended.
pub(super) async fn after_main(server: &Server) {
    end(server, AFTER_MAIN_GRACE).await
}

async fn end(server: &Server, grace: Duration) {
    end_execs(server).await;
    match tokio::time::timeout(grace, ask_init()).await {
        Ok(Err(error)) => {
            console::error(&format!("cannot ask the image's init to power off: {error}"));
        }
        Ok(Ok(never)) => match never {},
        Err(_) => {
            console::error("the image's init did not power off in time; powering off by force");
        }
    }
    power::signal_everyone(Signal::TERM);
    tokio::time::sleep(EXEC_GRACE).await;
    power::signal_everyone(Signal::KILL);
    power::power_off()
}

async fn end_execs(server: &Server) {
    for signal in [Signal::TERM, Signal::HUP, Signal::CONT] {
        for pid in server.cgroups.processes().into_iter().filter_map(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
    let deadline = tokio::time::Instant::now() + EXEC_GRACE;
    while tokio::time::Instant::now() < deadline && !server.cgroups.processes().is_empty() {
        tokio::time::sleep(EXEC_PAUSE).await;
    }
    server.cgroups.kill_all();
}

/// Asks PID 1: by signal where it understands that, by the image's own command otherwise. Having
/// asked, it waits for the end of the machine.
async fn ask_init() -> std::io::Result<Infallible> {
    match init_kind() {
        // It blocks the signal before it starts this server, and waits for it.
        InitKind::Agent => loop {
            banger_guest_sys::send_signal(1, power::end_signal())?;
            tokio::time::sleep(ASK_AGAIN).await;
        },
        InitKind::Systemd => loop {
            // The kernel drops a signal that PID 1 is not prepared for, which systemd is not in its
            // first moments. Asked again, it merges the request with the one under way.
            if power::init_listens() {
                banger_guest_sys::send_signal(1, power::end_signal())?;
                tokio::time::sleep(ASK_AGAIN).await;
            } else {
                tokio::time::sleep(EXEC_PAUSE).await;
            }
        },
        InitKind::Other => {
            let word = if power::ends_by_restart() { "reboot" } else { "poweroff" };
            let asked = std::process::Command::new(word)
                .env("PATH", "/sbin:/usr/sbin:/bin:/usr/bin")
                .spawn();
            drop(asked?);
            std::future::pending().await
        }
    }
}
