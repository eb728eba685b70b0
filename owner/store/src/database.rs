//! The open database: rows of VMs and intents.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_types::{OperationId, VmId, VmName};
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::DATABASE_NAME;
use crate::error::StoreError;
use crate::lock::StateLock;
use crate::{migrate, mirror};

/// What a change must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The end of the daemon, also by `kill -9`. Enough for what a reboot of the host undoes anyway.
    Process,
    /// A power cut.
    Power,
}

/// A row whose document could be typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmRow<T> {
    /// The VM.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// What the engine recorded.
    pub document: T,
}

/// A row that this build cannot read; it is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableRow {
    /// The id as it stands in the database.
    pub id: String,
    /// Why it cannot be read.
    pub problem: String,
}

/// All rows.
#[derive(Clone, Debug)]
pub struct VmRows<T> {
    /// Those that could be typed, by name.
    pub rows: Vec<VmRow<T>>,
    /// Those that could not.
    pub unreadable: Vec<UnreadableRow>,
}

/// A step on the host that was begun for a VM and not yet recorded as done or undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The VM.
    pub vm: VmId,
    /// The step, by its stable name.
    pub step: String,
    /// The request that asked for it.
    pub op_id: OperationId,
    /// When it began.
    pub started_at: Timestamp,
}

#[derive(Debug)]
struct Inner {
    connection: Mutex<Connection>,
    state_dir: PathBuf,
    _lock: StateLock,
}

/// The store. Clones share one connection; every call runs on a blocking thread.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

impl Store {
    /// Opens the database of the locked state directory, makes or rebuilds it where needed, and
    /// returns it with warnings for people: what was rebuilt and what could not be.
    pub async fn open(lock: StateLock) -> Result<(Self, Vec<String>), StoreError> {
        tokio::task::spawn_blocking(move || open_blocking(lock))
            .await
            .unwrap_or(Err(StoreError::Interrupted { act: "opening the database" }))
    }

    /// Returns the state directory.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.inner.state_dir
    }

    /// Returns the directory with one directory per VM.
    #[must_use]
    pub fn vms_dir(&self) -> PathBuf {
        self.inner.state_dir.join("vms")
    }

    /// Returns the damaged databases that were moved aside, newest first, for `doctor`.
    #[must_use]
    pub fn set_aside(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = std::fs::read_dir(&self.inner.state_dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                    name.starts_with(CORRUPT_PREFIX)
                        && !name.ends_with("-wal")
                        && !name.ends_with("-shm")
                })
            })
            .collect();
        found.sort();
        found.reverse();
        found
    }

    /// Returns whether the copy of a VM's row beside its disks is whole, so that a store which is
    /// rebuilt would have the VM.
    pub async fn is_mirrored(&self, id: &VmId) -> bool {
        let (vms_dir, id) = (self.vms_dir(), id.clone());
        let read = tokio::task::spawn_blocking(move || mirror::read(&vms_dir, &id).is_ok());
        read.await.unwrap_or(true)
    }

    /// Returns all VMs.
    pub async fn vms<T: DeserializeOwned + Send + 'static>(&self) -> Result<VmRows<T>, StoreError> {
        self.call("reading VMs", |connection, _| {
            let mut statement =
                connection.prepare_cached("SELECT id, name, document FROM vms ORDER BY name")?;
            let rows = statement.query_map([], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
            })?;
            let mut all = VmRows { rows: Vec::new(), unreadable: Vec::new() };
            for row in rows {
                let (id, name, document) = row?;
                match type_row(&id, &name, &document) {
                    Ok(row) => all.rows.push(row),
                    Err(problem) => all.unreadable.push(UnreadableRow { id, problem }),
                }
            }
            Ok(Ok(all))
        })
        .await
    }

    /// Adds a VM; the name must be free.
    pub async fn insert_vm<T: Serialize>(
        &self,
        id: &VmId,
        name: &VmName,
        document: &T,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let text = encode(id, document)?;
        let (id, name) = (id.clone(), name.clone());
        self.call("adding a VM", move |connection, _| {
            set_durability(connection, durability)?;
            let inserted = connection.execute(
                "INSERT INTO vms (id, name, document, updated_at) VALUES (?1, ?2, ?3, ?4)",
                params![id.as_str(), name.as_str(), text.get(), Timestamp::now().to_string()],
            );
            match inserted {
                Err(error) if is_taken(&error) => Ok(Err(StoreError::NameTaken { name })),
                other => other.map(|_| Ok(())),
            }
        })
        .await
    }

    /// Replaces a VM's document, removes its intent if `settled`, and writes its mirror.
    ///
    /// A mirror that cannot be written is logged, not an error: the database has the change.
    pub async fn update_vm<T: Serialize>(
        &self,
        id: &VmId,
        document: &T,
        durability: Durability,
        settled: bool,
    ) -> Result<(), StoreError> {
        let text = encode(id, document)?;
        let id = id.clone();
        self.call("changing a VM", move |connection, vms_dir| {
            set_durability(connection, durability)?;
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let name: Option<String> = transaction
                .prepare_cached(
                    "UPDATE vms SET document = ?2, updated_at = ?3 WHERE id = ?1 RETURNING name",
                )?
                .query_row(
                    params![id.as_str(), text.get(), Timestamp::now().to_string()],
                    |row| row.get(0),
                )
                .optional()?;
            if settled {
                transaction
                    .prepare_cached("DELETE FROM intents WHERE vm = ?1")?
                    .execute([id.as_str()])?;
            }
            transaction.commit()?;
            let Some(name) = name.and_then(|name| name.parse::<VmName>().ok()) else {
                return Ok(Err(StoreError::NoSuchVm { id }));
            };
            let durable = durability == Durability::Power;
            if let Err(error) = mirror::write(vms_dir, &id, &name, &text, durable) {
                tracing::warn!(vm = %id, error = %chain(&error), "the mirror of a VM was not written");
            }
            Ok(Ok(()))
        })
        .await
    }

    /// Changes a VM's name, and its document with it; the name must be free. Survives a power cut.
    pub async fn rename_vm<T: Serialize>(
        &self,
        id: &VmId,
        name: &VmName,
        document: &T,
    ) -> Result<(), StoreError> {
        let text = encode(id, document)?;
        let (id, name) = (id.clone(), name.clone());
        self.call("renaming a VM", move |connection, vms_dir| {
            set_durability(connection, Durability::Power)?;
            let changed = connection.execute(
                "UPDATE vms SET name = ?2, document = ?3, updated_at = ?4 WHERE id = ?1",
                params![id.as_str(), name.as_str(), text.get(), Timestamp::now().to_string()],
            );
            match changed {
                Ok(0) => return Ok(Err(StoreError::NoSuchVm { id })),
                Ok(_) => {}
                Err(error) if is_taken(&error) => return Ok(Err(StoreError::NameTaken { name })),
                Err(error) => return Err(error),
            }
            if let Err(error) = mirror::write(vms_dir, &id, &name, &text, true) {
                tracing::warn!(vm = %id, error = %chain(&error), "the mirror of a VM was not written");
            }
            Ok(Ok(()))
        })
        .await
    }

    /// Returns whether there is a row of a VM, readable or not.
    pub async fn has_vm(&self, id: &VmId) -> Result<bool, StoreError> {
        let id = id.clone();
        self.call("looking for a VM", move |connection, _| {
            let query = "SELECT EXISTS (SELECT 1 FROM vms WHERE id = ?1)";
            connection.query_row(query, [id.as_str()], |row| row.get(0)).map(Ok)
        })
        .await
    }

    /// Removes a VM and its intent; returns whether there was one. Survives a power cut.
    pub async fn delete_vm(&self, id: &VmId) -> Result<bool, StoreError> {
        let id = id.clone();
        self.call("deleting a VM", move |connection, _| {
            set_durability(connection, Durability::Power)?;
            connection
                .execute("DELETE FROM vms WHERE id = ?1", [id.as_str()])
                .map(|rows| Ok(rows > 0))
        })
        .await
    }

    /// Records that `step` is about to be done for a VM; it replaces the VM's earlier intent.
    pub async fn intend(
        &self,
        vm: &VmId,
        step: &'static str,
        op_id: &OperationId,
    ) -> Result<(), StoreError> {
        let (vm, op_id) = (vm.clone(), op_id.clone());
        self.call("recording an intent", move |connection, _| {
            set_durability(connection, Durability::Process)?;
            connection
                .prepare_cached(
                    "INSERT INTO intents (vm, step, op_id, started_at) VALUES (?1, ?2, ?3, ?4) \
                     ON CONFLICT (vm) DO UPDATE SET step = excluded.step, op_id = excluded.op_id, \
                     started_at = excluded.started_at",
                )?
                .execute(params![vm.as_str(), step, op_id.as_str(), Timestamp::now().to_string()])
                .map(|_| Ok(()))
        })
        .await
    }

    /// Returns all intents; one that cannot be read is left out, since its VM's row is what counts.
    pub async fn intents(&self) -> Result<Vec<Intent>, StoreError> {
        self.call("reading intents", |connection, _| {
            let mut statement =
                connection.prepare_cached("SELECT vm, step, op_id, started_at FROM intents")?;
            let rows = statement.query_map([], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, String>(3)?,
                ))
            })?;
            let mut found = Vec::new();
            for row in rows {
                let (vm, step, op_id, started_at) = row?;
                if let (Ok(vm), Ok(op_id), Ok(started_at)) =
                    (vm.parse(), op_id.parse(), started_at.parse())
                {
                    found.push(Intent { vm, step, op_id, started_at });
                }
            }
            Ok(Ok(found))
        })
        .await
    }

    async fn call<T: Send + 'static>(
        &self,
        act: &'static str,
        work: impl FnOnce(&mut Connection, &Path) -> rusqlite::Result<Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            // A panic inside a transaction rolled it back, so the connection behind a poisoned
            // mutex is sound.
            let mut connection = inner.connection.lock().unwrap_or_else(PoisonError::into_inner);
            let vms_dir = inner.state_dir.join("vms");
            work(&mut connection, &vms_dir)
                .unwrap_or_else(|source| Err(StoreError::Database { act, source }))
        })
        .await
        .unwrap_or(Err(StoreError::Interrupted { act }))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn encode<T: Serialize>(id: &VmId, document: &T) -> Result<Box<RawValue>, StoreError> {
    serde_json::value::to_raw_value(document)
        .map_err(|source| StoreError::Encode { id: id.clone(), source })
}

/// Whether a name that is another's is what was wrong with a statement.
fn is_taken(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation)
}

fn type_row<T: DeserializeOwned>(id: &str, name: &str, document: &str) -> Result<VmRow<T>, String> {
    Ok(VmRow {
        id: id.parse().map_err(|error| format!("id: {error}"))?,
        name: name.parse().map_err(|error| format!("name: {error}"))?,
        document: serde_json::from_str(document).map_err(|error| error.to_string())?,
    })
}

/// In WAL mode NORMAL survives the end of the process and FULL also a power cut (SQLite,
/// `PRAGMA synchronous`).
fn set_durability(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    let level = match durability {
        Durability::Process => "NORMAL",
        Durability::Power => "FULL",
    };
    connection.pragma_update(None, "synchronous", level)
}

const CORRUPT_PREFIX: &str = "banger.db.corrupt-";

/// What an existing database file turned out to be.
enum Found {
    Healthy(Connection, i64),
    Damaged(String),
}

fn open_blocking(lock: StateLock) -> Result<(Store, Vec<String>), StoreError> {
    let state_dir = lock.state_dir().to_owned();
    let vms_dir = state_dir.join("vms");
    mirror::make_private_dir(&vms_dir)?;
    let path = state_dir.join(DATABASE_NAME);
    let mut warnings = Vec::new();
    let (mut connection, version) = match examine(&path)? {
        Found::Healthy(connection, version) => (connection, version),
        Found::Damaged(problem) => {
            let aside = set_aside(&path)?;
            let warning = format!(
                "the store {} was damaged ({problem}); it was moved to {} and rebuilt",
                path.display(),
                aside.display()
            );
            tracing::warn!("{warning}");
            warnings.push(warning);
            match examine(&path)? {
                Found::Healthy(connection, version) => (connection, version),
                Found::Damaged(problem) => {
                    return Err(StoreError::Io {
                        act: "making the store",
                        path,
                        source: std::io::Error::other(problem),
                    });
                }
            }
        }
    };
    if version > migrate::SCHEMA_VERSION {
        return Err(StoreError::Newer { path, found: version, known: migrate::SCHEMA_VERSION });
    }
    migrate::migrate(&mut connection, version)
        .map_err(|source| StoreError::Database { act: "migrating tables", source })?;
    if version == 0 {
        import_mirrors(&mut connection, &vms_dir, &mut warnings)?;
    }
    let inner = Inner { connection: Mutex::new(connection), state_dir, _lock: lock };
    Ok((Store { inner: Arc::new(inner) }, warnings))
}

/// Opens the database, making it where there is none, and checks all of it.
fn examine(path: &Path) -> Result<Found, StoreError> {
    let result = (|| -> rusqlite::Result<Result<(Connection, i64), String>> {
        let connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        // Read before the journal mode is changed: a newer build's database stays as it is.
        let version = migrate::version(&connection)?;
        if version > migrate::SCHEMA_VERSION {
            return Ok(Ok((connection, version)));
        }
        let check: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
        if check != "ok" {
            return Ok(Err(check));
        }
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if !mode.eq_ignore_ascii_case("wal") {
            tracing::warn!(mode, "the store's file system does not support SQLite's WAL");
        }
        if version > 0 && !has_tables(&connection)? {
            return Ok(Err("tables are missing".to_owned()));
        }
        Ok(Ok((connection, version)))
    })();
    match result {
        Ok(Ok((connection, version))) => Ok(Found::Healthy(connection, version)),
        Ok(Err(problem)) => Ok(Found::Damaged(problem)),
        Err(error)
            if matches!(
                error.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
            ) =>
        {
            Ok(Found::Damaged(error.to_string()))
        }
        Err(source) => Err(StoreError::Database { act: "opening the database", source }),
    }
}

fn has_tables(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT count(*) = 3 FROM sqlite_schema WHERE type = 'table' \
         AND name IN ('vms', 'intents', 'meta')",
        [],
        |row| row.get(0),
    )
}

fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let mut stamp = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let parent = path.parent().unwrap_or_else(|| Path::new("."));
    let mut aside = parent.join(format!("{CORRUPT_PREFIX}{stamp}"));
    while aside.exists() {
        stamp.push('x');
        aside = parent.join(format!("{CORRUPT_PREFIX}{stamp}"));
    }
    for suffix in ["", "-wal", "-shm"] {
        let with_suffix = |base: &Path| {
            let mut name = base.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        match std::fs::rename(with_suffix(path), with_suffix(&aside)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(|source| StoreError::Io {
                act: "moving aside",
                path: with_suffix(path),
                source,
            })?,
        }
    }
    Ok(aside)
}

/// Fills a new database from the mirrors, if there are any.
fn import_mirrors(
    connection: &mut Connection,
    vms_dir: &Path,
    warnings: &mut Vec<String>,
) -> Result<(), StoreError> {
    let (mirrors, problems) = mirror::read_all(vms_dir)?;
    let failed = |source| StoreError::Database { act: "rebuilding VMs", source };
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let mut imported = 0_usize;
    for mirror in mirrors {
        let added = transaction
            .execute(
                "INSERT OR IGNORE INTO vms (id, name, document, updated_at) VALUES (?1, ?2, ?3, ?4)",
                params![
                    mirror.id.as_str(),
                    mirror.name.as_str(),
                    mirror.document.get(),
                    Timestamp::now().to_string()
                ],
            )
            .map_err(failed)?;
        if added == 0 {
            warnings.push(format!("VM {} was not rebuilt: its name is taken", mirror.id));
        }
        imported += added;
    }
    transaction.commit().map_err(failed)?;
    if imported > 0 {
        let warning = format!("{imported} VMs were rebuilt from their vm.json files");
        tracing::warn!("{warning}");
        warnings.push(warning);
    }
    for problem in problems {
        let warning = format!("not rebuilt: {problem}");
        tracing::warn!("{warning}");
        warnings.push(warning);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
