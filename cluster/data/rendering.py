"""Renders conversations with the chat template, always the same text for the same conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateSyntaxError

from cluster.config.sections import RESERVED_VARIABLES, DataConfig
from cluster.data.conversation import KNOWN_ROLES, Message, Messages, Unusable
from contracts.errors import UserError, first_line, named

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER = "How many days has a week?", "It has seven days."
"""A conversation that every chat template takes; templates may strip white space around the answer."""
PROBE: Messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
SHOWN_CHARACTERS = 40
"""How much of a template's text a message shows."""
DATE = date(2024, 7, 26)
"""What a dated template prints where no configuration says otherwise (evaluation)."""


@dataclass(frozen=True)
class ChatTemplate:
    """The tokenizer's template with its variables; nothing that changes from day to day reaches it."""

    tokenizer: PreTrainedTokenizerBase
    variables: Mapping[str, Any]
    today: date = DATE

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, data: DataConfig | None = None) -> ChatTemplate:
        return cls(tokenizer, data.chat_template_kwargs, data.template_date) if data else cls(tokenizer, {})

    def render(
        self, messages: Messages, tools: list[dict[str, Any]] | None = None, *, add_generation_prompt: bool
    ) -> str:
        """The conversation as the chat template writes it.

        Raises:
            UserError: the tokenizer has no chat template.
            Unusable: the template can't render the conversation; its own words are in the reason.
        """
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"data: conversations, and the tokenizer {self.tokenizer.name_or_path} has no chat template: name one "
                "in data.chat_template, use a tokenizer that has one (model.tokenizer), or prompt/completion columns"
            )
        noon = datetime.combine(self.today, time(12))
        try:
            functions: list[Any] | None = tools  # as transformers types them
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=functions,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=noon.strftime,
                **self.variables,
            )
        except TemplateSyntaxError as error:
            where = f"data.chat_template of tokenizer {self.tokenizer.name_or_path}, line {error.lineno}"
            raise UserError(f"{where}: no Jinja template: {first_line(error)}") from error
        except Exception as error:  # a template is a program of somebody else's: TypeError, KeyError, …
            own = type(error).__module__.startswith("jinja2") and str(error).strip()
            words = own.splitlines()[0] if own else named(error)
            raise Unusable(f"rejected by the chat template ({words})") from error
        assert isinstance(text, str)
        return text

    def prompt_and_wholes(
        self, prompt: Messages, responses: tuple[Message, ...], tools: list[dict[str, Any]] | None = None
    ) -> tuple[str, tuple[str, ...]]:
        """The prompt with what asks for a response, and the conversation with each of the responses.

        Raises:
            UserError: the tokenizer has no chat template.
            Unusable: the template can't render it, or a whole does not begin with the prompt.
        """
        asked = self.render(prompt, tools, add_generation_prompt=True)
        wholes = tuple(self.render([*prompt, turn], tools, add_generation_prompt=False) for turn in responses)
        for whole in wholes:
            if not whole.startswith(asked):
                raise Unusable(self._no_prefix(prompt, tools, asked, whole))
        return asked, wholes

    def reject_unusable(self) -> None:
        """Reject a template that ignores ``add_generation_prompt`` and writes a header before each response.

        Raises:
            UserError: every response would begin with the header.
        """
        if self.tokenizer.chat_template is None:
            return
        try:
            asked = self.render(PROBE[:1], add_generation_prompt=True)
            bare = self.render(PROBE[:1], add_generation_prompt=False)
            whole = self.render(PROBE, add_generation_prompt=False)
        except Unusable:  # it wants a system turn, or tools
            return
        header, answer, _ = whole.removeprefix(asked).partition(ANSWER)
        if asked == bare and whole.startswith(asked) and answer and header.strip():
            raise UserError(
                f"data: the chat template ignores add_generation_prompt, so that {_shown(header)} would be part of "
                "every response: name a template in data.chat_template that writes it when it is asked for"
            )

    def reject_unknown_variables(self) -> None:
        """
        Raises:
            UserError: ``data.chat_template_kwargs`` names a variable that the template does not have.
        """
        if self.tokenizer.chat_template is None:
            return
        own = self._own_variables
        if unknown := [name for name in self.variables if name not in own]:
            known = f"it has {', '.join(sorted(own))}" if own else "it has none; leave it out"
            raise UserError(f"data.chat_template_kwargs {unknown[0]}: the chat template has no such variable; {known}")

    def ignored_keys(self, messages: Messages) -> list[str]:
        """Keys of messages, beside role and content, that the template never mentions."""
        keys = {key for message in messages for key in message} - {"role", "content"}
        return sorted(key for key in keys if key not in str(self.tokenizer.chat_template))

    def unknown_roles(self, messages: Messages) -> list[str]:
        """Roles of messages that are none of the field's, and that the template never mentions."""
        roles = {message["role"] for message in messages} - KNOWN_ROLES
        return sorted(role for role in roles if role not in str(self.tokenizer.chat_template))

    def shows_tools(self) -> bool:
        """Whether the template does anything with tools."""
        return "tools" in str(self.tokenizer.chat_template)

    def _no_prefix(self, prompt: Messages, tools: list[dict[str, Any]] | None, asked: str, whole: str) -> str:
        """Why the whole does not begin with the prompt, and what to set."""
        bare = self.render(prompt, tools, add_generation_prompt=False)
        switch = next((name for name in ("enable_thinking", "thinking") if name in self._own_variables), None)
        set_it = f"set data.chat_template_kwargs {{{switch}: false}}" if switch and switch not in self.variables else ""
        if asked.startswith(bare) and whole.startswith(bare):
            opens = asked[len(bare) :]
            without = "it has no variable that leaves it out; " if "think" in opens and not switch else ""
            remedy = set_it or f"{without}name a template in data.chat_template that writes the same in both cases"
            return f"whose response the chat template does not begin as it asks for one, with {_shown(opens)}: {remedy}"
        remedy = "name a template in data.chat_template that does not"
        if keep := sorted({"preserve_thinking", "clear_thinking"} & self._own_variables):
            remedy = f"see its variable {' and '.join(keep)} (data.chat_template_kwargs)"
        return f"whose earlier turns the chat template writes otherwise when a response follows: {remedy}"

    @cached_property
    def _own_variables(self) -> frozenset[str]:
        """Variables that the template reads and rendering does not set itself."""
        from jinja2 import meta
        from transformers.utils.chat_template_utils import _compile_jinja_template

        template = self.tokenizer.get_chat_template()
        environment = _compile_jinja_template(template).environment
        read = meta.find_undeclared_variables(environment.parse(template))
        tokens = {name for name in read if name.endswith("_token")}
        return frozenset(read - tokens - RESERVED_VARIABLES - environment.globals.keys())


def _shown(text: str) -> str:
    """The end of a text that names what it is about, with its line breaks readable."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"…{text[-SHOWN_CHARACTERS:]}")
