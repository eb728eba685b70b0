CREATE TABLE vms (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    document   TEXT NOT NULL,
    updated_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What is being done to the host for a VM: written before the step, removed when it is done or undone.
CREATE TABLE intents (
    vm         TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    step       TEXT NOT NULL,
    op_id      TEXT NOT NULL,
    started_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
