-- What a VMM told of itself: its version, and its VM's interface.
ALTER TABLE vms ADD COLUMN vmm_version TEXT;
ALTER TABLE vms ADD COLUMN mac TEXT;
