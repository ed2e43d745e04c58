-- Which templates were gone on from last: the highest number. No time, which may be set back.
ALTER TABLE templates ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
-- What templates were of that could not be made, or not be gone on from.
CREATE TABLE template_failures (
    -- Counts up: which of them are the newest.
    number        INTEGER PRIMARY KEY AUTOINCREMENT,
    -- As a template's.
    key           TEXT NOT NULL UNIQUE,
    -- How often one after the other.
    failures      INTEGER NOT NULL
) STRICT;
