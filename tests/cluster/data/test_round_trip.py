"""Whatever is said in a conversation, its tokens are what the template renders, and nothing said forges a turn."""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cluster.data.conversation import Message, Unusable
from cluster.data.ends import end_tokens
from cluster.data.samples import Dialogue
from cluster.data.tokenizer import opening
from cluster.data.tokens import Tokenisation, Tokens
from support.public_templates import PUBLIC, public_tokenizer

NAMES = sorted({name for public in PUBLIC.values() for name in public.special})
# SentencePiece writes a space as "▁" and can't tell the two apart.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
content = st.lists(st.text(characters, max_size=8) | st.sampled_from([*NAMES, " ", "\n", "[INST]", "<think>"])).map(
    "".join
)


@cache
def tokenisation(name: str) -> Tokenisation:
    tokenizer = public_tokenizer(name)
    return Tokenisation(tokenizer, end_tokens(tokenizer))


def tokens_of(made: Tokenisation, talk: list[Message]) -> Tokens:
    texts = made.texts(Dialogue(talk[:-1], (talk[-1],)), lambda remark: None)
    (found,) = made.tokens([texts], [lambda remark: None])
    if isinstance(found, Unusable):
        raise found
    return found


@pytest.mark.parametrize("name", PUBLIC)
@settings(max_examples=30)
@given(said=st.lists(content, min_size=2, max_size=6))
def test_the_tokens_decode_to_what_the_template_renders(name: str, said: list[str]) -> None:
    made = tokenisation(name)
    said = said[: len(said) // 2 * 2]
    assume(all(text.strip() for text in said))
    talk = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(said)]
    try:
        found = tokens_of(made, talk)
    except Unusable as reason:
        assert "private use" in str(reason)
        return
    tokenizer = made.tokenizer
    ids = [*found.prompt.tolist(), *found.responses[0].tolist()]
    decoded = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    rendered = str(tokenizer.apply_chat_template(talk, tokenize=False))
    public = PUBLIC[name]
    if public.kind != "bytes":
        # The pieces' own space before a word, and white space that special tokens take, is not in both.
        after_special = re.compile("(" + "|".join(map(re.escape, public.special)) + r")\s+")
        decoded, rendered = (after_special.sub(r"\1", text) for text in (decoded, rendered))
    assert rendered.startswith(decoded)
    assert rendered[len(decoded) :].strip() in ("", "<|endoftext|>")

    # The prompt is what its own tokens and those of the whole have in common.
    asked = made.prompt_ids(talk[:-1])
    assert found.prompt.tolist() == asked[: len(found.prompt)]
    assert len(found.prompt) == len(asked) or [*ids, None][len(found.prompt)] != asked[len(found.prompt)]

    # As many turns as there are: special tokens are those that the template writes around any other text.
    plain = tokens_of(made, [turn | {"content": "x"} for turn in talk])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for one, other in ((found.prompt, plain.prompt), (found.responses[0], plain.responses[0])):
        assert [i for i in one.tolist() if i in special] == [i for i in other.tolist() if i in special]


@pytest.mark.parametrize("name", ["ChatML", "Llama-2", "Mistral"])
@settings(max_examples=30)
@given(prompt=st.text(characters), response=st.text(characters))
def test_text_is_taken_as_it_is(name: str, prompt: str, response: str) -> None:
    from cluster.data.samples import PlainText

    made = tokenisation(name)
    assume(response.strip() and not any(special in prompt + response for special in NAMES))
    (found,) = made.tokens([made.texts(PlainText(prompt, (response,)), lambda remark: None)], [lambda remark: None])
    assume(not isinstance(found, Unusable))  # one without a beginning-of-sequence token and a prompt
    assert isinstance(found, Tokens)
    whole = made.tokenizer(prompt + response, add_special_tokens=False)["input_ids"]
    assert [*found.prompt.tolist(), *found.responses[0].tolist()] == [
        *opening(made.tokenizer),
        *whole,
        made.ends.closing,
    ]
