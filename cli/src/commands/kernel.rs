//! `banger kernel`: what machines boot.

use std::path::PathBuf;

use banger_daemon_api::artifact::Kernel;
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::routes;
use banger_types::KernelName;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::JsonArgs;
use crate::debian::KNOWN_KERNELS;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::ui::Ui;
use crate::{artifacts, completion, daemon, host, table};

/// What can be done with kernels.
#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// List the kernels that are here
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show a kernel
    Show(ShowArgs),
    /// Take a kernel from a Debian package, by way of the host's apt
    Pull(PullArgs),
    /// Take a kernel from a Debian package, a directory, or a file of its own
    Import(ImportArgs),
    /// Delete kernels that no machine uses
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
}

/// Arguments of `banger kernel list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// List the kernels that can be pulled instead
    #[arg(long)]
    available: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// Arguments of `banger kernel show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The kernel
    #[arg(value_name = "KERNEL", add = completion::kernels())]
    name: KernelName,
    #[command(flatten)]
    json: JsonArgs,
}

/// Arguments of `banger kernel pull`.
#[derive(Args, Debug)]
pub struct PullArgs {
    /// The kernel: debian-6.12-cloud or debian-6.1-cloud
    #[arg(value_name = "KERNEL", default_value = host::DEFAULT_KERNEL)]
    name: KernelName,
    /// Replace a kernel of this name
    #[arg(long)]
    force: bool,
}

/// Arguments of `banger kernel import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// A package (linux-image-*_amd64.deb, as Debian and `make bindeb-pkg` build it; - is standard
    /// input), a bzImage or vmlinux, or a directory with one of these and its modules
    #[arg(value_name = "FILE|DIRECTORY")]
    path: PathBuf,
    /// The kernel's name
    #[arg(long)]
    name: KernelName,
    /// Replace a kernel of this name
    #[arg(long)]
    force: bool,
}

/// Arguments of `banger kernel delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The kernels
    #[arg(required = true, value_name = "KERNEL", add = completion::kernels())]
    names: Vec<KernelName>,
}

impl KernelCommand {
    /// Runs the verb.
    pub async fn run(self, ui: &Ui) -> Result<(), CliError> {
        match self {
            Self::List(args) => list(ui, &args).await,
            Self::Show(args) => show(ui, &args).await,
            Self::Pull(args) => {
                let mut interrupts = Interrupts::install()?;
                let client = daemon::connect(ui).await?;
                artifacts::pull_kernel(ui, &client, &mut interrupts, &args.name, args.force)
                    .await?;
                ui.line(&args.name)
            }
            Self::Import(args) => import(ui, args).await,
            Self::Delete(args) => delete(ui, &args).await,
        }
    }
}

async fn list(ui: &Ui, args: &ListArgs) -> Result<(), CliError> {
    if args.available {
        return list_available(ui, args.json.json);
    }
    let client = daemon::connect(ui).await?;
    let kernels: Vec<Kernel> =
        client.get(routes::KERNELS).await.map_err(|error| client.explain(error))?;
    if args.json.json {
        return ui.json(&kernels);
    }
    ui.line(render_list(&kernels, Timestamp::now()))?;
    if kernels.is_empty() {
        ui.hint(format_args!("banger kernel pull {}", host::DEFAULT_KERNEL));
    }
    Ok(())
}

fn list_available(ui: &Ui, json: bool) -> Result<(), CliError> {
    if json {
        let known = KNOWN_KERNELS
            .map(|known| json!({ "name": known.name, "description": known.description }));
        return ui.json(&known);
    }
    let rows = KNOWN_KERNELS.map(|known| [known.name.to_owned(), known.description.to_owned()]);
    ui.line(table::table(["NAME", "DESCRIPTION"], &rows))
}

fn render_list(kernels: &[Kernel], now: Timestamp) -> String {
    let rows: Vec<_> = kernels
        .iter()
        .map(|kernel| {
            [
                kernel.name.to_string(),
                kernel.version.clone(),
                table::size(kernel.allocated),
                kernel.used_by.len().to_string(),
                kernel.source.clone(),
                table::ago(kernel.imported_at, now),
            ]
        })
        .collect();
    table::table(["NAME", "VERSION", "SIZE", "VMS", "SOURCE", "IMPORTED"], &rows)
}

fn explain_missing(error: CliError, name: &KernelName) -> CliError {
    if !error.is_code(ErrorCode::NotFound) || !error.hints.is_empty() {
        return error;
    }
    let error = error.hint("banger kernel list");
    if artifacts::can_pull_kernel(name) {
        return error.hint(format!("banger kernel pull {name}"));
    }
    error
}

async fn show(ui: &Ui, args: &ShowArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let kernel: Kernel = client
        .get(&routes::kernel(&args.name))
        .await
        .map_err(|error| explain_missing(client.explain(error), &args.name))?;
    if args.json.json {
        return ui.json(&kernel);
    }
    ui.line(render_kernel(&kernel))
}

fn render_kernel(kernel: &Kernel) -> String {
    let or_dash = |items: &[String], separator| {
        if items.is_empty() { "-".to_owned() } else { items.join(separator) }
    };
    table::facts(&[
        ("name", kernel.name.to_string()),
        ("version", kernel.version.clone()),
        ("source", kernel.source.clone()),
        ("sha256", kernel.sha256.clone()),
        ("on disk", table::size(kernel.allocated)),
        ("modules", or_dash(&kernel.modules, " ")),
        ("imported", kernel.imported_at.to_string()),
        ("used by", or_dash(&kernel.used_by, ", ")),
    ])
}

async fn import(ui: &Ui, args: ImportArgs) -> Result<(), CliError> {
    let mut interrupts = Interrupts::install()?;
    let kernel = artifacts::NamedKernel::open(&args.path)?;
    if !kernel.left_out().is_empty() {
        let names: Vec<_> = kernel.left_out().iter().map(|name| table::printable(name)).collect();
        ui.status(format_args!("not taken: {}", names.join(", ")));
    }
    let client = daemon::connect(ui).await?;
    artifacts::import_kernel(ui, &client, &mut interrupts, &args.name, args.force, kernel).await?;
    ui.line(&args.name)
}

async fn delete(ui: &Ui, args: &DeleteArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let mut failures = Vec::new();
    for name in &args.names {
        match client.delete::<serde_json::Value>(&routes::kernel(name)).await {
            Ok(_) => ui.line(name)?,
            Err(error) => failures.push(explain_missing(client.explain(error), name)),
        }
    }
    artifacts::report_all(ui, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Kernel {
        Kernel {
            name: "debian-6.12-cloud".parse().unwrap(),
            version: "6.12.117+deb12-cloud-amd64".to_owned(),
            sha256: "cd".repeat(32),
            source: "apt:linux-image-6.12.117+deb12-cloud-amd64=6.12.117-1".to_owned(),
            modules: vec!["virtio_ring".to_owned(), "virtio".to_owned()],
            allocated: 48 << 20,
            imported_at: Timestamp::from_second(0).unwrap(),
            used_by: Vec::new(),
        }
    }

    #[test]
    fn the_list_is_a_table() {
        let now = Timestamp::from_second(90).unwrap();
        insta::assert_snapshot!(render_list(&[kernel()], now), @r"
        NAME               VERSION                     SIZE  VMS  SOURCE                                                 IMPORTED
        debian-6.12-cloud  6.12.117+deb12-cloud-amd64  48M   0    apt:linux-image-6.12.117+deb12-cloud-amd64=6.12.117-1  1 minute ago
        ");
    }

    #[test]
    fn a_kernel_is_shown_as_facts() {
        insta::assert_snapshot!(render_kernel(&kernel()), @r"
        name:      debian-6.12-cloud
        version:   6.12.117+deb12-cloud-amd64
        source:    apt:linux-image-6.12.117+deb12-cloud-amd64=6.12.117-1
        sha256:    cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd
        on disk:   48M
        modules:   virtio_ring virtio
        imported:  1970-01-01T00:00:00Z
        used by:   -
        ");
    }
}
