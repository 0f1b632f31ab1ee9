"""What workload.py and facts.py share: processes on the hosts."""

import json
import socket


class Process:
    """A process on a host that runs Python code line by line, and keeps its variables."""

    def __init__(self, host):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(f"/mnt/sockets/{host}")
        self.file = self.socket.makefile("rw")
        self.run("import ctypes, errno, fcntl, json, os, subprocess, time")

    def send(self, code):
        """Begins to run it; `receive` waits for its end."""
        self.file.write(json.dumps(code) + "\n")
        self.file.flush()

    def receive(self):
        line = self.file.readline()
        if not line:
            raise EOFError("the process on the host has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["answer"]

    def run(self, code):
        self.send(code)
        return self.receive()

    def get(self, expression):
        return self.run(f"answer = {expression}")
