-- A VM that was saved before any command ran in it, to be gone on from. Its files lie in the folder of its id, whole before
-- this row is.
CREATE TABLE templates (
    -- 12 hexadecimal digits, and the folder's name.
    id            TEXT PRIMARY KEY,
    -- The digest of `parts`: what it is bound to, a line each.
    key           TEXT NOT NULL UNIQUE,
    parts         TEXT NOT NULL,
    -- What it was booted from.
    image         TEXT NOT NULL,
    image_digest  TEXT,
    root_path     TEXT NOT NULL,
    kernel        TEXT NOT NULL,
    kernel_path   TEXT NOT NULL,
    initrd_path   TEXT NOT NULL,
    cpus          INTEGER NOT NULL,
    memory_mib    INTEGER NOT NULL,
    -- Its files as they were when they were whole: inode, length, times.
    files         TEXT NOT NULL,
    -- What it takes on the disk.
    size_bytes    INTEGER NOT NULL,
    -- How often one after the other it could not be gone on from.
    failures      INTEGER NOT NULL,
    -- Seconds since 1970.
    created_at    INTEGER NOT NULL
) STRICT;
-- The template that the VM's disk is a layer over.
ALTER TABLE vms ADD COLUMN template TEXT;
