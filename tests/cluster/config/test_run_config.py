"""A configuration is read as written or rejected in one line that names the key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.config.loading import load_config
from cluster.config.run_config import RunConfig
from contracts.errors import UserError
from support.paths import REPOSITORY

CONFIGS = REPOSITORY / "configs"
SMALLEST = "model: {path: m}\ndata: {path: d}\n"
ORPO = ("objective.name=orpo", "reference.mode=none")


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(SMALLEST)
    return path


def rejection(path: Path, *overrides: str) -> str:
    """The one line without the name of the file."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return re.sub(rf"^({re.escape(str(path))}( and command line)?|command line): ", "", text)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_named_after_its_file(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    if config.data.chat_template:
        assert (CONFIGS.parent / config.data.chat_template).is_file()


def test_the_papers_recipes_have_the_papers_figures() -> None:
    for stem, objective, rate, optimizer in (
        ("mistral-7b-dpo", "dpo", 5e-7, "rmsprop"),
        ("llama-3-8b-dpo", "dpo", 5e-7, "rmsprop"),
        ("mistral-7b-orpo", "orpo", 5e-6, "adamw"),
        ("llama-3-8b-orpo", "orpo", 5e-6, "adamw"),
    ):
        c = load_config(CONFIGS / f"{stem}.yaml")
        assert (c.objective.name, c.optimizer.lr, c.optimizer.name) == (objective, rate, optimizer)
        assert (c.objective.beta, c.objective.orpo_lambda, c.ema.decay) == (0.1, 0.05, 0.5)
        assert (c.data.max_length, c.data.max_prompt_length, c.generation.segment_length) == (2048, 1792, 256)
        assert (c.generation.temperature, c.generation.top_p, c.generation.top_k) == (0.7, 0.95, 50)
        assert (c.learner.zero_stage, c.learner.batch_size, c.learner.epochs) == (3, 64, 4)
        assert (c.generation.responses_per_prompt, c.inserts_per_step, c.buffer.capacity) == (1, 64, 8 * 2000)
        assert c.model.dtype == "bfloat16"
        assert c.model.gradient_checkpointing
        assert c.data.long_prompts == "truncate"
    assert (c.optimizer.schedule, c.optimizer.warmup_steps) == ("inverse_sqrt", 100)


def test_llama_3_gets_the_chat_tokens_that_its_template_writes() -> None:
    start = load_config(CONFIGS / "llama-3-8b-sft.yaml")
    assert start.data.chat_template is not None
    template = (REPOSITORY / start.data.chat_template).read_text()
    assert start.model.add_tokens == ("<|im_start|>", "<|im_end|>")
    assert all(token in template for token in start.model.add_tokens)
    for stem, run in (("llama-3-8b-dpo", "llama-3-8b-sft"), ("llama-3-8b-orpo", "llama-3-8b-chatml")):
        text = (CONFIGS / f"{stem}.yaml").read_text()
        model = load_config(CONFIGS / f"{stem}.yaml").model
        assert model.path.startswith(f"runs/{run}/checkpoints/step-")
        assert f"sapo sft configs/llama-3-8b-sft.yaml{'' if run.endswith('sft') else f' name={run}'}" in text


@pytest.mark.parametrize("stem", ["spin", "demo-spin"])
def test_spin_freezes_the_previous_policy_as_writer_and_reference(stem: str) -> None:
    c = load_config(CONFIGS / f"{stem}.yaml")
    iteration = c.weights.publish_every
    assert c.generation.segment_length is None
    assert c.ema.decay == 0
    assert (c.reference.mode, c.reference.interval) == ("policy", iteration)
    assert c.weights.max_staleness == c.buffer.max_age == iteration - 1
    assert c.buffer.capacity == iteration * c.learner.batch_size


def test_overrides_win_over_the_file_and_the_last_of_two_wins(smallest: Path) -> None:
    config = load_config(smallest, ["learner.steps=5", "optimizer.lr=1e-6", "model.path=other", "learner.steps=7"])
    assert (config.learner.steps, config.optimizer.lr, config.model.path, config.data.path) == (7, 1e-6, "other", "d")


def test_an_override_may_hold_equals_signs(smallest: Path) -> None:
    assert load_config(smallest, ["data.path=a=b"]).data.path == "a=b"


def test_sections_left_out_have_their_defaults(smallest: Path) -> None:
    config = load_config(smallest)
    assert config == RunConfig.model_validate({"model": {"path": "m"}, "data": {"path": "d"}})
    assert config.inserts_per_step == config.learner.batch_size


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("learner.step=5", "learner.step: unknown key; did you mean learner.steps?"),
        ("batch_size=4", "batch_size: unknown key; did you mean learner.batch_size?"),
        ("optimiser.lr=1", "optimiser: unknown key; did you mean optimizer?"),
        ("model.lora.alpah=1", "model.lora.alpah: unknown key; did you mean model.lora.alpha?"),
        ("zzz=1", "zzz: unknown key; `sapo config --explain` lists the known ones"),
        ("learner.steps=ten", "learner.steps ten: must be a whole number"),
        ("learner.steps=1.5", "learner.steps 1.5: must be a whole number"),
        ("learner.steps=-1", "learner.steps -1: must be greater than or equal to 0"),
        ("learner.steps={a: 1}", 'learner.steps {"a": 1}: must be a whole number'),
        ("optimizer.lr=-1", "optimizer.lr -1: must be greater than 0"),
        ("optimizer.lr=.nan", "optimizer.lr NaN: must be a finite number"),
        ("ema.decay=1.5", "ema.decay 1.5: must be less than or equal to 1"),
        ("ema.decay=-0.1", "ema.decay -0.1: must be greater than or equal to 0"),
        ("cluster.colocate=maybe", "cluster.colocate maybe: must be true or false"),
        ("learner.steps=true", "learner.steps true: must be a number"),
        ("weights.backend=mpi", "weights.backend mpi: must be 'auto', 'shm', 'gloo', 'nccl' or 'ipc'"),
        ("name=7", "name 7: must be text (numbers in quotes)"),
        (
            "name=a/b",
            "name a/b: must be at most 100 letters, digits, dots, dashes and underscores, the first a letter or digit",
        ),
        (
            "name=..",
            "name ..: must be at most 100 letters, digits, dots, dashes and underscores, the first a letter or digit",
        ),
        ("optimizer.betas=[0.9, 2]", "optimizer.betas.1 2: must be less than or equal to 1"),
        ("model.lora.target_modules=5", "model.lora.target_modules 5: must be a list or 'all-linear'"),
        ("model.lora.rank=0", "model.lora.rank 0: must be greater than or equal to 1"),
        (
            "generation.engine_args.dtype=half",
            "generation.engine_args.dtype is set by model.dtype",
        ),
        (
            "learner.deepspeed.zero_optimization.stage=1",
            "learner.deepspeed.zero_optimization.stage is set by learner.zero_stage",
        ),
        (
            "cluster.learner_resources.GPU=2",
            "cluster.learner_resources GPU: a run reserves these itself; name a kind of node",
        ),
        ("model.lora=3", "model.lora 3: must be a section with keys of rank, alpha, dropout, target_modules"),
        ("generation.top_k=0", "generation.top_k 0 keeps no token: at least 1, or -1 for all"),
        ("buffer.shards=3000", "buffer.shards 3000 is more than capacity 2000: at most one shard per pair"),
        (
            "data.max_length=100",
            "data.max_prompt_length 1792 leaves no room for a response: it must be below data.max_length 100",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_dotted_key_and_what_would_be_right(
    smallest: Path, override: str, line: str
) -> None:
    assert rejection(smallest, override) == line


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["objective.name=orpo"], "reference.mode initial: objective orpo has no reference: set none"),
        (["reference.mode=none"], "reference.mode none: objective dpo needs one: initial, ema or policy"),
        (["method=sft"], "objective.name dpo: method sft goes with objective sft, and no other method does"),
        (
            ["objective.name=sft", "reference.mode=none"],
            "objective.name sft: method sft goes with objective sft, and no other method does",
        ),
        (["learner.ranks=3"], "learner.batch_size 32: must be a multiple of learner.ranks 3"),
        (
            ["learner.tokens_per_batch=1000"],
            "learner.tokens_per_batch 1000: one response must fit: at least data.max_length 2048",
        ),
        (["learner.offload_optimizer=true"], "learner.offload_optimizer true: needs learner.zero_stage 1, 2 or 3"),
        (
            ["generation.segment_length=2048"],
            "generation.segment_length 2048: no response is so long: below data.max_length 2048; null rewrites whole "
            "ones",
        ),
        (
            ["generation.responses_per_prompt=3"],
            "generation.responses_per_prompt 3: the 32 inserts per step must be a multiple of it",
        ),
        (
            ["generation.responses_per_prompt=2", "generation.temperature=0"],
            "generation.responses_per_prompt 2: greedy segments of one cut are all the same: set 1, or "
            "generation.temperature above 0",
        ),
        (
            ["generation.tensor_parallel=2", "cluster.colocate=true"],
            "generation.tensor_parallel 2: an engine that shares its GPU with a rank has that one: set 1, or "
            "cluster.colocate false",
        ),
        (
            ["cluster.colocate=true", "weights.max_staleness=1"],
            "cluster.colocate true: learner and engine take turns: set weights.max_staleness 0",
        ),
        (
            ["cluster.colocate=true", "weights.max_staleness=0", "learner.ranks=2"],
            "generation.actors 1: each rank shares its GPU with one engine: as many as learner.ranks 2",
        ),
        (
            ["cluster.colocate=true", "weights.backend=nccl"],
            "weights.backend nccl: NCCL refuses two processes on one GPU: auto, or cluster.colocate false",
        ),
        (
            ["weights.backend=ipc"],
            "weights.backend ipc: the sender's GPU must be the engine's: auto, or cluster.colocate true with "
            "learner.ranks 1",
        ),
        (
            ["cluster.colocate=true", "learner.offload_optimizer=true", "learner.zero_stage=2"],
            "learner.offload_optimizer true: optimizer states leave the GPU anyway while the engine has it: set false",
        ),
        (
            ["model.from_scratch=true"],
            "model.from_scratch true: method sapo starts from a trained model: train one with `sapo sft`",
        ),
        (
            ["model.add_tokens=[<|x|>]"],
            'model.add_tokens ["<|x|>"]: engines start from a model that has them: run `sapo sft` with them first, '
            "start from its result",
        ),
        (
            ["model.add_tokens=[<|x|>]", "model.lora={}"],
            "model.add_tokens ['<|x|>']: adapters leave their embeddings untrained: set model.lora null",
        ),
        (["model.add_tokens=[' ']"], "model.add_tokens [' ']: a token is empty; each needs a text of its own"),
        (["buffer.capacity=16"], "buffer.capacity 16: must hold a batch: at least learner.batch_size 32"),
        (
            ["buffer.capacity=64", "buffer.inserts_per_step=128"],
            "buffer.capacity 64: must hold what a step inserts: at least buffer.inserts_per_step 128",
        ),
        (["buffer.min_size=2001"], "buffer.min_size 2001: at most buffer.capacity 2000"),
        (
            ["buffer.max_draws=1", "buffer.inserts_per_step=16"],
            "buffer.max_draws 1: 16 inserts per step can't feed batches of 32: at least 2, or 0",
        ),
        (
            ["buffer.max_age=1", "weights.max_staleness=2"],
            "buffer.max_age 1: pairs may be weights.max_staleness 2 steps old when generated: at least that, or 0",
        ),
        (
            ["buffer.max_age=3", "buffer.min_size=200"],
            "buffer.min_size 200: with buffer.max_age 3 no more than 128 pairs are young enough: at most that",
        ),
        (
            ["weights.publish_every=2"],
            "weights.publish_every 2: the actors' weights would be 1 step(s) old before the next: at most 1 with "
            "weights.max_staleness 0",
        ),
        (
            ["weights.publish_every=4", "weights.max_staleness=2"],
            "weights.publish_every 4: the actors' weights would be 3 step(s) old before the next: at most 3 with "
            "weights.max_staleness 2",
        ),
    ],
)
def test_sections_that_exclude_each_other_are_rejected(smallest: Path, overrides: list[str], line: str) -> None:
    assert rejection(smallest, *overrides) == line


@pytest.mark.parametrize(
    "overrides",
    [
        ORPO,
        ["weights.publish_every=108", "weights.max_staleness=107", "buffer.max_age=107"],
        ["weights.max_staleness=0", "buffer.max_age=0"],
        ["buffer.max_draws=2", "buffer.inserts_per_step=16"],
        ["buffer.max_age=3", "buffer.min_size=128"],
        ["generation.responses_per_prompt=4"],
        ["generation.temperature=0"],
        ["generation.segment_length=2047"],
        ["generation.actors=0"],
        ["ema.decay=0"],
        ["ema.decay=1"],
        ["learner.steps=10", "learner.epochs=2"],
        # What the actors' sections say does not matter to a method without actors.
        ["method=offline", "generation.segment_length=4096", "buffer.capacity=8"],
        ["method=sft", "objective.name=sft", "reference.mode=none", "weights.publish_every=9"],
    ],
)
def test_what_goes_together_is_accepted(smallest: Path, overrides: list[str]) -> None:
    load_config(smallest, overrides)


@pytest.mark.parametrize(
    ("overrides", "source"),
    [
        ([], "{path}"),
        (["optimizer.lr=1e-3"], "{path}"),
        (["learner.ranks=5"], "{path} and command line"),
        (["learner={ranks: 5}"], "command line"),
        (["learner.batch_size=8"], "command line"),
        (["seed=${nothing}"], "command line"),
        (["zzz=1"], "command line"),
    ],
)
def test_what_is_wrong_is_said_to_be_where_it_was_set(tmp_path: Path, overrides: list[str], source: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(SMALLEST + "learner: {batch_size: 16, ranks: 3}\n")
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    assert str(caught.value).startswith(source.format(path=path) + ": ")


def test_values_that_may_be_several_things_are_rejected_in_plain_words(smallest: Path) -> None:
    for value in ("0", "0.9", "[1]", "true"):
        said = rejection(smallest, f"data.held_out={value}")
        assert said.endswith("must be a fraction above 0 and up to 0.5, the path of a dataset, or null for none")
    for value in ("3", "tomorrow", "2024-13-01", "null"):
        said = rejection(smallest, f"data.template_date={value}")
        assert said == f"data.template_date {value}: must be a date, as 2024-07-26"
    assert rejection(smallest, "data.chat_template_kwargs=3").endswith("must be a mapping, as {key: value}")
    assert "seed 4294967296: must be less than" in rejection(smallest, f"seed={2**32}")


def test_all_wrong_keys_are_named_a_misspelt_one_first(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {pth: m}\nlearner: {steps: -1}\n")
    assert rejection(path) == (
        "model.pth: unknown key; did you mean model.path? (also wrong: model.path, data, learner.steps)"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "model: required and not given (also wrong: data)"),
        ("- 1\n- 2\n", "a mapping of sections is expected, found a list"),
        ("model: {path: m}\ndata:\n", "data null: must be a section with keys of path, sources"),
        ("model:\n  path: ???\ndata: {path: d}\n", "model.path: Missing mandatory value"),
        ("name: ${nope}\n" + SMALLEST, "name: Interpolation key 'nope' not found"),
        (SMALLEST + "buffer:\n  shards: 8\n  capacity: 4\n", "buffer.shards 8 is more than capacity 4"),
    ],
)
def test_a_file_without_the_sections_is_rejected(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert rejection(path).startswith(words)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1\n", 3, "not YAML"),
        (SMALLEST + "learner: {steps: 3, steps: 4}\n", 3, "not YAML: found duplicate key steps"),
        ("\tname: x\n", 1, "not YAML"),
    ],
)
def test_a_syntax_error_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert rejection(path).startswith(f"{path}:{line}: {words}")


def test_what_is_no_readable_file_is_rejected(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: \xe9\xff\n")
    assert rejection(latin) == "not UTF-8 text: invalid continuation byte at byte 6"
    assert rejection(tmp_path) == "a folder; a YAML file is expected"
    assert rejection(tmp_path / "none.yaml") == "no such config file"


@pytest.mark.parametrize("override", ["learner", "=3", "a..b=3", ".x=1", "--steps"])
def test_an_override_that_is_no_assignment_is_rejected(smallest: Path, override: str) -> None:
    assert rejection(smallest, override) == f"override '{override}': write it as key.sub=value"


@pytest.mark.parametrize("override", ["name=[1", "model=[1]"])
def test_an_override_that_cannot_be_merged_is_rejected(smallest: Path, override: str) -> None:
    assert rejection(smallest, override).startswith(f"override '{override}': ")
