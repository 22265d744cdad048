from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from s3_server import SOCKET, S3Server, refuse
from synthetic_targets import IDENTITY, assert_same_targets, make_target, mixed_targets
from test_docs import ROOT, commands, own_data, own_recipe
from warm import vgid

from vgid.cache.manifest import manifest_name, manifest_numbers
from vgid.cache.object_store import ObjectStore
from vgid.cache.reader import open_cache
from vgid.cache.schema import Target
from vgid.cache.sql import run_sql
from vgid.cache.store import LocalStore, Store, open_store
from vgid.cache.writer import CacheWriter
from vgid.errors import CacheError, ConfigError

SCRIPT = Path(__file__).with_name("writing_process.py")
TESTS = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "object-stores.md"


@pytest.fixture
def url(bucket: str) -> str:
    return f"s3://{bucket}/caches/one"


def write(cache: str | Store, rows: list[Target], *, rows_per_part: int = 4) -> None:
    with CacheWriter(cache, **IDENTITY, rows_per_part=rows_per_part) as writer:
        for row in rows:
            writer.add(row)


def objects(s3: S3Server, bucket: str) -> dict[str, bytes]:
    client = s3.client()
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def is_conditional_write(request) -> bool:
    return request["REQUEST_METHOD"] == "PUT" and request.get("HTTP_IF_NONE_MATCH") == "*"


def test_rows_come_back_from_a_bucket_as_they_went_in(s3, bucket, url):
    rows = mixed_targets(0, 12)

    write(url, rows)

    cache = open_cache(url)
    assert cache.location == url
    assert_same_targets(list(cache.iter_targets()), rows)
    named = {part.path for part in cache.manifest.parts}
    logs = {manifest_name(number) for number in manifest_numbers(cache.store)}
    assert {key.removeprefix("caches/one/") for key in objects(s3, bucket)} == named | logs | {"README.md"}


def test_a_rerun_adds_nothing_and_touches_nothing(s3, bucket, url):
    write(url, mixed_targets(0, 12))
    before = objects(s3, bucket)

    write(url + "/", mixed_targets(0, 12)[::-1], rows_per_part=5)

    assert objects(s3, bucket) == before


def test_a_whole_bucket_can_be_a_cache_beside_nothing(bucket):
    write(f"s3://{bucket}", [make_target(0)])

    assert_same_targets(list(open_cache(f"s3://{bucket}/").iter_targets()), [make_target(0)])


def test_an_object_that_marks_a_folder_is_no_file(s3, bucket):
    """Consoles make one for every folder."""
    s3.client().put_object(Bucket=bucket, Key="cache/data/", Body=b"")
    s3.client().put_object(Bucket=bucket, Key="cache/data/part", Body=b"x")

    assert open_store(f"s3://{bucket}/cache").names() == ["data/part"]


def test_four_writers_at_once_lose_and_double_nothing(s3, bucket, url):
    ranges, refused, barrier = [(0, 20), (5, 25), (10, 30), (0, 30)], [], Barrier(4)

    def watch(request, start_response, serve):
        body = serve()
        if is_conditional_write(request) and b"PreconditionFailed" in b"".join(body):
            refused.append(request["PATH_INFO"])
        return body

    def run(first: int, last: int) -> None:
        barrier.wait(timeout=60)
        write(url, mixed_targets(first, last), rows_per_part=3)

    s3.fault = watch
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(run, *range_) for range_ in ranges]:
            done.result()

    cache = open_cache(url)
    assert any("/manifest/" in path for path in refused), "nobody raced"
    assert_same_targets(list(cache.iter_targets()), mixed_targets(0, 30))
    assert set(cache.store.names("data")) == {part.path for part in cache.manifest.parts}
    assert f"manifest {cache.manifest.number}\n" in cache.store.read("README.md").decode()


def test_a_killed_writer_is_continued_to_the_same_rows(s3, url):
    expected, puts = mixed_targets(0, 30), []

    def count(request, start_response, serve):
        puts.append(request["REQUEST_METHOD"] == "PUT")
        return serve()

    s3.fault = count
    command = [sys.executable, str(SCRIPT), url, "0", "30", "3"]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"}) as writer:
        deadline = time.monotonic() + 60
        while sum(puts) < 12:
            assert time.monotonic() < deadline and writer.poll() is None
            time.sleep(0.01)
        writer.kill()
    s3.fault = None
    assert 0 < len(list(open_cache(url).iter_targets())) < 30

    write(url, expected, rows_per_part=10)

    assert_same_targets(list(open_cache(url).iter_targets()), expected)


@pytest.mark.parametrize("kind", ["data", "manifest"])
def test_a_flipped_bit_is_refused_and_the_object_is_named(s3, bucket, url, kind):
    write(url, mixed_targets(0, 6))
    name = open_cache(url).manifest.parts[0].path if kind == "data" else open_store(url).names("manifest")[-1]
    content = bytearray(open_store(url).read(name))
    content[len(content) // 2] ^= 1
    s3.client().put_object(Bucket=bucket, Key=f"caches/one/{name}", Body=bytes(content))

    for read in (lambda: list(open_cache(url).iter_targets()), lambda: run_sql(url, "SELECT * FROM targets")):
        with pytest.raises(CacheError, match=f"{url}/{name}"):
            read()


def test_sql_reads_a_bucket(url):
    rows = mixed_targets(0, 12)
    write(url, rows)

    found = run_sql(url, "SELECT split, count(*) AS n FROM targets GROUP BY split ORDER BY split").to_pylist()

    assert found == [{"split": split, "n": sum(row.split == split for row in rows)} for split in ("forget", "retain")]


def test_a_write_whose_answer_is_lost_is_not_taken_for_anothers(s3, url):
    """The client repeats it, and finds its own object there."""
    lost = []

    def lose_the_first_answer(request, start_response, serve):
        body = serve()
        if is_conditional_write(request) and request["PATH_INFO"] not in lost:
            lost.append(request["PATH_INFO"])
            request[SOCKET].close()
        return body

    s3.fault = lose_the_first_answer
    store = open_store(url)
    assert store.create("part", b"mine")
    assert not store.create("part", b"another's")

    write(f"{url}/cache", mixed_targets(0, 12))

    assert_same_targets(list(open_cache(f"{url}/cache").iter_targets()), mixed_targets(0, 12))
    assert manifest_numbers(open_store(f"{url}/cache")) == [1, 2, 3, 4]
    assert {path.split("/")[-2] for path in lost} >= {"manifest", "forget", "retain"}


class Doubting(ObjectStore):
    """Says of the first object of every name that it was taken, as a store must that cannot know better."""

    def create(self, name: str, data: bytes) -> bool:
        super().create(name, data)
        return False


def test_a_writer_that_is_told_it_lost_against_itself_loses_and_doubles_nothing(url):
    write(Doubting(url), mixed_targets(0, 12))

    cache = open_cache(url)
    assert_same_targets(list(cache.iter_targets()), mixed_targets(0, 12))
    assert set(cache.store.names("data")) == {part.path for part in cache.manifest.parts}
    assert manifest_numbers(cache.store) == [1, 2, 3, 4]


def test_a_write_that_meets_another_on_its_way_is_tried_again(s3, url):
    met = []

    def conflict_once(request, start_response, serve):
        if is_conditional_write(request) and not met:
            met.append(request["PATH_INFO"])
            return refuse(start_response, "409 Conflict", "ConditionalRequestConflict", "A conflicting operation.")
        return serve()

    s3.fault = conflict_once

    assert open_store(url).create("part", b"content")
    assert met and open_store(url).read("part") == b"content"


def test_an_object_that_is_deleted_under_our_eyes_is_made_again(s3, bucket, url):
    deleted = []

    def delete_first(request, start_response, serve):
        if request["REQUEST_METHOD"] == "GET" and not deleted:
            deleted.append(True)
            s3.client().delete_object(Bucket=bucket, Key="caches/one/part")
        return serve()

    s3.fault = delete_first

    assert open_store(url).create("part", b"content")
    assert open_store(url).read("part") == b"content"


def test_a_service_that_ignores_the_condition_is_refused_before_it_harms(s3, url):
    def ignore(request, start_response, serve):
        request.pop("HTTP_IF_NONE_MATCH", None)
        return serve()

    s3.fault = ignore

    with pytest.raises(CacheError, match="overwrites an object that it was told to make only if there is none"):
        CacheWriter(url, **IDENTITY)


@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_service_that_gives_back_other_bytes_is_an_error(s3, url, has_checksums):
    def flip(request, start_response, serve):
        if request["REQUEST_METHOD"] == "PUT":
            body = bytearray(request["wsgi.input"].read(int(request["CONTENT_LENGTH"])))
            body[-1] ^= 1
            request["wsgi.input"] = io.BytesIO(body)
            if not has_checksums:
                for name in [name for name in request if "CHECKSUM" in name]:
                    del request[name]
        return serve()

    s3.fault = flip

    with pytest.raises(OSError, match="checksum" if has_checksums else "other bytes than were written"):
        open_store(url).create("part", b"content")


def read_or_write(what: str, url: str) -> None:
    if what == "read":
        open_cache(url)
    else:
        CacheWriter(url, **IDENTITY)


@pytest.mark.parametrize("what", ["read", "write"])
def test_a_missing_bucket_is_one_line_and_not_an_empty_cache(s3, what):
    with pytest.raises(CacheError, match=r"s3://no-such-bucket/x: .*The specified bucket does not exist; check bucket"):
        read_or_write(what, "s3://no-such-bucket/x")


@pytest.mark.parametrize("what", ["read", "write"])
def test_an_endpoint_that_knows_nothing_of_s3_is_not_an_empty_cache(s3, url, what):
    def not_found(request, start_response, serve):
        start_response("404 Not Found", [])
        return []

    s3.fault = not_found

    with pytest.raises(CacheError, match=r"manifest cannot be read \(.*Not Found"):
        read_or_write(what, url)


@pytest.mark.parametrize("what", ["read", "write"])
def test_unknown_credentials_are_one_line(s3, url, what):
    with s3.asking_for_credentials(), pytest.raises(CacheError, match="Access Key Id you provided does not exist"):
        read_or_write(what, url)


@pytest.mark.parametrize("what", ["read", "write"])
def test_missing_credentials_are_one_line(url, what, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(CacheError, match="Unable to locate credentials; check bucket, credentials and endpoint"):
        read_or_write(what, url)


@pytest.mark.parametrize("what", ["read", "write"])
def test_an_unreachable_endpoint_is_one_line(url, what, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    with pytest.raises(
        CacheError, match=r'Could not connect to the endpoint URL: "http://127.0.0.1:9/.*; check bucket'
    ):
        read_or_write(what, url)


def test_a_bucket_that_may_only_be_read_says_so_and_can_be_read(s3, url):
    write(url, mixed_targets(0, 3))

    def deny_writing(request, start_response, serve):
        if request["REQUEST_METHOD"] in ("PUT", "DELETE"):
            return refuse(start_response, "403 Forbidden", "AccessDenied", "Access Denied")
        return serve()

    s3.fault = deny_writing

    assert len(list(open_cache(url).iter_targets())) == 3
    with pytest.raises(CacheError, match=rf"cannot write {url}/data/.*Access Denied"):
        write(url, mixed_targets(0, 6))


@pytest.mark.parametrize("protocol", ["memory", "http", "ftp", "simplecache::s3", "s4"])
def test_a_protocol_without_exclusive_creation_is_refused_by_name(protocol):
    with pytest.raises(ConfigError, match=f"{protocol}:// cannot make a file only if there is none.* s3://"):
        open_store(f"{protocol}://bucket/cache")


@pytest.mark.parametrize("url", ["s3://", "s3:///cache"])
def test_a_url_without_a_bucket_is_refused(url):
    with pytest.raises(ConfigError, match="names no bucket"):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [("s3://bucket/x", "s3fs", "'vgid[s3]'"), ("gs://bucket/x", "gcsfs", "gcsfs"), ("abfs://c/x", "adlfs", "adlfs")],
)
def test_a_missing_package_is_named(url, module, package):
    code = f"import sys; sys.modules[{module!r}] = None; from vgid.cache.store import open_store; open_store({url!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert f"needs a package that is not installed: pip install {package}" in done.stderr


def test_a_path_is_a_directory():
    assert isinstance(open_store("runs/cache"), LocalStore)
    assert isinstance(open_store("file:///runs/cache"), LocalStore)


def test_the_commands_of_the_page_run(bucket, tmp_path, monkeypatch):
    """In order and word for word, but for the bucket's name, the engine (vLLM takes long to load) and the size."""
    own_data(tmp_path)
    own_recipe(tmp_path, ROOT / "README.md", "my-recipe.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    few = {"teacher": ["--engine", "transformers", "--limit", "4"], "distill": ["--allow-partial"]}
    ran = {}
    for arguments in commands(PAGE):
        here = [word.replace("s3://bucket/", f"s3://{bucket}/") for word in arguments]
        done = vgid(*here, *few.get(here[0], []))
        assert done.returncode == 0, f"vgid {here}\n{done.stderr[-2000:]}"
        ran[here[0]] = done.stdout
    assert ran.keys() == {"teacher", "cache", "sql", "distill"}
    assert "4 rows" in ran["cache"] and ran["sql"].count("noise+icu") == 1
    assert (tmp_path / "student" / "model.safetensors").exists()
    assert list((tmp_path / "home").rglob("*.arrow"))


def test_a_bad_url_on_the_command_line_is_one_line_and_an_exit_code(s3):
    unknown = vgid("sql", "ftp://host/cache", "SELECT 1")
    missing = vgid("sql", "s3://no-such-bucket/cache", "SELECT 1")

    assert unknown.returncode == 2 and missing.returncode == 1
    assert "ftp://" in unknown.stderr and "bucket does not exist" in missing.stderr
    assert len(unknown.stderr.splitlines()) == len(missing.stderr.splitlines()) == 1
