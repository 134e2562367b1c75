"""What the real demo prints of a run."""

from __future__ import annotations

import io

from rich.console import Console

from cluster.config.loading import load_config
from demo.real import COLUMNS, DATA, readable, steps_table
from support.paths import REPOSITORY


def test_every_step_is_a_row_and_a_check_that_was_not_made_leaves_its_column_empty():
    steps = [dict.fromkeys(COLUMNS, 1.25), {"step": 2, "loss": 0.693}]
    table = steps_table(steps)
    assert table.row_count == 2
    assert [column.header for column in table.columns] == list(COLUMNS.values())
    parity = next(column for column in table.columns if column.header == "parity, mean")
    assert list(parity.cells) == ["1.2", ""]


def test_a_pair_is_shown_with_its_question_and_brackets_stay():
    said = readable(
        {
            "step": 3,
            "prompt": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is x[0]?<|im_end|>\n",
            "chosen": "a⟦b⟧c",
            "rejected": "a⟦[bold]⟧c",
        }
    )
    out = io.StringIO()
    Console(file=out, width=200).print(said)
    assert out.getvalue().split("\n")[1:4] == ["step 3: What is x[0]?", "chosen   a⟦b⟧c", "rejected a⟦[bold]⟧c"]


def test_its_config_trains_the_model_on_the_rows_that_the_demo_writes():
    config = load_config(str(REPOSITORY / "configs" / "demo-real.yaml"))
    assert config.model.path.endswith(f"{DATA}/model") and str(config.data.path).endswith(f"{DATA}/train.jsonl")
    assert config.model.dtype == "float32"
