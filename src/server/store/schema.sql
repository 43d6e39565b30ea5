-- Format 1 of the server's database; docs/formats.md says what each table is for.

CREATE TABLE user (
    num            INTEGER PRIMARY KEY,
    id             BLOB    NOT NULL UNIQUE,
    name           TEXT    NOT NULL,
    password       TEXT,
    totp           BLOB,
    totp_pending   BLOB,
    totp_last_step INTEGER NOT NULL DEFAULT 0,
    created_ms     INTEGER NOT NULL,
    removed_ms     INTEGER
) STRICT;
CREATE UNIQUE INDEX user_name ON user (name COLLATE NOCASE) WHERE removed_ms IS NULL;

CREATE TABLE device (
    num          INTEGER PRIMARY KEY,
    id           BLOB    NOT NULL UNIQUE,
    user         INTEGER NOT NULL REFERENCES user,
    name         TEXT    NOT NULL,
    token        BLOB    NOT NULL,
    added_ms     INTEGER NOT NULL,
    last_seen_ms INTEGER,
    revoked_ms   INTEGER
) STRICT;
CREATE INDEX device_user ON device (user);

CREATE TABLE invitation (
    secret     BLOB    PRIMARY KEY,
    user       INTEGER REFERENCES user,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE drive (
    num        INTEGER PRIMARY KEY,
    id         BLOB    NOT NULL UNIQUE,
    owner      INTEGER NOT NULL REFERENCES user,
    name       TEXT    NOT NULL,
    lineage    BLOB    NOT NULL,
    head       INTEGER NOT NULL DEFAULT 0,
    live       INTEGER NOT NULL DEFAULT 0,
    digest     BLOB    NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX drive_owner ON drive (owner);

CREATE TABLE member (
    user  INTEGER NOT NULL REFERENCES user,
    drive INTEGER NOT NULL REFERENCES drive,
    PRIMARY KEY (user, drive)
) STRICT, WITHOUT ROWID;

-- The newest version of each node; a deleted one has no parent.
CREATE TABLE node (
    drive       INTEGER NOT NULL,
    id          BLOB    NOT NULL,
    rev         INTEGER NOT NULL,
    created_rev INTEGER NOT NULL,
    author      INTEGER NOT NULL,
    parent      BLOB,
    name        BLOB,
    kind        INTEGER,
    mode        INTEGER,
    mtime_secs  INTEGER,
    mtime_nanos INTEGER,
    content     BLOB,
    len         INTEGER,
    PRIMARY KEY (drive, id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX node_place ON node (drive, parent, name) WHERE parent IS NOT NULL;
CREATE UNIQUE INDEX node_rev ON node (drive, rev);
CREATE INDEX node_modified ON node (drive, rev, created_rev) WHERE rev <> created_rev;

-- Every version of each node.
CREATE TABLE journal (
    drive       INTEGER NOT NULL,
    node        BLOB    NOT NULL,
    rev         INTEGER NOT NULL,
    prev_rev    INTEGER NOT NULL,
    author      INTEGER NOT NULL,
    time_ms     INTEGER NOT NULL,
    parent      BLOB,
    name        BLOB,
    kind        INTEGER,
    mode        INTEGER,
    mtime_secs  INTEGER,
    mtime_nanos INTEGER,
    content     BLOB,
    len         INTEGER,
    PRIMARY KEY (drive, node, rev)
) STRICT, WITHOUT ROWID;

CREATE TABLE chunk (
    drive      INTEGER NOT NULL,
    id         BLOB    NOT NULL,
    plain_len  INTEGER NOT NULL,
    pack       INTEGER NOT NULL,
    offset     INTEGER NOT NULL,
    stored_len INTEGER NOT NULL,
    PRIMARY KEY (drive, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE list (
    drive      INTEGER NOT NULL,
    id         BLOB    NOT NULL,
    file_len   INTEGER NOT NULL,
    pack       INTEGER NOT NULL,
    offset     INTEGER NOT NULL,
    stored_len INTEGER NOT NULL,
    PRIMARY KEY (drive, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE gate (
    drive             INTEGER NOT NULL,
    device            INTEGER NOT NULL,
    window_start_ms   INTEGER NOT NULL,
    passed            INTEGER NOT NULL,
    live_at_start     INTEGER NOT NULL,
    held_since_ms     INTEGER,
    approved_until_ms INTEGER,
    PRIMARY KEY (drive, device)
) STRICT, WITHOUT ROWID;

CREATE TABLE held (
    drive  INTEGER NOT NULL,
    device INTEGER NOT NULL,
    node   BLOB    NOT NULL,
    PRIMARY KEY (drive, device, node)
) STRICT, WITHOUT ROWID;

-- One row: what another process changed counts here, so that a running server looks.
CREATE TABLE notice (changes INTEGER NOT NULL) STRICT;
INSERT INTO notice VALUES (0);
