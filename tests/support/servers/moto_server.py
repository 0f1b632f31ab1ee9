"""Moto as a server on a port of the loopback interface, which answers one request at a time: otherwise its conditions are not
exact. Its arguments are the port, and if it is to encrypt, the files with its certificate and key. Nothing is kept when it ends.

Requests are read side by side: a client that is stopped or cut off before it has sent its own keeps no other client waiting.

Moto decides by policies who may do what, but for all services as if each request were about all resources, and says no in a form that
DynamoDB does not have. Here, it is about the table, and the form is DynamoDB's."""

import io
import json
import sys
from functools import cache
from threading import Lock

from moto.core.authorization import ActionAuthenticatorMixin
from moto.core.exceptions import JsonRESTError
from moto.iam.access_control import IAMRequest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple


class DynamoDbRequest(IAMRequest):
    def _raise_signature_does_not_match(self):
        raise JsonRESTError(
            "InvalidSignatureException", "The request signature we calculated does not match the signature you provided."
        )

    def _raise_invalid_access_key(self, _):
        raise JsonRESTError("UnrecognizedClientException", "The security token included in the request is invalid.")

    def _raise_access_denied(self):
        message = f"User: {self._access_key.arn} is not authorized to perform: {self._action}"
        raise JsonRESTError("AccessDeniedException", message)


def authorize(responses, resource="*"):
    if "DynamoDB_20120810" not in responses.headers.get("X-Amz-Target", ""):
        return authorize_others(responses, resource)
    table = json.loads(responses.raw_body).get("TableName", "")
    resource = f"arn:aws:dynamodb:{responses.region}:{responses.current_account}:table/{table}"
    return responses._authenticate_and_authorize_action(DynamoDbRequest, resource)


authorize_others = ActionAuthenticatorMixin._authenticate_and_authorize_normal_action
ActionAuthenticatorMixin._authenticate_and_authorize_normal_action = authorize

# For each request, it would list a directory of two hundred services, and try their patterns.
DomainDispatcherApplication.get_backend_for_host = cache(DomainDispatcherApplication.get_backend_for_host)
application = DomainDispatcherApplication(create_backend_app)
answering = Lock()


def one_at_a_time(environ, start_response):
    is_chunked = environ.get("wsgi.input_terminated")
    length = -1 if is_chunked else int(environ.get("CONTENT_LENGTH") or 0)
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
    with answering:
        return list(application(environ, start_response))


run_simple(
    "127.0.0.1",
    int(sys.argv[1]),
    one_at_a_time,
    threaded=True,
    ssl_context=tuple(sys.argv[2:4]) or None,
)
