"""One tiny model of random weights for each architecture that engines are tried with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from support.models import IDS, LLAMA

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WINDOW = 32
MIXED = ["sliding_attention", "full_attention"]
ROUTED: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WITHOUT_HEAD_DIM = {name: value for name, value in LLAMA.items() if name != "head_dim"}


def _configs() -> dict[str, Callable[[], PreTrainedConfig]]:
    import transformers

    tf: Any = transformers  # its configs do not declare every field that they take

    windowed: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": MIXED}
    return {
        "llama": lambda: tf.LlamaConfig(**LLAMA),
        "llama_tied": lambda: tf.LlamaConfig(**LLAMA, tie_word_embeddings=True),
        "mistral": lambda: tf.MistralConfig(**LLAMA, sliding_window=WINDOW),
        "qwen2": lambda: tf.Qwen2Config(**LLAMA, tie_word_embeddings=True),
        "qwen3": lambda: tf.Qwen3Config(**LLAMA),
        "gemma2": lambda: tf.Gemma2Config(**LLAMA, **windowed, query_pre_attn_scalar=32),
        "gemma3": lambda: tf.Gemma3TextConfig(**LLAMA, **windowed, query_pre_attn_scalar=32),
        "phi3": lambda: tf.Phi3Config(**WITHOUT_HEAD_DIM),
        "gpt2": lambda: tf.GPT2Config(
            **IDS, n_embd=64, n_layer=2, n_head=2, n_positions=1024, n_inner=160, initializer_range=0.08
        ),
        "gpt_neox": lambda: tf.GPTNeoXConfig(**_without(WITHOUT_HEAD_DIM, "num_key_value_heads")),
        "olmo2": lambda: tf.Olmo2Config(**WITHOUT_HEAD_DIM),
        "olmo3": lambda: tf.Olmo3Config(**WITHOUT_HEAD_DIM, **windowed),
        "granite": lambda: tf.GraniteConfig(
            **WITHOUT_HEAD_DIM, logits_scaling=3.0, attention_multiplier=0.2, residual_multiplier=0.5
        ),
        "starcoder2": lambda: tf.Starcoder2Config(**WITHOUT_HEAD_DIM, sliding_window=WINDOW),
        "cohere": lambda: tf.CohereConfig(**WITHOUT_HEAD_DIM, logit_scale=0.3),
        "smollm3": lambda: tf.SmolLM3Config(**WITHOUT_HEAD_DIM),
        "stablelm": lambda: tf.StableLmConfig(**WITHOUT_HEAD_DIM),
        "opt": lambda: tf.OPTConfig(
            **IDS,
            hidden_size=64,
            ffn_dim=160,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=1024,
            word_embed_proj_dim=64,
            init_std=0.08,
        ),
        "mixtral": lambda: tf.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2),
        "qwen2_moe": lambda: tf.Qwen2MoeConfig(**WITHOUT_HEAD_DIM, **ROUTED, shared_expert_intermediate_size=64),
        "qwen3_moe": lambda: tf.Qwen3MoeConfig(**LLAMA, **ROUTED, norm_topk_prob=True),
        "olmoe": lambda: tf.OlmoeConfig(**WITHOUT_HEAD_DIM, num_experts=4, num_experts_per_tok=2),
        "granite_moe": lambda: tf.GraniteMoeConfig(**WITHOUT_HEAD_DIM, num_local_experts=4, num_experts_per_tok=2),
        "glm4_moe": lambda: tf.Glm4MoeConfig(
            **LLAMA,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
        ),
        "gpt_oss": lambda: tf.GptOssConfig(**LLAMA, **windowed, num_local_experts=4, num_experts_per_tok=2),
    }


def _without(sizes: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in sizes.items() if key != name}


def build(name: str) -> PreTrainedModel:
    """The model of an architecture; no norm is one and no bias zero."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_configs()[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


DENSE = (
    "llama",
    "llama_tied",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "gpt_neox",
    "olmo2",
    "olmo3",
    "granite",
    "starcoder2",
    "cohere",
    "smollm3",
    "stablelm",
    "opt",
)
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granite_moe", "glm4_moe")
REFUSED = {"gpt_oss": "GptOssForCausalLM does not load"}
"""Architecture -> what the refusal says."""
ALL = (*DENSE, *EXPERTS, *REFUSED)
