//! The text after the lists of options: examples, variables, exit codes.

pub const AFTER_HELP: &str = "\
Examples:
  Around one command:
      serializer run -- dbt run
  In a shell script (the script owns the lock):
      serializer lock && dbt run; serializer unlock
  In a Meltano pipeline, as a utility plugin named `dbtmutex`:
      serializer plugin > dbtmutex.yml
      meltano add --from-ref dbtmutex.yml dbtmutex
      meltano run tap-x target-y dbt:deps dbtmutex:lock dbt:run dbtmutex:unlock
  To see the holder:
      serializer status
  On many hosts, with a shared store:
      SERIALIZER_STORE=postgres://etl@db/meltano serializer run -- dbt run

Environment variables (each option names its own: `serializer lock --help`; a
flag beats its variable, and an empty one counts as unset, but SERIALIZER_STORE
must not be empty):
  SERIALIZER_FILE_NAME, SERIALIZER_STORE, SERIALIZER_PASSWORD_FILE,
  SERIALIZER_DIR (a relative one starts at MELTANO_PROJECT_ROOT),
  SERIALIZER_MAX_ATTEMPTS, SERIALIZER_SLEEP_SECONDS, SERIALIZER_TIMEOUT,
  SERIALIZER_SLOTS, SERIALIZER_LEASE_SECONDS, SERIALIZER_ON_LOST,
  SERIALIZER_OWNER_PID, SERIALIZER_ORPHANS, SERIALIZER_EVENTS, SERIALIZER_REASON,
  LOG_LEVEL, LOG_TIMESTAMPS, LOG_LEVELS, MELTANO_LOG_JSON

Exit codes:
  0   done
  1   failed
  2   wrong usage or setting
  75  busy: still held by another process when waiting ended
  76  the lock was lost while it was held
  77  refused: another process holds the lock
  79  `lock --once`: the key is done
  80  `once`, `lock --once`: the key is given up
  126 the command cannot be run
  127 the command is not found
  128 + n  signal n ended the command
  Otherwise, `run` ends with the exit code of its command.

Files:
  /tmp/serializer.lck              the lock, if neither a name nor a directory is set
  NAME.queue, NAME.broken          its waiters; notices of broken locks
  .serializer.*.tmp                left by a kill, and removed later; locks cannot be called so
  .meltano/serializer/             keys and tasks, in a Meltano project
  ~/.local/state/serializer/       keys and tasks elsewhere
  serializer.toml                  the tasks of `serializer schedule`

`serializer COMMAND --help` has details.";

pub const RUN_USAGE: &str = "serializer run [OPTIONS] [--] CMD [ARG]...
       serializer run [OPTIONS] -c SCRIPT";

pub const RUN_HELP: &str = "\
Examples:
  serializer run -- dbt run --select sales
  serializer run --timeout 10m -- dbt run    # waits ten minutes at most
  serializer run -c 'dbt deps && dbt run'
  serializer run --slots 3 --name taps.lck -- ./load.sh    # three at a time
  serializer run --name-from-command -n -- ./sync.sh    # never twice at once
  serializer run --name-from-command --wait-and-skip -- ./refresh.sh

The lock belongs to the command, and is released when that ends, however it does. Signals reach \
the command. The exit code is the command's, 128 + n if signal n ended it, 127 if it is not found \
and 126 if it cannot be run; 76 if it succeeded, but the lock was lost meanwhile. In a store, the \
lock has a lease, which `run` renews: if it cannot, or the lock is broken, it ends the command \
(TERM, then KILL), and the exit code is 76. The command finds its fencing token in \
SERIALIZER_FENCING_TOKEN.";

pub const LOCK_USAGE: &str = "serializer lock [OPTIONS] [NAME]
       serializer lock [OPTIONS] --once KEY";

pub const LOCK_HELP: &str = "\
Examples:
  serializer lock && dbt run; serializer unlock
  serializer lock --timeout 10m || exit    # waits ten minutes at most
  serializer lock --no-wait && { dbt run; serializer unlock; }
  serializer lock warehouse.lck --dir ~/locks
  token=$(serializer lock --store postgres://etl@db/meltano --print-token)
  serializer lock --once load --per day || exit     # 79: done today

The lock belongs to the parent process (the script, the Meltano run), and is stale once that has \
ended: the next `lock` takes it over at once. Locking what the same process holds already succeeds \
with a warning. Between the tries, `lock` wakes up as soon as the lock is released or its owner \
ends. If the lock is still held when waiting ends, it fails with exit code 75. For a lock in a \
store, a process stays behind that renews its lease, and releases it when the owner ends.";

pub const UNLOCK_USAGE: &str = "serializer unlock [OPTIONS] [NAME]
       serializer unlock [OPTIONS] --once KEY";

pub const UNLOCK_HELP: &str = "\
Examples:
  serializer unlock
  serializer unlock --force    # breaks the lock, and names its holder
  serializer unlock --once load --note '512 rows'

Only the process that locked can unlock; after its end, any process can. Anything else is refused \
with exit code 77. If the lock was lost meanwhile (its lease was not renewed, or it was broken), \
it fails with 76.";

pub const WAIT_HELP: &str = "\
Examples:
  serializer wait --timeout 10m && echo 'the warehouse is not being loaded'
  serializer wait load.lck dbt.lck
  serializer wait --once load --timeout 14m     # until the key is done

Each lock was free at some moment of the wait, and may be held again when `wait` returns. Only \
`lock` excludes other processes.";

pub const BREAK_HELP: &str = "\
Examples:
  serializer break dbt.lck    # shows the holder, and asks
  serializer status --json | jq -r '.locks[].holders[] | .pid, .token'
  serializer break dbt.lck --token 6f0c0d21a7d34e0c8b8d9f5b7a3c1e42

Only the acquisition that has this token loses the lock: a later holder keeps it. \
The process is not ended, and learns of the loss only when it unlocks; but `run` in a store stops \
its command at the next renewal.";

pub const STATUS_HELP: &str = "\
Examples:
  serializer status
  serializer status --all --dir ~/locks
  serializer status --watch
  serializer status --once
  serializer status --exit-code load.lck && echo free
  serializer status --json | jq -r '.locks[].state'";

pub const DOCTOR_HELP: &str = "\
Examples:
  serializer doctor
  serializer doctor load.lck --store postgres://etl@db/meltano
  meltano invoke dbtmutex:doctor    # with Meltano's settings
  serializer doctor --json | jq '.checks[] | select(.state != \"ok\")'

It locks nothing, and shows no passwords. The exit code is 1 if a check is an error. \
`serializer initialize` also writes, replaces and removes a record, as a test.";

pub const ONCE_USAGE: &str = "serializer once [OPTIONS] KEY [--] CMD [ARG]...
       serializer once [OPTIONS] KEY -c SCRIPT";

pub const ONCE_HELP: &str = "\
Examples:
  serializer once 2026-11-29 -- ./load.sh      # unless this key is done
  */15 * * * *  serializer once load --per day -n -- ./load.sh    # crontab
  serializer once \"$(date +%F)\" -- meltano run tap-shop target-dwh dbt:run

A key runs until it succeeds. From then on, the command is skipped: for good, or until --per or \
--valid-for ends. While another process runs the key, this one waits, and then acts on the result \
of that run. An interrupted run (its process or host has died) is run again. The command finds its \
key in SERIALIZER_ONCE_KEY, and the number of its run in SERIALIZER_TRY. Without a store or --dir, \
keys are files in .meltano/serializer of the Meltano project, or in ~/.local/state/serializer.";

pub const FLOCK_USAGE: &str = "serializer flock [OPTIONS] FILE CMD [ARG]...
       serializer flock [OPTIONS] FILE -c SCRIPT";

pub const FLOCK_HELP: &str = "\
Examples:
  */5 * * * *  serializer flock -n /tmp/sync.lock ./sync.sh
  serializer flock -w 10 -E 4 sync.lock -c 'dbt run'

FILE is a lock file of this program, and excludes only users of this program. An empty file that \
flock(1) has left there, or that `mktemp` has made, is free at once; any other file, and a \
directory, is refused. Options may be abbreviated, and mean what flock(1) says. A lock of --fcntl \
is that of FILE.fcntl. What needs a file descriptor (--fd, --unlock) or a part of a file (--start, \
--length) is refused.";

pub const SCHEDULE_START_HELP: &str = "\
Examples:
  serializer schedule next               # checks serializer.toml
  SERIALIZER_STORE=postgres://etl@db/meltano serializer schedule start
  serializer schedule start --meltano    # the schedules of the project
  serializer schedule start --crontab jobs.cron

On SIGTERM, it starts no more tasks, waits for those that run, and exits with 0.
It reads the tasks again on SIGHUP, and within ten seconds of a change of the file.";
