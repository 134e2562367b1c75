"""Twenty prompts with IFEval's instructions, stored responses, and whether a reader says that each is followed.

None needs NLTK's data, which can't be had without network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASK = """task: local_ifeval
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
num_fewshot: 0
output_type: generate_until
doc_to_text: prompt
doc_to_target: 0
generation_kwargs: {{until: [], max_gen_toks: 16}}
process_results: !function utils.process_results
metric_list:
  - {{metric: prompt_level_strict_acc, aggregation: mean, higher_is_better: true}}
  - {{metric: inst_level_strict_acc, aggregation: !function utils.agg_inst_level_acc, higher_is_better: true}}
  - {{metric: prompt_level_loose_acc, aggregation: mean, higher_is_better: true}}
  - {{metric: inst_level_loose_acc, aggregation: !function utils.agg_inst_level_acc, higher_is_better: true}}
"""
CODE = "from lm_eval.tasks.ifeval.utils import agg_inst_level_acc, process_results\n"


@dataclass(frozen=True)
class Case:
    """A prompt, its instructions with what a reader says of the stored response."""

    response: str
    instructions: dict[str, dict[str, Any]]
    followed: tuple[bool, ...]


CASES = [
    Case("No commas here.", {"punctuation:no_comma": {}}, (True,)),
    Case("One, two.", {"punctuation:no_comma": {}}, (False,)),
    Case(
        "Section 1\nA.\nSection 2\nB.",
        {"detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 2}},
        (True,),
    ),
    Case("Not all Capital letters here.", {"change_case:english_capital": {}}, (False,)),
    Case(
        "this whole sentence has only small letters in it, and it is written in the english language.",
        {"change_case:english_lowercase": {}},
        (True,),
    ),
    Case('"In quotation marks"', {"startend:quotation": {}}, (True,)),
    Case("In none", {"startend:quotation": {}}, (False,)),
    Case("<<A title>>\nText.", {"detectable_format:title": {}}, (True,)),
    Case('{"a": [1, 2]}', {"detectable_format:json_format": {}}, (True,)),
    Case('{"a": [1, 2}', {"detectable_format:json_format": {}}, (False,)),
    Case("* one\n* two\n* three", {"detectable_format:number_bullet_lists": {"num_bullets": 3}}, (True,)),
    Case("* one\n* two", {"detectable_format:number_bullet_lists": {"num_bullets": 3}}, (False,)),
    Case(
        "Send it to [name] at [address].", {"detectable_content:number_placeholders": {"num_placeholders": 2}}, (True,)
    ),
    Case(
        "A *first* and a *second* one.",
        {"detectable_format:number_highlighted_sections": {"num_highlights": 3}},
        (False,),
    ),
    Case("The cat sat.", {"keywords:existence": {"keywords": ["cat", "dog"]}}, (False,)),
    Case("The cat sat.", {"keywords:forbidden_words": {"forbidden_words": ["dog"]}}, (True,)),
    Case(
        "one two three four",
        {"length_constraints:number_words": {"relation": "at least", "num_words": 4}, "punctuation:no_comma": {}},
        (True, True),
    ),
    Case(
        "Yes, that is all.",
        {"startend:end_checker": {"end_phrase": "that is all."}, "punctuation:no_comma": {}},
        (True, False),
    ),
    Case("First.\n***\nSecond.", {"length_constraints:number_paragraphs": {"num_paragraphs": 2}}, (True,)),
    Case("Text.\n\nP.S. More.", {"detectable_content:postscript": {"postscript_marker": "P.S."}}, (True,)),
]


def prompt(number: int) -> str:
    return f"Prompt {number}: write something."


def write_task(folder: Path) -> None:
    """A folder of task files with their data."""
    folder.mkdir()
    rows = [
        {
            "key": number,
            "prompt": prompt(number),
            "instruction_id_list": list(case.instructions),
            "kwargs": list(case.instructions.values()),
        }
        for number, case in enumerate(CASES)
    ]
    # The keys of all rows, as IFEval's own data have them: a column has one type.
    keys = sorted({key for case in CASES for kwargs in case.instructions.values() for key in kwargs})
    for row in rows:
        row["kwargs"] = [{key: kwargs.get(key) for key in keys} for kwargs in row["kwargs"]]  # type: ignore[attr-defined]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ifeval.yaml").write_text(TASK.format(data=data))
    (folder / "utils.py").write_text(CODE)


def write_responses(path: Path) -> None:
    path.write_text(json.dumps([{"instruction": prompt(i), "output": case.response} for i, case in enumerate(CASES)]))
