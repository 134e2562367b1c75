"""Memory that comes and goes, measured at small scale beside the formulas of benchmarks/memory_model.py.

    OMP_NUM_THREADS=1 python -m benchmarks.transients

Each figure is the highest resident memory of the process during the work, beyond what it had before. Peers: autograd's
own backward of a log-softmax, torch's ``create_block_mask``, safetensors' ``save_file`` of copies on the host.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from benchmarks.learner import VOCABULARY, make_model, make_pairs, status_mb
from benchmarks.memory_model import FP32, Architecture, head_bytes, mask_bytes, token_bytes
from benchmarks.report import machine, save, table_of
from learner.model import attention_gpu
from learner.model.forward import score
from learner.model.packing import PackedBatch, pack
from learner.model.token_logps import token_logps
from learner.zero.tensor_files import CHUNK_BYTES, TensorFile

MB = 1 << 20
TOKENS, WORDS = 256, 128_256
"""Of the head's chunk."""
FILE_BYTES = 512 << 20
LENGTHS = (4, 8)
"""Pairs of the rows whose peaks are compared: a token's memory is their difference."""


def peak_mb(work: Callable[[], Any]) -> float:
    """The highest resident memory during ``work`` beyond that before it."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far becomes the present one
    before = status_mb("VmRSS")
    work()
    return status_mb("VmHWM") - before


def head(logps: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> float:
    """From the hidden states on, so that the logits count too."""
    states = torch.randn(TOKENS, 8).to(dtype)
    weight = torch.randn(WORDS, 8).to(dtype)
    targets = torch.randint(WORDS, (TOKENS,))
    states.requires_grad_()
    return peak_mb(lambda: logps(states @ weight.T, targets).sum().backward())


def plain_logps(logits: Tensor, targets: Tensor) -> Tensor:
    values = logits.float()
    return values.gather(-1, targets[:, None])[:, 0] - torch.logsumexp(values, dim=-1)


def mask(whole: bool) -> tuple[float, int]:
    """And the tokens of the row."""
    batch = row(8)
    assert batch.layout is not None
    layout, tokens = batch.layout, batch.tokens
    build = attention_gpu._block_mask
    if not whole:
        return peak_mb(lambda: build(layout, None, torch.device("cpu"))), tokens
    sees = build(layout, None, torch.device("cpu")).mask_mod
    return peak_mb(lambda: create_block_mask(sees, None, None, tokens, tokens, device="cpu")), tokens


def row(pairs: int) -> PackedBatch:
    (batch,) = pack(make_pairs("1024/256/64", pairs), 1 << 30, "shared")
    return batch


def token_mb() -> float:
    """Of a row of the small model in fp32 with checkpointing: forward and backward."""
    model = make_model()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    peaks = []
    for batch in (row(pairs) for pairs in (1, *LENGTHS)):
        peak = peak_mb(lambda batch=batch: score(model, batch, 64, prefix_grad=False).sum().backward())  # type: ignore[misc]
        peaks.append((batch.tokens, peak))
    (short, less), (long, more) = peaks[1:]
    return (more - less) / (long - short)


def files(folder: Path) -> tuple[float, float]:
    """Ours, and the library's from copies, as a GPU's tensors need them."""
    tensors = {f"w{i}": torch.ones(FILE_BYTES // 8 // 4) for i in range(8)}

    def ours() -> None:
        with TensorFile(folder / "ours", [(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()]) as file:
            for name, tensor in tensors.items():
                file.put(name, tensor)

    return peak_mb(ours), peak_mb(lambda: save_file({n: t.clone() for n, t in tensors.items()}, folder / "theirs"))


def main() -> None:
    torch.manual_seed(0)
    small = Architecture("Llama 16.9 M", 6, 384, 1024, 6, 6, 64, VOCABULARY)
    ours, tokens = mask(False)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file, library = files(Path(folder))
    lean = head_bytes(Architecture("", 0, 0, 0, 0, 0, 0, WORDS), TOKENS, on_gpu=False) / MB
    measured: dict[str, tuple[float, float | None, float]] = {
        f"head, {TOKENS} tokens x {WORDS} words, bf16": (
            head(token_logps, torch.bfloat16),
            head(plain_logps, torch.bfloat16),
            lean,
        ),
        f"blocks of a row of {tokens} tokens": (ours, mask(True)[0], mask_bytes(tokens) / MB),
        f"a file of {FILE_BYTES // MB} MB": (file, library, CHUNK_BYTES / MB),
        "1,000 tokens of a row, fp32, checkpointing": (
            1000 * token_mb(),
            None,
            1000 * sum(token_bytes(small, width=FP32).values()) / MB,
        ),
    }
    rows = [[name, *("" if v is None else f"{v:.1f}" for v in values)] for name, values in measured.items()]
    print("\nMB at most, beyond what was there before")
    print(table_of(["", "measured", "peer", "computed"], rows))
    save("transients", {"machine": machine(), "torch": torch.__version__, "mb": measured})


if __name__ == "__main__":
    main()
