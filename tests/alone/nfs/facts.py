"""Measures what this NFS does, of what lock files rely on. Fails only where something does not exclude that has to."""

import os
import statistics
import sys
import time

from hosts import Process

well = True


def fact(text, is_right=True):
    global well
    well &= is_right
    print(text if is_right else f"WRONG: {text}", flush=True)


def milliseconds(seconds):
    each = sorted(1000 * one for one in seconds)
    return f"median {statistics.median(each):.1f} ms, {each[0]:.1f} … {each[-1]:.1f} ms of {len(each)}"


DEFINITIONS = """
import errno
os.chdir("/mnt/nfs")

def outcome(do, *args, **named):
    try:
        do(*args, **named)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]

def write(path, text):
    with open(path, "w") as file:
        file.write(text)

def lock(path, mode="r+", how=fcntl.LOCK_EX | fcntl.LOCK_NB):
    global locked
    locked = open(path, mode)
    return outcome(fcntl.flock, locked, how)

def until(condition):
    begun = time.monotonic()
    # Attributes are cached for a minute at most.
    while not condition():
        if time.monotonic() - begun > 70:
            return None
        time.sleep(0.001)
    return time.monotonic() - begun
"""

a, b = Process("a"), Process("b")
for process in a, b:
    process.run(DEFINITIONS)
    fact(process.run("""
with open("/proc/self/mountinfo") as mounts:
    answer = [line.split(" - ")[1].strip() for line in mounts if " /mnt/nfs " in line][0]
"""))


def flock():
    a.run("write('flock', ''); lock('flock')")
    taken = b.get("lock('flock')")
    fact(f"flock on the other host while it is held: {taken}", taken == "EAGAIN")
    a.run("locked.close()")
    taken = b.get("lock('flock')")
    fact(f"flock when it is free: {taken}", taken == "done")
    b.run("locked.close()")
    fact("exclusive flock of a file that is open for reading only: " + b.get("lock('flock', 'r')"))
    b.run("locked.close()")
    a.run("shared = open('flock', 'r+'); fcntl.lockf(shared, fcntl.LOCK_SH)")
    own = a.get("outcome(fcntl.flock, shared, fcntl.LOCK_EX | fcntl.LOCK_NB)")
    other = b.get("lock('flock')")
    fact(f"flock where the process has a shared record lock (fcntl): {own}; where another has: {other}")
    a.run("shared.close()")
    b.run("locked.close()")
    for where, holder in ("the other host", a), ("the same host", Process("b")):
        holder.run(DEFINITIONS)
        latencies = []
        for _ in range(10):
            holder.run("lock('flock', how=fcntl.LOCK_EX)")
            b.send("lock('flock', how=fcntl.LOCK_EX); answer = time.monotonic(); locked.close()")
            # Until it blocks; if it does not, that only makes a latency shorter.
            time.sleep(0.1)
            released = holder.run("answer = time.monotonic(); locked.close()")
            latencies.append(b.receive() - released)
        fact(f"a blocked flock is granted after a release on {where}: {milliseconds(latencies)}")


def exclusive_calls():
    for what, do in {
        "O_EXCL": "open('once', 'x').close()",
        "link": "os.link(f'from.{os.uname().nodename}', 'once')",
        "mkdir": "os.mkdir('once')",
    }.items():
        both = 0
        for process in a, b:
            process.run("write(f'from.{os.uname().nodename}', ''); os.path.exists('once')")
        for _ in range(50):
            for process in a, b:
                process.send(f"answer = outcome(lambda: {do})")
            both += [process.receive() for process in (a, b)].count("done") != 1
            a.run("subprocess.run(['rm', '-rf', 'once'])")
        fact(f"{what} by two hosts at once: {both} of 50 times not exactly one of them", both == 0)
    fact("O_TMPFILE: " + a.get("outcome(os.open, '.', os.O_TMPFILE | os.O_RDWR)"))


def how_long(what, before, warm, change, condition, settled="outcome(open, 'name') == 'done' and open('name').read() == 'old'", count=2):
    """How long the other host still sees what was there before."""
    answers = []
    for _ in range(count):
        a.run(before)
        b.run(f"until(lambda: {settled}); {warm}")
        a.run(change)
        b.send(f"answer = until(lambda: {condition})")
        answers.append(b.receive())
    fact(f"{what}: seen on the other host after " + ", ".join("never" if one is None else f"{one:.3f} s" for one in answers))


INODE = "os.stat('name').st_ino"
OPENED = """
def opened():
    try:
        with open('name') as file:
            return os.fstat(file.fileno()).st_ino
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return before
"""


def visibility():
    b.run(OPENED)
    before = "write('name', 'old'); write('new', 'new')"
    rename = "os.rename('new', 'name')"
    # A host that has just looked keeps what it saw; one that looked twice some time apart keeps it longer.
    for kept, pause in ("just seen", 0), ("known for 4 s", 4):
        warm = f"{INODE}; time.sleep({pause}); before = {INODE}"
        how_long(f"rename over a name that was {kept}, by stat", before, warm, rename, f"{INODE} != before")
        how_long(f"rename over a name that was {kept}, by open and fstat", before, warm, rename, "opened() != before")
        how_long(f"unlink of a name that was {kept}, by stat", before, warm, "os.unlink('name')", "not os.path.exists('name')")
    absent = "subprocess.run(['rm', '-f', 'name'])"
    how_long("creation of a name that was just missed, by stat", absent, "os.path.exists('name')",
             "write('name', '')", "os.path.exists('name')", "not os.path.exists('name')")
    how_long("creation of a name that was just missed, by open", absent, "os.path.exists('name')",
             "write('name', '')", "outcome(open, 'name') == 'done'", "not os.path.exists('name')")


def takeover():
    """As `replace` does it: whoever gets the flock behind a takeover has to see that the name leads elsewhere."""
    for how, first in {
        "by stat": "",
        "by stat, after making a file there": "write('own', ''); os.unlink('own')",
        "by stat, after reading the directory": "os.listdir('.')",
        "by stat, after opening the name anew": "ask(lambda: open('name').close())",
    }.items():
        seen = {}
        for _ in range(10):
            a.run("write('name', 'old'); write('new', 'new'); lock('name')")
            b.run("until(lambda: os.path.exists('name') and open('name').read() == 'old'); os.stat('name'); file = open('name', 'r+')")
            # As the server numbers them.
            old, new = (os.stat(f"/mnt/export/{name}").st_ino for name in ("name", "new"))
            b.send(f"""
old, new = {old}, {new}
def ask(what):
    try:
        return what()
    except OSError as error:
        return errno.errorcode[error.errno]
# As `replace` does, which does not block.
got = None
def tried():
    global got
    got = outcome(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return got != "EAGAIN"
until(tried)
{first}
named, held = [ask(lambda: os.stat('name').st_ino), ask(lambda: os.fstat(file.fileno()).st_ino)]
content = ask(lambda: os.pread(file.fileno(), 9, 0).decode())
names = {{old: "the old file", new: "the new file"}}
answer = f"flock {{got}}; the name leads to {{names.get(named, named)}}; fstat: {{names.get(held, held)}}, which holds {{content}}"
file.close()
""")
            # Until it blocks there.
            time.sleep(0.05)
            a.run("os.rename('new', 'name'); locked.close()")
            answer = b.receive()
            seen[answer] = seen.get(answer, 0) + 1
        for answer, count in sorted(seen.items()):
            fact(f"behind a takeover, {how}: {count} of 10 times {answer}")


HIDDEN = "f\"{sum(name.startswith('.nfs') for name in os.listdir('.'))} files .nfs…\""


def silly():
    a.run("write('name', ''); file = open('name'); os.unlink('name')")
    fact("unlinked while it is open there: " + b.get(HIDDEN))
    a.run("file.close(); write('name', ''); write('new', ''); file = open('name'); os.rename('new', 'name')")
    fact("renamed over while it is open there: " + b.get(HIDDEN))
    a.run("file.close()")
    fact("after it is closed: " + b.get(HIDDEN))
    a.run("write('name', ''); write('new', '')")
    b.run("file = open('name')")
    a.run("os.rename('new', 'name')")
    fact("renamed over while it is open on the other host only: " + b.get(HIDDEN))
    b.run("file.close()")


flock()
exclusive_calls()
silly()
takeover()
visibility()
sys.exit(0 if well else 1)
