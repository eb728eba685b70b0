//! Real repositories, and the real agent on a thread as the guest.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_agent_api::{Call, GuestPath};
use banger_guest_client::{AgentClient, GuestChannel, SerialChannel};
use banger_workspace::{
    AgentGuest, Dial, GuestError, Keeping, Kept, Mirror, Newer, Options, Plan, Prepared, Snapshot,
    Stream, Work, Workspace, WorkspaceError, prepare,
};

/// A repository of the user's.
pub struct Repository {
    directory: tempfile::TempDir,
}

impl Repository {
    pub fn new() -> Self {
        let repository = Self { directory: tempfile::tempdir().unwrap() };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().canonicalize().unwrap()
    }

    pub fn git(&self, arguments: &[&str]) -> Output {
        git(&self.path(), arguments)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn add(&self, name: &str, content: &str) {
        self.write(name, content);
        self.git(&["add", "--", name]);
    }

    pub fn commit(&self) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", "x"]);
    }

    pub fn open(&self) -> Workspace {
        Workspace::open(&self.path(), &Options::default()).unwrap()
    }
}

/// Runs git with nobody's configuration; what fails fails the test.
pub fn git(directory: &Path, arguments: &[&str]) -> Output {
    let output = try_git(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output
}

pub fn try_git(directory: &Path, arguments: &[&str]) -> Output {
    Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap()
}

struct InProcess {
    client: AgentClient,
    /// The calls that were made.
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl Dial for InProcess {
    fn dial(
        &self,
        call: Call,
    ) -> Pin<
        Box<
            dyn Future<Output = Result<(serde_json::Value, Box<dyn Stream>), GuestError>>
                + Send
                + '_,
        >,
    > {
        self.calls.lock().unwrap().push(match &call {
            Call::ListTree(_) => "list tree",
            Call::ListEntries(_) => "list entries",
            Call::GetEntries(_) => "get entries",
            Call::PutTree(_) => "put tree",
            _ => "another",
        });
        Box::pin(async move {
            match self.client.open_raw::<serde_json::Value>(call).await {
                Ok((value, stream)) => Ok((value, Box::new(stream) as Box<dyn Stream>)),
                Err(error) => match error.agent_error().map(|error| error.code) {
                    Some(banger_agent_api::ErrorCode::NotFound) => {
                        Err(GuestError::NotFound(Box::new(error)))
                    }
                    _ => Err(GuestError::other(error)),
                },
            }
        })
    }
}

/// A guest whose repository is a directory of this machine.
pub struct Guest {
    pub directory: tempfile::TempDir,
    kept: tempfile::TempDir,
    guest: AgentGuest,
    runtime: tokio::runtime::Runtime,
    channel: Arc<SerialChannel>,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl Guest {
    /// `None` where this machine cannot have one; the test is skipped then.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP: root: the agent gives what it unpacks to root");
            return None;
        }
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                far.set_nonblocking(true).unwrap();
                let far = tokio::net::UnixStream::from_std(far).unwrap();
                let server = std::rc::Rc::new(banger_agent::serve::Server::without_cgroups());
                let pipe = banger_agent::serve::serve_pipe(server, far);
                let _ = tokio::time::timeout(Duration::from_secs(600), pipe).await;
            });
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let channel = runtime.block_on(async {
            near.set_nonblocking(true).unwrap();
            let near = tokio::net::UnixStream::from_std(near).unwrap();
            let channel = Arc::new(SerialChannel::over(near));
            channel.wait_ready().await.unwrap();
            channel
        });
        let client = AgentClient::new(channel.clone());
        let calls = Arc::default();
        let dial = InProcess { client, calls: Arc::clone(&calls) };
        let guest = AgentGuest::new(Box::new(dial), runtime.handle().clone());
        Some(Self {
            directory: tempfile::tempdir().unwrap(),
            kept: tempfile::tempdir().unwrap(),
            guest,
            runtime,
            channel,
            calls,
        })
    }

    /// Returns the calls that were made since it was asked last.
    pub fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// What has the guest follow a repository.
    pub fn sync(&self, repository: &Repository, options: Options, force: bool) -> Mirror {
        self.sync_path(repository.path(), options, force)
    }

    /// As [`Guest::sync`], of the repository at a path.
    pub fn sync_path(&self, path: PathBuf, options: Options, force: bool) -> Mirror {
        let client = AgentClient::new(self.channel.clone());
        let dial = InProcess { client, calls: Arc::clone(&self.calls) };
        let guest = AgentGuest::new(Box::new(dial), self.runtime.handle().clone());
        let keeping = (self.keeping(), "0123".to_owned());
        Mirror::new(keeping, (path, options), guest, self.root(), force)
    }

    /// Where the repository is.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("repo")
    }

    pub fn root(&self) -> GuestPath {
        GuestPath::new(self.path().as_os_str().as_bytes()).unwrap()
    }

    pub fn keeping(&self) -> Keeping {
        Keeping::new(self.kept.path().join("workspaces"), "test".to_owned())
    }

    pub fn kept(&self) -> Kept {
        self.keeping().open("0123").unwrap()
    }

    pub fn prepare(&mut self, workspace: Workspace) -> Prepared {
        self.try_prepare(workspace, false).unwrap()
    }

    pub fn try_prepare(
        &mut self,
        workspace: Workspace,
        force: bool,
    ) -> Result<Prepared, WorkspaceError> {
        let kept = self.kept();
        let snapshot = Snapshot::take(&kept, workspace)?;
        let newer = if force { Newer::Overwrite } else { Newer::Refuse };
        let plan = Plan { guest_path: self.root(), newer };
        prepare(&kept, &snapshot, &mut self.guest, &plan, &|_| {})
    }

    /// Prepares as for a machine that is made meanwhile: what is kept gets its name then.
    pub fn prepare_new(&mut self, workspace: Workspace) -> Prepared {
        let kept = self.keeping().begin().unwrap();
        let snapshot = Snapshot::take(&kept, workspace).unwrap();
        let kept = kept.assign("0123").unwrap();
        let plan = Plan { guest_path: self.root(), newer: Newer::Refuse };
        prepare(&kept, &snapshot, &mut self.guest, &plan, &|_| {}).unwrap()
    }

    /// Prepares, and calls `meanwhile` again and again while files go.
    pub fn prepare_while(&mut self, workspace: Workspace, meanwhile: &(dyn Fn(u64) + Sync)) {
        let kept = self.kept();
        let snapshot = Snapshot::take(&kept, workspace).unwrap();
        let plan = Plan { guest_path: self.root(), newer: Newer::Refuse };
        prepare(&kept, &snapshot, &mut self.guest, &plan, meanwhile).unwrap();
    }

    /// Leaves what a prepare that was cut off leaves.
    pub fn mark_unfinished(&self) {
        fs::write(self.kept_file("unfinished"), "").unwrap();
    }

    /// Where a file of what is kept lies.
    pub fn kept_file(&self, name: &str) -> PathBuf {
        self.kept.path().join("workspaces/0123").join(name)
    }

    pub fn work(&mut self) -> Work {
        let root = self.root();
        Work::collect(&self.kept(), &mut self.guest, &root).unwrap()
    }

    pub fn patch(&mut self) -> Vec<u8> {
        let mut patch = Vec::new();
        self.work().write_patch(&mut patch).unwrap();
        patch
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// What of an entry that may go while it is looked at.
fn unless_gone<T>(result: std::io::Result<T>) -> Option<T> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        other => Some(other.unwrap()),
    }
}

/// Returns what is in a directory, without what git keeps: name → (mode as git has it, content).
pub fn files(top: &Path) -> BTreeMap<Vec<u8>, (u32, Vec<u8>)> {
    fn walk(top: &Path, directory: &Path, found: &mut BTreeMap<Vec<u8>, (u32, Vec<u8>)>) {
        for entry in unless_gone(fs::read_dir(directory)).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.file_name().is_some_and(|name| name == ".git") {
                continue;
            }
            let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes().to_vec();
            let Some(metadata) = unless_gone(path.symlink_metadata()) else { continue };
            if metadata.is_dir() {
                walk(top, &path, found);
            } else if metadata.is_symlink() {
                let Some(target) = unless_gone(fs::read_link(&path)) else { continue };
                found.insert(name, (0o120_000, target.into_os_string().into_encoded_bytes()));
            } else if metadata.is_file() {
                let mode =
                    if metadata.permissions().mode() & 0o100 == 0 { 0o100_644 } else { 0o100_755 };
                let Some(content) = unless_gone(fs::read(&path)) else { continue };
                found.insert(name, (mode, content));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(top, top, &mut found);
    found
}

/// Applies a patch as the user would.
pub fn apply(top: &Path, patch: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), patch).unwrap();
    let name = file.path().to_str().unwrap();
    let output = try_git(top, &["apply", "--allow-empty", "--whitespace=nowarn", name]);
    let text = String::from_utf8_lossy(patch);
    assert!(output.status.success(), "{output:?}\n{text}");
}
