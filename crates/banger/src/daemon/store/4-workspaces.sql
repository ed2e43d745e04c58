-- A git work tree that was shipped into a VM. It goes with the VM.
CREATE TABLE workspaces (
    vm_id             TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    -- The tree's top on this machine, and its directory in the guest.
    host              TEXT NOT NULL,
    guest             TEXT NOT NULL,
    -- The commit that it stood on, and the branch in the guest, where there is one.
    commit_id         TEXT NOT NULL,
    branch            TEXT,
    -- How it was shipped, to be shipped again.
    include_untracked INTEGER NOT NULL,
    full_history      INTEGER NOT NULL,
    readonly          INTEGER NOT NULL,
    -- Seconds since 1970.
    pushed_at         INTEGER NOT NULL,
    pulled_at         INTEGER,
    -- The newest commit that a pull made of it.
    pulled_commit     TEXT,
    -- 1: commands have run since, and may have changed files.
    unpulled          INTEGER NOT NULL
) STRICT;
