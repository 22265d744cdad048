"""Stores to test: a directory, and a bucket of a real S3 server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from s3_server import ENVIRONMENT, S3Server

from vgid.cache.store import Store, open_store

_numbers = count()


@pytest.fixture(scope="session")
def _running_s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(_running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, and an environment in which everything that speaks S3 finds it, and this alone."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": _running_s3.url}.items():
        monkeypatch.setenv(name, value)
    yield _running_s3
    _running_s3.fault = None


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """Name of a new bucket."""
    name = f"bucket-{next(_numbers)}"
    s3.client().create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["directory", "bucket"])
def store(request: pytest.FixtureRequest) -> Store:
    """An empty store of each kind."""
    if request.param == "directory":
        return open_store(request.getfixturevalue("tmp_path") / "cache")
    return open_store(f"s3://{request.getfixturevalue('bucket')}/cache")
