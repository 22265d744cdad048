from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from synthetic_targets import IDENTITY, TEACHER

from vgid.cache.manifest import Part, commit, load_manifest, manifest_name, purge_before, update
from vgid.cache.store import LocalStore
from vgid.errors import CacheError


def part(name: str = "0", *, split: str = "forget", rows: int = 3) -> Part:
    path = f"data/{split}/part-{name * 24}.parquet"
    return Part(path=path, split=split, rows=rows, tokens=9, bytes=99, sha256="ab" * 32, engine_id="e")


def commit_parts(cache: Path, *parts: Part, **changes):
    return commit(LocalStore(cache), **{**IDENTITY, **changes}, add=lambda _: parts)


def test_a_directory_without_manifest_has_none(tmp_path):
    assert load_manifest(LocalStore(tmp_path)) is None
    assert load_manifest(LocalStore(tmp_path / "missing")) is None


def test_commits_add_up_and_the_newest_is_read(tmp_path):
    first = commit_parts(tmp_path / "c", part("b"))
    second = commit_parts(tmp_path / "c", part("a"), part("c", split="retain"))

    assert (first.number, second.number) == (1, 2)
    assert second.parts == (part("a"), part("b"), part("c", split="retain"))
    assert load_manifest(LocalStore(tmp_path / "c")) == second
    assert (second.teacher, second.settings, second.plan) == tuple(IDENTITY.values())


def test_a_commit_that_changes_nothing_writes_nothing(tmp_path):
    before = commit_parts(tmp_path, part())

    assert commit_parts(tmp_path, part()) == before
    assert [path.name for path in (tmp_path / "manifest").iterdir()] == ["000001.json"]


def test_another_plan_is_recorded_and_keeps_the_parts(tmp_path):
    commit_parts(tmp_path, part())

    changed = commit_parts(tmp_path, plan={"digest": "other", "rows": 99, "buckets": 8})

    assert (changed.number, changed.plan["digest"], len(changed.parts)) == (2, "other", 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": {**TEACHER, "weights_sha256": "77"}}, ["teacher 'weights_sha256'", repr("5e" * 32), "'77'"]),
        ({"teacher": {**TEACHER, "dtype": "bfloat16"}}, ["teacher 'dtype'", "absent", "'bfloat16'"]),
        (
            {"teacher": {k: v for k, v in TEACHER.items() if k != "revision"}},
            ["teacher 'revision' is None in the cache, absent in this run"],
        ),
        ({"settings": {**IDENTITY["settings"], "num_topk": 64}}, ["settings 'num_topk'", "4", "64"]),
    ],
)
def test_another_identity_is_refused_naming_field_and_values_and_nothing_is_written(tmp_path, changes, words):
    commit_parts(tmp_path, part())

    def add(_):
        raise AssertionError("no part may be written")

    with pytest.raises(CacheError) as caught:
        commit(LocalStore(tmp_path), **{**IDENTITY, **changes}, add=add)
    assert all(word in str(caught.value) for word in [*words, "000001.json"]), caught.value
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_the_loser_of_a_race_is_asked_again_with_the_winners_manifest(tmp_path):
    seen = []

    def add(newest):
        seen.append(newest)
        if len(seen) == 1:
            commit_parts(tmp_path, part("a"))
        return [part("b")]

    manifest = commit(LocalStore(tmp_path), **IDENTITY, add=add)

    assert [newest and newest.number for newest in seen] == [None, 1]
    assert (manifest.number, len(manifest.parts)) == (2, 2)


def test_a_change_that_meets_what_a_newer_manifest_has_erased_begins_again_with_that(tmp_path):
    store, seen = LocalStore(tmp_path), list[int]()
    commit_parts(tmp_path, part("a"))

    def change(newest):
        seen.append(newest.number)
        if len(seen) == 1:
            commit_parts(tmp_path, part("b"))
            raise CacheError("part a: cannot be read")
        return newest

    assert update(store, change).parts == (part("a"), part("b")) and seen == [1, 2]


def test_a_change_that_meets_the_first_files_of_a_cache_made_meanwhile_begins_again_with_that(tmp_path):
    """What `commit` meets where another process writes the cache's card between its two looks."""

    def change(newest):
        if newest is None:
            commit_parts(tmp_path, part("1"))
            raise CacheError("a card and no cache")
        return newest

    assert update(LocalStore(tmp_path), change).number == 1


def test_a_change_that_fails_on_the_newest_manifest_fails(tmp_path):
    commit_parts(tmp_path, part())

    def change(newest):
        raise CacheError("part 0: cannot be read")

    with pytest.raises(CacheError, match="part 0: cannot be read"):
        update(LocalStore(tmp_path), change)


def test_a_directory_with_a_readme_of_its_own_is_not_taken_over(tmp_path):
    (tmp_path / "README.md").write_text("my project")

    with pytest.raises(CacheError, match=r"README\.md but no cache"):
        commit_parts(tmp_path, part())
    assert (tmp_path / "README.md").read_text() == "my project"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_in_the_place_of_the_cache_is_an_error_that_names_it(tmp_path):
    (tmp_path / "cache").write_text("")

    with pytest.raises(CacheError, match="cache"):
        commit_parts(tmp_path / "cache", part())


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_manifest_cut_short_is_refused(tmp_path, length):
    commit_parts(tmp_path, part())
    path = tmp_path / manifest_name(1)
    path.write_bytes(path.read_bytes()[:length])

    with pytest.raises(CacheError, match=r"000001\.json"):
        load_manifest(LocalStore(tmp_path))


def test_temporary_files_and_strangers_among_the_manifests_are_ignored(tmp_path):
    expected = commit_parts(tmp_path, part())
    for name in (".tmp-00", "000009.json.bak", "notes.json", "9.json"):
        (tmp_path / "manifest" / name).write_text("{")

    assert load_manifest(LocalStore(tmp_path)) == expected


def rewrite(cache: Path, **changes) -> None:
    """As if by hand: the sha256 fits the content."""
    from vgid.cache import manifest as module

    body = json.loads((cache / manifest_name(1)).read_bytes())
    del body["sha256"]
    body.update(changes)
    (cache / manifest_name(1)).write_text(json.dumps({"sha256": module._digest(body), **body}))


def test_a_manifest_of_another_format_says_so(tmp_path):
    commit_parts(tmp_path)
    rewrite(tmp_path, format_version=3)

    with pytest.raises(CacheError, match="format 3, this vgid reads 1 and 2"):
        load_manifest(LocalStore(tmp_path))
    with pytest.raises(CacheError, match="format 3"):
        commit_parts(tmp_path, part())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan": 3}, "plan"),
        ({"surprise": 1}, "surprise"),
        ({"number": 7}, "number 7"),
        ({"parts": [{"path": "data/forget/../../x", "split": "forget"}]}, "parts"),
    ],
)
def test_a_manifest_with_wrong_fields_is_refused_naming_them(tmp_path, changes, words):
    commit_parts(tmp_path)
    rewrite(tmp_path, **changes)

    with pytest.raises(CacheError, match=words):
        load_manifest(LocalStore(tmp_path))


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "data/forget/../x/part-" + "0" * 24 + ".parquet", "data/forget/x.parquet"]
)
def test_a_part_cannot_point_elsewhere(path):
    with pytest.raises(ValueError, match="part-<hash>"):
        Part(path=path, split="forget", rows=1, tokens=1, bytes=1, sha256="", engine_id="")


def test_a_manifest_of_format_1_is_read_and_continued_in_format_2(tmp_path):
    commit_parts(tmp_path, part("a"))
    path = tmp_path / manifest_name(1)
    body = json.loads(path.read_bytes())
    old = {name: value for name, value in body.items() if name not in ("vocabulary", "tombstones", "expires", "sha256")}
    old["format_version"] = 1
    path.write_text(json.dumps({"sha256": digest(old), **old}))

    manifest = load_manifest(LocalStore(tmp_path))
    assert manifest is not None
    assert (manifest.format_version, manifest.vocabulary, manifest.tombstones, manifest.expires) == (
        1,
        None,
        None,
        None,
    )
    following = commit_parts(tmp_path, part("b"))
    assert (following.number, following.format_version, len(following.parts)) == (2, 2, 2)


def test_purged_manifests_name_nothing_and_keep_their_numbers_taken(tmp_path):
    store = LocalStore(tmp_path)
    for name in "abc":
        commit_parts(tmp_path, part(name))

    purge_before(store, 3)

    for number in (1, 2):
        assert b"part-" not in store.read(manifest_name(number))
        assert not store.create(manifest_name(number), b"a slow writer's manifest")
    manifest = load_manifest(store)
    assert manifest is not None
    assert len(manifest.parts) == 3


def test_a_manifest_purged_between_the_look_and_the_read_is_followed_by_the_newer_one(tmp_path):
    commit_parts(tmp_path, part("a"))

    class Overtaken(LocalStore):
        def read(self, name):
            if name == manifest_name(1):
                commit_parts(tmp_path, part("b"))
                purge_before(LocalStore(tmp_path), 2)
            return super().read(name)

    manifest = load_manifest(Overtaken(tmp_path))
    assert manifest is not None
    assert manifest.number == 2


def test_a_cache_whose_only_manifest_was_purged_is_an_error(tmp_path):
    commit_parts(tmp_path, part("a"))
    purge_before(LocalStore(tmp_path), 2)

    with pytest.raises(CacheError, match="was purged"):
        load_manifest(LocalStore(tmp_path))


def digest(body: dict[str, object]) -> str:
    """The self-hash as docs/cache-format.md defines it."""
    return sha256(json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()
