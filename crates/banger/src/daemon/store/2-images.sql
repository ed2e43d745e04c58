-- A name for an image or a kernel of the store of files; several may name the same.
CREATE TABLE assets (
    kind        TEXT NOT NULL CHECK (kind IN ('image', 'kernel')),
    name        TEXT NOT NULL,
    -- 64 hexadecimal digits, and the folder's name.
    digest      TEXT NOT NULL,
    -- What it takes on the disk.
    size_bytes  INTEGER NOT NULL,
    -- Of a kernel.
    version     TEXT,
    -- Where it is from, for a person.
    source      TEXT NOT NULL,
    -- 1: Debian's own, the first choice where none is named.
    is_debians  INTEGER NOT NULL,
    -- Seconds since 1970.
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;
