"""A real S3 server (moto) in this process, and a place between client and server where a test can interfere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any
from urllib.request import Request, urlopen

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

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


class S3Server:
    """Started by being made."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = Lock()
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=MotoRequestHandler)
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __call__(self, request: dict[str, Any], start_response: Any) -> list[bytes]:
        def serve() -> list[bytes]:
            # S3 decides a conditional write in one step, moto looks first and writes then.
            with self._one_at_a_time:
                return list(self._moto(request, start_response))

        return self.fault(request, start_response, serve) if self.fault else serve()

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

    def _let_in(self, *, actions: str) -> None:
        address, headers = f"{self.url}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urlopen(Request(address, data=actions.encode(), headers=headers)).close()


def refuse(start_response: Any, status: str, code: str, words: str) -> list[bytes]:
    """An answer of S3's that refuses."""
    start_response(status, [("Content-Type", "application/xml")])
    return [f"<Error><Code>{code}</Code><Message>{words}</Message></Error>".encode()]
