"""The vLLM engine of one actor: continues token ids, says which weights generated each token."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.config import GenerationConfig
from actors.engine_options import engine_arguments, environment
from actors.inprocess import InProcessEngine
from actors.messages import Completion, EngineSpec
from actors.own_output import OwnOutput
from actors.shared_memory import forget_names
from contracts.errors import UserError, first_line
from contracts.pair import TokenIds

WEIGHTS, CACHE = "weights", "kv_cache"
"""What vLLM calls the two parts of the memory of an engine that can sleep."""
LOADING_ERRORS = (ValueError, OSError, RuntimeError, KeyError, AttributeError, AssertionError, TypeError)
"""What libraries raise at the start of an engine over a model or an argument that they can't use, beside vLLM's own
errors, which are none of these."""


class RequestRejected(Exception):
    """The engine can't run this one request (it is too long, say) and goes on with the others."""


class SegmentEngine:
    """vLLM's asynchronous engine with continuous batching, on GPU or CPU.

    Weights change while requests are in flight: ``start_update`` freezes the scheduler and drops the prefix cache,
    ``finish_update`` labels the new weights and goes on; a request continues with them.
    """

    _keeps_base = False
    """Whether adapters alone are published."""
    _adapters: Any = None
    """vLLM's name for the published adapters; None before the first, and where whole weights are published."""

    def __init__(self, spec: EngineSpec, config: GenerationConfig) -> None:
        """Start the engine with the weights of ``spec.model``.

        Raises:
            UserError: vLLM can't load the model, or an argument that is passed on can't be used.
        """
        os.environ.update(environment(spec.use_gpu, spec.batch_invariant, over_ipc=spec.backend == "ipc"))
        from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
        from vllm.exceptions import VLLMError
        from vllm.v1.engine.async_llm import AsyncLLM

        self._config, self._ends = config, list(spec.ends)
        self._keeps_base = spec.adapters is not None
        self._begin_awake()
        self._output = OwnOutput()
        arguments = engine_arguments(spec, config)
        try:
            if spec.use_gpu:
                self._engine: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
            else:
                self._engine = InProcessEngine(EngineArgs(**arguments))
        except (*LOADING_ERRORS, VLLMError) as error:
            reason = self._output.reason(error)
            if spec.adapters and "LoRA" in reason:
                reason = f"{reason.rstrip('.')}; set weights.lora=merged to publish merged weights"
            raise UserError(f"generation: vLLM can't start an engine for {spec.model}: {reason}") from error
        forget_names()

    def _begin_awake(self) -> None:
        self._updating = False
        self._asleep: set[str] = set()
        """Which parts of its memory an engine that sleeps has not got back yet."""
        self._awake = asyncio.Event()
        self._awake.set()

    async def complete(self, context: TokenIds, max_tokens: int, seed: int, request: str) -> Completion:
        """Continue ``context``, int32 [tokens], by at most ``max_tokens`` tokens.

        The same for the same seed and weights, whatever else runs in the engine.

        Raises:
            RequestRejected: vLLM can't run this request.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        c = self._config
        parameters = SamplingParams(
            temperature=c.temperature,
            top_p=c.top_p,
            top_k=c.top_k if c.top_k > 0 else 0,
            max_tokens=max_tokens,
            seed=seed,
            stop_token_ids=self._ends,
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        final = await self._finished({"prompt_token_ids": context.tolist()}, parameters, request)
        generated = final.outputs[0]
        tokens = list(generated.token_ids)
        logprobs = [entry[token].logprob for entry, token in zip(generated.logprobs or (), tokens, strict=True)]
        versions = np.zeros(len(tokens), np.int32)
        for span in generated.weight_versions or ():
            versions[span.start : span.end] = version_of(span.version)
        return Completion(tokens, versions, float(np.mean(logprobs)) if logprobs else float("nan"))

    async def score(self, tokens: Sequence[int], request: str) -> NDArray[np.float32]:
        """float32 [tokens - 1]: log-probability in nats of every token but the first."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        final = await self._finished(_apart(tokens), parameters, request)
        entries = final.prompt_logprobs[1:]
        return np.array([e[t].logprob for e, t in zip(entries, tokens[1:], strict=True)], np.float32)

    async def score_last(self, tokens: Sequence[int], request: str) -> float:
        """Log-probability in nats of the last token, as it is generated: what the prefix cache holds of the tokens
        before it is read, which ``score`` never does."""
        from vllm import SamplingParams

        *context, last = tokens
        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, allowed_token_ids=[last], logprobs=0, ignore_eos=True, detokenize=False
        )
        final = await self._finished(_apart(context), parameters, request)
        logprob: float = final.outputs[0].logprobs[0][last].logprob
        return logprob

    async def _finished(self, prompt: dict[str, Any], parameters: Any, request: str) -> Any:
        """vLLM's output of one request.

        Raises:
            RequestRejected: vLLM can't run it. Any other error is the engine's.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        final = None
        try:
            results = self._engine.generate(prompt, parameters, request_id=request, lora_request=self._adapters)
            async for output in results:
                final = output
        except (ValueError, VLLMClientError) as error:  # vLLM's validation errors are of either kind
            raise RequestRejected(first_line(error)) from error
        except EngineDeadError as error:
            raise RuntimeError(self._output.reason(error)) from error
        assert final is not None
        return final

    async def abort_all(self) -> None:
        """Forget every request, also of a frozen engine; nobody waits for one any more."""
        if isinstance(self._engine, InProcessEngine):
            await self._engine.abort_all()  # vLLM's own does so when a waiting task is cancelled

    @property
    def unfinished(self) -> int:
        """Requests that the engine still works on."""
        return self._engine.get_num_unfinished_requests()

    async def start_update(self) -> None:
        """Freeze requests in flight, drop the prefix cache of the old weights, open the update. An engine that sleeps
        gets room for weights first, and for its cache when they are loaded."""
        if WEIGHTS in self._asleep:
            await self._engine.wake_up(tags=[WEIGHTS])
            self._asleep.discard(WEIGHTS)
        if not self._asleep:
            await self._engine.pause_generation(mode="keep", clear_cache=True)
        # vLLM rejects a second start; one is left open where the sender gave up between start and update.
        if not self._updating:
            await self._engine.start_weight_update()
            self._updating = True

    async def finish_update(self, version: int, digests: dict[str, int]) -> None:
        """Close the update, label the weights, go on generating.

        Raises:
            UserError: vLLM's model does not take the weights of this architecture.
            RuntimeError: weights do not have the ``digests`` that they were sent with. The engine stays frozen.
        """
        damaged: list[str] = []
        if digests:
            for names in await self._engine.collective_rpc("damaged_weights", kwargs={"expected": digests}):
                damaged += names
        await self._engine.finish_weight_update(weight_version=str(version))
        self._updating = False
        if self._keeps_base and not damaged:
            await self._engine.collective_rpc("apply_adapters")
            self._adapters = published_adapters()
        await self._validate_accepted()
        if damaged:
            raise RuntimeError(f"weights: {len(damaged)} arrived damaged, the first is {damaged[0]}")
        if self._asleep:
            await self._engine.wake_up(tags=[CACHE])
            self._asleep.clear()
        await self._engine.resume_generation()
        self._awake.set()

    async def init_transfer(self, request: Any) -> None:
        await self._engine.init_weight_transfer_engine(request)

    async def update(self, request: Any) -> None:
        """Load weights, all or some.

        Raises:
            UserError: vLLM's model can't load the weights of this architecture.
        """
        try:
            await self._engine.update_weights(request)
        except Exception:
            self._updating = False  # vLLM has closed the update
            await self._validate_accepted()
            raise

    async def _validate_accepted(self) -> None:
        from actors.weights.acceptance import Acceptance, validate_accepted

        validate_accepted([Acceptance(**found) for found in await self._engine.collective_rpc("weights_acceptance")])

    async def sleep(self) -> None:
        """Give the GPU's memory back, that of the weights too; the next publication wakes the engine up. Weights that
        are not published, those under adapters, wait in host memory."""
        if not self._asleep:
            self._awake.clear()
            # At level 2 the weights are gone until they are published; those of the base never are.
            await self._engine.sleep(level=1 if self._keeps_base else 2)
            self._asleep = {WEIGHTS, CACHE}

    async def awake(self) -> None:
        """Waits while the engine sleeps."""
        await self._awake.wait()


def _apart(tokens: Sequence[int]) -> dict[str, Any]:
    """A prompt whose part of the prefix cache no generation reads: a check must not change what it checks."""
    return {"prompt_token_ids": list(tokens), "cache_salt": "score"}


def published_adapters() -> Any:
    """vLLM's ``LoRARequest`` for the adapters that ``actors.weights.adapters`` installs."""
    from vllm.lora.request import LoRARequest

    from actors.weights.adapters import ADAPTERS

    return LoRARequest("published", ADAPTERS, "they come by publication")


def version_of(label: str) -> int:
    """The engine's label of weights as an optimizer step; vLLM calls what it was started with ``default``."""
    return 0 if label == "default" else int(label)
