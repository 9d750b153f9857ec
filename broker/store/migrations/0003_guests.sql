-- A ticket enrols one guest, once. Its name is its hash: whoever reads the store cannot use it.
CREATE TABLE ticket (
    name TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    guest TEXT NOT NULL,
    key TEXT NOT NULL,
    image TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    issued_by TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at INTEGER,
    used_by TEXT
) STRICT;
CREATE INDEX ticket_owner ON ticket (owner, issued_at);

-- Releases that count as live, one for each key and guest whose rule forbids clones.
CREATE TABLE lease (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX lease_expires_at ON lease (expires_at);

-- The evidence behind a decision, and what vouched for it.
CREATE TABLE dossier (
    decision TEXT NOT NULL PRIMARY KEY,
    data BLOB NOT NULL,
    stored_at INTEGER NOT NULL
) STRICT;
CREATE INDEX dossier_stored_at ON dossier (stored_at);

CREATE INDEX ledger_kind ON ledger (owner, kind, sequence);
