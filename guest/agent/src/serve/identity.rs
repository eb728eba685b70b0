//! Telling the guest who and when it is.

use std::path::Path;

use banger_agent_api::{AgentError, Empty, ErrorCode, SetIdentityCall};
use rustix::time::{ClockId, Timespec};

use crate::boot;

/// Applies every field that is given, the clock last.
pub(super) fn set(call: SetIdentityCall) -> Result<Empty, AgentError> {
    let failed = |what: &str, error: std::io::Error| {
        AgentError::new(ErrorCode::Failed, format!("cannot set the {what}: {error}"))
    };
    if let Some(name) = &call.hostname {
        rustix::system::sethostname(name.as_str().as_bytes())
            .map_err(|error| failed("host name", error.into()))?;
        boot::write_name(Path::new("/"), name.as_str())
            .map_err(|error| failed("host name in /etc/hostname and /etc/hosts", error))?;
    }
    if let Some(entropy) = &call.entropy {
        banger_guest_sys::credit_entropy(entropy.as_bytes())
            .map_err(|error| failed("entropy", error))?;
    }
    if let Some(nanos) = call.time_nanos {
        const NANOS: u64 = 1_000_000_000;
        let time = Timespec {
            tv_sec: i64::try_from(nanos / NANOS).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(nanos % NANOS).unwrap_or(0),
        };
        rustix::time::clock_settime(ClockId::Realtime, time)
            .map_err(|error| failed("clock", error.into()))?;
    }
    Ok(Empty {})
}
