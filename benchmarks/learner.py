"""Seconds, tokens and memory of a preference step: our three forwards and TRL's DPOTrainer and ORPOTrainer.

    python -m benchmarks.learner [--paper] [--shapes 1024/256/64 ...] [--pairs 2] [--rounds 3]

Same model (16.9 M Llama, fp32, random weights), same pairs, same process, alternating; forward, loss and backward,
no optimizer. Ratios are of the process's CPU seconds, which other work on the machine disturbs less than the clock's;
OMP_NUM_THREADS=1 makes them the same thing. Peak memory is measured in a process of its own per case; its ratio is of
what the steps add to the process before them (interpreter, libraries and weights: the same for every case of ours).
Needs the `dev` extra for TRL.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.report import machine, save, table_of
from contracts.pair import PreferencePair, ReferenceScore
from learner.config import ObjectiveConfig
from learner.loss.objectives import Scores, resolve_objective
from learner.model.forward import score
from learner.model.packing import Mode, pack

SHAPES = ("512/256/64", "1024/256/64", "1024/512/128", "1536/256/64")
PAPER = "1792/256/256"
VOCABULARY = 8192
BETA, ORPO_WEIGHT = 0.1, 0.05
ONE_ROW = 1 << 30


Step = Callable[[], tuple[float, int]]
"""Runs forward, loss and backward; returns (loss, tokens computed)."""


def make_model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).train()


def make_pairs(shape: str, count: int, seed: int = 0, vocabulary: int = VOCABULARY) -> list[PreferencePair]:
    """``prompt/response/segment`` in tokens; prompts vary by 20 %, cuts are uniform, the suffix is kept, and a cached
    reference is 1 % off the uniform distribution."""
    prompt, response, segment = map(int, shape.split("/"))
    rng = np.random.default_rng(seed)

    def draw(tokens: int) -> np.ndarray:
        return rng.integers(3, vocabulary, tokens).astype(np.int32)

    pairs = []
    for index in range(count):
        start = int(rng.integers(0, response - segment + 1))
        tokens = int(prompt * rng.uniform(0.8, 1.2))
        counts = np.array([start, segment, response - start - segment, segment, response - start - segment])
        reference = ReferenceScore(0, (-np.log(vocabulary) * counts * rng.uniform(0.99, 1.01, 5)).astype(np.float32))
        pairs.append(
            PreferencePair(
                draw(tokens), draw(response), start, start + segment, draw(segment), True, index
            ).with_reference(reference)
        )
    return pairs


def _reference(pairs: list[PreferencePair]) -> np.ndarray:
    """float32 [pairs, 5]"""
    return np.stack([pair.reference.logps for pair in pairs if pair.reference])


def ours(model: PreTrainedModel, pairs: list[PreferencePair], mode: Mode, objective: str) -> Step:
    loss_of = resolve_objective(ObjectiveConfig(name=objective, beta=BETA, orpo_lambda=ORPO_WEIGHT))

    def step() -> tuple[float, int]:
        total, tokens = 0.0, 0
        for batch in (packed.to(model.device) for packed in pack(pairs, ONE_ROW, mode)):
            logps = score(model, batch, 1024, prefix_grad=loss_of.needs_prefix_grad)
            reference = torch.from_numpy(_reference(pairs)[list(batch.pairs)]).to(model.device)
            loss, _ = loss_of.fn(Scores(logps, batch.counts, reference))
            (loss / len(pairs)).backward()
            total += loss.item() / len(pairs)
            tokens += batch.tokens
        model.zero_grad()
        return total, tokens

    return step


def trl_dpo(model: PreTrainedModel, pairs: list[PreferencePair], *, online: bool) -> Step:
    """DPOTrainer's own collator, loss and patched head; ``online`` runs its reference model in every step."""
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(beta=BETA, max_length=None, **_quiet(model))
    trainer = DPOTrainer(
        copy.deepcopy(model),
        copy.deepcopy(model).eval(),
        arguments,
        train_dataset=_rows(),
        processing_class=_tokenizer(),
    )
    if not online:
        trainer.ref_model = None
    inputs = trainer.data_collator(
        [
            {
                "prompt_ids": p.prompt.tolist(),
                "chosen_ids": p.chosen.tolist(),
                "rejected_ids": p.rejected.tolist(),
                "ref_chosen_logps": float(reference[[0, 1, 2]].sum()),
                "ref_rejected_logps": float(reference[[0, 3, 4]].sum()),
            }
            for p, reference in zip(pairs, _reference(pairs), strict=True)
        ]
    )
    if online:
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            inputs.pop(name)
    trainer.precompute_ref_logps = not online
    return _trl_step(trainer, inputs)


def trl_orpo(model: PreTrainedModel, pairs: list[PreferencePair]) -> Step:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    arguments = ORPOConfig(beta=ORPO_WEIGHT, max_length=1 << 20, **_quiet(model))
    trainer = ORPOTrainer(copy.deepcopy(model), args=arguments, train_dataset=_rows(), processing_class=_tokenizer())
    features = []
    for p in pairs:
        feature: dict[str, object] = {"prompt": "", "chosen": "", "rejected": ""}
        for side, response in (("chosen", p.chosen), ("rejected", p.rejected)):
            ids = [*p.prompt.tolist(), *response.tolist()]
            feature |= {
                f"{side}_input_ids": ids,
                f"{side}_attention_mask": [1] * len(ids),
                f"{side}_labels": [-100] * len(p.prompt) + response.tolist(),
            }
        feature |= {"prompt_input_ids": p.prompt.tolist(), "prompt_attention_mask": [1] * len(p.prompt)}
        features.append(feature)
    return _trl_step(trainer, trainer.data_collator(features))


def _trl_step(trainer: Any, inputs: dict[str, Any]) -> Step:
    ids = [v for k, v in inputs.items() if k.endswith("input_ids") and not k.startswith("prompt")]
    tokens = sum(v.shape[0] for v in ids) * max(v.shape[1] for v in ids)
    inputs = trainer._prepare_inputs(inputs)

    def step() -> tuple[float, int]:
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        trainer.model.zero_grad()
        return loss.item(), tokens

    trainer.model.train()
    return step


def _quiet(model: PreTrainedModel) -> dict[str, Any]:
    # A folder must be named; nothing is saved, so none is made for it.
    return {
        "output_dir": tempfile.gettempdir(),
        "report_to": [],
        "use_cpu": model.device.type == "cpu",
        "bf16": model.dtype == torch.bfloat16,
        "gradient_checkpointing": model.is_gradient_checkpointing,
        "disable_tqdm": True,
        "per_device_train_batch_size": 1,
    }


def _rows() -> Any:
    """TRL wants a dataset at construction; the measured batch is handed to its loss directly."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3, "b": 4, "c": 5, "<unk>": 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


CASES: dict[str, Callable[[PreTrainedModel, list[PreferencePair]], Step]] = {
    "shared": lambda model, pairs: ours(model, pairs, "shared", "dpo"),
    "packed": lambda model, pairs: ours(model, pairs, "packed", "dpo"),
    "padded": lambda model, pairs: ours(model, pairs, "padded", "dpo"),
    "trl dpo, precomputed": lambda model, pairs: trl_dpo(model, pairs, online=False),
    "trl dpo, online": lambda model, pairs: trl_dpo(model, pairs, online=True),
    "shared orpo": lambda model, pairs: ours(model, pairs, "shared", "orpo"),
    "trl orpo": trl_orpo,
}


def time_cases(shape: str, count: int, rounds: int, names: list[str]) -> dict[str, dict[str, Any]]:
    """Every case once to warm up, then ``rounds`` times in turn."""
    model, pairs = make_model(), make_pairs(shape, count)
    # TRL's trainers replace their model's head: they work on copies.
    steps = {name: CASES[name](model, pairs) for name in names}
    results: dict[str, dict[str, Any]] = {name: {"seconds": [], "cpu_seconds": []} for name in names}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            started, cpu = time.perf_counter(), time.process_time()
            loss, tokens = step()
            if turn:
                results[name]["seconds"].append(time.perf_counter() - started)
                results[name]["cpu_seconds"].append(time.process_time() - cpu)
            results[name] |= {"loss": loss, "tokens": tokens}
    for result in results.values():
        result["median_s"] = statistics.median(result["seconds"])
        result["median_cpu_s"] = statistics.median(result["cpu_seconds"])
    return results


def peak_memory(shape: str, count: int, name: str) -> dict[str, float]:
    """Of a fresh process that takes two steps: highest resident memory and what it was before the steps, in MB."""
    command = [sys.executable, "-m", "benchmarks.learner", "--measure", name, "--shapes", shape, "--pairs", str(count)]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(out.stdout.strip().splitlines()[-1])


def measure(shape: str, count: int, name: str) -> None:
    step = CASES[name](make_model(), make_pairs(shape, count))
    before = status_mb("VmRSS")
    for _ in range(2):
        step()
    print(json.dumps({"before_mb": before, "peak_mb": status_mb("VmHWM")}))


def status_mb(field: str) -> float:
    """VmRSS (resident now) or VmHWM (at most) of this process."""
    # Not getrusage: a child's maximum starts at its parent's.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def table(cases: dict[str, dict[str, Any]]) -> str:
    """One shape's cases: tokens computed, seconds, memory, and what they are of the shared forward's."""
    rows = []
    for name, case in cases.items():
        base = cases.get("shared orpo" if "orpo" in name else "shared", {})
        row = [name, str(case["tokens"]), _times(case["tokens"], base.get("tokens"))]
        row += [f"{case['median_s']:.2f}", f"{case['median_cpu_s']:.2f}"]
        row += [_times(case["median_cpu_s"], base.get("median_cpu_s"))]
        if memory := case.get("memory"):
            ours = base.get("memory")
            row += [f"{memory['peak_mb']:.0f}", f"{_added_mb(memory):.0f}"]
            row += [_times(_added_mb(memory), _added_mb(ours) if ours else None)]
        else:
            row += ["", "", ""]
        rows.append([*row, f"{case['loss']:.5f}"])
    head = ["", "tokens", "of shared", "seconds", "CPU s", "of shared", "peak MB", "steps add MB", "of shared", "loss"]
    return table_of(head, rows)


def _added_mb(memory: dict[str, float]) -> float:
    return memory["peak_mb"] - memory["before_mb"]


def _times(value: float, base: float | None) -> str:
    return f"{value / base:.2f}x" if base else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="prompt/response/segment in tokens")
    parser.add_argument("--paper", action="store_true", help=f"the paper's shape alone ({PAPER})")
    parser.add_argument("--pairs", type=int, default=2, help="pairs per step")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps per case")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--no-memory", action="store_true", help="skip the peak-memory processes")
    parser.add_argument("--measure", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.measure:
        measure(options.shapes[0], options.pairs, options.measure)
        return
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for shape in [PAPER] if options.paper else options.shapes:
        results[shape] = time_cases(shape, options.pairs, options.rounds, options.cases)
        if not options.no_memory:
            for name in options.cases:
                results[shape][name]["memory"] = peak_memory(shape, options.pairs, name)
        print(f"\nprompt/response/segment {shape}, {options.pairs} pairs a step\n{table(results[shape])}", flush=True)
    settings = {
        "pairs": options.pairs,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "model": "Llama 16.9 M fp32",
        "torch": torch.__version__,
    }
    save("learner_paper" if options.paper else "learner", {"machine": machine(), **settings, "shapes": results})


if __name__ == "__main__":
    main()
