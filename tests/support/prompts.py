"""What the tests of evaluations share: a question with its answer, and prompts in a file."""

from __future__ import annotations

import json
from pathlib import Path

USER = {"role": "user", "content": "write 3 numbers with sum 12 ascending"}
ANSWER = {"role": "assistant", "content": "1 2 9"}


def prompts_file(folder: Path, *rows: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
