"""The worker extension of CPU engines with ``generation.packed_weights`` false: its import keeps linear weights as they
are published.

vLLM imports an extension in every worker before it loads the model, also where workers are processes of their own.
"""

from __future__ import annotations

from vllm import _custom_ops

from actors.weights.receivers import WeightReceiver

# vLLM's CPU build packs linear weights wherever it finds oneDNN; it has no option against it.
_custom_ops._supports_onednn = False

__all__ = ["WeightReceiver"]
