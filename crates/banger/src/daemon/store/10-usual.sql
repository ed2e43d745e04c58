-- How long the stages of a VM's start usually take.
CREATE TABLE usual (
    image  TEXT NOT NULL,
    -- cold: by a boot; warm: from a template; init: by a boot with the image's own init.
    way    TEXT NOT NULL,
    stage  TEXT NOT NULL,
    us     INTEGER NOT NULL,
    PRIMARY KEY (image, way, stage)
) STRICT;
