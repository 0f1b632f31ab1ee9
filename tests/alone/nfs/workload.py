"""Holds a lock on two hosts at once, or lets a holder die, and looks whether what must not happen has happened."""

import os
import sys
import time

from hosts import Process

HOLDS = int(os.environ.get("NFS_HOLDS", "100"))
# Longer than all that is to be waited for; then the whole is given up, and says so.
PATIENCE = 60
# Of the server's clock, by which files get their times.
TICK = 0.01

SETTINGS = {name: value for name, value in os.environ.items() if name.startswith("SERIALIZER_")}
ENVIRONMENT = {"PATH": os.environ["PATH"], "SERIALIZER_DIR": "/mnt/nfs", "SERIALIZER_SLEEP_SECONDS": "0.02"} | SETTINGS
# As the server sees it.
FILE = "/mnt/export/" + SETTINGS.get("SERIALIZER_FILE_NAME", "serializer.lck")
NAME = FILE.replace("/mnt/export", "/mnt/nfs")

# Part of a message with which the program may fail while the file changes, and is asked again; each time is counted.
TOLERATED = os.environ.get("NFS_TOLERATED", "")

PROGRAM = f"""
environment = {ENVIRONMENT!r}
tolerated = 0
def serializer(*args):
    ended = subprocess.run(["/mnt/bin/serializer", *args], env=environment, capture_output=True, text=True)
    return ended.returncode, ended.stdout, ended.stderr.strip()
def must(*args):
    global tolerated
    # More often in a row is no coincidence.
    for _ in range(20):
        code, stdout, stderr = serializer(*args)
        if not (code == 1 and {TOLERATED!r} and {TOLERATED!r} in stderr.splitlines()[-1]):
            break
        tolerated += 1
    assert code == 0, f"{{args}}: {{code}}: {{stderr}}"
    return stdout
"""

LOCKERS = {
    "serializer": f"""
def lock():
    must("lock", "--timeout", "{PATIENCE}s")
def unlock():
    must("unlock")
""",
    # What does not exclude: between the look and the making others come.
    "naive": """
tolerated = 0
def lock():
    for _ in range(100_000):
        if not os.path.exists("/mnt/nfs/naive"):
            return open("/mnt/nfs/naive", "w").close()
        time.sleep(0.001)
    raise RuntimeError("it never became free")
def unlock():
    try:
        os.unlink("/mnt/nfs/naive")
    except FileNotFoundError:
        pass
""",
}

HOLD = f"""
answer = []
for _ in range({HOLDS}):
    lock()
    start = time.monotonic()
    time.sleep(0.004)
    answer.append((start, time.monotonic()))
    unlock()
"""


def exclusion():
    """Four processes on two hosts hold the lock in turn; their intervals, by the one clock that they have, may not intersect."""
    queue_is_kept = os.environ.get("NFS_QUEUE") != "none"
    if not queue_is_kept:
        # What is no queue file is left alone, and nobody waits in line.
        with open(f"{FILE}.queue", "w") as file:
            file.write("none\n")
    processes = [(host, Process(host)) for host in ["a", "b", "a", "b"]]
    for _, process in processes:
        process.run(PROGRAM + LOCKERS[os.environ["NFS_LOCKER"]])
    begun = time.monotonic()
    for _, process in processes:
        process.send(HOLD)
    holds = [(start, end, host) for host, process in processes for start, end in process.receive()]
    seconds = time.monotonic() - begun

    holds.sort()
    pairs = list(zip(holds, holds[1:]))
    intersections = sum(before[1] > after[0] for before, after in pairs)
    changes = sum(before[2] != after[2] for before, after in pairs)
    print(f"{len(holds)} holds in {seconds:.1f} s, {changes} times by the other host, {intersections} intersections")
    tolerated = sum(process.get("tolerated") for _, process in processes)
    if TOLERATED:
        print(f"{tolerated} times the program was asked again because of `{TOLERATED}`")
    # What is made for this, and a file that stays because hosts share it.
    ours = [] if queue_is_kept else [os.path.basename(FILE) + ".queue"]
    ours += [os.path.basename(FILE), ".serializer-shared", "%2Eserializer.probe"] if "SERIALIZER_LEASE_SECONDS" in SETTINGS else []
    left = sorted(name for name in os.listdir("/mnt/export") if name not in ours)
    print("left behind:", *left or ["nothing"])
    # Without changes there was nothing to exclude.
    return len(holds) == 4 * HOLDS and changes >= HOLDS // 10 and intersections == 0 and left == []


# What another one has taken cannot be released: that shows as well as that they intersect.
TAKE = """
lock()
start = time.monotonic()
time.sleep(0.3)
answer = start, time.monotonic()
serializer("unlock")
"""


def takeover():
    """Two hosts find a lock that is stale for both: an owner of which nothing but a PID is known. One of them may have it."""
    processes = [(host, Process(host)) for host in ["a", "b"]]
    for _, process in processes:
        process.run(PROGRAM + LOCKERS["serializer"])
    twice = rounds = 0
    for rounds in range(1, HOLDS + 1):
        with open(FILE, "x") as file:
            file.write("4194303\n")
        for _, process in processes:
            # Both have seen it, and so keep it in their caches.
            process.run(f"until = time.monotonic() + 10\nwhile not os.path.exists({NAME!r}) and time.monotonic() < until: time.sleep(.01)")
        for _, process in processes:
            process.send(TAKE)
        (first, second) = sorted(process.receive() for _, process in processes)
        twice += first[1] > second[0]
    print(f"{rounds} takeovers, {twice} by both hosts")
    return twice == 0


class Takeover:
    """Watches on the server how the lock goes to another one. A lock file does not change once it can be seen."""

    def __init__(self):
        self.record, self.renewed = self.look()

    @staticmethod
    def look():
        with open(FILE) as file:
            return file.read(), os.fstat(file.fileno()).st_mtime

    @staticmethod
    def tokens(record):
        return {line for line in record.splitlines() if line.startswith("token=")}

    def renewal(self, lease):
        """Returns when the holder has renewed its lease."""
        first = self.renewed
        limit = time.monotonic() + lease
        while self.renewed == first:
            self.step()
            if time.monotonic() > limit:
                sys.exit("the holder does not renew its lease")

    def step(self):
        """True when the lock has gone to another one."""
        time.sleep(0.005)
        record, written = self.look()
        if self.tokens(record) - self.tokens(self.record):
            self.taken = written
            return True
        # Whoever makes sure that a state stays writes the same once more, which is no renewal.
        if record != self.record:
            self.record, self.renewed = record, written
        return False

    def came_in_time(self, what, lease):
        """Returns when it is somebody else's. That must not be before the lease is over."""
        # Ended by the waiter's patience, with a file that is not there or the whole.
        limit = time.monotonic() + PATIENCE
        while not self.step():
            if time.monotonic() > limit:
                print(f"{what}: nobody has taken the lock over in {PATIENCE} s")
                return False
        after = self.taken - self.renewed
        print(f"{what}: taken over {after:.3f} s after the last renewal, with a lease of {lease} s")
        return after >= lease - TICK


# In a namespace of PIDs, which dies as a whole. Its /proc hides the host's identity.
DIE = """
script = 'mount --bind /run/boot_id /proc/sys/kernel/random/boot_id && /mnt/bin/serializer lock && echo held && read -r line'
holder = subprocess.Popen(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script],
    env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert holder.stdout.readline() == "held\\n"
"""

WAIT = f"must('lock', '--timeout', '{PATIENCE}s')"


def lease():
    """A holder dies, or only what renews its lease; then the other host gets the lock, but not before the lease is over."""
    seconds = float(SETTINGS["SERIALIZER_LEASE_SECONDS"])
    waiter, holder = Process("b"), Process("a")
    for process in waiter, holder:
        process.run(PROGRAM)

    holder.run(DIE)
    waiter.send(WAIT)
    takeover = Takeover()
    takeover.renewal(seconds)
    holder.run("holder.kill(); holder.wait()")
    well = takeover.came_in_time("the holder and its keeper killed", seconds)
    waiter.receive()
    waiter.run("must('unlock')")

    holder.run("must('lock')")
    waiter.send(WAIT)
    takeover = Takeover()
    takeover.renewal(seconds)
    holder.run("os.kill(json.loads(must('status', '--json'))['locks'][0]['holder']['keeper_pid'], 9)")
    well &= takeover.came_in_time("its keeper killed", seconds)
    waiter.receive()
    code, _, message = holder.get("serializer('unlock')")
    print(f"its `unlock`: {code}, {message}")
    well &= code == 76
    waiter.run("must('unlock')")
    holder.run("must('lock'); must('unlock')")
    return well


sys.exit(0 if {"exclusion": exclusion, "takeover": takeover, "lease": lease}[os.environ["NFS_WORKLOAD"]]() else 1)
