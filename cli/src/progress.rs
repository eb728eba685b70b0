//! Progress of long work on standard error: a bar on a terminal, plain lines elsewhere.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use banger_agent_api::printable_excerpt;
use banger_daemon_api::operation::Operation;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::table;
use crate::ui::Ui;

/// How often a plain line may repeat the bytes of one stage.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const REDRAWS_PER_SECOND: u8 = 10;
const STAGE_LIMIT: usize = 200;

/// Shows how far one piece of work is. Everything it drew is gone when it is dropped.
#[derive(Debug)]
pub struct Progress {
    ui: Ui,
    subject: String,
    shown: Mutex<Shown>,
}

#[derive(Debug)]
struct Shown {
    bar: Option<ProgressBar>,
    stage: String,
    last_line: Option<Instant>,
}

impl Progress {
    /// Begins to show work on `subject` (`VM box`, `image debian-bookworm`).
    pub fn new(ui: &Ui, subject: impl Into<String>) -> Self {
        let subject = subject.into();
        let bar = (ui.stderr_is_terminal() && !ui.is_quiet()).then(|| {
            let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND);
            let bar = ProgressBar::with_draw_target(None, target);
            bar.set_style(spinner());
            bar.set_prefix(subject.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let shown = Shown { bar, stage: String::new(), last_line: None };
        Self { ui: *ui, subject, shown: Mutex::new(shown) }
    }

    /// Shows nothing: for work beside other work.
    pub fn hidden(ui: &Ui) -> Self {
        let shown = Shown { bar: None, stage: String::new(), last_line: None };
        Self { ui: ui.silent(), subject: String::new(), shown: Mutex::new(shown) }
    }

    /// Shows a stage.
    pub fn stage(&self, stage: &str) {
        self.update(stage, None, None);
    }

    /// Shows what an operation of the daemon reports.
    pub fn operation(&self, operation: &Operation) {
        self.update(&operation.stage, operation.bytes_done, operation.bytes_total);
    }

    /// Shows bytes of the stage under way.
    pub fn bytes(&self, done: u64, total: Option<u64>) {
        let stage = self.lock().stage.clone();
        self.update(&stage, Some(done), total);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, stage: &str, done: Option<u64>, total: Option<u64>) {
        let stage = printable_excerpt(stage, STAGE_LIMIT);
        let mut shown = self.lock();
        let changed = shown.stage != stage;
        shown.stage.clone_from(&stage);
        let Some(bar) = &shown.bar else {
            let due = done.is_some()
                && shown.last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
            // That it is done, the next thing says.
            if (changed || due) && !stage.is_empty() && stage != "done" {
                shown.last_line = Some(Instant::now());
                self.ui.status(plain_line(&self.subject, &stage, done, total));
            }
            return;
        };
        bar.set_message(stage);
        match (done, total.filter(|&total| total > 0)) {
            (Some(done), Some(total)) => {
                bar.set_style(counted());
                bar.set_length(total);
                bar.set_position(done);
            }
            (Some(done), None) => {
                bar.set_style(counting());
                bar.set_position(done);
            }
            (None, _) => bar.set_style(spinner()),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.lock().bar {
            bar.finish_and_clear();
        }
    }
}

fn plain_line(subject: &str, stage: &str, done: Option<u64>, total: Option<u64>) -> String {
    let size = table::size;
    match (done, total) {
        (Some(done), Some(total)) if done > 0 => {
            format!("{subject}: {stage} ({} of {})", size(done), size(total))
        }
        (Some(done), None) if done > 0 => format!("{subject}: {stage} ({})", size(done)),
        _ => format!("{subject}: {stage}"),
    }
}

fn style(template: &str) -> ProgressStyle {
    // A template is a constant of this file; a broken one shows indicatif's own.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn spinner() -> ProgressStyle {
    style("{spinner} {prefix}: {wide_msg} {elapsed}")
}

fn counting() -> ProgressStyle {
    style("{spinner} {prefix}: {wide_msg} {binary_bytes} {binary_bytes_per_sec} {elapsed}")
}

fn counted() -> ProgressStyle {
    style("{spinner} {prefix}: {msg} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {elapsed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_carry_bytes_only_where_there_are_some() {
        assert_eq!(plain_line("VM box", "starting", None, None), "VM box: starting");
        assert_eq!(plain_line("i", "reading", Some(0), None), "i: reading");
        assert_eq!(plain_line("i", "reading", Some(2 << 20), None), "i: reading (2M)");
        assert_eq!(
            plain_line("i", "reading", Some(1 << 30), Some(4 << 30)),
            "i: reading (1G of 4G)"
        );
    }
}
