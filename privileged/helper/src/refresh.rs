//! Keeps the firewall as it was asked for: another program may flush it, and uplinks come and go.
//! Ends loop devices that could not be ended at once.

use std::sync::Arc;
use std::time::Duration;

use banger_host::Host;
use banger_privileged_sys::loop_device::LoopDevice;

use crate::audit;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(60);

/// Looks once now and then for as long as the process lives.
pub(crate) fn start(host: Arc<Host>) -> std::io::Result<()> {
    let look = move || {
        loop {
            // Where it fails, the next snapshot says why.
            let _ = LoopDevice::end_unused();
            let said = match host.refresh_network() {
                Ok(false) => None,
                Ok(true) => Some(("warn", "the firewall was put right".to_owned())),
                Err(error) => Some(("error", banger_host::chain(&error))),
            };
            if let Some((level, message)) = said {
                audit::say(level, message);
            }
            std::thread::sleep(INTERVAL);
        }
    };
    std::thread::Builder::new().name("refresh".to_owned()).spawn(look).map(drop)
}
