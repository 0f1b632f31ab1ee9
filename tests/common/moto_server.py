"""Moto as a server on a port of the loopback interface, which answers one request at a time: with threads, its conditions are not
exact. Its arguments are the port, and if it is to encrypt, the files with its certificate and key. Nothing is kept when it ends."""

import sys

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple


class Handler(WSGIRequestHandler):
    # One connection must not keep all others waiting until it ends, so each is for one request.
    protocol_version = "HTTP/1.0"


run_simple(
    "127.0.0.1",
    int(sys.argv[1]),
    DomainDispatcherApplication(create_backend_app),
    threaded=False,
    request_handler=Handler,
    ssl_context=tuple(sys.argv[2:4]) or None,
)
