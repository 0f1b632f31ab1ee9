"""Locks, from Python."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import meltano_serializer
from meltano_serializer import Held, Lost, SerializerError, lock

PROGRAM = shutil.which("serializer")
PACKAGE = Path(meltano_serializer.__file__).parent
HOLDS = "with lock({name!r}, **{place!r}):\n print('in', flush=True)\n sys.stdin.readline()"


def held_by(other, name, place):
    holder = other(HOLDS.format(name=name, place=place))
    assert holder.line() == "in"
    return holder


def is_free(name, place):
    with lock(name, timeout=0, **place):
        return True


def status(name, files):
    command = [PROGRAM, "status", "--json", "--dir", files["dir"], name]
    return json.loads(subprocess.check_output(command))["locks"][0]


def broken(name, files):
    """Breaks the lock, in a process other than its owner: the shell."""
    script = '"$0" unlock --force --dir "$1" "$2" 2>/dev/null; exit $?'
    subprocess.run(["sh", "-c", script, PROGRAM, files["dir"], name], check=True)


def waiting(name, files):
    """Returns when a process is queued; fails after some minutes."""
    for _ in range(10_000):
        if status(name, files)["waiters"]:
            return
        time.sleep(0.02)
    pytest.fail("nothing waits")


def test_two_processes_exclude_each_other_and_the_second_learns_of_the_first(other, name, place):
    holder = held_by(other, name, place)
    for timeout in (0, 0.2):
        with pytest.raises(Held) as error, lock(name, timeout=timeout, **place):
            pytest.fail("two are in")
        assert error.value.code == 75 and error.value.holder["pid"] == holder.process.pid
        assert f"pid {holder.process.pid}" in str(error.value)
    assert holder.end() == 0
    assert is_free(name, place)


def test_no_increment_of_four_processes_is_lost(other, name, files, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    adds = f"""
for _ in range(5):
    with lock({name!r}, dir={files['dir']!r}):
        with open({str(counter)!r}) as file: number = int(file.read())
        with open({str(counter)!r}, "w") as file: file.write(str(number + 1))
"""
    assert [one.end() for one in [other(adds) for _ in range(4)]] == [0] * 4
    assert counter.read_text() == "20"


def test_the_lock_of_a_killed_process_is_free(other, name, place):
    holder = held_by(other, name, place)
    holder.process.kill()
    with lock(name, timeout=120, **place):
        pass


def test_an_exception_unlocks_and_passes(name, place):
    with pytest.raises(ZeroDivisionError), lock(name, **place):
        1 / 0
    assert is_free(name, place)


@pytest.mark.parametrize("level", ["info", "error"])
def test_two_names_nest_and_one_name_does_not(name, files, monkeypatch, level):
    monkeypatch.setenv("LOG_LEVEL", level)
    with lock(name, **files), lock("b" + name, **files):
        with pytest.raises(SerializerError, match="already locked by this process"):
            with lock(name, **files):
                pytest.fail("not reentrant")
        assert status(name, files)["holder"]["pid"] == os.getpid()
        # Another spelling of the directory, in another thread.
        twice = {"dir": files["dir"] + "/../" + Path(files["dir"]).name}
        errors = []

        def enter():
            try:
                with lock(name, **twice):
                    pass
            except SerializerError as error:
                errors.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert "already locked by this process" in str(errors[0])
    assert is_free(name, files) and is_free("b" + name, files)


def test_threads_exclude_each_other_and_wait_no_longer_than_they_should(name, files):
    inside, most, late = [], [], []

    @lock(name, **files)
    def work():
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    threads = [threading.Thread(target=lambda: [work() for _ in range(3)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 9

    def wait():
        try:
            with lock(name, timeout=0.1, **files):
                pass
        except Held as error:
            late.append(error.holder["pid"])

    with lock(name, **files):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    assert late == [os.getpid()]


def test_a_decorator_locks_each_call(name, files):
    @lock(name, **files)
    def load(day, *, rows):
        """Loads."""
        return day, rows, status(name, files)["state"]

    assert load.__doc__ == "Loads."
    assert load(1, rows=2) == load(1, rows=2) == (1, 2, "held")
    assert is_free(name, files)

    async def coroutine():
        pass

    async def generator():
        yield

    for lazy in (coroutine, generator):
        with pytest.raises(TypeError):
            lock(name)(lazy)
    # Hidden from the decorator; the lock would end before the body begins.
    with pytest.raises(TypeError):
        lock(name, **files)(lambda: generator())()
    assert is_free(name, files)


def test_a_lock_whose_end_cannot_be_told_is_not_taken_for_held(other, name, files):
    holder = held_by(other, name, files)
    blind = other(f"""
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try:
    with lock({name!r}, timeout=0, **{files!r}):
        print('in', flush=True)
except SerializerError as error:
    print(error, flush=True)
""")
    assert "SIGCHLD is ignored" in blind.line()
    assert holder.end() == 0 and is_free(name, files)


def test_a_release_that_is_interrupted_before_it_begins_is_repeated(name, files, monkeypatch):
    start, verbs = lock._start, []

    def interrupted(self, verb, *more, **options):
        verbs.append(verb)
        if verbs == ["lock", "unlock"]:
            raise KeyboardInterrupt
        return start(self, verb, *more, **options)

    monkeypatch.setattr(lock, "_start", interrupted)
    with pytest.raises(KeyboardInterrupt), lock(name, **files):
        pass
    assert is_free(name, files)


def test_two_places_are_refused(name, files):
    with pytest.raises(TypeError):
        lock(name, store="postgres://db/x", **files)


def test_slots_and_shared_locks_are_held_together(other, name, files):
    for options in ({"slots": 2}, {"shared": True}):
        held_by(other, name + str(options), {**files, **options})
        with lock(name + str(options), timeout=0, **files, **options):
            pass


def test_an_interrupted_waiter_holds_nothing_and_leaves_no_process(other, name, files):
    holder = held_by(other, name, files)
    # A shell's background job ignores SIGINT, and its children inherit that.
    waiter = other(f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with lock({name!r}, dir={files['dir']!r}): print('in', flush=True)
except KeyboardInterrupt:
    try: print('left', os.waitpid(-1, os.WNOHANG), flush=True)
    except ChildProcessError: print('interrupted', flush=True)
sys.stdin.readline()
""")
    waiting(name, files)
    waiter.process.send_signal(signal.SIGINT)
    assert waiter.line() == "interrupted"
    assert status(name, files)["waiters"] == []
    assert holder.end() == 0
    assert is_free(name, files) and waiter.end() == 0


def test_a_lost_lock_is_reported_at_the_end(other, name, files):
    with pytest.raises(Lost) as error, lock(name, **files):
        broken(name, files)
        holder = held_by(other, name, files)
    assert error.value.code == 76 and error.value.holder["pid"] == holder.process.pid
    with pytest.raises(ZeroDivisionError), lock("b" + name, **files):
        broken("b" + name, files)
        1 / 0


def test_a_forked_child_leaves_the_lock_to_its_parent(other, name, files):
    parent = other(f"""
with lock({name!r}, dir={files['dir']!r}):
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1], flush=True)
        sys.stdin.readline()
""")
    # The child left the block without an error.
    assert parent.line() == "0"
    assert status(name, files)["holder"]["pid"] == parent.process.pid
    assert parent.end() == 0


def test_messages_pass_through_and_errors_are_exceptions(name, files, capsys):
    with lock(name, **files):
        pass
    shown = capsys.readouterr()
    assert shown.err.startswith("serializer: locked `") and shown.out == ""
    with pytest.raises(SerializerError, match="slots") as error, lock(name, slots=0):
        pass
    assert error.value.code == 2 and capsys.readouterr().err == ""
    with lock("is already locked by this process", **files):
        pass


def test_the_program_is_found_as_aws_lambda_lays_it_out(name, files, tmp_path):
    # As after `pip install --target`. Only /tmp is writable, and HOME is unset.
    task = tmp_path / "task"
    shutil.copytree(PACKAGE, task / "meltano_serializer")
    (task / "bin").mkdir()
    os.symlink(PROGRAM, task / "bin" / "serializer")
    code = "from meltano_serializer import lock\n"
    code += f"with lock({name!r}, dir={files['dir']!r}): print('in')"
    environment = {"PYTHONPATH": str(task), "PYTHONDONTWRITEBYTECODE": "1"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, cwd="/proc",
                           capture_output=True, text=True, check=True)
    assert shown.stdout == "in\n"
    (task / "bin" / "serializer").unlink()
    environment["PATH"] = str(tmp_path)
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                           text=True, check=False)
    assert "SerializerError: cannot find the program `serializer`" in shown.stderr


def test_the_types_are_strict():
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, str(PACKAGE)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout
