"""A real S3 server (moto) in a process of its own, and a place between client and server where a test can interfere.

In this process it could not be: vLLM looks at every object of every imported module when it loads, and Flask, on which
moto stands, has some that raise when they are looked at.
"""

from __future__ import annotations

import http.client
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from typing import Any
from urllib.request import Request, urlopen
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import boto3

Serve = Callable[[], list[bytes]]
"""Has the server do what was asked, and gives the answer's body."""

Fault = Callable[[dict[str, Any], Any, Serve], list[bytes]]
"""Given the request, `start_response` and the server: answers the request, well or badly."""

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Nothing of the machine's own.
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}

SOCKET = "test.socket"
"""Key of a request under which its connection is found."""

_RAW_PATH = "test.raw_path"
_OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding"}


class S3Server:
    """Started by being made."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self._one_at_a_time = Lock()
        self._moto = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._moto.stdout is not None
        self._moto_port = int(self._moto.stdout.readline())
        self._front = _Front(("127.0.0.1", 0), _Handler)
        self._front.set_app(self._answer)
        self._thread = Thread(target=self._front.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._front.server_port}"

    def stop(self) -> None:
        self._front.shutdown()
        self._thread.join()
        self._front.server_close()
        self._moto.kill()
        self._moto.communicate()

    def client(self) -> Any:
        """Amazon's own client, to look into a bucket without s3fs."""
        return boto3.client("s3", endpoint_url=self.url)

    @contextmanager
    def asking_for_credentials(self) -> Iterator[None]:
        """Nobody is known here, so every access is refused."""
        self._let_in(actions="0")
        try:
            yield
        finally:
            self._let_in(actions="inf")

    def _answer(self, request: dict[str, Any], start_response: Any) -> list[bytes]:
        def serve() -> list[bytes]:
            # S3 decides a conditional write in one step, moto looks first and writes then.
            with self._one_at_a_time:
                return self._forward(request, start_response)

        return self.fault(request, start_response, serve) if self.fault else serve()

    def _forward(self, request: dict[str, Any], start_response: Any) -> list[bytes]:
        headers = {
            name.removeprefix("HTTP_").replace("_", "-"): value
            for name, value in request.items()
            if name.startswith("HTTP_") and name != "HTTP_EXPECT"
        }
        headers["Content-Type"] = request.get("CONTENT_TYPE", "")
        body = request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
        connection = http.client.HTTPConnection("127.0.0.1", self._moto_port, timeout=60)
        try:
            connection.request(request["REQUEST_METHOD"], request[_RAW_PATH], body, headers)
            answer = connection.getresponse()
            told = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OF_ONE_CONNECTION]
            start_response(f"{answer.status} {answer.reason}", told)
            return [answer.read()]
        finally:
            connection.close()

    def _let_in(self, *, actions: str) -> None:
        address, headers = f"{self.url}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urlopen(Request(address, data=actions.encode(), headers=headers)).close()


def refuse(start_response: Any, status: str, code: str, words: str) -> list[bytes]:
    """An answer of S3's that refuses."""
    start_response(status, [("Content-Type", "application/xml")])
    return [f"<Error><Code>{code}</Code><Message>{words}</Message></Error>".encode()]


class _Front(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed or cut off by a test is no news."""


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # a client asks whether to go on before it sends a body, and waits a second in 1.0

    def get_environ(self) -> dict[str, Any]:
        return super().get_environ() | {SOCKET: self.connection, _RAW_PATH: self.path}

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _run_moto() -> None:
    """Serve until stdin ends, which it does when the tests' process does, however it ends."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for every request
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _run_moto()
