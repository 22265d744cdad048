from __future__ import annotations

import io
import os
import subprocess
import venv
from dataclasses import replace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_targets import make_target, mixed_targets, realistic_targets, target_lists

from vgid.cache.encoding import ROW_GROUP_ROWS, Profile, decode_part, encode_part
from vgid.cache.schema import SCHEMA, Target, to_table
from vgid.errors import CacheError

PROFILES: tuple[Profile, ...] = ("default", "compat")
SMALL = to_table(mixed_targets(0, 12))
ENCODED = {profile: encode_part(SMALL, profile) for profile in PROFILES}


def ragged(table: pa.Table) -> pa.Table:
    """The table with position t of each row cut to its first 1 + t mod 3 candidates."""
    for name in ("topk_ids", "topk_logprobs"):
        cut = [[inner[: 1 + t % 3] for t, inner in enumerate(row)] for row in table[name].to_pylist()]
        index = SCHEMA.get_field_index(name)
        table = table.set_column(index, SCHEMA.field(index), pa.array(cut, SCHEMA.field(index).type))
    return table


def chunks(data: bytes) -> list[pq.ColumnChunkMetaData]:
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    return [group.column(i) for i in range(group.num_columns)]


def is_list(chunk: pq.ColumnChunkMetaData) -> bool:
    return ".list." in chunk.path_in_schema


@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=25)
@given(rows=target_lists())
def test_a_table_comes_back_from_either_profile_as_it_went_in(profile: Profile, rows: list[Target]):
    table = to_table(rows)

    assert decode_part(encode_part(table, profile), "part").equals(table)


@pytest.mark.parametrize("profile", PROFILES)
def test_positions_of_one_row_may_differ_in_width(profile):
    table = ragged(SMALL)

    assert decode_part(encode_part(table, profile), "part").equals(table)


@pytest.mark.parametrize("profile", PROFILES)
def test_equal_tables_give_equal_bytes(profile):
    assert encode_part(to_table(mixed_targets(0, 12)), profile) == ENCODED[profile]


def test_the_profiles_differ_in_how_integers_of_lists_are_stored_and_in_nothing_else():
    default, compat = chunks(ENCODED["default"]), chunks(ENCODED["compat"])

    for one, two in zip(default, compat, strict=True):
        integers = is_list(one) and one.physical_type == "INT32"
        assert ("BYTE_STREAM_SPLIT" in one.encodings) == (is_list(one) and one.physical_type in ("INT32", "FLOAT"))
        assert ("DELTA_BINARY_PACKED" in two.encodings) == integers
        assert integers or one.encodings == two.encodings
        assert ("RLE_DICTIONARY" in one.encodings) == (one.physical_type == "BYTE_ARRAY"), one.path_in_schema
        assert one.compression == two.compression == "ZSTD"


@pytest.mark.parametrize("profile", PROFILES)
def test_extremes_are_stored_of_plain_columns_alone(profile):
    assert all(chunk.is_stats_set != is_list(chunk) for chunk in chunks(ENCODED[profile]))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_row_group_holds_a_part_as_the_writer_makes_it(profile):
    table = to_table(make_target(index, num_tokens=1) for index in range(ROW_GROUP_ROWS + 1))
    metadata = pq.ParquetFile(io.BytesIO(encode_part(table, profile))).metadata

    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [256, 1]


@pytest.mark.parametrize("head", ["bfloat16", "float32"])
def test_a_full_row_at_64_candidates_keeps_to_its_budget(head):
    rows = [replace(row, entropy=None) for row in realistic_targets(ROW_GROUP_ROWS, head=head)]
    num_tokens = sum(len(row.token_ids) for row in rows)
    default, compat = (len(encode_part(to_table(rows), profile)) / num_tokens for profile in PROFILES)

    assert num_tokens > 50_000
    assert default < {"bfloat16": 200, "float32": 228}[head]
    assert default < compat < 1.1 * default


@pytest.mark.parametrize("profile", PROFILES)
def test_some_columns_can_be_read_alone(profile):
    names = ["target_id", "topk_ids"]

    assert decode_part(ENCODED[profile], "part", columns=names).equals(SMALL.select(names))


@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=300)
@given(data=st.data())
def test_a_flipped_bit_is_an_error_that_names_the_part_or_changes_no_value(profile: Profile, data: st.DataObject):
    content = bytearray(ENCODED[profile])
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8

    try:
        found = decode_part(bytes(content), "data/forget/part-x.parquet")
    except CacheError as error:
        assert str(error).startswith("data/forget/part-x.parquet: ") and "\n" not in str(error)
    else:
        assert found.equals(SMALL)  # a bit of the footer that says nothing about values


@pytest.mark.parametrize("profile", PROFILES)
def test_a_flipped_bit_of_a_page_is_found_by_its_checksum(profile):
    ids = next(chunk for chunk in chunks(ENCODED[profile]) if chunk.path_in_schema.startswith("topk_ids"))
    content = bytearray(ENCODED[profile])
    content[ids.data_page_offset + ids.total_compressed_size - 5] ^= 1

    with pytest.raises(CacheError, match=r"^part 7: damaged \(.*CRC.*\); restore it from a copy"):
        decode_part(bytes(content), "part 7")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_cut_part_is_an_error_that_names_it(profile):
    for length in (0, 3, len(ENCODED[profile]) // 2, len(ENCODED[profile]) - 1):
        with pytest.raises(CacheError, match=r"^part 7: damaged"):
            decode_part(ENCODED[profile][:length], "part 7")


def test_other_columns_are_refused_in_both_directions():
    other = SMALL.drop_columns("entropy")
    sink = pa.BufferOutputStream()
    pq.write_table(other, sink)

    with pytest.raises(CacheError, match="not those of row version"):
        encode_part(other, "default")
    with pytest.raises(CacheError, match=r"^part 7: its columns are not those of row version"):
        decode_part(sink.getvalue().to_pybytes(), "part 7")


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(CacheError, match="profile 'small' is unknown; choose from default, compat"):
        encode_part(SMALL, "small")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_duckdb_of_this_project_reads_either_profile(profile, tmp_path):
    table = to_table(realistic_targets(20))
    path = tmp_path / "part.parquet"
    path.write_bytes(encode_part(table, profile))
    found = duckdb.read_parquet(str(path)).to_arrow_table()

    assert found.to_pylist() == table.to_pylist()


@pytest.mark.parametrize("profile", PROFILES)
def test_datasets_reads_either_profile(profile, tmp_path):
    from datasets import load_dataset

    table = to_table(realistic_targets(20))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "part.parquet").write_bytes(encode_part(table, profile))
    found = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "scratch"))

    assert list(found) == table.to_pylist()


OTHERS = ("duckdb==1.4.*", "polars")
COPY = """
import sys
import duckdb, polars
part, by_duckdb, by_polars = sys.argv[1:]
duckdb.sql("SET enable_progress_bar = false")  # it goes to stdout once a query takes seconds
duckdb.sql(f"COPY (SELECT * FROM '{part}') TO '{by_duckdb}' (FORMAT parquet)")
polars.read_parquet(part).write_parquet(by_polars)
print(duckdb.__version__, polars.__version__)
"""
NO_INDEX = ("NewConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "No matching distribution", "ProxyError")


@pytest.mark.slow
def test_compat_parts_are_read_by_duckdb_1_4_and_by_polars(tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [python, "-m", "pip", "install", "--retries", "1", "--disable-pip-version-check", *OTHERS]
    install = subprocess.run(pip, capture_output=True, text=True, check=False, env=clean)
    if install.returncode and any(sign in install.stderr for sign in NO_INDEX):
        pytest.skip(f"pip cannot get {' and '.join(OTHERS)} here: {install.stderr.splitlines()[-1]}")
    assert install.returncode == 0, install.stderr
    table = ragged(pa.concat_tables([SMALL, to_table(realistic_targets(20))]))
    table = pa.concat_tables([table, to_table(realistic_targets(200))])
    part, copies = tmp_path / "part.parquet", [tmp_path / f"{name}.parquet" for name in ("duckdb", "polars")]
    part.write_bytes(encode_part(table, "compat"))

    copy = subprocess.run([python, "-c", COPY, part, *copies], capture_output=True, text=True, check=True, env=clean)

    assert copy.stdout.startswith("1.4.")
    for path in copies:
        found = pq.read_table(path)
        assert found.column_names == table.column_names
        for name in table.column_names:
            assert found[name].to_pylist() == table[name].to_pylist(), (path.stem, name)
