"""The tables of a history file, their versions, and the migrations from each version to the next.

``PRAGMA user_version`` is the version of a file, ``PRAGMA application_id`` says that it is a history. The
comments in the statements are kept in the file, so ``sqlite3 FILE .schema`` prints the documentation.
"""

from __future__ import annotations

#: ``PRAGMA application_id`` of a history: "9pNt". Another SQLite file has another one, usually 0.
APPLICATION_ID = 0x39704E74

_VERSION_1 = (
    """
CREATE TABLE run(
  -- One run of pytest or of a command. "ended" is NULL while it runs, and stays NULL when it was killed.
  id INTEGER PRIMARY KEY,
  uuid TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL,            -- scenarios, merge, faults, explore, bench
  begun TEXT NOT NULL,           -- all times: ISO 8601 in UTC, such as 2026-11-29T02:00:00.000000+00:00
  ended TEXT,
  exit_code INTEGER,
  host TEXT NOT NULL,
  cores INTEGER NOT NULL,        -- that the run could use
  load_begin REAL,               -- load: the 1-minute load average of the host
  load_end REAL,
  harness_version TEXT NOT NULL,
  harness_commit TEXT,           -- NULL: not run from a git checkout
  harness_dirty INTEGER NOT NULL DEFAULT 0, -- 1: files of the checkout differ from harness_commit
  options TEXT NOT NULL,         -- JSON list: the options that the user gave, without --record
  shard TEXT,                    -- K/N of a run in parts
  expected INTEGER               -- the number of selected tests
)""",
    """
CREATE TABLE qemu(
  id INTEGER PRIMARY KEY,
  run_id INTEGER NOT NULL REFERENCES run(id) ON DELETE CASCADE,
  name TEXT NOT NULL,            -- as the user named it: a recipe, or a path
  version TEXT,                  -- such as 7.2.22
  package_version TEXT,          -- of a distribution's package
  build_id TEXT,                 -- the GNU build id of the binary
  git_describe TEXT,             -- of the build tree of a QEMU given by path
  path TEXT,
  UNIQUE(run_id, name)
)""",
    """
CREATE TABLE cell(
  -- What a test runs on: a QEMU, a guest kernel and a machine type.
  id INTEGER PRIMARY KEY,
  run_id INTEGER NOT NULL REFERENCES run(id) ON DELETE CASCADE,
  qemu_id INTEGER REFERENCES qemu(id) ON DELETE CASCADE,
  arch TEXT NOT NULL,
  kernel TEXT NOT NULL,          -- as the user named it
  kernel_version TEXT,           -- as "uname -r" prints it
  machine_type TEXT NOT NULL,
  accelerator TEXT,              -- kvm or tcg
  UNIQUE(run_id, qemu_id, arch, kernel, machine_type)
)""",
    """
CREATE TABLE result(
  id INTEGER PRIMARY KEY,
  run_id INTEGER NOT NULL REFERENCES run(id) ON DELETE CASCADE,
  cell_id INTEGER REFERENCES cell(id) ON DELETE CASCADE, -- NULL: a test without a guest
  nodeid TEXT NOT NULL,          -- pytest's, with the names of QEMU, kernel and machine type
  test TEXT NOT NULL,            -- the same without them: one test over cells and nights
  guarantees TEXT NOT NULL,      -- JSON list
  outcome TEXT NOT NULL,         -- passed, known bug, new failure, fixed, skipped
  signature TEXT,                -- of a failure: what failures with the same cause have in common
  cause TEXT,                    -- the first line of a failure's root cause, or the reason of a skip
  bug TEXT,                      -- the ids of known bugs, with a space between them
  begun TEXT NOT NULL,
  seconds REAL NOT NULL,         -- set-up, call and teardown together
  worker TEXT,                   -- of pytest-xdist, or "main"
  artefacts TEXT,                -- the path of the test's folder, where it was kept
  load REAL,                     -- when the test ended
  UNIQUE(run_id, nodeid)
)""",
    """
CREATE TABLE confirmation(
  -- A failed test that was run again at the end of the same run (pytest --confirm N).
  result_id INTEGER NOT NULL REFERENCES result(id) ON DELETE CASCADE,
  number INTEGER NOT NULL,       -- 1 to N
  outcome TEXT NOT NULL,         -- as in result
  signature TEXT,
  seconds REAL NOT NULL,
  artefacts TEXT,
  load REAL,
  PRIMARY KEY(result_id, number)
)""",
    """
CREATE TABLE measurement(
  result_id INTEGER NOT NULL REFERENCES result(id) ON DELETE CASCADE,
  name TEXT NOT NULL,            -- such as start, migration, qmp.median, leak.threads
  unit TEXT NOT NULL,            -- s, 1/cycle
  value REAL NOT NULL,
  PRIMARY KEY(result_id, name)
)""",
    """
CREATE TABLE running(
  -- The test that each worker of an unfinished run is running, or was running when it was killed.
  run_id INTEGER NOT NULL REFERENCES run(id) ON DELETE CASCADE,
  worker TEXT NOT NULL,
  nodeid TEXT NOT NULL,
  begun TEXT NOT NULL,
  PRIMARY KEY(run_id, worker)
)""",
    """
CREATE TABLE finding(
  -- What a run of kind explore or faults found.
  id INTEGER PRIMARY KEY,
  run_id INTEGER NOT NULL REFERENCES run(id) ON DELETE CASCADE,
  cell_id INTEGER REFERENCES cell(id) ON DELETE CASCADE,
  kind TEXT NOT NULL,            -- fault, control, finding, known bug, coverage
  name TEXT NOT NULL,            -- QEMU+FAULT, a control's QEMU, a finding's signature, an alphabet
  outcome TEXT NOT NULL,
  detail TEXT,
  artefacts TEXT
)""",
    "CREATE INDEX run_by_time ON run(begun)",
    "CREATE INDEX result_by_test ON result(test, run_id)",
    "CREATE INDEX finding_by_run ON finding(run_id)",
)

_VERSION_2 = (
    """
CREATE TABLE step_pair(
  -- How often a run of kind explore has made a step directly after another one. What is not here was never
  -- seen to be possible.
  run_id INTEGER NOT NULL REFERENCES run(id) ON DELETE CASCADE,
  alphabet TEXT NOT NULL,        -- guest, raw
  first TEXT NOT NULL,           -- a step's name; empty: the program begins with the second step
  next TEXT NOT NULL,
  times INTEGER NOT NULL,        -- 0: it was possible, and never made
  PRIMARY KEY(run_id, alphabet, first, next)
)""",
)

#: ``MIGRATIONS[n]`` are the statements that make a file of version ``n + 1`` from one of version ``n``;
#: version 0 is an empty file. A released migration is never edited: a change of the schema is one more entry.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1, _VERSION_2)
