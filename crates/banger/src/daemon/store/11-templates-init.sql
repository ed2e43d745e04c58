-- Whether the image's own init is the first process of the VMs that go on from it.
ALTER TABLE templates ADD COLUMN init INTEGER NOT NULL DEFAULT 0;
