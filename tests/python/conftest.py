"""Other processes, and two places for locks: files, and a DynamoDB table."""

import os
import subprocess
import sys
import uuid

import pytest


class Other:
    """Another Python, which runs `code`, and reads and writes lines."""

    def __init__(self, code, **options):
        code = f"import os, sys\nfrom meltano_serializer import *\n{code}"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, **options)

    def line(self):
        return self.process.stdout.readline().strip()

    def end(self):
        """Ends its input, and returns its exit code."""
        self.process.communicate("\n", timeout=300)
        return self.process.returncode


@pytest.fixture
def other():
    started = []

    def start(code, **options):
        started.append(Other(code, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def name():
    return f"{uuid.uuid4()}.lck"


@pytest.fixture(params=["files", "dynamodb"])
def place(request, tmp_path):
    if request.param == "files":
        return {"dir": str(tmp_path)}
    return {"store": os.environ["TEST_STORE"], "lease_seconds": 60}


@pytest.fixture
def files(tmp_path):
    return {"dir": str(tmp_path)}
