//! A root file system with the programs that application images are made of: Debian's nginx,
//! PostgreSQL and Python, and entry points as upstream's images have them.
//!
//! It is fetched from this machine's Debian mirror once and kept in the build cache.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{assets, keyed};

const KIND: &str = "applications";
const SUITE: &str = "bookworm";
const PACKAGES: &str = "nginx-light,postgresql-15,python3-minimal";
const SOURCES: [&str; 2] = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];

/// As docker-nginx's: something before the program, and then the program itself.
const NGINX: &str = "#!/bin/sh
set -e
echo \"entry point: configuring $1\"
ln -sf /dev/stdout /var/log/nginx/access.log
ln -sf /dev/stderr /var/log/nginx/error.log
exec \"$@\"
";

/// As docker-postgres's: begun as root, the data made by and for the user who then serves it.
const POSTGRES: &str = "#!/bin/sh
set -e
if [ \"$(id -u)\" = 0 ]; then
    mkdir -p \"$PGDATA\" /var/run/postgresql
    chown postgres:postgres \"$PGDATA\" /var/run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --init-groups \"$0\" \"$@\"
fi
if [ ! -s \"$PGDATA/PG_VERSION\" ]; then
    if [ -z \"$POSTGRES_PASSWORD\" ]; then
        echo 'Error: Database is uninitialized and superuser password is not specified.' >&2
        exit 1
    fi
    echo \"$POSTGRES_PASSWORD\" > /tmp/password
    initdb --no-sync --pwfile=/tmp/password --auth=scram-sha-256 -D \"$PGDATA\"
    echo 'host all all all scram-sha-256' >> \"$PGDATA/pg_hba.conf\"
fi
exec \"$@\"
";

/// Returns the tar of the root file system; making it takes a minute, once.
///
/// # Errors
/// Where it cannot be fetched or kept.
pub fn application_rootfs() -> Result<PathBuf> {
    let mut hash = Sha256::new();
    hash.update(include_bytes!("application_rootfs.rs"));
    let cache = assets::build_cache()?;
    std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let lock = File::create(cache.join("applications.lock")).context("open a lock")?;
    assets::wait_for_lock(&lock, "another who fetches the applications that the tests run")?;
    let folder = cache.join(format!("{KIND}-{}", assets::short_name(hash)));
    if !keyed::hold(&folder)? {
        let staged = cache.join(format!("staging-{KIND}"));
        let _ = std::fs::remove_dir_all(&staged);
        std::fs::create_dir(&staged).with_context(|| format!("make {}", staged.display()))?;
        make(&staged).context("fetch the applications that the tests run")?;
        std::fs::rename(&staged, &folder)
            .with_context(|| format!("put {} in place", folder.display()))?;
        keyed::hold(&folder)?;
        keyed::remove_unused(&cache, KIND, keyed::kept_keys()?, u64::MAX)?;
    }
    Ok(folder.join("rootfs.tar"))
}

fn make(folder: &Path) -> Result<()> {
    let program = crate::find_program("mmdebstrap").context("mmdebstrap is missing")?;
    let mut command = Command::new(program);
    command.args(["--quiet", "--variant=apt", "--aptopt=APT::Install-Recommends \"false\""]);
    for path in ["man", "locale", "doc", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{path}/*"));
    }
    command.arg(format!("--include={PACKAGES}"));
    for (name, text) in [("nginx-entrypoint.sh", NGINX), ("postgres-entrypoint.sh", POSTGRES)] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        let path = path.display();
        command.arg(format!("--customize-hook=upload {path} /{name}"));
        command.arg(format!("--customize-hook=chmod 0755 \"$1/{name}\""));
    }
    // The image's own entry point makes the data.
    command.arg("--customize-hook=rm -rf \"$1/var/lib/postgresql/15\"");
    command.arg(SUITE).arg(folder.join("rootfs.tar"));
    let names_suite = |path: &&&str| {
        std::fs::read_to_string(path).is_ok_and(|text| text.split_whitespace().any(|w| w == SUITE))
    };
    command.args(SOURCES.iter().find(names_suite));
    let log = folder.join("mmdebstrap.log");
    let file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).status();
    if !status.context("start mmdebstrap")?.success() {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        bail!("mmdebstrap failed: {}", text.lines().rev().take(8).collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}
