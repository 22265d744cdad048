from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from synthetic_targets import assert_same_targets, make_target, target_lists

from vgid.cache.schema import NO_CANDIDATE, SCHEMA, iter_targets, to_table
from vgid.errors import CacheError


@given(rows=target_lists())
def test_rows_come_back_from_a_table_as_they_went_in(rows):
    table = to_table(rows)

    assert table.schema.equals(SCHEMA)
    table.validate(full=True)
    assert_same_targets(list(iter_targets(table)), rows)


def test_a_slice_and_a_selection_of_a_table_give_their_own_rows():
    rows = [make_target(index, num_tokens=1 + index % 3, num_topk=2 + index % 4) for index in range(9)]
    table = to_table(rows)

    assert_same_targets(list(iter_targets(table.slice(4, 3))), rows[4:7])
    assert_same_targets(list(iter_targets(table.take([7, 2]))), [rows[7], rows[2]])
    assert_same_targets(list(iter_targets(pa.concat_tables([table.slice(5), table.slice(0, 5)]))), rows)


def test_a_narrower_position_stores_fewer_candidates_and_comes_back_padded():
    row = make_target(0, num_tokens=3, num_topk=4)
    ids, logprobs = row.topk_ids.copy(), row.topk_logprobs.copy()
    ids[1, 1:], logprobs[1, 1:] = NO_CANDIDATE, -np.inf
    row = replace(row, topk_ids=ids, topk_logprobs=logprobs)

    table = to_table([row])

    assert [len(position) for position in table["topk_ids"][0].as_py()] == [4, 1, 4]
    assert [len(position) for position in table["topk_logprobs"][0].as_py()] == [4, 1, 4]
    assert_same_targets(list(iter_targets(table)), [row])


def test_no_rows_make_an_empty_table():
    table = to_table([])

    assert (table.num_rows, list(iter_targets(table))) == (0, [])
    assert table.schema.equals(SCHEMA)


def test_a_table_with_other_columns_is_refused():
    with pytest.raises(CacheError, match="row version 1"):
        list(iter_targets(to_table([make_target(0)]).drop_columns(["entropy"])))


def test_values_on_the_fp16_grid_survive_float32_columns_exactly():
    grid = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = grid[np.isfinite(grid)].astype(np.float32)

    assert np.array_equal(finite.astype(np.float16).astype(np.float32), finite)
    assert SCHEMA.field("topk_logprobs").type.value_type.value_type == pa.float32()
