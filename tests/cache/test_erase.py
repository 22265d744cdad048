from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sound_targets import FIXED, TEACHER, sound_target, token_table
from synthetic_targets import PLAN, assert_same_targets
from tampering import change_part

from vgid.cache.audit import append_entry, load_entries
from vgid.cache.encoding import profile_of
from vgid.cache.erase import Selection, erase, find
from vgid.cache.manifest import load_manifest
from vgid.cache.mapped import map_targets
from vgid.cache.reader import open_cache
from vgid.cache.schema import Target
from vgid.cache.store import LocalStore, Store, open_store
from vgid.cache.tombstones import key_path, make_key, tombstone
from vgid.cache.verify import verify_cache
from vgid.cache.writer import CacheWriter, write_part
from vgid.errors import CacheError

MARA = "person-3"
ALL = Selection(everything=True)


@pytest.fixture(autouse=True)
def _key_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGID_ERASE_KEY", str(tmp_path_factory.mktemp("key") / "erase.key"))


def rows(first: int = 0, last: int = 40) -> list[Target]:
    return [sound_target(index, split="forget" if index % 3 else "retain") for index in range(first, last)]


def of(subject: str, targets: list[Target]) -> list[Target]:
    return [row for row in targets if row.subject_id == subject]


def without(subject: str, targets: list[Target]) -> list[Target]:
    return [row for row in targets if row.subject_id != subject]


def write(store: Store, targets: list[Target], **options: Any) -> None:
    options = {"vocabulary": token_table, "rows_per_part": 8, **options}
    with CacheWriter(store, teacher=TEACHER, settings=FIXED, plan=PLAN, **options) as writer:
        for row in targets:
            writer.add(row)


def subject(name: str) -> Selection:
    return Selection(subjects=frozenset({name}))


def traces(store: Store, targets: list[Target]) -> set[str]:
    """Which files of a cache hold an id, a text or a hash of these rows, in name or content, as it is or encoded."""
    words = {
        word.encode()
        for row in targets
        for word in (row.subject_id, row.example_id, row.target_id, row.response_text, row.image_sha256)
        if word is not None
    }
    found: set[str] = set()
    for name in store.names():
        data = store.read(name)
        if name.endswith(".parquet"):
            data += repr(pq.read_table(pa.BufferReader(data)).to_pylist()).encode()
        if any(word in data or word in name.encode() for word in words):
            found.add(name)
    return found


def test_no_file_of_the_cache_holds_an_id_a_text_or_a_hash_of_who_was_erased(store):
    write(store, rows())
    killed = write_part(store, of(MARA, rows(40, 70))[:1])
    before = traces(store, of(MARA, rows(0, 70)))
    named = {part.path for part in open_cache(store).manifest.parts}
    assert killed.path in before and before & named, "what is to be erased is not there"

    done = erase(store, subject(MARA))

    assert traces(store, of(MARA, rows(0, 70))) == set()
    assert done.rows == len(of(MARA, rows()))
    assert_same_targets(list(open_cache(store).iter_targets()), without(MARA, rows()))
    assert verify_cache(open_cache(store)).num_errors == 0
    assert done.files_removed == len(before & {*named, killed.path})


def test_copies_for_training_temporary_files_and_old_manifests_go_too(tmp_path):
    store = LocalStore(tmp_path / "cache")
    write(store, rows(0, 20))
    write(store, rows())
    map_targets(open_cache(store))
    map_targets(open_cache(store), scratch=tmp_path / "elsewhere")
    text = of(MARA, rows())[0].response_text
    (tmp_path / "cache/data/forget/.tmp-of-a-killed-writer").write_text(text)
    (elsewhere,) = (tmp_path / "elsewhere").rglob("*.arrow")
    assert {name.partition("/")[0] for name in traces(store, of(MARA, rows()))} == {"data", "scratch"}
    old = [name for name in store.names("manifest") if b"part-" in store.read(name)]
    assert len(old) > 3

    done = erase(store, subject(MARA))

    assert traces(store, of(MARA, rows())) == set()
    assert not elsewhere.exists()
    assert done.scratch_removed == 2
    assert [name for name in old if b"part-" in store.read(name)] == []


def test_everybody_else_keeps_their_rows_and_parts_without_the_erased_stay_as_they_are(tmp_path):
    store = LocalStore(tmp_path)
    write(store, rows(), rows_per_part=2)
    before = {part.path: part for part in open_cache(store).manifest.parts}

    done = erase(store, subject(MARA))

    after = {part.path: part for part in open_cache(store).manifest.parts}
    assert_same_targets(list(open_cache(store).iter_targets()), without(MARA, rows()))
    assert before.items() & after.items()
    assert done.parts_rewritten == len(after.keys() - before.keys()) > 0
    assert done.parts_dropped == len(before) - len(after)


def test_a_rewritten_part_keeps_its_profile(tmp_path):
    store = LocalStore(tmp_path)
    write(store, rows(0, 20), profile="compat")
    write(store, rows(20, 40))

    erase(store, subject(MARA))

    profiles = [profile_of(store.read(part.path)) for part in open_cache(store).manifest.parts]
    assert {*profiles} == {"compat", "default"}


def test_single_examples_can_be_erased(tmp_path):
    store, gone = LocalStore(tmp_path), rows()[5]
    write(store, rows())

    done = erase(store, Selection(examples=frozenset({gone.example_id})))

    assert done.rows == 1
    left = [row for row in rows() if row.target_id != gone.target_id]
    assert_same_targets(list(open_cache(store).iter_targets()), left)


def test_all_leaves_an_empty_cache_that_takes_no_row_again(store):
    write(store, rows())

    done = erase(store, ALL)
    write(store, rows())

    assert (done.rows, done.tombstones) == (len(rows()), 1)
    assert list(open_cache(store).iter_targets()) == []
    assert store.names("data") == []
    assert verify_cache(open_cache(store)).num_errors == 0


def test_a_resumed_writer_brings_nobody_back(store):
    write(store, rows(0, 20))
    erase(store, subject(MARA))

    write(store, rows())

    assert_same_targets(list(open_cache(store).iter_targets()), without(MARA, rows()))
    assert traces(store, of(MARA, rows())) == set()


def test_a_writer_that_was_running_meanwhile_commits_the_others_alone(tmp_path):
    store = LocalStore(tmp_path)
    write(store, rows(0, 8))
    running = CacheWriter(store, teacher=TEACHER, settings=FIXED, plan=PLAN)
    for row in rows():
        running.add(row)

    erase(store, subject(MARA))
    running.flush()

    assert_same_targets(list(open_cache(store).iter_targets()), without(MARA, rows()))
    assert traces(store, of(MARA, rows())) == set()


def test_a_writer_that_erases_overtake_on_its_way_to_the_manifest_starts_anew(tmp_path, monkeypatch):
    """Its part with the erased rows is on disk already when the erasure is committed."""
    from vgid.cache import writer as module

    store = LocalStore(tmp_path)
    write(store, rows(0, 8))
    running = CacheWriter(store, teacher=TEACHER, settings=FIXED, plan=PLAN)
    for row in rows():
        running.add(row)
    original, overtaken = module.write_part, []

    def write_slowly(*arguments: Any) -> Any:
        part = original(*arguments)
        if not overtaken:
            overtaken.append(part)
            erase(store, subject(MARA))
        return part

    monkeypatch.setattr(module, "write_part", write_slowly)
    running.flush()

    assert overtaken
    assert_same_targets(list(open_cache(store).iter_targets()), without(MARA, rows()))
    assert traces(store, of(MARA, rows())) == set()


def test_two_erasures_at_once_both_count(store):
    write(store, rows())
    make_key()
    gone = ["person-1", MARA, "person-5"]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda name: erase(store, subject(name)), gone))

    left = [row for row in rows() if row.subject_id not in gone]
    assert_same_targets(list(open_cache(store).iter_targets()), left)
    manifest = open_cache(store).manifest
    assert manifest.tombstones is not None and len(manifest.tombstones.entries) == 3
    erase(store, subject(MARA))
    assert traces(store, [row for row in rows() if row.subject_id in gone]) == set()


class Killed(BaseException):
    """Passes through everything, as a SIGKILL does."""


class FailingStore(LocalStore):
    """Its call number `fails_at` that changes something does not happen."""

    def __init__(self, root: Path, fails_at: int, failure: BaseException) -> None:
        super().__init__(root)
        self._left, self._failure = fails_at, failure

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise self._failure

    def create(self, name: str, data: bytes) -> bool:
        self._count()
        return super().create(name, data)

    def replace(self, name: str, data: bytes) -> None:
        self._count()
        super().replace(name, data)

    def delete(self, name: str) -> None:
        self._count()
        super().delete(name)

    def sweep(self, *, older_than_s: float) -> None:
        self._count()
        super().sweep(older_than_s=older_than_s)

    @property
    def has_failed(self) -> bool:
        return self._left <= 0


@pytest.mark.parametrize("failure", [Killed(), OSError(28, "No space left on device")])
def test_an_erasure_that_stops_at_any_step_is_finished_by_another_run(tmp_path, failure):
    for fails_at in range(1, 100):
        root = tmp_path / str(fails_at)
        write(LocalStore(root), rows(0, 20), rows_per_part=5)
        store = FailingStore(root, fails_at, failure)
        try:
            erase(store, subject(MARA))
        except (Killed, CacheError) as error:
            assert isinstance(error, Killed) or "No space left" in str(error)
        visible = {row.target_id for row in open_cache(root).iter_targets()}
        assert visible in ({row.target_id for row in some} for some in (rows(0, 20), without(MARA, rows(0, 20))))
        if not store.has_failed:
            break

        erase(LocalStore(root), subject(MARA))

        assert_same_targets(list(open_cache(root).iter_targets()), without(MARA, rows(0, 20)))
        assert traces(LocalStore(root), of(MARA, rows(0, 20))) == set()
        events = [entry["event"] for entry in load_entries(LocalStore(root))]
        assert events in (["begun", "finished"], ["begun", "begun", "finished"])
    else:
        pytest.fail("it never got through")
    assert fails_at > 8


def test_the_log_tells_those_with_the_key_who_it_was_and_nobody_else(tmp_path):
    store = LocalStore(tmp_path / "cache")
    write(store, rows())
    before = open_cache(store).manifest

    done = erase(store, Selection(subjects=frozenset({MARA}), examples=frozenset({"synthetic/4/0"})))

    begun, finished = load_entries(store)
    key = make_key()
    expected = [
        {"kind": "subject", "mark": tombstone(key, "subject", MARA)},
        {"kind": "example", "mark": tombstone(key, "example", "synthetic/4/0")},
    ]
    assert begun["erased"] == finished["erased"] == expected
    assert (begun["event"], finished["event"]) == ("begun", "finished")
    assert begun["manifest"] == {"number": before.number, "sha256": before.sha256}
    after = open_cache(store).manifest
    assert finished["manifest"] == {"number": after.number, "sha256": after.sha256}
    assert finished["rows"] == done.rows == len(of(MARA, rows())) + 1
    assert store.describe(done.audit) == str(tmp_path / "cache/audit/000002.json")
    log = b"".join(store.read(name) for name in store.names("audit"))
    assert MARA.encode() not in log and b"synthetic" not in log
    assert key.hex().encode() not in b"".join(store.read(name) for name in store.names())
    assert key_path().stat().st_mode & 0o777 == 0o600


def test_two_entries_at_once_both_stand_in_the_log(store):
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda number: append_entry(store, "begun", {"rows": number}), range(8)))

    assert sorted(names) == [f"audit/{number:06d}.json" for number in range(1, 9)]
    assert sorted(entry["rows"] for entry in load_entries(store)) == list(range(8))


def test_without_the_key_nothing_more_can_be_erased_or_written_and_all_can_still_go(tmp_path, monkeypatch):
    store = LocalStore(tmp_path / "cache")
    write(store, rows())
    erase(store, subject(MARA))
    before = {name: store.read(name) for name in store.names()}

    monkeypatch.setenv("VGID_ERASE_KEY", str(tmp_path / "lost"))
    for attempt in (lambda: erase(store, subject("person-1")), lambda: write(store, rows(40, 50))):
        with pytest.raises(
            CacheError, match=r"tombstones of key [0-9a-f]{16}, but .*lost is missing; set VGID_ERASE_KEY"
        ):
            attempt()
    (tmp_path / "lost").write_text("ab" * 32)
    with pytest.raises(CacheError, match=r"holds key [0-9a-f]{16}"):
        erase(store, subject("person-1"))
    assert {name: store.read(name) for name in store.names()} == before

    erase(store, ALL)
    assert list(open_cache(store).iter_targets()) == []


def test_the_key_may_not_lie_in_the_cache(tmp_path, monkeypatch):
    store = LocalStore(tmp_path / "cache")
    write(store, rows(0, 8))
    monkeypatch.setenv("VGID_ERASE_KEY", str(tmp_path / "cache/audit/../key"))

    with pytest.raises(CacheError, match="must not lie in the cache"):
        erase(store, subject(MARA))
    assert not (tmp_path / "cache/key").exists()


def test_a_damaged_part_is_named_and_nothing_is_changed_but_all_can_go(tmp_path):
    store = LocalStore(tmp_path)
    write(store, rows())
    part = open_cache(store).manifest.parts[-1]
    (tmp_path / part.path).write_bytes(b"rotten")
    manifest = load_manifest(store)

    with pytest.raises(CacheError, match=part.path):
        find(open_cache(store), subject(MARA))
    with pytest.raises(CacheError, match=part.path):
        erase(store, subject(MARA))
    assert load_manifest(store) == manifest

    erase(store, ALL)
    assert store.names("data") == []


def test_a_part_of_another_schema_is_not_rewritten_in_part(tmp_path):
    store = LocalStore(tmp_path)
    write(store, rows())
    narrowed = change_part(tmp_path, _without_entropy)

    with pytest.raises(CacheError, match=narrowed):
        erase(store, subject(MARA))


def _without_entropy(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(pa.BufferReader(data)).drop_columns(["entropy"]), sink)
    return sink.getvalue().to_pybytes()


def test_looking_first_counts_by_split_and_names_who_is_not_there(tmp_path):
    store = LocalStore(tmp_path)
    write(store, rows())
    selection = Selection(subjects=frozenset({MARA, "person-9"}), examples=frozenset({"synthetic/77/0"}))

    found = find(open_cache(store), selection)

    mine = of(MARA, rows())
    assert found.rows == {split: sum(row.split == split for row in mine) for split in ("forget", "retain")}
    assert found.absent == ("example synthetic/77/0", "subject person-9")
    assert find(open_cache(store), ALL).rows == {"forget": 26, "retain": 14}
    assert store.names("audit") == []


def test_who_was_erased_before_is_not_absent(tmp_path):
    store = LocalStore(tmp_path)
    write(store, rows())
    erase(store, subject(MARA))

    assert find(open_cache(store), subject(MARA)).absent == ()
    again = erase(store, subject(MARA))
    assert (again.rows, again.files_removed, again.tombstones) == (0, 0, 1)


def test_somebody_without_rows_is_kept_out_from_now_on(tmp_path):
    store = LocalStore(tmp_path)
    write(store, without(MARA, rows()))

    assert erase(store, subject(MARA)).rows == 0
    write(store, rows())

    assert_same_targets(list(open_cache(store).iter_targets()), without(MARA, rows()))


def test_a_reader_of_the_state_before_is_told_to_run_again(tmp_path):
    write(LocalStore(tmp_path), rows())
    old = open_cache(tmp_path)
    erase(old.store, subject(MARA))

    with pytest.raises(CacheError, match="erased from meanwhile, rerun"):
        list(old.iter_targets())


def test_a_cache_of_format_1_can_be_erased_from(tmp_path):
    golden = LocalStore(Path(__file__).parent / "golden/v1")
    store = LocalStore(tmp_path)
    for name in golden.names():
        store.create(name, golden.read(name))
    every = list(open_cache(store).iter_targets())
    gone = every[0].subject_id

    erase(store, subject(gone))

    assert_same_targets(list(open_cache(store).iter_targets()), without(gone, every))
    assert traces(store, of(gone, every)) == set()


def test_a_copy_that_datasets_made_is_found_and_left_to_the_user(tmp_path, monkeypatch):
    import datasets

    write(LocalStore(tmp_path / "mine"), rows(0, 10))
    write(LocalStore(tmp_path / "other"), without(MARA, rows(0, 10)))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    for name in ("mine", "other"):
        datasets.load_dataset(str(tmp_path / name), cache_dir=str(tmp_path / "hub"))

    done = erase(LocalStore(tmp_path / "mine"), subject(MARA))

    named = [copy for copy in done.copies if "`datasets`" in copy]
    assert len(named) == 1
    folder = Path(named[0].split("made, in ")[1].split(":")[0])
    assert folder.is_dir() and list(folder.glob("*.arrow"))
    assert "/mine/" in str(folder)


def test_a_decoded_copy_on_another_machine_is_told_of(tmp_path):
    store = LocalStore(tmp_path)
    write(store, rows(0, 10))
    store.create(f"scratch/{'ab' * 12}.place", b"node7\n/scratch/vgid")
    assert socket.gethostname() != "node7"

    done = erase(store, subject(MARA))

    assert any("on machine node7 in /scratch/vgid" in copy for copy in done.copies)


def test_the_version_that_erased_and_the_time_are_in_the_log_as_json(tmp_path):
    from vgid import __version__

    store = open_store(tmp_path)
    write(store, rows(0, 8))
    done = erase(store, subject(MARA))

    entry = json.loads((tmp_path / done.audit).read_text())
    assert entry["vgid"] == __version__
    assert entry["time"].endswith("+00:00")
    assert set(entry) == {
        *("event", "time", "vgid", "key_id", "erased", "manifest"),
        *("rows", "parts_rewritten", "parts_dropped", "files_removed", "scratch_removed"),
    }


def test_rows_of_two_engines_are_both_erased(tmp_path):
    store = LocalStore(tmp_path)
    write(store, rows(0, 10))
    write(store, [replace(row, engine_id="other", target_id=f"{9:064x}") for row in of(MARA, rows(0, 10))[:1]])

    assert erase(store, subject(MARA)).rows == len(of(MARA, rows(0, 10))) + 1
    assert of(MARA, list(open_cache(store).iter_targets())) == []
