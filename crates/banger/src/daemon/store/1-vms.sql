-- A VM, from the moment it is asked for until it is taken away. `state` is written before the step that it names.
CREATE TABLE vms (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL UNIQUE,
    -- 0: it goes at its run's end.
    kept          INTEGER NOT NULL,
    -- Whose run it is, by process and its start time, of one that is not kept.
    caller_pid    INTEGER,
    caller_start  INTEGER,
    state         TEXT NOT NULL CHECK (state IN
                  ('planned', 'wired', 'disked', 'launched', 'ready', 'stopping', 'stopped', 'failed', 'lost')),
    -- What it is started from; the paths are the index's.
    image         TEXT NOT NULL,
    image_digest  TEXT,
    root_path     TEXT NOT NULL,
    kernel        TEXT NOT NULL,
    kernel_path   TEXT NOT NULL,
    initrd_path   TEXT NOT NULL,
    cpus          INTEGER NOT NULL,
    memory_mib    INTEGER NOT NULL,
    nat           INTEGER NOT NULL,
    disk_method   TEXT,
    disk_bytes    INTEGER NOT NULL,
    -- The address as a number; two VMs share neither.
    address       INTEGER NOT NULL UNIQUE,
    cid           INTEGER NOT NULL UNIQUE,
    vmm           TEXT,
    accel         TEXT,
    -- Of the running VMM, in the boot of `boot_id`.
    pid           INTEGER,
    boot_id       TEXT,
    agent         TEXT,
    -- Seconds since 1970.
    created_at    INTEGER NOT NULL,
    started_at    INTEGER,
    ready_ms      INTEGER,
    -- A fault as JSON.
    last_error    TEXT
) STRICT;
