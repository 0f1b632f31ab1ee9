#!/usr/bin/env python3
"""Records the animation of the README, docs/images/demo.svg, from two real terminals.

    cargo build && scripts/record.py target/debug/serializer
    scripts/record.py --frame 9.5 PROGRAM > frame.svg    # one moment, to look at

Requires Linux, bash and the right to create namespaces: the terminals have their own `/tmp` and host
name. All processes in the picture really run.
"""

import fcntl
import html
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

COLUMNS, ROWS = 80, 7
# Times in seconds, and events.
SCRIPT = [
    (0.3, "caption", "The second run waits for the first, and its turn comes:"),
    (0.5, "type", 0, "serializer run --name dbt -- ./load.sh"),
    (2.0, "type", 1, "serializer run --name dbt -- ./report.sh"),
    (9.5, "caption", "kill -9 of the holder and its wrapper: the next one takes over at once"),
    (9.8, "type", 0, "serializer run --name dbt -- ./load.sh"),
    (13.0, "kill", 1),
    (19.0, "end"),
]
# The scripts that the terminals run.
WORK = {"load.sh": "echo 'loading orders …'; sleep 5; echo loaded",
        "report.sh": "echo 'writing the report …'; sleep 60"}
SECONDS_A_KEY = 0.03

LEFT, LINE, CHARACTER = 16, 19, 8.43
COLOURS = {
    "back": "#0d1117",
    "frame": "#30363d",
    "text": "#e6edf3",
    "prompt": "#7ee787",
    "caption": "#d2a8ff",
}


class Terminal:
    """A bash on a pseudo-terminal, and what its screen shows."""

    def __init__(self):
        self.lines, self.row, self.column, self.rest = [""] * ROWS, 0, 0, ""
        pid, self.fd = pty.fork()
        if pid == 0:
            path = f"/tmp/bin:{os.environ['PATH']}"
            environment = {"PATH": path, "TERM": "xterm", "PS1": "$ ", "HOME": "/tmp"}
            os.chdir("/tmp")
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting"], environment)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def feed(self, data):
        """Draws output: lines, carriage returns, and erased lines."""
        self.rest += data
        # An escape sequence may arrive in two parts.
        whole = re.match(r"(?:[^\x1b]|\x1b\[[0-9;?]*[A-Za-z])*", self.rest).group()
        self.rest = self.rest[len(whole):]
        for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.", whole, re.DOTALL):
            if token == "\r":
                self.column = 0
            elif token == "\n":
                self.down()
            elif token == "\b":
                self.column = max(self.column - 1, 0)
            elif token == "\x1b[K":
                self.lines[self.row] = self.lines[self.row][: self.column]
            elif token.startswith("\x1b") or token < " ":
                pass
            else:
                if self.column == COLUMNS:
                    self.column = 0
                    self.down()
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + token + line[self.column + 1:]
                self.column += 1

    def down(self):
        if self.row + 1 < ROWS:
            self.row += 1
        else:
            self.lines = self.lines[1:] + [""]

    def kill(self):
        """Sends SIGKILL to all processes in the foreground."""
        os.killpg(os.tcgetpgrp(self.fd), signal.SIGKILL)


def record():
    """The texts of the screens and the caption at each change: (time, texts by place)."""
    terminals, caption = [Terminal(), Terminal()], ""
    # A key, and the time to press it.
    keys = []
    for event in (event for event in SCRIPT if event[1] == "type"):
        begin, _, terminal, text = event
        for place, key in enumerate(text + "\n"):
            keys.append((begin + place * SECONDS_A_KEY, "key", terminal, key))
    others = [event for event in SCRIPT if event[1] != "type"]
    events = sorted(others + keys, key=lambda event: event[0])
    frames, start = [], time.monotonic()
    while events:
        now = time.monotonic() - start
        patience = max(0, min(events[0][0] - now, 0.05))
        ready, _, _ = select.select([it.fd for it in terminals], [], [], patience)
        for terminal in terminals:
            if terminal.fd in ready:
                terminal.feed(os.read(terminal.fd, 65536).decode("utf-8", "replace"))
        now = time.monotonic() - start
        while events and events[0][0] <= now:
            _, what, *rest = events.pop(0)
            if what == "key":
                os.write(terminals[rest[0]].fd, rest[1].encode())
            elif what == "caption":
                caption = rest[0]
            elif what == "kill":
                terminals[rest[0]].kill()
        texts = {("caption", 0): caption}
        for number, terminal in enumerate(terminals):
            texts.update({(number, row): line.rstrip() for row, line in enumerate(terminal.lines)})
        if not frames or frames[-1][1] != texts:
            frames.append((now, texts))
    for terminal in terminals:
        os.write(terminal.fd, b"exit\n")
    return frames, SCRIPT[-1][0]


def spans(frames, end):
    """Each text with its place, and the time when it appears and disappears."""
    open_at, found = {}, []
    for now, texts in [*frames, (end, {})]:
        for place, (since, text) in list(open_at.items()):
            if texts.get(place) != text:
                if text:
                    found.append((place, text, since, now))
                del open_at[place]
        for place, text in texts.items():
            open_at.setdefault(place, (now, text))
    return found


def height_of(terminal):
    return 40 + terminal * (ROWS * LINE + 34)


def draw(place, text, attributes):
    kind, row = place
    if kind == "caption":
        colour = COLOURS["caption"]
        return f'<text x="{LEFT}" y="24" fill="{colour}"{attributes}>{html.escape(text)}</text>'
    y = height_of(kind) + 22 + row * LINE
    shown = html.escape(text)
    if shown.startswith("$ "):
        shown = f'<tspan fill="{COLOURS["prompt"]}">$</tspan>{shown[1:]}'
    return f'<text x="{LEFT}" y="{y}"{attributes}>{shown}</text>'


def svg(frames, end, moment):
    width, height = round(2 * LEFT + COLUMNS * CHARACTER), height_of(2)
    font = "14px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace"
    style = [f"text{{font:{font};white-space:pre}}"]
    body, names = [], {}
    for place, text, since, until in spans(frames, end):
        if moment is not None:
            if since <= moment < until:
                body.append(draw(place, text, ""))
            continue
        if (since, until) not in names:
            name = names[since, until] = f"t{len(names)}"
            to = "" if until >= end else f"{100 * until / end:.2f}%{{opacity:0}}"
            begin = f"0%{{opacity:0}}{100 * since / end:.2f}%{{opacity:1}}"
            style.append(f"@keyframes {name}{{{begin}{to}}}")
            style.append(f".{name}{{animation:{name} {end:g}s step-end infinite}}")
        body.append(draw(place, text, f' class="{names[since, until]}"'))
    frame = "".join(
        f'<rect x="6" y="{height_of(terminal)}" width="{width - 12}" height="{ROWS * LINE + 18}"'
        f' rx="6" fill="{COLOURS["back"]}" stroke="{COLOURS["frame"]}"/>'
        for terminal in (0, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" fill="{COLOURS["text"]}" xml:space="preserve">'
        f'<style>{"".join(style)}</style>'
        f'<rect width="{width}" height="{height}" rx="8" fill="#161b22"/>{frame}\n'
        + "\n".join(body) + "\n</svg>\n"
    )


def main():
    arguments = sys.argv[1:]
    moment = None
    if arguments[:1] == ["--frame"]:
        moment, arguments = float(arguments[1]), arguments[2:]
    program = os.path.abspath(arguments[0])
    if os.environ.get("RECORDING") != "1":
        alone = 'mount -t tmpfs none /tmp && hostname etl1 && exec "$@"'
        command = ["unshare", "--map-root-user", "--uts", "--pid", "--fork", "--mount-proc"]
        command += ["sh", "-c", alone, "sh", sys.executable, __file__, *sys.argv[1:]]
        sys.exit(subprocess.call(command, env={**os.environ, "RECORDING": "1"}))
    os.mkdir("/tmp/bin")
    os.symlink(program, "/tmp/bin/serializer")
    for name, work in WORK.items():
        with open(f"/tmp/{name}", "w", encoding="utf-8") as file:
            file.write(f"#!/bin/bash\n{work}\n")
        os.chmod(f"/tmp/{name}", 0o755)
    text = svg(*record(), moment)
    if moment is None:
        target = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../docs/images/demo.svg")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w", encoding="utf-8") as file:
            file.write(text)
        print(f"{os.path.normpath(target)}: {len(text.encode())} bytes")
    else:
        sys.stdout.write(text)


main()
