-- The replicated mail queue, format 3. Every node has the same rows in all tables but `bodies` and the last
-- three columns of `meta`, and the same but for
-- sums that are null: see sums.py. A message's id is `log index << 12 | ordinal`: see types.py.

CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    applied_index INTEGER NOT NULL,
    stamp_ms INTEGER NOT NULL,      -- the machine's time: it never goes back
    digest BLOB NOT NULL,           -- at applied_index; see digest.py
    point_index INTEGER NOT NULL,   -- the newest multiple of 64 applied, and the digest at it
    point BLOB NOT NULL,
    counters TEXT NOT NULL,         -- JSON: what the queue holds and has seen
    notes BLOB NOT NULL,            -- the cluster's own, kept for it in the same transaction
    copied_index INTEGER NOT NULL,  -- this node's own: living bodies in entries up to here are in `bodies`
    syncs INTEGER NOT NULL,         -- this node's own: how often everything was synced
    sum INTEGER,                    -- see sums.py: here, and in every table that has one; since format 3
    copied_sum INTEGER
) STRICT;

INSERT INTO meta VALUES (1, 0, 0, zeroblob(32), 0, zeroblob(32), '{}', x'', 0, 0, NULL, NULL);

CREATE TABLE messages (             -- a row goes when its last recipient is final
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,            -- the node that may deliver it
    epoch INTEGER NOT NULL,         -- log index at which the owner became the owner
    held INTEGER NOT NULL,
    due_ms INTEGER NOT NULL,        -- the earliest next attempt; 0: one may be made now
    flags INTEGER NOT NULL,         -- 1 SMTPUTF8, 2 8BITMIME, 4 bounce, 8 has chunks
    accepted_ms INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,    -- of the whole body
    body_offset INTEGER NOT NULL,   -- where the body, or what follows its chunks, is in the command of entry `id >> 12`
    body_bytes INTEGER NOT NULL,
    accepted_by TEXT NOT NULL,
    sender TEXT NOT NULL,           -- '' is the null reverse-path
    client_host TEXT NOT NULL,
    helo TEXT NOT NULL,
    auth TEXT NOT NULL,
    sum INTEGER
) STRICT;

-- A message that leaves at the first attempt never enters this index.
CREATE INDEX messages_due ON messages (owner, due_ms) WHERE due_ms > 0;

CREATE TABLE recipients (           -- final ones too, as long as their message is there
    message INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    address TEXT NOT NULL,
    state INTEGER NOT NULL,         -- 0 queued, 1 deferred, 2 delivered, 3 failed, 4 expired
    attempts INTEGER NOT NULL,
    next_attempt_ms INTEGER NOT NULL,
    last_attempt_ms INTEGER NOT NULL,
    last_status TEXT NOT NULL,
    last_reply TEXT NOT NULL,
    sum INTEGER,
    PRIMARY KEY (message, ordinal)
) STRICT, WITHOUT ROWID;

CREATE TABLE chunks (               -- the earlier parts of a long body: one an entry
    entry INTEGER PRIMARY KEY,
    node TEXT NOT NULL,
    upload INTEGER NOT NULL,
    number INTEGER NOT NULL,
    message INTEGER,                -- null while the upload is under way
    stamp_ms INTEGER NOT NULL,
    body_offset INTEGER NOT NULL,
    body_bytes INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX chunks_upload ON chunks (node, upload, number) WHERE message IS NULL;
CREATE INDEX chunks_message ON chunks (message) WHERE message IS NOT NULL;

CREATE TABLE bodies (               -- this node's own: copies made before the log forgot the entry
    part INTEGER PRIMARY KEY,       -- id of the message, or `entry << 12` of a chunk
    content BLOB NOT NULL,
    sum INTEGER
) STRICT;

CREATE TABLE nodes (
    node TEXT PRIMARY KEY,
    incarnation INTEGER NOT NULL,   -- log index of its last coming up
    up INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE history (              -- a ring: the last 10,000 messages that left
    slot INTEGER PRIMARY KEY,
    message INTEGER NOT NULL,
    ended_index INTEGER NOT NULL,
    node TEXT NOT NULL,
    how TEXT NOT NULL,              -- 'done' or 'deleted'
    accepted_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL,
    sender TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    is_bounce INTEGER NOT NULL,
    recipients TEXT NOT NULL        -- JSON; at most 20, those that failed first
) STRICT;

CREATE TABLE keys (                 -- the key-value map; since format 2, see _UPGRADES in store.py
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    revision INTEGER NOT NULL,      -- index of the entry that wrote it
    sum INTEGER
) STRICT;

PRAGMA application_id = 0x736D7471; -- "smtq"
PRAGMA user_version = 3;
