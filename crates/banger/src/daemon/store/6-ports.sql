-- A port of a guest's that is listened for on this machine while the VM runs. It goes with the VM.
CREATE TABLE ports (
    vm_id   TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    -- Where on this machine.
    address TEXT NOT NULL,
    port    INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
    guest   INTEGER NOT NULL CHECK (guest BETWEEN 1 AND 65535),
    PRIMARY KEY (vm_id, address, port)
) STRICT;
