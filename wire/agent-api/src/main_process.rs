//! The main process: the one program that a machine exists for, and with which it ends.

use serde::{Deserialize, Serialize};

use crate::bytes_text::{Argument, EnvironmentEntry, GuestPath, UserSpec};
use crate::frame::SignalNumber;
use crate::message::PtyCall;

/// What the image and the user say of programs in this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigureCall {
    /// The image's environment: of the main process, and of execs below what they ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<EnvironmentEntry>,
    /// Directories that must exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<GuestPath>,
    /// The main process, where there is one; it is started once, by the first call that brings it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<MainProcess>,
}

/// The program that a machine exists for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MainProcess {
    /// The program and its arguments; looked up in PATH unless it holds a slash.
    pub argv: Vec<Argument>,
    /// Working directory, made where it is missing; `/` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<GuestPath>,
    /// Who runs it; root where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserSpec>,
    /// What asks it to end.
    pub stop_signal: SignalNumber,
    /// Wait for someone to attach before it is started, for half a minute at most.
    #[serde(default)]
    pub held: bool,
}

/// Attaches to the main process, and starts it where it is held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachMainCall {
    /// Start it on a terminal; of no effect on one that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<PtyCall>,
    /// Whether stdin frames will come; of no effect on one that runs.
    #[serde(default)]
    pub stdin: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Call, Request};

    #[test]
    fn a_main_process_travels_and_bad_ones_are_refused() {
        let main = MainProcess {
            argv: vec!["nginx".parse().unwrap(), "-g".parse().unwrap()],
            cwd: Some("/srv".parse().unwrap()),
            user: Some("www-data:33".parse().unwrap()),
            stop_signal: SignalNumber::new(3).unwrap(),
            held: true,
        };
        let call = ConfigureCall {
            environment: vec!["A=b".parse().unwrap()],
            volumes: vec!["/data".parse().unwrap()],
            main: Some(main),
        };
        let request = Request::new(Call::Configure(call));
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&json).unwrap(), request, "{json}");
        for bad in [
            r#"{"version":1,"call":"configure","volumes":["data"]}"#,
            r#"{"version":1,"call":"configure","environment":["=x"]}"#,
            r#"{"version":1,"call":"configure","main":{"argv":["a"],"stop_signal":0}}"#,
            r#"{"version":1,"call":"configure","main":{"argv":["a"],"stop_signal":65}}"#,
            r#"{"version":1,"call":"configure","main":{"argv":["a"]}}"#,
        ] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }
}
