"""Locks, and keys that run once, with the program `serializer`: docs/python.md."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Coroutine, Generator
from pathlib import Path
from typing import Any, Callable, TypeVar

_R = TypeVar("_R")
_NULL = subprocess.DEVNULL
# The process owns its locks; these exclude its threads. A forked child has no other threads.
_guards: dict[str, Any] = {}
os.register_at_fork(after_in_child=_guards.clear)


class SerializerError(Exception):
    """The program failed with the exit code `code`. `holder` is the lock's holder, or the key, as
    `serializer status --json` shows it; None if it is gone."""

    def __init__(self, message: str, code: int = 1, holder: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.holder = code, holder


class Held(SerializerError):
    """The lock was still held, or the key was still running, when the timeout ended."""


class Lost(SerializerError):
    """The lock was lost while it was held: the block may have overlapped with another process."""


class AlreadyDone(SerializerError):
    """The key is done, so the block did not run."""


class GivenUp(SerializerError):
    """The key has used up its tries, so the block did not run."""


_LAZY = "write `with` in the body of a coroutine or of a generator"
_ERRORS = {75: Held, 76: Lost, 77: Lost, 79: AlreadyDone, 80: GivenUp}


def _exit_code(child: subprocess.Popen[str]) -> int:
    # Popen takes an end that is lost for a success: with SIGCHLD ignored, or reaped by others.
    with contextlib.suppress(ChildProcessError):
        if ended := os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT):
            return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    why = "SIGCHLD is ignored, or another thread waits for all processes"
    raise SerializerError(f"cannot tell how `serializer` ended: {why}", -1)


class _Block:
    def __init__(self, key: list[str], store: str | None, timeout: float | None, *options: Any):
        if store is not None and options[0]["dir"] is not None:
            raise TypeError("`dir` and `store` name two places: pass one")
        # Not on the command line, where other users could read the password.
        self._store = {} if store is None else {"SERIALIZER_STORE": store}
        self._key, self._timeout = key, timeout
        self._place, self._how = ([
            f"--{name}" if value is True else f"--{name}={value}" for name, value in group.items()
            if value is not None and value is not False] for group in options)

    def _start(self, verb: str, *more: str, **files: Any) -> subprocess.Popen[str]:
        # Beside this Python, in the `bin` of `pip install --target`, or on the PATH.
        beside = [Path(sys.executable or "/").parent, Path(__file__).parent.parent / "bin"]
        path = os.pathsep.join([*map(str, beside), os.environ.get("PATH", os.defpath)])
        if (program := shutil.which("serializer", path=path)) is None:
            raise SerializerError("cannot find the program `serializer`, here or on the PATH", 127)
        # In its own session, so that Ctrl-C reaches only this process.
        return subprocess.Popen(
            [program, verb, *self._place, *more], env={**os.environ, **self._store}, **files,
            stdin=_NULL, encoding="utf-8", errors="replace", start_new_session=True)

    def _run(self, verb: str, *more: str) -> str:
        """Runs the program. Prints its messages to `sys.stderr`; an error becomes the exception."""
        said = {"level": "error", "event": f"`serializer {verb}` failed without a message"}
        key = [f"--once={key}" for key in self._key]
        # The caller below depends on a warning.
        if os.environ.get("LOG_LEVEL", "").lower() in ("error", "critical", "fatal"):
            key.append("--log-level=warning")
        with self._start(verb, *key, *more, f"--owner-pid={os.getpid()}", "--meltano-log-json",
                         stdout=_NULL, stderr=subprocess.PIPE) as child:
            try:
                for line in child.stderr or ():
                    said = {"level": "error", "event": line.strip()}
                    with contextlib.suppress(ValueError):
                        said = json.loads(line)
                    if said["level"] != "error":
                        print("serializer:", said["event"], file=sys.stderr, flush=True)
                code = _exit_code(child)
            except BaseException:
                # An interrupted release continues; it ends within seconds.
                if verb == "lock":
                    child.kill()
                child.wait()
                raise
        if code == 0:
            return said["event"]
        names, holder = ["--once", "--", *self._key] if self._key else [], None
        status = self._start("status", "--json", *names, stdout=subprocess.PIPE, stderr=_NULL)
        with contextlib.suppress(ValueError, LookupError):
            report = json.loads(status.communicate()[0])
            holder = report["keys"][0] if self._key else report["locks"][0]["holder"]
        raise _ERRORS.get(code, SerializerError)(said["event"], code, holder)

    def __enter__(self) -> None:
        what, begun = repr((self._key, self._place, self._store)), time.monotonic()
        guard = self._guard = _guards.setdefault(what, threading.RLock())
        if not guard.acquire(timeout=-1 if self._timeout is None else self._timeout):
            raise Held("another thread holds the lock", 75, {"pid": os.getpid()})
        try:
            rest = (self._timeout or 0) - (time.monotonic() - begun)
            wait = ["--no-wait"] if rest <= 0 else [f"--timeout={rest:.3f}"]
            message = self._run("lock", *self._how, *(wait if self._timeout is not None else []))
            # By this thread, or by one with another spelling of the directory or store.
            if message.startswith("`") and "is already locked by this process" in message:
                raise SerializerError(message)
            self._pid = os.getpid()
        except BaseException as error:
            try:
                # An interrupted or killed attempt may have acquired the lock.
                if not isinstance(error, SerializerError) or error.code < 0:
                    self._unlock(error, silent=True)
            finally:
                guard.release()
            raise

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # A forked child leaves the lock to its parent.
        if self._pid == os.getpid():
            try:
                self._unlock(error)
            except SerializerError:
                raise
            except BaseException:
                # Interrupted, it may not have begun.
                with contextlib.suppress(SerializerError):
                    self._unlock(error)
                raise
            finally:
                self._guard.release()

    def _unlock(self, error: BaseException | None, silent: bool = False) -> None:
        has_failed = error is not None and self._key
        failed = ["--failed", f"--note={type(error).__name__}"] if has_failed else []
        try:
            self._run("unlock", *failed)
        except SerializerError as why:
            # An exception of the block matters more.
            if error is None:
                raise
            if not silent:
                print("serializer:", why, file=sys.stderr, flush=True)

    def _wrap(self, function: Callable[..., _R], *skip: type[BaseException]) -> Callable[..., Any]:
        if any(is_lazy(function) for is_lazy in (
                inspect.iscoroutinefunction, inspect.isgeneratorfunction,
                inspect.isasyncgenfunction)):
            raise TypeError(_LAZY)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> _R | None:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(copy.copy(self))
                except skip:
                    return None
                result = function(*args, **kwargs)
                # Its body would run after the block.
                if isinstance(result, (Coroutine, Generator, AsyncGenerator)):
                    raise TypeError(_LAZY)
                return result
        return wrapper


class lock(_Block):
    """`with lock("load"):`, or `@lock("load")`: runs while no other process holds the lock."""

    def __init__(self, name: str | None = None, *, timeout: float | None = None,
                 slots: int | None = None, shared: bool = False, reason: str | None = None,
                 dir: str | None = None, store: str | None = None,
                 lease_seconds: float | None = None) -> None:
        super().__init__([], store, timeout,
                         {"name": name, "dir": dir, "lease-seconds": lease_seconds},
                         {"slots": slots, "shared": shared, "reason": reason})

    def __call__(self, function: Callable[..., _R]) -> Callable[..., _R]:
        return self._wrap(function)


class once(_Block):
    """`with once("load"):` raises `AlreadyDone` if the key is done. A function with `@once("load")`
    then returns None."""

    def __init__(self, key: str, *, per: str | None = None, valid_for: str | None = None,
                 tries: int | None = None, interrupted: str | None = None,
                 timeout: float | None = None, reason: str | None = None, dir: str | None = None,
                 store: str | None = None, lease_seconds: float | None = None) -> None:
        super().__init__([key], store, timeout, {"dir": dir, "lease-seconds": lease_seconds},
                         {"per": per, "valid-for": valid_for, "tries": tries,
                          "interrupted": interrupted, "reason": reason})

    def __call__(self, function: Callable[..., _R]) -> Callable[..., _R | None]:
        return self._wrap(function, AlreadyDone)
