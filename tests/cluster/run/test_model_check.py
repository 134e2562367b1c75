"""Models and tokenizers as people bring them: accepted, accepted with a note, or rejected in one line before anything
starts."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, GPT2Config, PreTrainedTokenizerBase

from cluster.config.run_config import RunConfig
from cluster.run.checks import check_run
from contracts.errors import UserError
from support.checkpoints import Weights, copy_of, with_file, with_weights

RunOf = Callable[..., RunConfig]
SFT = ("method=sft", "objective.name=sft", "reference.mode=none")


@pytest.fixture(autouse=True)
def _nothing_is_started_or_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", started)
    yield
    assert not (tmp_path / "runs").exists()


def notes(config: RunConfig) -> str:
    return "\n".join(check_run(config, resume=False, overwrite=False).notes)


def rejection(config: RunConfig) -> str:
    with pytest.raises(UserError) as caught:
        check_run(config, resume=False, overwrite=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sound_model_is_accepted_without_a_word(run_of: RunOf) -> None:
    assert notes(run_of()) == ""
    assert notes(run_of(*SFT, "model.from_scratch=true")) == ""


# ---- config.json ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_hidden_layers", "2", "'num_hidden_layers' expected int, got str (value: '2')"),
        ("vocab_size", 64.0, "'vocab_size' expected int, got float"),
        ("vocab_size", -1, "vocab_size -1: must be 1 at least"),
        ("num_hidden_layers", 0, "num_hidden_layers 0: must be 1 at least"),
        ("num_hidden_layers", -1, "num_hidden_layers -1: must be 1 at least"),
        ("intermediate_size", 0, "intermediate_size 0: must be 1 at least"),
        ("num_attention_heads", 0, "num_attention_heads 0: must be 1 at least"),
        ("num_key_value_heads", 0, "num_key_value_heads 0: must be 1 at least"),
        ("max_position_embeddings", 0, "max_position_embeddings 0: must be 1 at least"),
        ("rms_norm_eps", -1.0, "rms_norm_eps -1: must be 0 at least"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0.0}, "rope_theta 0: must be above 0"),
        ("text_config", 3, "text_config is no object"),
        ("dtype", "nope", "AttributeError: module 'torch' has no attribute 'nope'"),
        ("is_encoder_decoder", True, "llama is an encoder with a decoder"),
        ("model_type", "bert", "bert is an encoder, whose tokens see those that follow them"),
        ("model_type", "gemma", "architectures LlamaForCausalLM, and model_type gemma, which is GemmaForCausalLM"),
        ("model_type", "qwen3", "the checkpoint lacks 4 weights"),
        ("hidden_size", "64", "'hidden_size' expected int, got str"),
        ("hidden_size", -64, "hidden_size -64: must be 1 at least"),
        ("rms_norm_eps", "1e-6", "'rms_norm_eps' expected float, got str"),
        ("hidden_act", "nope", "config.json: hidden_act 'nope' is unknown to transformers"),
        ("hidden_act", 3, "'hidden_act' expected str, got int"),
        ("max_position_embeddings", "64", "'max_position_embeddings' expected int, got str"),
        ("num_attention_heads", 5, "not a multiple of the number of attention heads (5)"),
        ("rope_parameters", {"rope_type": "nope"}, "rope_parameters.rope_type 'nope' is unknown to transformers"),
        ("rope_scaling", {"type": "linear"}, "Missing required keys in `rope_parameters`"),
        ("tie_word_embeddings", "yes", "'tie_word_embeddings' expected bool, got str"),
        ("attention_dropout", "0.1", "'attention_dropout' with value '0.1' doesn't match"),
        ("eos_token_id", "2", "'eos_token_id' with value '2' doesn't match"),
        ("pad_token_id", 500, "Padding_idx must be within num_embeddings"),
        ("model_type", "nope", "model type `nope`"),
        ("model_type", "t5", "t5 is an encoder with a decoder"),
        ("_attn_implementation", "flash_attention_2", "FlashAttention2"),
    ],
)
def test_a_config_with_a_wrong_value_is_named_with_it(
    run_of: RunOf, model: Path, tmp_path: Path, field: str, value: object, words: str
) -> None:
    folder = copy_of(model, tmp_path / "m", **{field: value})
    said = rejection(run_of(f"model.path={folder}"))
    assert said.startswith(f"model.path {folder}: ")
    assert words in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eos_token_id", [2, 3]),
        ("torch_dtype", "int8"),  # model.dtype is what counts
        ("num_key_value_heads", None),
        ("temperature", 0.7),  # a generation parameter where older versions put it
        ("max_length", 20),
        ("unknown_field", {"a": 1}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ],
)
def test_an_odd_config_that_means_something_is_accepted_and_can_be_saved(
    run_of: RunOf, model: Path, tmp_path: Path, field: str, value: object
) -> None:
    folder = copy_of(model, tmp_path / "m", **{field: value})
    if field == "num_key_value_heads":  # then there are as many as heads
        weights = load_file(folder / "model.safetensors")
        widened = {k: torch.cat([v, v]) if "k_proj" in k or "v_proj" in k else v for k, v in weights.items()}
        save_file(widened, folder / "model.safetensors", metadata={"format": "pt"})
    assert notes(run_of(f"model.path={folder}")) == ""


def test_what_a_config_says_without_an_effect_is_noted(run_of: RunOf, model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "m", architectures=["SomethingElse"], eos_token_id=9999)
    assert notes(run_of(f"model.path={folder}")).splitlines() == [
        f"model.path {folder}: config.json: eos_token_id 9999 is outside its vocabulary; the run does not use it",
        f"model.path {folder}: config.json: architectures SomethingElse, and model_type llama: it is loaded as "
        "LlamaForCausalLM",
    ]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers 0: must be 1 at least"),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 3},
            "num_key_value_heads 3: num_attention_heads 4 must be a multiple of it",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "leave quantization_config out of a copy"),
        ({"model_type": "bert"}, "bert is an encoder"),
    ],
)
def test_random_weights_are_drawn_only_for_what_can_be_computed(
    run_of: RunOf, model: Path, tmp_path: Path, config: dict[str, object], words: str
) -> None:
    folder = copy_of(model, tmp_path / "m", **config)
    assert words in rejection(run_of(*SFT, f"model.path={folder}", "model.from_scratch=true"))


def test_a_folder_without_a_configuration_is_no_model(run_of: RunOf, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    said = rejection(run_of(f"model.path={folder}"))
    assert said == f"model.path {folder}: no config.json is in it: a folder as transformers saves it is expected"
    (folder / "model-Q4.gguf").touch()
    assert "it has GGUF files, which are quantised" in rejection(run_of(f"model.path={folder}"))
    file = tmp_path / "rows.jsonl"
    assert f"model.path {file}: a file; the folder of a model" in rejection(run_of(f"model.path={file}"))


@pytest.mark.parametrize("content", ["{", "[1, 2]", "", '"llama"'])
def test_a_config_that_is_no_json_object_is_rejected(run_of: RunOf, model: Path, tmp_path: Path, content: str) -> None:
    folder = with_file(model, tmp_path / "m", "config.json", content)
    assert rejection(run_of(f"model.path={folder}")).startswith(f"model.path {folder}: its config.json can't be used: ")


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, " (bitsandbytes)"),
        ({"quant_method": "gptq", "bits": 4}, " (gptq)"),
        ({"quant_method": "awq", "bits": 4}, " (awq)"),
        ({"quant_method": "fp8"}, " (fp8)"),
        ({"quant_method": "compressed-tensors"}, " (compressed-tensors)"),
        ({"quant_method": "mxfp4"}, " (mxfp4)"),
        ({}, ""),
    ],
)
def test_a_quantised_checkpoint_is_rejected_with_what_to_do(
    run_of: RunOf, model: Path, tmp_path: Path, settings: dict[str, object], kind: str
) -> None:
    folder = copy_of(model, tmp_path / "m", quantization_config=settings)
    assert rejection(run_of(f"model.path={folder}")) == (
        f"model.path {folder}: a quantised checkpoint{kind}, which can't be trained: start from the model that it was "
        "made of, or from a copy with weights in bfloat16 or float32 and without quantization_config"
    )


# ---- adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_model_too", [False, True])
def test_an_adapter_in_place_of_a_model_is_rejected_with_its_base(
    run_of: RunOf, model: Path, tmp_path: Path, whole_model_too: bool
) -> None:
    folder = copy_of(model, tmp_path / "m") if whole_model_too else tmp_path / "a" / "m"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    said = rejection(run_of(f"model.path={folder}"))
    assert said.startswith(f"model.path {folder}: a LoRA adapter of org/base, no whole model; merge it first: ")


def test_the_adapter_of_an_export_is_rejected_with_the_folder_that_has_it_merged(
    run_of: RunOf, model: Path, tmp_path: Path
) -> None:
    policy = copy_of(model, tmp_path / "policy")
    (policy / "adapter").mkdir()
    (policy / "adapter" / "adapter_config.json").write_text("{broken")
    said = rejection(run_of(f"model.path={policy / 'adapter'}"))
    assert said.endswith(f"an adapter (peft), no whole model; {policy} has the model that it is merged into")
    assert notes(run_of(f"model.path={policy}")) == ""


def test_adapters_that_do_not_fit_are_rejected_and_others_can_be_saved(run_of: RunOf) -> None:
    assert notes(run_of("model.lora.rank=4")) == ""
    assert "model.lora.target_modules ('query',)" in rejection(run_of("model.lora.target_modules=[query]"))
    for rank in (65, 10**22):
        said = rejection(run_of(f"model.lora.rank={rank}"))
        assert said == f"model.lora.rank {rank}: no weight of the model has a rank above 64: at most that"
    assert "lm_head is tied to model.embed_tokens" in rejection(run_of("model.lora.target_modules=[lm_head]"))


# ---- weights --------------------------------------------------------------------------------------------------------


def test_missing_weights_are_counted_and_the_first_is_named(run_of: RunOf, model: Path, tmp_path: Path) -> None:
    deeper = copy_of(model, tmp_path / "deeper", num_hidden_layers=3)
    said = rejection(run_of(f"model.path={deeper}"))
    assert said == (
        f"model.path {deeper}: the checkpoint lacks 9 weights, the first is model.layers.2.input_layernorm.weight"
    )
    untied = copy_of(model, tmp_path / "untied", tie_word_embeddings=False)
    said = rejection(run_of(f"model.path={untied}"))
    assert "lacks 1 weights, the first is lm_head.weight; if the head is the embedding, set tie_word_embeddings" in said


def test_weights_of_another_shape_are_named_with_both(run_of: RunOf, model: Path, tmp_path: Path) -> None:
    wide = copy_of(model, tmp_path / "wide", vocab_size=300)
    said = rejection(run_of(f"model.path={wide}"))
    assert "the first is model.embed_tokens.weight: [64, 64] in the checkpoint, [300, 64] by config.json" in said


@pytest.mark.parametrize("layers", [1, 2])
def test_weights_without_a_place_are_left_out_with_a_note_and_reject_what_engines_would_load(
    run_of: RunOf, model: Path, tmp_path: Path, layers: int
) -> None:
    def valued(weights: Weights) -> Weights:
        return weights | ({"v_head.weight": torch.zeros(1, 64)} if layers == 2 else {})

    folder = with_weights(model, tmp_path / "m", valued, num_hidden_layers=layers)
    count, first = (1, "v_head.weight") if layers == 2 else (9, "model.layers.1.input_layernorm.weight")
    found = f"{count} weights of the checkpoint have no place in LlamaForCausalLM, the first is {first}"
    told = f"model.path {folder}: {found}"
    assert notes(run_of(f"model.path={folder}", *SFT)) == f"{told}; they are left out"
    assert rejection(run_of(f"model.path={folder}")).startswith(f"{told}: correct config.json if they belong")


@pytest.mark.parametrize("same", [True, False])
def test_a_head_of_its_own_under_a_config_that_ties_it(run_of: RunOf, model: Path, tmp_path: Path, same: bool) -> None:
    def headed(weights: Weights) -> Weights:
        embedding = weights["model.embed_tokens.weight"]
        return weights | {"lm_head.weight": embedding.clone() if same else torch.randn_like(embedding)}

    folder = with_weights(model, tmp_path / "m", headed)
    if same:
        assert notes(run_of(f"model.path={folder}")) == ""
    else:
        assert "set tie_word_embeddings false in config.json" in rejection(run_of(f"model.path={folder}"))
        untied = copy_of(folder, tmp_path / "untied", tie_word_embeddings=False)
        assert notes(run_of(f"model.path={untied}")) == ""


def test_files_of_weights_that_cannot_be_read_are_rejected(run_of: RunOf, model: Path, tmp_path: Path) -> None:
    cut = copy_of(model, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    none = copy_of(model, tmp_path / "none")
    (none / "model.safetensors").unlink()
    half = copy_of(model, tmp_path / "half")
    (half / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (half / "model.safetensors.index.json").write_text(json.dumps(index))
    pointer = with_file(model, tmp_path / "lfs", "model.safetensors", "version https://git-lfs.github.com/spec/v1\n")
    for folder in (cut, none, half, pointer):
        said = rejection(run_of(f"model.path={folder}"))
        assert said.startswith(f"model.path {folder}: not loadable as a causal language model: ")
    assert said.endswith("model.safetensors is a Git LFS pointer, not the weights; `git lfs pull` fetches them")
    assert notes(run_of(f"model.path={none}", *SFT, "model.from_scratch=true")) == ""


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, pickle.dumps({"a": print})])
def test_a_pickle_that_is_no_file_of_tensors_is_never_advised_to_be_run(
    run_of: RunOf, model: Path, tmp_path: Path, content: bytes
) -> None:
    folder = copy_of(model, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    said = rejection(run_of(f"model.path={folder}"))
    assert said.endswith("a .bin file of its weights is damaged, or holds more than tensors: bring them as safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("safe", [True, False])
def test_weights_that_are_quantised_without_a_word_are_found_by_their_dtype(
    run_of: RunOf, model: Path, tmp_path: Path, dtype: torch.dtype, safe: bool
) -> None:
    folder = with_weights(model, tmp_path / "m", lambda w: {k: v.to(dtype) if v.dim() > 1 else v for k, v in w.items()})
    if not safe:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    said = rejection(run_of(f"model.path={folder}"))
    assert "a quantised checkpoint whose config.json does not say so" in said


def test_checkpoints_in_several_files_and_in_torchs_own_format_are_accepted(
    run_of: RunOf, model: Path, tmp_path: Path
) -> None:
    sharded = copy_of(model, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(sharded, max_shard_size="50KB")
    assert (sharded / "model.safetensors.index.json").is_file()
    pickled = copy_of(model, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for folder in (sharded, pickled):
        assert notes(run_of(f"model.path={folder}")) == ""


# ---- generation_config.json, and what a checkpoint saves ----


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eos_token_id": "2"}, "eos_token_id '2': a token id, or a list of them"),
        ({"eos_token_id": 2.0}, "eos_token_id 2.0: a token id"),
        ({"eos_token_id": [2, None]}, "eos_token_id [2, None]: a token id"),
        ({"eos_token_id": -1}, "eos_token_id -1: a token id"),
        (
            {"eos_token_id": [2, 9999]},
            "end a response have token 9999, and the model has 64 embeddings",
        ),
        ({"cache_implementation": "nope"}, "can't be read: Invalid `cache_implementation`"),
        ({"num_return_sequences": 3}, "can't be read: Greedy methods"),
        ([1], "can't be read: "),
        ("{broken", "can't be read: "),
    ],
)
def test_a_generation_config_that_cannot_be_used_is_rejected(
    run_of: RunOf, model: Path, tmp_path: Path, settings: object, words: str
) -> None:
    folder = with_file(model, tmp_path / "m", "generation_config.json", settings)
    said = rejection(run_of(f"model.path={folder}"))
    assert said.startswith(f"model.path {folder}: ")
    assert words in said


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": [2, 3], "temperature": 0.6},  # transformers refuses to save it
        {"do_sample": False, "top_p": 0.9},
        {"unknown": 1, "transformers_version": 3},
        {"eos_token_id": None},
    ],
)
def test_a_generation_config_that_transformers_would_not_save_does_not_end_a_run(
    run_of: RunOf, model: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    folder = with_file(model, tmp_path / "m", "generation_config.json", settings)
    assert notes(run_of(f"model.path={folder}")) == ""


@pytest.mark.parametrize(
    ("settings", "noted"),
    [
        ({"temperature": "0.7"}, "temperature '0.7' (a number, 0 at least is expected)"),
        ({"temperature": -1}, "temperature -1 (a number, 0 at least is expected)"),
        ({"top_p": 3}, "top_p 3 (a number above 0, 1 at most is expected)"),
        ({"top_k": -4}, "top_k -4 (a whole number, 0 at least is expected)"),
        ({"max_length": -5}, "max_length -5 (a whole number, 1 at least is expected)"),
        ({"pad_token_id": -1}, "pad_token_id -1 (a token id below 64 is expected)"),
        ({"bos_token_id": 9999}, "bos_token_id 9999 (a token id below 64 is expected)"),
        ({"repetition_penalty": 1.3}, "repetition_penalty 1.3: not applied by the run"),
        ({"suppress_tokens": [1, 2]}, "suppress_tokens [1, 2]: not applied by the run"),
        ({"forced_bos_token_id": 3}, "forced_bos_token_id 3: not applied by the run"),
    ],
)
def test_odd_settings_of_generation_are_noted(
    run_of: RunOf, model: Path, tmp_path: Path, settings: dict[str, object], noted: str
) -> None:
    folder = with_file(model, tmp_path / "m", "generation_config.json", settings)
    said = notes(run_of(f"model.path={folder}"))
    assert said.startswith(f"generation_config.json: {noted}")
    assert "\n" not in said


def test_libraries_say_nothing_beside_the_notes(run_of: RunOf, model: Path, tmp_path: Path) -> None:
    """transformers has a line for each time that a file is read, which was twice."""
    printed: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            printed.append(record.getMessage())

    handler = Kept()
    folder = with_file(model, tmp_path / "m", "generation_config.json", {"top_k": -4, "temperature": -1})
    logging.getLogger("transformers").addHandler(handler)
    try:
        said = notes(run_of(f"model.path={folder}"))
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert printed == []
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            "transformers.PreTrainedConfig.save_pretrained",
            "its config.json and generation_config.json",
        ),
        ("transformers.PreTrainedTokenizerBase.save_pretrained", "its tokenizer and chat template"),
        ("peft.PeftModel.save_pretrained", "its model.lora's adapter"),
    ],
)
def test_what_could_not_be_saved_at_the_first_checkpoint_is_said_at_the_start(
    run_of: RunOf, monkeypatch: pytest.MonkeyPatch, what: str, words: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("this can't\nbe saved")

    monkeypatch.setattr(what, refuse)
    said = rejection(run_of("model.lora.rank=4"))
    assert said == f"model.path: what is trained could not be saved: {words} can't be written: this can't be saved"


# ---- tokenizers -----------------------------------------------------------------------------------------------------


def saved(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


def test_a_token_without_an_embedding_is_rejected_where_rows_have_it_and_noted_where_none_has(
    run_of: RunOf, model: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"<extra-{i}>" for i in range(10)])
    larger = saved(tokenizer, tmp_path / "larger")
    beyond = len(tokenizer) - 64
    said = notes(run_of(f"model.tokenizer={larger}"))
    assert said == f"the tokenizer has {beyond} tokens from 64 on without an embedding; no row has any of them"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("1 2 9", "1 2 <extra-9>"))
    said = rejection(run_of(f"model.tokenizer={larger}"))
    assert f"the data have token {len(tokenizer) - 1} (<extra-9>), and the model has 64 embeddings alone" in said
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "write ", "chosen": "1", "rejected": "2 <extra-9>"}) + "\n")
    said = rejection(run_of(f"model.tokenizer={larger}", "method=offline", f"data.path={pairs}"))
    assert "(<extra-9>)" in said


def test_added_tokens_get_an_embedding(run_of: RunOf, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("1 2 9", "1 2 <|im_start|>"))
    added = f"model.add_tokens=[{','.join(f'<|{i}|>' for i in range(20))},<|im_start|>]"
    meant = "data.content_tokens=[<|im_start|>]"
    run = check_run(run_of(*SFT, added, meant), resume=False, overwrite=False)
    assert not run.notes
    assert run.inputs.table.responses.flat.max() >= 64


def test_tokens_that_are_added_are_marks_of_their_own(run_of: RunOf) -> None:
    with pytest.raises(UserError, match=r"model.add_tokens .*: '<a>' is there twice"):
        run_of(*SFT, "model.add_tokens=[<a>,<a>]")
    for word in ("the", "write", "two words"):
        with pytest.raises(UserError, match=rf"'{word}' would be cut out of every text"):
            run_of(*SFT, f"model.add_tokens=[{word}]")
    assert notes(run_of(*SFT, "model.add_tokens=[</s>]")) == "model.add_tokens: the tokenizer has </s> already"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", "{", "tokenizer.json is no JSON: Expecting property name"),
        ("tokenizer.json", "{}", "KeyError: 'added_tokens'"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json is no JSON object"),
        ("special_tokens_map.json", "[1]", "special_tokens_map.json is no JSON object"),
        ("tokenizer_config.json", {"model_max_length": "x", "eos_token": "</s>"}, "TypeError: '>' not supported"),
        ("tokenizer_config.json", {"added_tokens_decoder": 3}, "AttributeError: 'int' object has no attribute"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_named_with_its_file(
    run_of: RunOf, model: Path, tmp_path: Path, name: str, content: object, words: str
) -> None:
    folder = with_file(model, tmp_path / "m", name, content)
    assert rejection(run_of(f"model.path={folder}")).startswith(
        f"model.path {folder}: no tokenizer could be loaded: {words}"
    )


def test_an_embedding_with_more_rows_than_the_tokenizer_has_tokens_is_accepted(run_of: RunOf, model: Path) -> None:
    assert len(AutoTokenizer.from_pretrained(model)) < 64
    assert notes(run_of()) == ""


@pytest.mark.parametrize("pad", ["</s>", None])
def test_padding_that_is_the_end_token_or_missing_changes_no_row(
    run_of: RunOf, model: Path, tmp_path: Path, pad: str | None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = pad
    other = saved(tokenizer, tmp_path / "t")
    tables = [
        check_run(run_of(*more), resume=False, overwrite=False).inputs.table
        for more in ((), (f"model.tokenizer={other}",))
    ]
    assert tables[0].responses.flat.tolist() == tables[1].responses.flat.tolist()
    assert tables[1].responses[0][-1] == 2, "the end of the response is learned"


def test_a_slow_tokenizer_without_a_fast_half_is_accepted(run_of: RunOf, tmp_path: Path, tiny_llama: str) -> None:
    """ByT5's, in Python alone: 256 bytes and some special tokens, over a model of 512."""
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    slow = saved(tokenizer, tmp_path / "slow")
    config = run_of(
        *SFT,
        f"model.tokenizer={slow}",
        f"model.path={copy_of(tiny_llama, tmp_path / 'm', vocab_size=512)}",
        "model.from_scratch=true",
        "data.max_length=64",
    )
    run = check_run(config, resume=False, overwrite=False)
    assert not run.inputs.tokenizer.is_fast
    response = run.inputs.table.responses[0].tolist()
    assert str(run.inputs.tokenizer.decode(response)).endswith("1 2 9</s>")
    assert response[-1] == tokenizer.eos_token_id


# ---- lengths, forward, objective, dropout ----


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data.max_length=65",), "data.max_length 65: "),
        (("objective.name=no_such_module:loss",), "No module named 'no_such_module'"),
        (("objective.name=demo.task:LARGEST",), "LARGEST is a int, expected a function"),
        (("data.path=/none/such.jsonl",), "data.path /none/such.jsonl: no such file or folder"),
        (("output_dir=/proc/x",), "output_dir /proc/x: nothing can be written in /proc"),
        (("output_dir=/dev/null/x",), "output_dir /dev/null/x: /dev/null is no folder"),
        (("model.path=/none/such",), "model.path /none/such: no such folder"),
        (("model.tokenizer=/none/such",), "model.tokenizer /none/such: no such folder"),
        (("data.chat_template=/none/such",), "data.chat_template /none/such: can't be read"),
    ],
)
def test_what_does_not_fit_the_model_is_named_by_its_key(run_of: RunOf, overrides: tuple[str, ...], words: str) -> None:
    assert words in rejection(run_of(*overrides))


def test_a_forward_that_the_architecture_does_not_allow_is_rejected(run_of: RunOf, tmp_path: Path, model: Path) -> None:
    folder = copy_of(model, tmp_path / "gpt-oss", model_type="granite_swa")
    rejected = rejection(run_of(f"model.path={folder}", "learner.forward=shared", *SFT, "model.from_scratch=true"))
    assert "learner.forward shared: " in rejected


def test_dropout_of_the_start_is_off_with_a_note(run_of: RunOf, model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "m", attention_dropout=0.1)
    off = (
        "dropout of the model is off while it is trained (attention_dropout 0.1); model.disable_dropout=false keeps it"
    )
    assert notes(run_of(f"model.path={folder}")) == off
    kept = notes(run_of(f"model.path={folder}", "model.disable_dropout=false"))
    assert kept.startswith("the policy is trained with dropout (attention_dropout 0.1), the reference has none")


def test_a_gpt2_has_three_kinds_of_dropout(run_of: RunOf, model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "m")
    GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=1, n_positions=64).save_pretrained(folder)
    said = notes(run_of(f"model.path={folder}", *SFT, "model.from_scratch=true"))
    assert "(attn_pdrop 0.1, embd_pdrop 0.1, resid_pdrop 0.1)" in said
