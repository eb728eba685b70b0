//! The daemon's command line.

use std::path::PathBuf;

use banger_vmm::probe::AccelerationChoice;
use clap::Parser;

/// The banger daemon: runs virtual machines for one user.
///
/// Started by `banger` when it is needed; there is no reason to run it by hand.
#[derive(Debug, Parser)]
#[command(name = "bangerd", version, about)]
pub struct Arguments {
    /// Run for one user, without an installation
    #[arg(long, required_unless_present = "check_migrations")]
    pub direct: bool,

    /// Where VMs, images, kernels and the database are
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,

    /// Where files are that can be made again
    #[arg(long, value_name = "DIR", required_unless_present = "check_migrations")]
    pub cache_dir: Option<PathBuf>,

    /// Where the daemon's socket and those of its VMs are
    #[arg(long, value_name = "DIR", required_unless_present = "check_migrations")]
    pub runtime_dir: Option<PathBuf>,

    /// Which build this is, for a client that wants to replace another one
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub build_id: String,

    /// End after this many seconds without VMs, operations and connections; 0 means never
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub idle_timeout: u64,

    /// Write the log here instead of bangerd.log in the state directory
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// How guest instructions run: auto, kvm or tcg
    #[arg(long, value_name = "HOW", env = "BANGER_ACCEL", default_value = "auto")]
    pub accel: AccelerationChoice,

    /// Say whether this build can use the database of the state directory, and exit: 0 as it is, 1
    /// after migrations, 2 not at all
    #[arg(long)]
    pub check_migrations: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn command_line_is_well_formed() {
        super::Arguments::command().debug_assert();
    }
}
