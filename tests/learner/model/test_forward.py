"""The packed forwards give the log-probabilities and gradients of the two-sequence forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import Tensor

from contracts.errors import UserError
from contracts.pair import PreferencePair, supervised
from learner.model import attention
from learner.model.forward import choose_forward, score, sharing_obstacle
from learner.model.packing import pack

SIZES: dict[str, Any] = dict(  # noqa: C408
    vocab_size=128,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.15,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
WINDOW = 9
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "llama_tied": lambda: tf.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": lambda: tf.MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen2": lambda: tf.Qwen2Config(**SIZES),
    "qwen2_windowed": lambda: tf.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=WINDOW, layer_types=MIXED
    ),
    "qwen3": lambda: tf.Qwen3Config(**SIZES, head_dim=16),
    "gemma2": lambda: tf.Gemma2Config(
        **SIZES,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        layer_types=MIXED,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0,
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **SIZES,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        layer_types=MIXED,
    ),
    "phi3": lambda: tf.Phi3Config(**SIZES, sliding_window=WINDOW),
    "olmo2": lambda: tf.Olmo2Config(**SIZES),
    "granite": lambda: tf.GraniteConfig(
        **SIZES, logits_scaling=3.0, attention_multiplier=0.2, embedding_multiplier=2.0, residual_multiplier=0.5
    ),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    "cohere": lambda: tf.CohereConfig(**SIZES, logit_scale=0.3),
    "starcoder2": lambda: tf.Starcoder2Config(**SIZES, sliding_window=WINDOW),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=128,
        n_embd=48,
        n_layer=3,
        n_head=4,
        n_positions=256,
        initializer_range=0.15,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
    ),
    "mixtral": lambda: tf.MixtralConfig(**SIZES, num_local_experts=4, sliding_window=WINDOW),
    "deepseek_v3": lambda: tf.DeepseekV3Config(
        **SIZES | {"num_key_value_heads": 4},
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=12,
        first_k_dense_replace=1,
    ),
    "cohere2": lambda: tf.Cohere2Config(**SIZES, sliding_window=WINDOW, layer_types=MIXED),
    "olmo3": lambda: tf.Olmo3Config(**SIZES, sliding_window=WINDOW, layer_types=MIXED),
}


def build(name: str) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(FAMILIES[name](), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases of a fresh model are ones and zeros: hide nothing
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def make_pairs(seed: int = 0) -> list[PreferencePair]:
    rng = np.random.default_rng(seed)

    def draw(n: int) -> np.ndarray:
        return rng.integers(3, 128, n).astype(np.int32)

    shapes = [
        (11, 6, 5, 4, 7, True),
        (3, 0, 4, 0, 2, False),
        (20, 9, 6, 8, 3, True),
        (0, 0, 6, 2, 5, False),
        (0, 4, 3, 3, 4, True),
        (25, 1, 1, 1, 2, False),
    ]
    return [PreferencePair(draw(p), draw(a + b + c), a, a + b, draw(b2), kept) for p, a, b, c, b2, kept in shapes]


def unpacked_logps(model: tf.PreTrainedModel, prompt: np.ndarray, response: np.ndarray) -> Tensor:
    """[response tokens] from the model's own full forward of one sequence; 0 where nothing precedes the token."""
    ids = torch.tensor(np.concatenate((prompt, response)).astype(np.int64))[None]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    logps = torch.log_softmax(logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
    return torch.cat((logps.new_zeros(1), logps))[len(prompt) :]


def oracle(model: tf.PreTrainedModel, pairs: list[PreferencePair]) -> Tensor:
    """[pairs, 5] by the two-sequence forward."""
    rows = []
    for pair in pairs:
        chosen, rejected = (
            unpacked_logps(model, pair.prompt, pair.chosen),
            unpacked_logps(model, pair.prompt, pair.rejected),
        )
        split = pair.start + len(pair.replacement)
        rows.append(
            torch.stack(
                [
                    chosen[: pair.start].sum(),
                    chosen[pair.start : pair.end].sum(),
                    chosen[pair.end :].sum(),
                    rejected[pair.start : split].sum(),
                    rejected[split:].sum(),
                ]
            )
        )
    return torch.stack(rows)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def weights_of_regions(pairs: int) -> Tensor:
    return torch.linspace(-1, 1, pairs * 5).view(pairs, 5)


def run_ours(model, pairs, mode, *, budget=150, chunk=16, prefix_grad=True) -> Tensor:
    logps = torch.zeros(len(pairs), 5)
    for batch in pack(pairs, budget, mode):
        found = score(model, batch, chunk, prefix_grad=prefix_grad)
        (found * weights_of_regions(len(pairs))[list(batch.pairs)]).sum().backward()
        logps[list(batch.pairs)] = found.detach()
    return logps


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    scale = max(g.abs().max() for g in theirs.values())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= 2e-5 * scale, name


@pytest.mark.parametrize("mode", ["shared", "packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logps_and_gradients_equal_the_two_sequence_forward(family, mode):
    pairs = make_pairs()
    model = build(family)
    expected = oracle(model, pairs)
    (expected * weights_of_regions(len(pairs))).sum().backward()
    theirs = gradients(model)
    logps = run_ours(model, pairs, mode)
    assert (logps - expected).abs().max() <= 1e-5
    assert_same_gradients(gradients(model), theirs)


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_windows_and_caps_of_the_tiny_models_matter(family):
    """Otherwise the test above would prove nothing about them."""
    pairs, model = make_pairs(), build(family)
    with torch.no_grad():
        before = oracle(model, pairs)
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        model.config.sliding_window = 10_000
        assert (oracle(model, pairs) - before).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradient_checkpointing_changes_nothing(family):
    pairs, model = make_pairs(), build(family)
    logps = run_ours(model, pairs, "shared")
    without = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert torch.equal(run_ours(model, pairs, "shared"), logps)
    assert_same_gradients(gradients(model), without)


@pytest.mark.parametrize(("budget", "chunk"), [(40, 3), (80, 1000), (10_000, 7)])
def test_update_does_not_depend_on_packing_or_chunk(budget, chunk):
    pairs, model = make_pairs(), build("llama_tied")
    logps = run_ours(model, pairs, "shared")
    expected = gradients(model)
    assert (run_ours(model, pairs, "shared", budget=budget, chunk=chunk) - logps).abs().max() <= 2e-5
    assert_same_gradients(gradients(model), expected)


def test_without_prefix_gradient_the_values_stay_and_the_gradient_of_a_goes():
    pairs, model = make_pairs(), build("llama")
    logps = run_ours(model, pairs, "shared")
    gradients(model)
    without = run_ours(model, pairs, "shared", prefix_grad=False)
    ours = gradients(model)
    assert (without - logps).abs().max() <= 1e-5
    weights = weights_of_regions(len(pairs)).clone()
    weights[:, 0] = 0
    (oracle(with_eager(model), pairs) * weights).sum().backward()
    assert_same_gradients(ours, gradients(model))


def with_eager(model):
    model.set_attn_implementation("eager")
    return model


def test_full_logits_never_live_when_the_head_is_chunked():
    pairs, model = make_pairs(), build("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape)))
    head_forward, sizes = model.lm_head.forward, []

    def watched(states):
        sizes.append(len(states))
        return head_forward(states)

    model.lm_head.forward = watched
    (batch,) = pack(pairs, 999, "shared")
    score(model, batch, chunk=8).sum().backward()
    assert max(sizes) == 8
    assert seen == [(len(batch.targets),)], "one call of the module, log-probabilities out"
    assert model.lm_head.forward is watched


def test_scores_without_gradient_keep_no_graph():
    pairs, model = make_pairs(), build("llama")
    with torch.no_grad():
        logps = score(model, pack(pairs, 999, "shared")[0], chunk=8)
    assert not logps.requires_grad
    assert logps.dtype == torch.float32


def test_lora_wrapped_model_is_scored_with_its_adapters():
    peft = pytest.importorskip("peft")
    pairs = make_pairs()
    model = peft.get_peft_model(
        build("llama"), peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    expected = oracle(model, pairs)
    (expected * weights_of_regions(len(pairs))).sum().backward()
    theirs = gradients(model)
    assert (run_ours(model, pairs, "shared") - expected).abs().max() <= 1e-5
    assert_same_gradients(gradients(model), theirs)
    with torch.no_grad(), model.disable_adapter():
        off = score(model, pack(pairs, 999, "shared")[0], chunk=8)
        assert (off - expected).abs().max() > 1e-2


def test_supervised_rows_are_scored_as_one_sequence():
    model, pair = build("llama"), make_pairs()[0]
    row = supervised(0, pair.prompt, pair.chosen)
    expected = unpacked_logps(model, pair.prompt, pair.chosen).sum()
    for mode in ("shared", "packed", "padded"):
        assert torch.allclose(score(model, pack([row], 99, mode)[0], 8).sum(), expected, atol=1e-5)


def test_padded_forward_brings_back_the_models_own_attention():
    pairs, model = make_pairs(), build("llama")
    score(model, pack(pairs, 999, "shared")[0], 8)
    assert model.config._attn_implementation == attention.NAME
    score(model, pack(pairs, 999, "padded")[0], 8)
    assert model.config._attn_implementation == "eager"


def test_first_token_without_context_is_not_scored():
    pair = make_pairs()[3]
    assert len(pair.prompt) == pair.start == 0
    counts = pack([pair], 99, "shared")[0].counts[0].tolist()
    assert counts == [0, 5, 2, 4, 0]


def test_a_pair_in_which_nothing_can_be_scored_still_has_a_backward():
    lonely = supervised(0, np.zeros(0, np.int32), np.array([5], np.int32))
    logps = score(build("llama"), pack([lonely], 99, "shared")[0], 8)
    assert logps.tolist() == [[0.0] * 5]
    logps.sum().backward()


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (tf.MambaConfig(), "recurrent"),
        (tf.JambaConfig(), "recurrent"),
        (tf.BambaConfig(), "recurrent"),
        (tf.FalconH1Config(), "recurrent"),
        (tf.Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]), "conv"),
        (tf.Llama4TextConfig(), "chunked_attention"),
        (tf.BloomConfig(), "attention interface"),
        (tf.GptOssConfig(), "sinks"),
        (tf.NemotronConfig(), "keywords"),
        (tf.T5Config(), "causal"),
    ],
)
def test_architectures_that_cannot_share_fall_to_padded_with_a_reason(config, word):
    assert word in (sharing_obstacle(config) or "")
    choice = choose_forward(config, "auto")
    assert choice.mode == "padded"
    assert word in choice.reason
    with pytest.raises(UserError, match="use auto or padded"):
        choose_forward(config, "shared")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_usual_decoder_families_share(family):
    assert choose_forward(FAMILIES[family](), "auto").mode == "shared"


def test_a_recurrent_model_trains_on_the_padded_forward():
    torch.manual_seed(0)
    config = tf.FalconH1Config(
        **SIZES,
        mamba_d_ssm=48,
        mamba_n_heads=4,
        mamba_d_head=12,
        mamba_d_state=8,
        mamba_n_groups=1,
        lm_head_multiplier=0.4,
        mamba_chunk_size=16,
    )
    model, pairs = tf.AutoModelForCausalLM.from_config(config), make_pairs()[:3]
    expected = oracle(model, pairs)
    (expected * weights_of_regions(3)).sum().backward()
    theirs = gradients(model)
    assert (run_ours(model, pairs, "padded") - expected).abs().max() <= 1e-4
    assert_same_gradients(gradients(model), theirs)
