"""vLLM's engine on a thread of this process, under the names of its ``AsyncLLM``: what runs where there is no GPU.

``AsyncLLM`` starts two more processes an engine, which talk through spinning queues; on a machine whose few cores are
shared with the learner that costs more than the model. Here one thread schedules, computes and hands results over.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False, slots=True)
class _Request:
    id: str
    prompt: Any
    parameters: Any
    adapters: Any
    finished: asyncio.Future[Any]


class InProcessEngine:
    """Continuous batching: a request joins the running batch at the next step, whoever waits for what."""

    def __init__(self, arguments: Any) -> None:
        """``arguments``: vLLM's ``EngineArgs``. The environment must say VLLM_ENABLE_V1_MULTIPROCESSING=0."""
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._arrived: list[_Request] = []
        """Requests of this round of the event loop: handed over together, so that they share the next step."""
        self._waiting: dict[str, _Request] = {}
        self._paused = False
        self._dead: BaseException | None = None
        started: Future[None] = Future()
        # It ends with the process: an actor that leaves is killed.
        threading.Thread(target=self._run, args=(arguments, started), name="engine", daemon=True).start()
        started.result()

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, lora_request: Any = None
    ) -> AsyncIterator[Any]:
        """Yields the finished request.

        Raises:
            ValueError, VLLMClientError: the request can't be run (too long, say).
            RuntimeError: the engine is dead; its own error is the cause.
        """
        if self._dead:
            raise RuntimeError("the engine is dead") from self._dead
        loop = asyncio.get_running_loop()
        request = _Request(request_id, prompt, sampling_params, lora_request, loop.create_future())
        if not self._arrived:
            loop.call_soon(self._hand_over)
        self._arrived.append(request)
        yield await request.finished

    def _hand_over(self) -> None:
        arrived, self._arrived = self._arrived, []
        self._calls.put((lambda: self._add(arrived), Future()))

    def _add(self, requests: list[_Request]) -> None:
        for request in requests:
            self._waiting[request.id] = request
            try:
                self._engine.add_request(request.id, request.prompt, request.parameters, lora_request=request.adapters)
            except Exception as error:
                self._settle([(self._waiting.pop(request.id), error)])

    def _settle(self, results: list[tuple[_Request, Any]]) -> None:
        """Resolve the futures of several requests with one message to the event loop."""
        if not results:
            return

        def settle() -> None:
            for request, result in results:
                if request.finished.done():  # nobody waits for it any more
                    continue
                if isinstance(result, BaseException):
                    request.finished.set_exception(result)
                else:
                    request.finished.set_result(result)

        with contextlib.suppress(RuntimeError):  # the loop is closed: the actor is leaving
            results[0][0].finished.get_loop().call_soon_threadsafe(settle)

    def get_num_unfinished_requests(self) -> int:
        return len(self._waiting)

    async def abort_all(self) -> None:
        """Forget every request; nobody waits for one any more."""

        def abort() -> None:
            self._engine.abort_request(list(self._waiting))
            self._waiting.clear()

        await self._on_thread(abort)

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        def pause() -> None:
            self._core.pause_scheduler(mode, clear_cache)
            self._paused = True

        await self._on_thread(pause)

    async def resume_generation(self) -> None:
        def resume() -> None:
            self._core.resume_scheduler()
            self._paused = False

        await self._on_thread(resume)

    async def init_weight_transfer_engine(self, request: Any) -> None:
        await self.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": request.init_info})

    async def start_weight_update(self) -> None:
        await self.collective_rpc("start_weight_update")

    async def update_weights(self, request: Any) -> None:
        await self.collective_rpc("update_weights", kwargs={"update_info": request.update_info})

    async def finish_weight_update(self, weight_version: str) -> None:
        await self.collective_rpc("finish_weight_update")
        await self._on_thread(lambda: self._engine.set_weight_version(weight_version))

    async def collective_rpc(self, method: str, kwargs: dict[str, Any] | None = None) -> list[Any]:
        return await self._on_thread(lambda: self._engine.collective_rpc(method, kwargs=kwargs))

    async def sleep(self, level: int = 1) -> None:
        await self._on_thread(lambda: self._engine.sleep(level))

    async def wake_up(self, tags: list[str] | None = None) -> None:
        await self._on_thread(lambda: self._engine.wake_up(tags))

    @property
    def _core(self) -> Any:
        return self._engine.engine_core.engine_core

    async def _on_thread(self, call: Callable[[], Any]) -> Any:
        if self._dead:
            raise RuntimeError("the engine is dead") from self._dead
        answer: Future[Any] = Future()
        self._calls.put((call, answer))
        return await asyncio.wrap_future(answer)

    def _run(self, arguments: Any, started: Future[None]) -> None:
        from vllm.v1.engine.llm_engine import LLMEngine

        try:
            # Made on the thread that uses it: torch's settings are a thread's own.
            self._engine = LLMEngine.from_engine_args(arguments)
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while True:
                self._serve_calls()
                if self._waiting and not self._paused:
                    self._step()
        except BaseException as error:
            self._dead = error
            self._settle([(request, error) for request in self._waiting.values()])
            self._engine.engine_core.shutdown()

    def _serve_calls(self) -> None:
        """Run what others asked for; waits when there is nothing else to do."""
        idle = not self._waiting or self._paused
        while True:
            try:
                call, answer = self._calls.get(block=idle)
            except queue.Empty:
                return
            try:
                answer.set_result(call())
            except Exception as error:
                answer.set_exception(error)
            idle = False

    def _step(self) -> None:
        finished = [output for output in self._engine.step() if output.finished]
        self._settle([(self._waiting.pop(output.request_id), output) for output in finished])
