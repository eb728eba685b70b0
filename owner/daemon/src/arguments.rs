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
    #[arg(long, required_unless_present_any = ["check_migrations", "system"])]
    pub direct: bool,

    /// Run as the service that 'banger system install' writes
    #[arg(long, conflicts_with = "direct")]
    pub system: bool,

    /// Where VMs, images, kernels and the database are
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,

    /// Where files are that can be made again
    #[arg(long, value_name = "DIR", required_unless_present = "check_migrations")]
    pub cache_dir: Option<PathBuf>,

    /// Where the daemon's socket and those of its VMs are
    #[arg(long, value_name = "DIR", required_unless_present = "check_migrations")]
    pub runtime_dir: Option<PathBuf>,

    /// The root helper's socket; without one nothing is done that root must do
    #[arg(long, value_name = "SOCKET")]
    pub helper_socket: Option<PathBuf>,

    /// The directory in which the root helper makes jails
    #[arg(long, value_name = "DIR", requires = "helper_socket")]
    pub jail_dir: Option<PathBuf>,

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
    use clap::{CommandFactory, Parser};

    #[test]
    fn command_line_is_well_formed() {
        super::Arguments::command().debug_assert();
    }

    #[test]
    fn it_is_told_its_places_and_whether_it_is_a_service() {
        let parse = |text: &str| super::Arguments::try_parse_from(text.split(' '));
        const PLACES: &str = "--state-dir /s --cache-dir /c --runtime-dir /r";
        let direct = parse(&format!("bangerd --direct {PLACES}")).unwrap();
        assert_eq!((direct.idle_timeout, direct.helper_socket), (900, None));
        assert!(parse(&format!("bangerd --system {PLACES} --helper-socket /h")).unwrap().system);
        for bad in ["bangerd", "bangerd --direct", "bangerd --system --state-dir /s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&format!("bangerd {PLACES}")).is_err());
        assert!(parse(&format!("bangerd --direct --system {PLACES}")).is_err());
    }
}
