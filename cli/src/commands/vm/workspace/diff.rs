//! `banger vm workspace diff`: the machine's work for reading.

use std::io::{self, Write};

use clap::Args;

use super::collect;
use crate::commands::vm::OneVm;
use crate::error::CliError;
use crate::ui::Ui;

/// Arguments of `banger vm workspace diff`.
#[derive(Args, Debug)]
#[command(after_help = "Example: banger vm workspace diff box
Control characters are replaced; banger vm workspace export has every byte.")]
pub struct DiffArgs {
    #[command(flatten)]
    vm: OneVm,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: DiffArgs) -> Result<(), CliError> {
    let (_, _, work) = collect(ui, &args.vm.vm).await?;
    let mut printable = PrintablePatch { line: Vec::new() };
    work.write_patch(&mut printable)?;
    printable.end().map_err(|error| CliError::output(&error))
}

/// Writes lines of a patch to standard output without what a terminal would obey.
struct PrintablePatch {
    line: Vec<u8>,
}

/// Longest line that is shown as one.
const LINE_LIMIT: usize = 1 << 16;

impl PrintablePatch {
    fn end(&mut self) -> io::Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&self.line);
        let shown: String = text
            .chars()
            .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
            .collect();
        self.line.clear();
        writeln!(io::stdout(), "{shown}")
    }
}

impl Write for PrintablePatch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        self.line.extend_from_slice(part);
        if self.line.len() > LINE_LIMIT {
            self.end()?;
        }
        if end.is_some() {
            if self.line.is_empty() {
                writeln!(io::stdout())?;
            }
            self.end()?;
        }
        Ok(part.len() + usize::from(end.is_some()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
