-- Whether the image's own init is the guest's first process.
ALTER TABLE vms ADD COLUMN init INTEGER NOT NULL DEFAULT 0;
