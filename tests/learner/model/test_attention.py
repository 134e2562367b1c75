"""The function that transformers calls: what it can't compute it rejects."""

from __future__ import annotations

import pytest
import torch

from contracts.errors import UserError
from learner.model.attention import segment_attention
from learner.model.packing import RowLayout
from support.row_attention import SEGMENTS, brute_force, states


def test_output_has_transformers_shape_and_the_default_scaling():
    q, k, v = states()
    out, weights = segment_attention(torch.nn.Module(), q, k, v, None, segment_layout=RowLayout(SEGMENTS))
    assert (out - brute_force(q, k, v, None, q.shape[-1] ** -0.5, None)).abs().max() <= 1e-5
    assert weights is None


def test_attention_sinks_and_a_missing_layout_are_rejected():
    q, k, v = states()
    with pytest.raises(UserError, match="s_aux"):
        segment_attention(torch.nn.Module(), q, k, v, None, segment_layout=RowLayout(SEGMENTS), s_aux=q)
    with pytest.raises(UserError, match="segment_layout"):
        segment_attention(torch.nn.Module(), q, k, v, None)
