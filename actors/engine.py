"""The vLLM engine of one actor: continues token ids, says which weights wrote each token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.config import GenerationConfig
from actors.inprocess import InProcessEngine
from contracts.errors import UserError

CPU_ENVIRONMENT = {
    # With more than one OpenMP thread beside other work on the cores, generation all but stops.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The engine computes in the actor's own process (actors/inprocess.py).
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Ours are unique, and drawing random ones costs a tenth of a short request.
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "1",
}
QUIET_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"}
CPU_KV_CACHE_BYTES = 256 << 20
RECEIVER = "actors.weights.receivers.WeightReceiver"


@dataclass(frozen=True)
class Written:
    """One finished continuation."""

    tokens: list[int]
    """Ends at the first end-of-sequence token, or at the limit."""
    versions: NDArray[np.int32]
    """int32 [tokens]: version of the weights that sampled each token."""
    mean_logprob: float
    """Nats per token, before temperature and filters."""


class SegmentEngine:
    """vLLM's asynchronous engine with continuous batching, on GPU or CPU.

    Weights change while requests are in flight: ``start_update`` freezes the scheduler and drops the prefix cache,
    ``finish_update`` labels the new weights and goes on; a request continues with them.
    """

    def __init__(
        self,
        model: str,
        dtype: str,
        config: GenerationConfig,
        *,
        tokenizer: str | None,
        max_length: int,
        eos: Sequence[int],
        seed: int,
        backend: str,
        use_gpu: bool,
        trust_remote_code: bool,
        sleep_mode: bool,
    ) -> None:
        """Start the engine with the weights of ``model``.

        Raises:
            UserError: vLLM can't load the model.
        """
        os.environ.update(QUIET_ENVIRONMENT if use_gpu else QUIET_ENVIRONMENT | CPU_ENVIRONMENT)
        from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors.weights.receivers import receiver_of

        self._config, self._eos = config, list(eos)
        self._updating = False
        arguments: dict[str, Any] = {
            "model": model,
            "dtype": dtype,
            "skip_tokenizer_init": True,
            "max_model_len": max_length,
            "max_num_seqs": config.max_concurrent_requests,
            "seed": seed % (1 << 31),
            "enable_prefix_caching": config.prefix_caching,
            "tensor_parallel_size": config.tensor_parallel,
            "weight_transfer_config": {"backend": receiver_of(backend)},
            "worker_extension_cls": RECEIVER,
            "trust_remote_code": trust_remote_code,
            "enforce_eager": _eager(config, use_gpu),
            "disable_log_stats": True,
        }
        if use_gpu:
            arguments |= {"gpu_memory_utilization": config.gpu_memory_utilization, "enable_sleep_mode": sleep_mode}
            if config.kv_cache_bytes:
                arguments["kv_cache_memory_bytes"] = config.kv_cache_bytes
        else:
            # A seeded request whose prefill is split crashes the CPU engine: prefills stay whole.
            arguments |= {
                "kv_cache_memory_bytes": config.kv_cache_bytes or CPU_KV_CACHE_BYTES,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(max_length, 8192),
            }
        try:
            if use_gpu:
                self._engine: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
            else:
                if not config.packed_weights:
                    _keep_linear_weights_plain()
                self._engine = InProcessEngine(EngineArgs(**arguments))
        except (ValueError, OSError, RuntimeError) as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"generation: vLLM can't start an engine for {model}: {reason[:300]}") from error

    async def write(self, context: Sequence[int], max_tokens: int, seed: int, request: str) -> Written:
        """Continue ``context`` by at most ``max_tokens`` tokens; the same for the same seed and weights, whatever else
        runs in the engine."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        c = self._config
        parameters = SamplingParams(
            temperature=c.temperature,
            top_p=c.top_p,
            top_k=c.top_k if c.top_k > 0 else 0,
            max_tokens=max_tokens,
            seed=seed,
            stop_token_ids=self._eos,
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        final = None
        prompt = {"prompt_token_ids": list(map(int, context))}
        async for output in self._engine.generate(prompt, parameters, request_id=request):
            final = output
        assert final is not None
        completion = final.outputs[0]
        tokens = list(completion.token_ids)
        logprobs = [entry[token].logprob for entry, token in zip(completion.logprobs or (), tokens, strict=True)]
        versions = np.zeros(len(tokens), np.int32)
        for span in completion.weight_versions or ():
            versions[span.start : span.end] = version_of(span.version)
        return Written(tokens, versions, float(np.mean(logprobs)) if logprobs else float("nan"))

    async def score(self, tokens: Sequence[int], request: str) -> NDArray[np.float32]:
        """float32 [tokens - 1]: log-probability in nats of every token but the first."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        final = None
        async for output in self._engine.generate({"prompt_token_ids": list(tokens)}, parameters, request_id=request):
            final = output
        assert final is not None
        entries = final.prompt_logprobs[1:]
        return np.array([e[t].logprob for e, t in zip(entries, tokens[1:], strict=True)], np.float32)

    @property
    def unfinished(self) -> int:
        """Requests that the engine still works on."""
        return self._engine.get_num_unfinished_requests()

    async def start_update(self) -> None:
        """Freeze requests in flight, drop the prefix cache of the old weights, open the update."""
        await self._engine.pause_generation(mode="keep", clear_cache=True)
        # vLLM refuses a second start; one is left open where the sender gave up between start and update.
        if not self._updating:
            await self._engine.start_weight_update()
            self._updating = True

    async def finish_update(self, version: int, digests: dict[str, int]) -> None:
        """Close the update, label the weights, go on generating.

        Raises:
            RuntimeError: weights do not have the ``digests`` that they were sent with. The engine stays frozen.
        """
        damaged: list[str] = []
        if digests:
            for names in await self._engine.collective_rpc("damaged_weights", kwargs={"expected": digests}):
                damaged += names
        await self._engine.finish_weight_update(weight_version=str(version))
        self._updating = False
        if damaged:
            raise RuntimeError(f"weights: {len(damaged)} arrived damaged, the first is {damaged[0]}")
        await self._engine.resume_generation()

    async def init_transfer(self, request: Any) -> None:
        await self._engine.init_weight_transfer_engine(request)

    async def close_transfer(self) -> None:
        await self._engine.shutdown_weight_transfer_engine()

    async def update(self, request: Any) -> None:
        try:
            await self._engine.update_weights(request)
        except Exception:
            self._updating = False  # vLLM has closed the update
            raise

    async def sleep(self) -> None:
        """Give the GPU's memory back; the weights are sent again before the engine wakes up to work."""
        await self._engine.sleep(level=1)

    async def wake(self) -> None:
        await self._engine.wake_up()

    def shutdown(self) -> None:
        self._engine.shutdown()


def version_of(label: str) -> int:
    """The engine's label of weights as an optimizer step; vLLM calls what it was started with ``default``."""
    return 0 if label == "default" else int(label)


def _keep_linear_weights_plain() -> None:
    """vLLM's CPU build packs linear weights wherever it finds oneDNN; it has no option against it."""
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False


def _eager(config: GenerationConfig, use_gpu: bool) -> bool:
    return not use_gpu if config.enforce_eager is None else config.enforce_eager
