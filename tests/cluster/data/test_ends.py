"""A response ends at the same tokens everywhere: tokenizer's, generation_config's, and the chat template's own."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from actors.config import AfterEos
from actors.plan import PlanItem
from actors.splice import splice
from buffer.messages import Outcome
from cluster.data.ends import EndTokens, end_tokens, read_ends
from cluster.data.tokenizer import load_tokenizer, vocabulary_size
from contracts.errors import UserError
from demo.model import write_model
from learner.config import ModelConfig
from support.chat_styles import CHATML, STYLES, ChatStyle, write_tokenizer
from support.dataset_rows import conversation, jsonl, table_of


@pytest.fixture(params=STYLES, scope="module")
def styled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ChatStyle, str]:
    """A style, and the folder of a tokenizer that has it."""
    style = STYLES[request.param]
    return style, write_tokenizer(tmp_path_factory.mktemp("style"), style)


def ends_of(folder: str) -> EndTokens:
    model = ModelConfig(path=folder)
    return read_ends(model, load_tokenizer(model))


def ids(folder: str, text: str) -> list[int]:
    encoded: list[int] = load_tokenizer(ModelConfig(path=folder))(text, add_special_tokens=False)["input_ids"]
    return encoded


def test_the_set_is_what_the_model_stops_at(styled: tuple[ChatStyle, str]) -> None:
    style, folder = styled
    ends = ends_of(folder)
    assert list(ends.ids) == [i for name in style.ends for i in ids(folder, name)]
    assert [ends.closing] == ids(folder, style.closing)
    assert all(name in str(ends) for name in style.ends)


def test_a_response_ends_where_its_template_closes_the_turn(styled: tuple[ChatStyle, str], tmp_path: Path) -> None:
    style, folder = styled
    path = jsonl(tmp_path / "d.jsonl", [{"messages": conversation("the question", "the answer")}])
    row = table_of(path, folder)[0][0]
    assert row.response.tolist() == ids(folder, style.written)


def test_text_without_a_template_is_closed_as_a_turn_is(styled: tuple[ChatStyle, str], tmp_path: Path) -> None:
    style, folder = styled
    rows = [{"prompt": "q", "completion": "a"}]
    rows += [{"prompt": "q", "completion": f"a{end}b{style.eos}"} for end in style.ends]
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", rows), folder)
    responses = [table[i].response.tolist() for i in range(len(table))]
    assert responses == [ids(folder, f"a{end}") for end in (style.closing, *style.ends)]


def test_an_end_in_the_content_is_text_and_ends_nothing(styled: tuple[ChatStyle, str], tmp_path: Path) -> None:
    style, folder = styled
    ends = ends_of(folder)
    tokenizer = load_tokenizer(ModelConfig(path=folder))
    for name in style.ends:
        path = jsonl(tmp_path / "d.jsonl", [{"messages": conversation("q", f"the {name} answer")}])
        response = table_of(path, folder)[0][0].response.tolist()
        assert [i for i, token in enumerate(response) if token in ends.ids] == [len(response) - 1]
        assert tokenizer.decode(response) == style.written.replace("the answer", f"the {name} answer")


def test_a_segment_that_ends_with_any_of_them_ends_the_response(styled: tuple[ChatStyle, str], tmp_path: Path) -> None:
    folder = styled[1]
    path = jsonl(tmp_path / "d.jsonl", [{"messages": conversation("the question", "is the number")}])
    row = table_of(path, folder)[0][0]
    item = PlanItem(index=0, row=0, epoch=0, start=1, end=3, sampling_seed=1)
    before, suffix = row.response[:1].tolist(), row.response[3:].tolist()
    (new,) = ids(folder, "z")
    for end in ends_of(folder).ids:
        expected = {"drop": [*before, new, end], "keep": [*before, new, *suffix], "reject": None}
        for after_eos in get_args(AfterEos):
            outcome, pair = splice(row, item, [new, end], ends_of(folder).ids, after_eos)
            assert (pair and pair.rejected.tolist()) == expected[after_eos]
            assert (outcome is Outcome.DISCARDED) == (pair is None)


def test_one_end_token_is_found_once_whoever_names_it(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    ends = ends_of(str(tmp_path))
    assert (ends.ids, ends.closing) == ((2,), 2)
    assert str(ends) == "a response ends at </s> (tokenizer, generation_config, chat template)"


def test_an_end_that_a_word_tokenizer_cannot_spell_drops_the_row(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    rows = [{"messages": conversation("write 3 numbers", text)} for text in ("1 2", "1 </s> 2")]
    table, report = table_of(jsonl(tmp_path / "d.jsonl", rows), str(tmp_path / "model"))
    assert len(table) == 1
    assert report.dropped == {"whose text speaks of </s>, which this tokenizer can't write as text": 1}


def test_a_template_that_rejects_a_plain_conversation_leaves_the_other_ends(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, STYLES["qwen-base"])
    tokenizer = load_tokenizer(ModelConfig(path=folder))
    wants_tools = "{% if messages[0]['role'] != 'tools' %}{{ raise_exception('no tools') }}{% endif %}" + CHATML
    tokenizer.chat_template = wants_tools
    ends = end_tokens(tokenizer, [2])
    assert (ends.ids, ends.closing, ends.written) == ((0, 2), 0, None)


def test_added_tokens_make_a_base_model_close_its_turns(tmp_path: Path) -> None:
    base = write_tokenizer(tmp_path / "base", STYLES["chatml as plain text"])
    first_new = vocabulary_size(load_tokenizer(ModelConfig(path=base)))
    tokenizer = load_tokenizer(ModelConfig(path=base, add_tokens=("<|im_start|>", "<|im_end|>")))
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    ends = end_tokens(tokenizer)
    assert (ends.ids, ends.closing) == ((tokenizer.eos_token_id, end), end)
    assert {start, end} == {first_new, first_new + 1}
    assert vocabulary_size(tokenizer) == first_new + 2
    tokenizer.save_pretrained(tmp_path / "result")
    again = load_tokenizer(ModelConfig(path=str(tmp_path / "result")))
    assert end_tokens(again) == ends
    assert again.decode([start, *again("a")["input_ids"], end], skip_special_tokens=True) == "a"


def test_a_damaged_generation_config_is_named(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, STYLES["llama-2"])
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"^model\.path .*: generation_config\.json can't be read: "):
        ends_of(folder)
