-- Times are milliseconds since the Unix epoch; bodies are JSON.

CREATE TABLE session (
    id TEXT NOT NULL PRIMARY KEY,
    body TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    used INTEGER NOT NULL DEFAULT 0 CHECK (used IN (0, 1))
) STRICT;
CREATE INDEX session_expires_at ON session (expires_at);

CREATE TABLE attestation (
    id TEXT NOT NULL PRIMARY KEY,
    session TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX attestation_expires_at ON attestation (expires_at);

CREATE TABLE used_once (
    token TEXT NOT NULL PRIMARY KEY,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX used_once_expires_at ON used_once (expires_at);

CREATE TABLE counter (
    name TEXT NOT NULL PRIMARY KEY,
    opened_at INTEGER NOT NULL,
    hits INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX counter_expires_at ON counter (expires_at);

CREATE TABLE key (
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    type TEXT NOT NULL,
    tag TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    state TEXT NOT NULL CHECK (state IN ('active', 'retired', 'destroyed')),
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    UNIQUE (owner, type, tag, version)
) STRICT;

-- In a table of its own, so that destroying a key can write it anew: pages that SQLite has split or merged keep copies
-- of cells that moved away, and secure_delete does not reach those.
CREATE TABLE key_material (
    key INTEGER NOT NULL PRIMARY KEY REFERENCES key (id),
    sealed BLOB NOT NULL
) STRICT;

CREATE TABLE record (
    kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    body TEXT,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (kind, owner, name, version)
) STRICT;

CREATE TABLE alias (
    kind TEXT NOT NULL,
    alias TEXT NOT NULL,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (kind, alias, owner, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX alias_record ON alias (kind, owner, name);

CREATE TABLE ledger (
    sequence INTEGER NOT NULL PRIMARY KEY CHECK (sequence > 0),
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    verdict TEXT NOT NULL,
    subject TEXT NOT NULL,
    body TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
CREATE INDEX ledger_owner ON ledger (owner, sequence);
CREATE INDEX ledger_subject ON ledger (owner, subject, sequence);

CREATE TRIGGER ledger_no_update BEFORE UPDATE ON ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;
