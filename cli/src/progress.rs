//! Progress of long work on standard error: a bar on a terminal, plain lines elsewhere.
//!
//! A plain line stays for good, so a stage gets one only when it has lasted a moment; a thread of
//! its own waits for that.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use banger_agent_api::printable_excerpt;
use banger_daemon_api::operation::{Operation, OperationPart};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::table;
use crate::ui::Ui;

/// How often a plain line may repeat the bytes of one stage.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a stage must last to be worth a plain line.
const LINE_DELAY: Duration = Duration::from_millis(200);
const REDRAWS_PER_SECOND: u8 = 10;
const STAGE_LIMIT: usize = 200;

/// Shows how far one piece of work is. Everything it drew is gone when it is dropped.
#[derive(Debug)]
pub struct Progress(Form);

#[derive(Debug)]
enum Form {
    Hidden,
    Bar(ProgressBar),
    Lines(Lines),
}

impl Progress {
    /// Begins to show work on `subject` (`VM box`, `image debian-bookworm`).
    pub fn new(ui: &Ui, subject: impl Into<String>) -> Self {
        let subject = subject.into();
        if ui.is_quiet() {
            return Self(Form::Hidden);
        }
        if !ui.stderr_is_terminal() {
            return Self(Form::Lines(Lines::new(*ui, subject)));
        }
        let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND);
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(spinner());
        bar.set_prefix(subject);
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(Form::Bar(bar))
    }

    /// Shows nothing: for work beside other work.
    pub fn hidden() -> Self {
        Self(Form::Hidden)
    }

    /// Shows a stage.
    pub fn stage(&self, stage: &str) {
        self.update(stage, None, None);
    }

    /// Shows what an operation of the daemon reports.
    pub fn operation(&self, operation: &Operation) {
        let stage = match &self.0 {
            Form::Bar(_) => operation.stage.clone() + &parts(&operation.parts),
            _ => operation.stage.clone(),
        };
        self.update(&stage, operation.bytes_done, operation.bytes_total);
    }

    /// Shows what an operation reports that another command began, and that we wait for.
    pub fn of_another(&self, operation: &Operation) {
        if operation.state.is_done() {
            return;
        }
        let stage = match operation.stage.as_str() {
            "" => "another banger works on it".to_owned(),
            stage => format!("another banger works on it: {stage}"),
        };
        self.update(&stage, operation.bytes_done, operation.bytes_total);
    }

    /// Shows bytes of the stage under way.
    pub fn bytes(&self, done: u64, total: Option<u64>) {
        match &self.0 {
            Form::Hidden => {}
            Form::Bar(bar) => show_bytes(bar, Some(done), total),
            Form::Lines(lines) => lines.update(None, Some(done), total),
        }
    }

    fn update(&self, stage: &str, done: Option<u64>, total: Option<u64>) {
        let stage = || printable_excerpt(stage, STAGE_LIMIT);
        match &self.0 {
            Form::Hidden => {}
            Form::Bar(bar) => {
                bar.set_message(stage());
                show_bytes(bar, done, total);
            }
            Form::Lines(lines) => lines.update(Some(stage()), done, total),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Form::Bar(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The most parts that are shown one by one.
const PARTS: usize = 8;

/// Says how far each part is that has not arrived.
fn parts(parts: &[OperationPart]) -> String {
    let missing: Vec<String> = parts
        .iter()
        .enumerate()
        .filter(|(_, part)| part.bytes_done < part.bytes_total)
        .map(|(index, part)| {
            let percent = u128::from(part.bytes_done) * 100 / u128::from(part.bytes_total.max(1));
            format!("{}: {percent}%", index + 1)
        })
        .collect();
    match missing.len() {
        0 => String::new(),
        1..=PARTS => {
            format!(" ({} of {}; {})", parts.len() - missing.len(), parts.len(), missing.join(", "))
        }
        count => format!(" ({} of {})", parts.len() - count, parts.len()),
    }
}

fn show_bytes(bar: &ProgressBar, done: Option<u64>, total: Option<u64>) {
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

/// The plain form, and the thread that writes its lines.
#[derive(Debug)]
struct Lines {
    shared: Arc<(Mutex<Latest>, Condvar)>,
    writer: Option<JoinHandle<()>>,
}

/// What was last reported.
#[derive(Debug, Default)]
struct Latest {
    stage: String,
    bytes: (Option<u64>, Option<u64>),
    /// When the stage's next line is due; `None` when there is nothing more to say.
    due: Option<Instant>,
    ended: bool,
}

impl Lines {
    fn new(ui: Ui, subject: String) -> Self {
        let shared = Arc::new((Mutex::new(Latest::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let writer = std::thread::spawn(move || write_lines(&theirs, &ui, &subject));
        Self { shared, writer: Some(writer) }
    }

    fn update(&self, stage: Option<String>, done: Option<u64>, total: Option<u64>) {
        let mut latest = lock(&self.shared.0);
        if let Some(stage) = stage
            && stage != latest.stage
        {
            // That it is done, the next thing says.
            let worth_it = !stage.is_empty() && stage != "done";
            latest.due = worth_it.then(|| Instant::now() + LINE_DELAY);
            latest.stage = stage;
        } else if latest.due.is_none() && done.is_some() {
            latest.due = Some(Instant::now() + LINE_INTERVAL);
        }
        latest.bytes = (done, total);
        self.shared.1.notify_one();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        lock(&self.shared.0).ended = true;
        self.shared.1.notify_one();
        if let Some(writer) = self.writer.take() {
            // Its panic, if there was one, is on standard error already.
            let _ = writer.join();
        }
    }
}

fn lock(latest: &Mutex<Latest>) -> MutexGuard<'_, Latest> {
    latest.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_lines(shared: &(Mutex<Latest>, Condvar), ui: &Ui, subject: &str) {
    let mut latest = lock(&shared.0);
    while !latest.ended {
        let now = Instant::now();
        latest = match latest.due {
            None => shared.1.wait(latest).unwrap_or_else(PoisonError::into_inner),
            Some(due) if due > now => {
                let waited = shared.1.wait_timeout(latest, due - now);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            Some(_) => {
                latest.due = None;
                let (done, total) = latest.bytes;
                ui.status(plain_line(subject, &latest.stage, done, total));
                latest
            }
        };
    }
}

fn plain_line(subject: &str, stage: &str, done: Option<u64>, total: Option<u64>) -> String {
    let size = table::size;
    match (done, total) {
        (Some(done), Some(total)) if done > 0 => {
            format!("{subject}: {stage} ({} of {})", size(done), size(total))
        }
        (Some(done), None) if done > 0 => format!("{subject}: {stage} ({} so far)", size(done)),
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
    fn a_stage_is_due_after_a_moment_and_its_bytes_now_and_then() {
        let lines = Lines { shared: Arc::default(), writer: None };
        let due = || lock(&lines.shared.0).due;
        lines.update(Some("waiting".to_owned()), None, None);
        let first = due().unwrap();
        lines.update(Some("waiting".to_owned()), None, None);
        assert_eq!(due(), Some(first), "the same stage again is no news");
        lines.update(Some("reading".to_owned()), Some(0), None);
        let second = due().unwrap();
        assert!(second > first);
        // The writer has written it.
        lock(&lines.shared.0).due = None;
        lines.update(None, Some(5), Some(9));
        assert!(due().unwrap() > second + LINE_DELAY);
        lines.update(Some("done".to_owned()), None, None);
        assert_eq!(due(), None);
    }

    #[test]
    fn plain_lines_carry_bytes_only_where_there_are_some() {
        assert_eq!(plain_line("VM box", "starting", None, None), "VM box: starting");
        assert_eq!(plain_line("i", "reading", Some(0), None), "i: reading");
        assert_eq!(plain_line("i", "reading", Some(2 << 20), None), "i: reading (2M so far)");
        assert_eq!(
            plain_line("i", "reading", Some(1 << 30), Some(4 << 30)),
            "i: reading (1G of 4G)"
        );
    }
}
