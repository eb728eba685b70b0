//! Builds the guest agent, static, for `include_bytes!` in `agent_binary.rs`.
//!
//! `bangerd` opens no path of the checkout when it runs, so the agent travels inside it. The agent
//! has its own profile and its own C runtime linkage, which one cargo invocation cannot give to one
//! member of a workspace: hence a second cargo with a target directory of its own (`agent/` in the
//! outer target directory), whose lock also orders concurrent outer builds.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Names an agent that was built before, for packagers who build in stages.
const PREBUILT: &str = "BANGER_PREBUILT_AGENT";

/// What the inner cargo may know of the outer one: where the toolchain and the registry are, and the
/// job server, so that both together use the processors once. Everything else (wrappers such as
/// clippy's, flags, the outer package's variables) would change or break the agent's build.
const KEPT: [&str; 15] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "CARGO_MAKEFLAGS",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "NO_PROXY",
];
const KEPT_PREFIXES: [&str; 4] = ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];

fn main() -> ExitCode {
    match build() {
        Ok(agent) => {
            emit(&format!("cargo::rustc-env=BANGER_AGENT_BINARY={}", agent.display()));
            ExitCode::SUCCESS
        }
        Err(problem) => {
            emit(&format!("cargo::error=building the guest agent: {problem}"));
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<PathBuf, String> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest_dir
        .parent()
        .and_then(Path::parent)
        .ok_or("the daemon's crate is not below owner/ of the workspace")?;
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    if variable("CARGO_CFG_TARGET_ARCH")? != "x86_64" {
        return Err("guests are x86_64; build bangerd for x86_64".to_owned());
    }
    for path in ["guest", "wire/agent-api", "wire/types", "Cargo.toml", "Cargo.lock"] {
        emit(&format!("cargo::rerun-if-changed={}", workspace.join(path).display()));
    }
    let copy = out_dir.join("banger-agent");
    emit(&format!("cargo::rerun-if-env-changed={PREBUILT}"));
    if let Some(agent) = std::env::var_os(PREBUILT) {
        return copy_agent(Path::new(&agent), &copy).map(|()| copy);
    }
    // OUT_DIR is <target>/[<triple>/]<profile>/build/<package>/out.
    let target_dir =
        out_dir.ancestors().nth(4).ok_or("OUT_DIR is not below a target directory")?.join("agent");

    let output = Command::new(variable("CARGO")?)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "banger-agent",
            "--bin",
            "banger-vsock-agent",
        ])
        .args(["--profile", "agent", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .arg("--manifest-path")
        .arg(workspace.join("guest/agent/Cargo.toml"))
        .current_dir(workspace)
        .env_clear()
        .envs(kept_environment())
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .output()
        .map_err(|error| format!("starting cargo: {error}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        // One `cargo::error` line each: cargo shows nothing else of a build script.
        for line in words.lines() {
            emit(&format!("cargo::error={line}"));
        }
        return Err(format!("cargo ended with {}", output.status));
    }

    copy_agent(&target_dir.join(TARGET).join("agent/banger-vsock-agent"), &copy)?;
    Ok(copy)
}

/// Copies the agent, so that a later build of it cannot change the file under a running rustc.
fn copy_agent(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::copy(from, to)
        .map(|_| ())
        .map_err(|error| format!("copying {} to {}: {error}", from.display(), to.display()))
}

fn kept_environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|name| {
            KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        })
    })
}

fn variable(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|error| format!("variable {name}: {error}"))
}

fn emit(line: &str) {
    println!("{line}");
}
