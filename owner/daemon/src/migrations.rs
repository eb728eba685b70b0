//! `--check-migrations`: whether this build can use the database that is there.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use banger_store::{DATABASE_NAME, SCHEMA_VERSION, recorded_version};

use crate::process;

/// Says it in one line and as exit code: 0 as it is, 1 after migrations, 2 not at all.
pub fn check(state_dir: &Path) -> ExitCode {
    let (code, line) = match process::harden() {
        Err(error) => (2, error.to_string()),
        Ok(_) => judge(state_dir),
    };
    // Nobody listens: the code says it all.
    let _ = writeln!(std::io::stdout(), "{line}");
    ExitCode::from(code)
}

fn judge(state_dir: &Path) -> (u8, String) {
    match recorded_version(&state_dir.join(DATABASE_NAME)) {
        Ok(None) => (0, "there is no database yet".to_owned()),
        Ok(Some(found)) if found == SCHEMA_VERSION => {
            (0, format!("the database has version {found}, this build's own"))
        }
        Ok(Some(found)) if found < SCHEMA_VERSION => (
            1,
            format!("the database has version {found} and will be migrated to {SCHEMA_VERSION}"),
        ),
        Ok(Some(found)) => {
            (2, format!("the database has version {found}, this build knows {SCHEMA_VERSION}"))
        }
        Err(error) => (2, error.to_string()),
    }
}
