"""An engine for an evaluation is made for what is asked of it, whatever the model could hold; what can't be asked is
rejected before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from actors.engine_options import CPU_KV_CACHE_BYTES
from cluster.config.sections import DataConfig
from cluster.evaluation.dry_run import dry_evaluation
from cluster.evaluation.plan import cache_bytes, plan_evaluation
from contracts.errors import UserError
from support.checkpoints import copy_of
from support.prompts import prompts_file

CHECK = "demo.task:check"


def words(count: int) -> dict[str, str]:
    return {"prompt": " ".join(["write"] * count)}


def rejection(model: Path | str, prompts: Path, check: str = CHECK) -> str:
    with pytest.raises(UserError) as caught:
        plan_evaluation(str(model), prompts, check, 8)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("positions", [64, 32_768, 131_072, 1_048_576])
def test_the_engine_is_as_long_as_the_longest_prompt_and_its_response(
    demo_model: str, tmp_path: Path, positions: int
) -> None:
    model = copy_of(demo_model, tmp_path / "m", max_position_embeddings=positions)
    plan = plan_evaluation(str(model), prompts_file(tmp_path, words(3), words(40)), CHECK, 8)
    assert plan.longest == 48
    assert plan.most_tokens == [8, 8]
    assert cache_bytes(plan.architecture, plan.longest) == CPU_KV_CACHE_BYTES


def test_a_long_prompt_does_not_shorten_the_responses_to_others(demo_model: str, tmp_path: Path) -> None:
    plan = plan_evaluation(demo_model, prompts_file(tmp_path, words(2), words(60), words(63)), CHECK, 32)
    assert plan.most_tokens == [32, 4, 1]
    assert plan.longest == 64


def test_a_model_that_an_engine_would_not_load_ends_the_dry_run(demo_model: str, tmp_path: Path) -> None:
    def said(model: Path) -> str:
        with pytest.raises(UserError) as caught:
            dry_evaluation(str(model), prompts_file(tmp_path, words(3)), CHECK, samples=1, max_tokens=8)
        return str(caught.value)

    deeper = copy_of(demo_model, tmp_path / "deeper", num_hidden_layers=9)
    assert said(deeper).startswith(f"model {deeper}: the checkpoint lacks ")
    shallow = copy_of(demo_model, tmp_path / "shallow", num_hidden_layers=1)
    assert " weights have no place in it, the first is model.layers.1." in said(shallow)
    empty = copy_of(demo_model, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    assert said(empty).startswith(f"model {empty}: not loadable as a causal language model: ")
    encoder = copy_of(demo_model, tmp_path / "encoder", model_type="bert")
    assert "bert is an encoder" in said(encoder)


def test_prompts_are_rendered_as_the_run_renders_them(demo_model: str, tmp_path: Path) -> None:
    model = copy_of(demo_model, tmp_path / "m")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if short %} 1{% else %} 2 3{% endif %}"
    (model / "chat_template.jinja").write_text(template)
    prompts = prompts_file(tmp_path, {"messages": [{"role": "user", "content": "write"}]})

    def ids(**data: object) -> list[int]:
        return plan_evaluation(str(model), prompts, CHECK, 8, DataConfig.model_validate({"path": "d"} | data)).prompts[
            0
        ]

    assert len(ids()) == len(ids(chat_template_kwargs={"short": True})) + 1
    assert ids() == plan_evaluation(str(model), prompts, CHECK, 8).prompts[0]
    with pytest.raises(UserError, match=r"chat_template_kwargs long: the chat template has no such variable; it has s"):
        ids(chat_template_kwargs={"long": True})


def test_a_cache_holds_the_longest_sequence() -> None:
    config = LlamaConfig(num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, hidden_size=896)
    of_token = 2 * 24 * 2 * 64 * 4
    assert cache_bytes(config, 30_000) == 2 * 30_000 * of_token > CPU_KV_CACHE_BYTES
    assert cache_bytes(config, 10) == CPU_KV_CACHE_BYTES


def test_a_prompt_that_leaves_no_position_is_named(demo_model: str, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, words(2), words(64))
    said = f"--prompts {prompts}:2: 64 tokens; model {demo_model} holds 64 with the response"
    assert rejection(demo_model, prompts) == said


def test_models_and_tokenizers_that_cannot_be_evaluated_are_named(demo_model: str, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, words(2), {"prompt": "1 2 40"})
    small = copy_of(demo_model, tmp_path / "small", vocab_size=16)
    assert f"--prompts {prompts}:2: token 54, and model {small} has 16 alone" in rejection(small, prompts)
    wrong = copy_of(demo_model, tmp_path / "wrong", num_hidden_layers="2")
    assert "'num_hidden_layers' expected int, got str" in rejection(wrong, prompts)
    adapter = copy_of(demo_model, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert rejection(adapter, prompts).startswith(f"model {adapter}: a LoRA adapter of org/base")
    assert rejection(tmp_path / "none", prompts) == f"model {tmp_path / 'none'}: no such folder"
    bare = copy_of(demo_model, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    (bare / "tokenizer_config.json").unlink()
    assert f"model.path {bare}: " in rejection(bare, prompts)
    quantised = copy_of(demo_model, tmp_path / "quantised", quantization_config={"quant_method": "fp8"})
    assert plan_evaluation(str(quantised), prompts, CHECK, 8).prompts, "engines serve quantised models"


def test_a_dry_run_says_what_would_be_asked(demo_model: str, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, words(3), words(40))
    assert dry_evaluation(demo_model, prompts, CHECK, samples=4, max_tokens=100) == (
        f"model {demo_model}: 2 prompts of 3 to 40 tokens, each answered greedily and 4 times sampled by up to 61 "
        f"tokens; scored by {CHECK}"
    )
    with pytest.raises(UserError, match="no attribute 'nothing'"):
        dry_evaluation(demo_model, prompts, "demo.task:nothing", samples=4, max_tokens=100)
