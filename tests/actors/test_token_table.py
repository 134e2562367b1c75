"""The token table gives back the rows that it was made of."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.token_table import DatasetShare, Ragged, TableBuilder, TokenTable

sequence = st.lists(st.integers(0, 2**31 - 1), max_size=7)


@given(rows=st.lists(st.tuples(sequence, sequence), min_size=1, max_size=9))
def test_rows_come_back_as_views_of_one_array(rows):
    table = TokenTable.from_rows(rows)
    assert len(table) == len(rows)
    assert [(row.prompt.tolist(), row.response.tolist()) for row in map(table.__getitem__, range(len(table)))] == rows
    assert all(table[i].rejected is None for i in range(len(rows)))
    assert table.response_lengths.tolist() == [len(response) for _, response in rows]
    assert table.response_lengths.dtype == table[0].prompt.dtype == np.int32
    assert all(table[i].response.base is table.responses.flat for i in range(len(rows)))


@given(rows=st.lists(st.tuples(sequence, sequence, sequence), min_size=1, max_size=5))
def test_given_rejected_responses_come_back_too(rows):
    table = pickle.loads(pickle.dumps(TokenTable.from_rows(rows)))
    assert [tuple(part.tolist() for part in table[i]) for i in range(len(rows))] == rows


@given(rows=st.lists(st.tuples(sequence, sequence, sequence), min_size=1, max_size=9), columns=st.sampled_from([2, 3]))
def test_rows_that_are_added_one_by_one_make_the_same_table(rows, columns):
    rows = [row[:columns] for row in rows]
    builder = TableBuilder(columns)
    for row in rows:
        builder.add(row)
    assert len(builder) == len(rows)
    built, expected = builder.table((DatasetShare(0, 1, 2.0),)), TokenTable.from_rows(rows)
    assert built.shares == (DatasetShare(0, 1, 2.0),)
    for name in ("prompts", "responses", "rejected"):
        one, other = getattr(built, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.flat.dtype == np.int32
            assert (one.flat.tolist(), one.offsets.tolist()) == (other.flat.tolist(), other.offsets.tolist())


def test_empty_sequences_have_a_place():
    ragged = Ragged.of([[], [1, 2], []])
    assert [ragged[i].tolist() for i in range(len(ragged))] == [[], [1, 2], []]
    assert ragged.lengths.tolist() == [0, 2, 0]
