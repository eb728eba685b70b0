//! The twenty methods: each line decodes, asks the gate, acts.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use banger_gates::request as gate;
use banger_gates::{Policy, Refusal};
use banger_helper_api::{
    Base64, Changed, Empty, ErrorCode, LaunchResult, Method, ProcessRunningResult,
    ReadExt4FileResult, ResolveFirecrackerBinaryResult, SnapshotHandles,
};
use banger_host::{Host, HostError, Resolver};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// What a method came to.
pub(crate) struct Answer {
    /// The result, written down.
    pub(crate) result: Box<RawValue>,
    /// An open file to send along.
    pub(crate) descriptor: Option<OwnedFd>,
    /// What the log should know.
    pub(crate) note: Option<&'static str>,
}

/// Why it came to nothing.
pub(crate) type Failure = (ErrorCode, String);

fn failed(error: HostError) -> Failure {
    match &error {
        HostError::Refused(refusal) => (refusal.code, refusal.to_string()),
        HostError::Failed { .. } => (ErrorCode::OperationFailed, banger_host::chain(&error)),
    }
}

fn written(result: &impl Serialize) -> Result<Answer, Failure> {
    let failed = |error: serde_json::Error| (ErrorCode::MarshalFailed, error.to_string());
    let result = serde_json::value::to_raw_value(result).map_err(failed)?;
    Ok(Answer { result, descriptor: None, note: None })
}

/// Decode, gate, act: the only way to an act.
fn run<P: DeserializeOwned, G>(
    params: &str,
    gate: impl FnOnce(P) -> Result<G, Refusal>,
    act: impl FnOnce(&G) -> Result<Result<Answer, Failure>, HostError>,
) -> Result<Answer, Failure> {
    let bad = |why: String| (ErrorCode::BadParams, why);
    unbounded(params).map_or(Ok(()), |at| Err(bad(format!("{UNBOUNDED} {}", at + 1))))?;
    let params = serde_json::from_str(params).map_err(|error| bad(error.to_string()))?;
    let done = || act(&gate(params)?);
    done().map_err(failed)?
}

const UNBOUNDED: &str = "a list where none is meant, or too many objects, at line 1 column";
/// The most objects of a request: files, and what they are in.
const MOST_OBJECTS: usize = gate::MOST_FILES + 1;

/// Where a text of JSON has a list where none is meant, because serde takes one for the fields of an
/// object too, or has more objects than any request: what is decoded of a line can take fifty
/// times its memory. What is not JSON is found when it is decoded, which stops where this goes wrong.
fn unbounded(params: &str) -> Option<usize> {
    let (mut objects, mut is_text, mut is_escaped) = (0, false, false);
    params.bytes().enumerate().position(|(at, byte)| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            b'{' if !is_text => objects += 1,
            b'[' if !is_text => {
                let name = params[..at].trim_ascii_end().trim_end_matches(':').trim_ascii_end();
                return !(name.ends_with("\"files\"") || name.ends_with("\"drives\""));
            }
            _ => {}
        }
        objects > MOST_OBJECTS
    })
}

/// A line for each method whose gate and act have the same name: what the gate is given, and what
/// the answer is made of.
macro_rules! table {
    (
        ($method:ident, $params:ident, $host:ident, $it:ident)
        { $($name:ident: $same:ident($($given:tt)*) as $answer:ident;)* }
        else { $($rest:tt)* }
    ) => {
        match $method {
            $(Method::$name => run(
                $params,
                |$it| gate::$same($($given)*),
                |$it| $host.$same($it).map($answer).map(|result| written(&result)),
            ),)*
            $($rest)*
        }
    };
}

/// Does one method.
pub(crate) fn call(method: Method, params: &str, host: &Host) -> Result<Answer, Failure> {
    let policy: &Policy = host.policy();
    let pid = |pid| LaunchResult { pid };
    let data = |data| ReadExt4FileResult { data: Base64(data) };
    let path = |path: PathBuf| ResolveFirecrackerBinaryResult { path: path.display().to_string() };
    let (changed, empty) = (|changed| Changed { changed }, |()| Empty {});
    let running = |running| ProcessRunningResult { running };
    let handles = |handles: SnapshotHandles| handles;
    table! { (method, params, host, it) {
        EnsureBridge: ensure_bridge(it) as changed;
        DeleteTap: delete_tap(&it) as changed;
        EnsureNat: ensure_nat(&it) as changed;
        CreateDmSnapshot: create_dm_snapshot(&it, policy) as handles;
        CleanupDmSnapshot: cleanup_dm_snapshot(&it) as empty;
        RemoveDmSnapshot: remove_dm_snapshot(&it) as empty;
        FsckSnapshot: fsck_snapshot(&it) as empty;
        ReadExt4File: read_ext4_file(&it, policy) as data;
        WriteExt4Files: write_ext4_files(it, policy) as empty;
        ResolveFirecrackerBinary: resolve_firecracker_binary(&it, policy) as path;
        LaunchFirecracker: launch_firecracker(it, policy) as pid;
        EnsureSocketAccess: ensure_socket_access(&it, policy) as empty;
        FindFirecrackerPid: find_firecracker_pid(&it, policy) as pid;
        KillProcess: kill_process(it, policy) as empty;
        SignalProcess: signal_process(&it, policy) as empty;
        ProcessRunning: process_running(&it, policy) as running;
        CleanupJailerChroot: cleanup_jailer_chroot(&it, policy) as empty;
    } else {
        // The one method whose answer carries an open file.
        Method::CreateTap => run(params, gate::create_tap, |it| {
            let (changed, descriptor) = host.create_tap(it)?;
            Ok(written(&Changed { changed }).map(|answer| Answer { descriptor, ..answer }))
        }),
        Method::SyncResolverRouting => run(
            params,
            |it| gate::sync_resolver_routing(&it),
            |it| told(it.as_ref().map(|it| host.sync_resolver_routing(it))),
        ),
        Method::ClearResolverRouting => run(
            params,
            |it| gate::clear_resolver_routing(&it),
            |it| told(it.as_ref().map(|it| host.clear_resolver_routing(it))),
        ),
    } }
}

/// The answer of the two methods that have nothing to do where names are blank or systemd-resolved is
/// absent.
fn told(done: Option<Result<Resolver, HostError>>) -> Result<Result<Answer, Failure>, HostError> {
    let note = match done.transpose()? {
        None => Some("nothing to do: the names are blank"),
        Some(Resolver::Absent) => Some("nothing done: systemd-resolved does not run"),
        Some(Resolver::Told) => None,
    };
    Ok(written(&Empty {}).map(|answer| Answer { note, ..answer }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_where_they_are_meant_and_texts_may_have_anything() {
        for good in [
            "{}",
            r#"{"files":[]}"#,
            "{\"files\" \n:\t[{},{}]}",
            r#"{"drives":[{"rate_limiter":{"ops":{"size":1}}}]}"#,
            r#"{"a":"[[{{\"[","b":"\\","files":[{"x":"]["}]}"#,
        ] {
            assert_eq!(unbounded(good), None, "{good}");
        }
        for bad in [
            "[]",
            " [{}]",
            r#"{"a":[]}"#,
            r#"{"files":[[]]}"#,
            r#"{"drives":[{"rate_limiter":[{}]}]}"#,
            r#"{"files":"[","a":["#,
            r#"{"a":"\\","limits":[]}"#,
            r#"{"a":"\"files\":",[]}"#,
        ] {
            assert!(unbounded(bad).is_some(), "{bad}");
        }
        let files = |count| format!(r#"{{"files":[{}]}}"#, vec![r#"{"x":"{"}"#; count].join(","));
        assert_eq!(unbounded(&files(gate::MOST_FILES)), None);
        assert!(unbounded(&files(gate::MOST_FILES + 1)).is_some());
    }
}
