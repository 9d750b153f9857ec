-- What vendors vouch for. Only what was verified gets in, and it is verified again when it is used.
CREATE TABLE endorsement (
    name TEXT NOT NULL PRIMARY KEY,
    data BLOB NOT NULL,
    edition TEXT NOT NULL,
    kept INTEGER NOT NULL CHECK (kept IN (0, 1)),
    stored_at INTEGER NOT NULL,
    fresh_until INTEGER
) STRICT;
CREATE INDEX endorsement_oldest ON endorsement (kept, stored_at);

-- When a name, or a whole source, may be asked for again.
CREATE TABLE fetch_pause (
    name TEXT NOT NULL PRIMARY KEY,
    failures INTEGER NOT NULL,
    absent INTEGER NOT NULL CHECK (absent IN (0, 1)),
    until INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX fetch_pause_expires_at ON fetch_pause (expires_at);
