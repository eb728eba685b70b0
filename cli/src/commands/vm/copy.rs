//! `banger vm cp`.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use banger_agent_api::{
    Call, FileKind, GetTreeCall, GuestPath, PutTreeCall, StatCall, StatReply, UserSpec,
};
use banger_daemon_api::vm::Vm;
use banger_types::VmReference;
use clap::Args;

use crate::agent;
use crate::client::Client;
use crate::copy::{
    self, Arrival, Ending, Endpoint, HostTree, Into, Landing, Tally, Target, There, as_guest,
    as_path,
};
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::progress::Progress;
use crate::ui::Ui;
use crate::{completion, daemon, table};

/// Arguments of `banger vm cp`.
#[derive(Args, Debug)]
#[command(
    after_help = "One of SRC and DST is VM:PATH; a PATH without a slash at its start is below /root. The
other is a path of this host, or - for a tar stream. A file's own name with a colon in it
is written ./a:b.

Examples:
  banger vm cp notes.txt box:             to /root/notes.txt
  banger vm cp ./site box:/srv/www        /srv/www/site, or /srv/www where that is missing
  banger vm cp ./site/. box:/srv/www      what is in site, not site itself
  banger vm cp box:/var/log ./logs        a tree of the machine's
  tar c . | banger vm cp - box:/srv       a tar stream, unpacked there
  banger vm cp box:/etc - | tar t         a tree as a tar stream

Directories are copied with what is in them and merged with those that are there; a file
takes the place of one of its name. Permissions, times, symbolic and hard links are kept.
In the machine everything belongs to root, or to --owner; here, to you, and no file gets a
set-user-id bit. Sockets, fifos and devices are left out."
)]
pub struct CopyArgs {
    /// What to copy: a path, VM:PATH, or - for a tar stream on standard input
    #[arg(value_name = "SRC", add = completion::vms_and_files())]
    source: OsString,
    /// Where to: a path, VM:PATH, or - for a tar stream on standard output
    #[arg(value_name = "DST", add = completion::vms_and_files())]
    destination: OsString,
    /// Copy what SRC leads to, where it is a symbolic link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Who owns the files in the machine: NAME or UID, with an optional :GROUP [default: root]
    #[arg(long, value_name = "USER")]
    owner: Option<UserSpec>,
}

/// Copies.
pub async fn run(ui: &Ui, args: CopyArgs) -> Result<(), CliError> {
    let read = |text: &OsString, what: &str| {
        Endpoint::parse(text).map_err(|error| CliError::usage(format!("{what}: {error}")))
    };
    let source = read(&args.source, "SRC")?;
    let destination = read(&args.destination, "DST")?;
    match (source, destination) {
        (Endpoint::Guest(vm, path), Endpoint::Host(target)) => {
            no_owner(&args)?;
            let mut session = Session::open(ui, &vm).await?;
            let tally = session.fetch(ui, path, target, args.follow_link).await?;
            report(ui, tally);
        }
        (Endpoint::Guest(vm, path), Endpoint::Stream) => {
            no_owner(&args)?;
            if io::stdout().is_terminal() {
                return Err(CliError::usage("a tar stream is nothing for a terminal")
                    .hint("lead it into a file or into tar: ... - | tar t"));
            }
            Session::open(ui, &vm).await?.fetch_tar(ui, path, args.follow_link).await?;
        }
        (Endpoint::Host(path), Endpoint::Guest(vm, target)) => {
            let tree = HostTree::open(&path, args.follow_link)?;
            let mut session = Session::open(ui, &vm).await?;
            let tally = session.send(ui, tree, target, args.owner).await?;
            report(ui, tally);
        }
        (Endpoint::Stream, Endpoint::Guest(vm, target)) => {
            if io::stdin().is_terminal() {
                return Err(CliError::usage("standard input is a terminal, not a tar stream")
                    .hint("tar c DIRECTORY | banger vm cp - VM:DIRECTORY"));
            }
            let mut session = Session::open(ui, &vm).await?;
            let tally = session.send_tar(ui, target, args.owner).await?;
            report(ui, tally);
        }
        (Endpoint::Guest(..), Endpoint::Guest(..)) => {
            return Err(CliError::usage("SRC and DST are both in machines")
                .hint("banger vm cp A:PATH - | banger vm cp - B:DIRECTORY"));
        }
        _ => {
            return Err(CliError::usage("neither SRC nor DST is in a machine")
                .hint("a machine's path is VM:PATH: banger vm cp notes.txt box:/root"));
        }
    }
    Ok(())
}

fn no_owner(args: &CopyArgs) -> Result<(), CliError> {
    match args.owner {
        None => Ok(()),
        Some(_) => Err(CliError::usage("--owner is for copies into a machine")
            .hint("leave it out: what comes out of a machine is yours")),
    }
}

fn report(ui: &Ui, tally: Tally) {
    let plural = |count: u64| if count == 1 { "" } else { "s" };
    let (entries, left_out) = (tally.entries, tally.left_out);
    if left_out > 0 {
        let s = plural(left_out);
        ui.warning(format_args!("{left_out} socket{s}, fifo{s} or device{s} left out"));
    }
    ui.detail(format_args!(
        "copied {entries} file{}, {}",
        plural(entries),
        table::size(tally.bytes)
    ));
}

/// A copy's way into a machine.
struct Session {
    client: Client,
    vm: Vm,
    interrupts: Interrupts,
}

impl Session {
    async fn open(ui: &Ui, vm: &VmReference) -> Result<Self, CliError> {
        let interrupts = Interrupts::install()?;
        let client = daemon::connect(ui).await?;
        let vm = super::get_running(&client, vm).await?;
        Ok(Self { client, vm, interrupts })
    }

    fn progress(&self, ui: &Ui) -> Progress {
        Progress::new(ui, format!("VM {}", self.vm.name))
    }

    async fn stat(&mut self, path: &GuestPath) -> Result<StatReply, CliError> {
        let call = Call::Stat(StatCall { path: path.clone() });
        // An agent may be silent for ever.
        tokio::select! {
            reply = agent::call(&self.client, &self.vm.id, call) => reply.map(|(reply, _)| reply),
            interrupt = self.interrupts.next() => {
                Err(CliError::interrupted(interrupt, "interrupted; nothing was copied"))
            }
        }
    }

    /// Finds what the path of a source names; returns what to ask for, and what it is called.
    async fn source(
        &mut self,
        path: GuestPath,
        follow: bool,
    ) -> Result<(GuestPath, Option<PathBuf>, bool), CliError> {
        let ending = Ending::of(path.as_bytes());
        let name = as_path(&path).file_name().map(PathBuf::from);
        if !(follow || ending.directory) {
            return Ok((path, name, false));
        }
        let found = self.stat(&path).await?;
        if ending.directory && found.kind != FileKind::Directory {
            return Err(CliError::new(format!("{path} in VM {} is no directory", self.vm.name)));
        }
        Ok((found.real_path, name, ending.contents))
    }

    async fn fetch(
        &mut self,
        ui: &Ui,
        path: GuestPath,
        target: PathBuf,
        follow: bool,
    ) -> Result<Tally, CliError> {
        let is_no_link = follow || Ending::of(path.as_bytes()).directory;
        let (path, name, contents) = self.source(path, follow).await?;
        let root = as_path(&path).file_name().map(PathBuf::from).unwrap_or_default();
        let landing = Landing { path: target, root, name, contents, is_no_link };
        let progress = self.progress(ui);
        let call = GetTreeCall { path };
        let with = (&progress, &mut self.interrupts);
        copy::fetch(&self.client, &self.vm.id, call, landing, with).await
    }

    async fn fetch_tar(&mut self, ui: &Ui, path: GuestPath, follow: bool) -> Result<(), CliError> {
        let (path, ..) = self.source(path, follow).await?;
        let progress = self.progress(ui);
        let with = (&progress, &mut self.interrupts);
        copy::fetch_tar(&self.client, &self.vm.id, GetTreeCall { path }, with).await
    }

    /// Finds what is at the target of a copy into the machine, and its path without links.
    async fn target(&mut self, path: &GuestPath) -> Result<(There, Option<PathBuf>), CliError> {
        match self.stat(path).await {
            Ok(found) => {
                let there = match found.kind {
                    FileKind::Directory => There::Directory,
                    FileKind::File | FileKind::Other => There::File,
                };
                Ok((there, Some(as_path(&found.real_path).to_owned())))
            }
            Err(error) if error.is_guest_code(banger_agent_api::ErrorCode::NotFound) => {
                Ok((There::Nothing, None))
            }
            Err(error) => Err(error),
        }
    }

    async fn send(
        &mut self,
        ui: &Ui,
        tree: HostTree,
        path: GuestPath,
        owner: Option<UserSpec>,
    ) -> Result<Tally, CliError> {
        let (there, real) = self.target(&path).await?;
        let real = real.unwrap_or_else(|| as_path(&path).to_owned());
        let target = Target { there, ending: Ending::of(path.as_bytes()) };
        let kind = (tree.is_directory, tree.contents);
        let own_name = real.file_name().map(Path::new);
        let refused = |why: &str| {
            CliError::new(format!("cannot copy to {path} in VM {}", self.vm.name))
                .because(&io::Error::other(why.to_owned()))
        };
        let (into, arrival) = target.place(kind, tree.name(), own_name).map_err(refused)?;
        let directory = match into {
            Into::Target => real.as_path(),
            Into::Parent => real.parent().unwrap_or(Path::new("/")),
        };
        let directory = as_guest(directory).ok_or_else(|| refused("it has no directory"))?;
        if into == Into::Parent {
            self.expect_directory(&directory).await?;
        }
        self.put(ui, (tree, arrival), PutTreeCall { path: directory, owner }).await
    }

    async fn put(
        &mut self,
        ui: &Ui,
        source: (HostTree, Arrival),
        call: PutTreeCall,
    ) -> Result<Tally, CliError> {
        let progress = self.progress(ui);
        tokio::select! {
            sent = copy::send(&self.client, &self.vm.id, call, source, &progress) => sent,
            interrupt = self.interrupts.next() => Err(interrupted(interrupt)),
        }
    }

    async fn send_tar(
        &mut self,
        ui: &Ui,
        path: GuestPath,
        owner: Option<UserSpec>,
    ) -> Result<Tally, CliError> {
        self.expect_directory(&path).await?;
        let progress = self.progress(ui);
        let call = PutTreeCall { path, owner };
        let reply = tokio::select! {
            sent = copy::send_tar(&self.client, &self.vm.id, call, &progress) => sent?,
            interrupt = self.interrupts.next() => return Err(interrupted(interrupt)),
        };
        Ok(Tally { entries: reply.entries, bytes: reply.bytes, left_out: 0 })
    }

    /// Refuses a directory that is not there: what is misspelt must not come into being.
    async fn expect_directory(&mut self, path: &GuestPath) -> Result<(), CliError> {
        let there = self.target(path).await?.0;
        let name = &self.vm.name;
        match there {
            There::Directory => Ok(()),
            There::File => Err(CliError::new(format!("{path} in VM {name} is no directory"))),
            There::Nothing => Err(CliError::new(format!("VM {name} has no directory {path}"))
                // The path may be the machine's own words.
                .hint(format!(
                    "banger vm exec {name} -- mkdir -p {}",
                    crate::ssh::shell_word(&path.to_string())
                ))),
        }
    }
}

fn interrupted(interrupt: crate::interrupt::Interrupt) -> CliError {
    CliError::interrupted(interrupt, "interrupted; the machine has a part of the files")
}
