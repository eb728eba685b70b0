//! `banger daemon stop`.

use crate::environment::Site;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, environment};

/// Runs the verb.
pub async fn run(ui: &Ui) -> Result<(), CliError> {
    let site = environment::site()?;
    if matches!(site, Site::System { .. }) {
        return Err(CliError::usage("bangerd is a service here, which systemd ends")
            .hint("sudo systemctl stop bangerd; --direct means your own bangerd"));
    }
    let client = daemon::client(&site);
    if daemon::shut_down(&client).await? {
        ui.status("bangerd has ended; machines keep running");
    } else {
        ui.status("bangerd was not running");
    }
    if let Site::Direct(direct) = &site {
        daemon::end_bridge(&direct.directories.runtime);
    }
    Ok(())
}
