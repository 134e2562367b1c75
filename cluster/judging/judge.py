"""Asks a judge: a model behind any server with OpenAI's chat API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.judging.judgements import Judgements, key_of
from cluster.judging.verdict import Verdict, question, read_verdict
from contracts.errors import UserError, first_line

if TYPE_CHECKING:
    from openai import OpenAI

RETRIES = 6
"""Of a request whose server is busy, fails or can't be reached; the client waits longer each time."""
REQUEST: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1024}
"""Of every request, unless --judge-request says otherwise."""
WITHOUT_KEY = "none"
"""What local servers are given as API key."""


@dataclass(frozen=True)
class Comparison:
    """Two responses to one instruction, in the order in which the judge sees them."""

    instruction: str
    first: str
    second: str


@dataclass(frozen=True)
class Refusal:
    """The server took a request for invalid; mostly it is too long for the model."""

    reason: str


class Judge:
    """One judge model; requests that are the same are asked once."""

    def __init__(
        self, url: str, model: str, api_key: str | None, judgements: Judgements, request: Mapping[str, Any]
    ) -> None:
        """
        Args:
            url: such as ``http://localhost:8000/v1``.
            api_key: None for servers that want none.
            request: fields of the request, over those of ``REQUEST``; None leaves one out.
        """
        from openai import OpenAI

        self._client: OpenAI = OpenAI(base_url=url, api_key=api_key or WITHOUT_KEY, max_retries=RETRIES)
        self._url, self._judgements = url, judgements
        fields = {"model": model} | REQUEST | dict(request)
        self._fields = {name: value for name, value in fields.items() if value is not None}

    def compare(self, comparisons: Sequence[Comparison], concurrency: int) -> list[Verdict | Refusal]:
        """Verdicts [comparisons]; at most ``concurrency`` requests are open at a time.

        Raises:
            UserError: the judge can't be asked: not reached, no such model, no right to. What it said is kept.
        """
        requests = {key_of(request): request for request in map(self._request, comparisons)}
        missing = [key for key in requests if self._judgements.get(key) is None]
        with ThreadPoolExecutor(concurrency) as threads:
            try:
                said = list(threads.map(lambda key: self._ask(key, requests[key]), missing))
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
        refusals = {key: answer for key, answer in zip(missing, said, strict=True) if answer is not None}
        if refusals and len(refusals) == len(requests):
            raise UserError(
                f"--judge-url {self._url}: every request is rejected: {next(iter(refusals.values())).reason}"
            )
        keys = [key_of(self._request(comparison)) for comparison in comparisons]
        return [refusals.get(key) or self._judgements.get(key) or Verdict.UNREADABLE for key in keys]

    def _request(self, comparison: Comparison) -> dict[str, Any]:
        text = question(comparison.instruction, comparison.first, comparison.second)
        return self._fields | {"messages": [{"role": "user", "content": text}]}

    def _ask(self, key: str, request: dict[str, Any]) -> Refusal | None:
        import openai

        try:
            # Fields that the client has no argument for, as servers have of their own, go into the body as they are.
            reply = self._client.chat.completions.create(
                model=request["model"],
                messages=request["messages"],
                extra_body={name: v for name, v in request.items() if name not in ("model", "messages")},
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return Refusal(first_line(error))
        except openai.OpenAIError as error:
            raise UserError(
                f"--judge-url {self._url}: {first_line(error)}; the same command goes on from here"
            ) from error
        except ValueError as error:
            raise self._other_api(first_line(error)) from error
        if not hasattr(reply, "choices"):
            raise self._other_api(f"{reply!s:.80}")
        answer = (reply.choices[0].message.content if reply.choices else None) or ""
        self._judgements.add(key, read_verdict(answer), answer)
        return None

    def _other_api(self, said: str) -> UserError:
        return UserError(
            f"--judge-url {self._url}: the answer is not of OpenAI's chat API ({said}); mostly it ends in /v1"
        )
