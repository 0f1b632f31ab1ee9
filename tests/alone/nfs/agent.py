"""Runs on a host: does what it is told over a socket, one connection after the other or at once, each in a process of its own."""

import json
import os
import signal
import socketserver
import sys
import traceback


class Handler(socketserver.StreamRequestHandler):
    """A line is a JSON string, Python code; so is the answer, what the code has put into `answer`, or an error."""

    def handle(self):
        names = {}
        for line in self.rfile:
            names["answer"] = None
            try:
                exec(json.loads(line), names)  # noqa: S102
                answer = {"answer": names["answer"]}
            except BaseException:  # Whatever it is, somebody waits for it.
                answer = {"error": traceback.format_exc()}
            self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    request_queue_size = 20
    max_children = 100


path = sys.argv[1]
server = Server(path + ".new", Handler)
# Seen when it listens.
os.rename(path + ".new", path)
server.serve_forever()
