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
use serde_json::Value;
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

/// Decode, gate, act, write down: the only way to an act.
fn run<P: DeserializeOwned + Serialize, G, R: Serialize>(
    params: &str,
    gate: impl FnOnce(P) -> Result<G, Refusal>,
    act: impl FnOnce(&G) -> Result<R, HostError>,
) -> Result<Answer, Failure> {
    let params = decoded(params)?;
    let done = || act(&gate(params)?);
    written(&done().map_err(failed)?)
}

fn decoded<P: DeserializeOwned + Serialize>(params: &str) -> Result<P, Failure> {
    let bad = |error: serde_json::Error| (ErrorCode::BadParams, error.to_string());
    let decoded: P = serde_json::from_str(params).map_err(bad)?;
    // serde takes an array for the fields of an object, in their order.
    let has_list = params.contains('[') && {
        let given: Value = serde_json::from_str(params).map_err(bad)?;
        has_list_for_object(&given, &serde_json::to_value(&decoded).map_err(bad)?)
    };
    let why = "a list where an object is meant";
    if has_list { Err((ErrorCode::BadParams, why.to_owned())) } else { Ok(decoded) }
}

fn has_list_for_object(given: &Value, meant: &Value) -> bool {
    match (given, meant) {
        (Value::Array(_), Value::Object(_)) => true,
        (Value::Array(given), Value::Array(meant)) => {
            given.iter().zip(meant).any(|(given, meant)| has_list_for_object(given, meant))
        }
        (Value::Object(given), Value::Object(meant)) => given.iter().any(|(name, given)| {
            meant.get(name).is_some_and(|meant| has_list_for_object(given, meant))
        }),
        _ => false,
    }
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
                |$it| $host.$same($it).map($answer),
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
        Method::CreateTap => create_tap(params, host),
        Method::SyncResolverRouting => resolver(
            params,
            |it| gate::sync_resolver_routing(&it),
            |it| host.sync_resolver_routing(it),
        ),
        Method::ClearResolverRouting => resolver(
            params,
            |it| gate::clear_resolver_routing(&it),
            |it| host.clear_resolver_routing(it),
        ),
    } }
}

/// The one method whose answer carries an open file.
fn create_tap(params: &str, host: &Host) -> Result<Answer, Failure> {
    let grant = gate::create_tap(decoded(params)?).map_err(|refusal| failed(refusal.into()))?;
    let (changed, descriptor) = host.create_tap(&grant).map_err(failed)?;
    Ok(Answer { descriptor, ..written(&Changed { changed })? })
}

/// The two methods that have nothing to do where names are blank or systemd-resolved is absent.
fn resolver<P: DeserializeOwned + Serialize, G>(
    params: &str,
    gate: impl FnOnce(P) -> Result<Option<G>, Refusal>,
    act: impl FnOnce(&G) -> Result<Resolver, HostError>,
) -> Result<Answer, Failure> {
    let grant = gate(decoded(params)?).map_err(|refusal| failed(refusal.into()))?;
    let outcome = grant.map(|grant| act(&grant)).transpose().map_err(failed)?;
    let note = match outcome {
        None => Some("nothing to do: the names are blank"),
        Some(Resolver::Absent) => Some("nothing done: systemd-resolved does not run"),
        Some(Resolver::Told) => None,
    };
    Ok(Answer { note, ..written(&Empty {})? })
}
