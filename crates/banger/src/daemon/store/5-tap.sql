-- The tap, where it was there before the VM; else its name follows from the VM's id.
ALTER TABLE vms ADD COLUMN tap TEXT;
