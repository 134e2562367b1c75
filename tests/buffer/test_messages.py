"""The records hold what they promise."""

from __future__ import annotations

import pytest

from buffer.messages import Finished, Outcome
from contracts.pair import as_token_ids, supervised

PAIR = supervised(3, as_token_ids([1]), as_token_ids([2]))


def test_a_finished_index_has_a_pair_exactly_when_it_is_inserted():
    assert Finished(3, Outcome.INSERTED, PAIR).pair is PAIR
    with pytest.raises(ValueError, match="plan index 3: outcome INSERTED without a pair"):
        Finished(3, Outcome.INSERTED)
    for outcome in (Outcome.IDENTICAL, Outcome.DISCARDED, Outcome.FAILED):
        assert Finished(3, outcome).pair is None
        with pytest.raises(ValueError, match=f"plan index 3: outcome {outcome.name} with a pair"):
            Finished(3, outcome, PAIR)
