"""Keys that run once, from Python."""

import os
import re
from pathlib import Path

import pytest

from meltano_serializer import AlreadyDone, GivenUp, Held, once


def test_a_key_runs_once(name, place):
    with once(name, **place):
        pass
    with pytest.raises(AlreadyDone) as error, once(name, **place):
        pytest.fail("it ran twice")
    assert error.value.code == 79 and error.value.holder["state"] == "done"


def test_a_failed_key_runs_again_until_it_is_given_up(name, place):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), once(name, tries=2, **place):
            1 / 0
    with pytest.raises(GivenUp) as error, once(name, tries=2, **place):
        pytest.fail("it was given up")
    ends = error.value.holder["ends"]
    assert [(end["try"], end["how"]) for end in ends] == [(n, "ZeroDivisionError") for n in (1, 2)]


def test_a_running_key_is_waited_for(other, name, files):
    place = f"{name!r}, dir={files['dir']!r}"
    runner = other(f"with once({place}):\n print('in', flush=True)\n sys.stdin.readline()")
    assert runner.line() == "in"
    with pytest.raises(Held) as error, once(name, timeout=0, **files):
        pytest.fail("two run it")
    assert error.value.holder["pid"] == runner.process.pid
    waiter = other(f"try:\n with once({place}): print('ran')\nexcept AlreadyDone: print('done')")
    assert runner.end() == 0
    assert waiter.line() == "done"


def test_a_killed_run_is_run_again(other, name, files):
    place = f"{name!r}, dir={files['dir']!r}"
    runner = other(f"with once({place}):\n print('in', flush=True)\n sys.stdin.readline()")
    assert runner.line() == "in"
    runner.process.kill()
    with once(name, timeout=120, **files):
        pass


def test_a_decorated_function_returns_none_once_it_is_done(name, files):
    calls = []

    @once(name, per="day", **files)
    def load(day):
        calls.append(day)
        if len(calls) == 1:
            raise AlreadyDone("of another key, inside")
        return "loaded"

    with pytest.raises(AlreadyDone, match="inside"):
        load(1)
    assert [load(2), load(3)] == ["loaded", None] and calls == [1, 2]


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SERIALIZER_DIR", str(tmp_path))
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    page = page.replace("postgres://etl@db/meltano", os.environ["TEST_STORE"])
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    calls = []
    names = {"load": lambda *day: calls.append(day), "day": "2026-11-29", "STORE": None}
    for block in (*blocks[:5], blocks[-1].replace("run_your_etl", "load")):
        exec(block, names)
    assert len(calls) >= 3
    exec(blocks[5], names)
    assert (names["load"](), names["load"]()) == (512, None)
