"""A user's own DeepSpeed configuration stands beside ours and never in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from learner.config import LearnerConfig, ModelConfig, OptimizerConfig
from learner.deepspeed_arguments import KNOWN, SET_BY, merged, rejection
from learner.zero.optim import deepspeed_config


def leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_key_that_a_run_sets_is_rejected_by_name(dtype: Any, offload: bool):
    learner = LearnerConfig(zero_stage=3, offload_optimizer=offload)
    for leaf in leaves(deepspeed_config(ModelConfig(path="m", dtype=dtype), learner, OptimizerConfig())):
        parts = leaf.split(".")
        assert SET_BY.keys() & {".".join(parts[:length]) for length in range(1, len(parts) + 1)}, leaf


@pytest.mark.parametrize(
    ("added", "line"),
    [
        ({"train_batch_size": 8}, "deepspeed.train_batch_size is set by learner.batch_size"),
        (
            {"zero_optimization": {"reduce_bucket_size": 9, "stage": 1}},
            "deepspeed.zero_optimization.stage is set by learner.zero_stage",
        ),
        (
            {"sequence_parallel_size": 4},
            "deepspeed.sequence_parallel_size is set by nothing: a row stays on one rank; see Long sequences in "
            "docs/learner.md",
        ),
        (
            {"zero_optimisation": {"stage": 1}},
            "deepspeed.zero_optimisation is no section that can be added; did you mean zero_optimization?",
        ),
    ],
)
def test_the_config_rejects_what_can_not_be_added(added: dict[str, Any], line: str):
    with pytest.raises(ValidationError) as raised:
        LearnerConfig(deepspeed=added)
    assert raised.value.errors()[0]["msg"] == f"Value error, {line}"


def test_what_a_user_adds_stands_beside_ours():
    added = {"zero_optimization": {"reduce_bucket_size": 9}, "communication_data_type": "bf16"}
    learner = LearnerConfig(zero_stage=2, deepspeed=added)
    config = deepspeed_config(ModelConfig(path="m"), learner, OptimizerConfig())
    assert config["zero_optimization"]["reduce_bucket_size"] == 9
    assert config["zero_optimization"]["stage"] == 2
    assert config["communication_data_type"] == "bf16"


def test_merging_leaves_both_sides_as_they_were():
    ours, theirs = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merged(ours, theirs) == {"a": {"b": 1, "c": 2}}
    assert (ours, theirs) == ({"a": {"b": 1}}, {"a": {"c": 2}})


@pytest.mark.contract
def test_deepspeed_knows_every_section():
    import inspect

    from deepspeed.comm import config as comms
    from deepspeed.profiling import constants as profiling
    from deepspeed.runtime import config, constants
    from deepspeed.runtime.swap_tensor import constants as swapping
    from deepspeed.runtime.zero import config as zero

    modules = (config, constants, comms, profiling, swapping, zero)
    text = "\n".join(inspect.getsource(module) for module in modules).replace("'", '"')
    sections = KNOWN | {key.partition(".")[0] for key in SET_BY}
    assert [name for name in sorted(sections) if f'"{name}"' not in text] == []
    fields = zero.DeepSpeedZeroConfig.model_fields
    names = fields.keys() | {field.alias for field in fields.values()}
    below = {key.removeprefix("zero_optimization.") for key in SET_BY if key.startswith("zero_optimization.")}
    assert below <= names
    assert rejection({"zero_optimization": {"reduce_bucket_size": 9}}) is None
