-- The journal in the order of its revs, and which changes undid which.
CREATE UNIQUE INDEX journal_rev ON journal (drive, rev);

CREATE TABLE undo (
    drive      INTEGER NOT NULL,
    first_rev  INTEGER NOT NULL,
    last_rev   INTEGER NOT NULL,
    of_first   INTEGER NOT NULL,
    of_last    INTEGER NOT NULL,
    PRIMARY KEY (drive, first_rev)
) STRICT, WITHOUT ROWID;
CREATE INDEX undo_of ON undo (drive, of_first, of_last);
