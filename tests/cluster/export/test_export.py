"""An exported folder is the checkpoint's model: the same logits, whole, with what others need to load it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cluster.export.export import Exported, ExportJob, export
from cluster.export.model_card import CardExtras
from cluster.export.source import What
from cluster.storage.checkpoints import write_manifest
from contracts.errors import UserError

IDS = torch.arange(3, 40)[None]


def job(source: Path, to: Path, what: What = What.POLICY, **changes: Any) -> ExportJob:
    extras = CardExtras(changes.pop("base_model", None), changes.pop("license", None), changes.pop("evaluation", None))
    values = {"dtype": None, "max_shard_size": "5GB", "push_to_hub": None, "private": False} | changes
    return ExportJob(source=source, what=what, to=to, extras=extras, **values)


def run_export(source: Path, to: Path, what: What = What.POLICY, **changes: Any) -> Exported:
    return export(job(source, to, what, **changes))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize(("what", "name"), [(What.POLICY, "policy"), (What.AVERAGE, "ema")])
@pytest.mark.parametrize("size", ["5GB", "100KB"])
def test_the_exported_model_computes_what_the_checkpoint_s_does(
    trained: Path, tmp_path: Path, what: What, name: str, size: str
) -> None:
    run_export(trained, tmp_path / "out", what, max_shard_size=size)
    inside = trained / "checkpoints" / "step-20" / name
    assert torch.equal(logits(load(tmp_path / "out")), logits(load(inside)))
    files = list((tmp_path / "out").glob("model*.safetensors"))
    assert len(files) == 1 if size == "5GB" else len(files) > 1
    assert size == "5GB" or max(file.stat().st_size for file in files) < 110_000
    theirs, ours = (AutoTokenizer.from_pretrained(folder) for folder in (inside, tmp_path / "out"))
    turns = [{"role": "user", "content": "write 3 numbers"}]
    assert theirs.apply_chat_template(turns) == ours.apply_chat_template(turns)
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_that_of_the_weights_and_said_in_the_config(trained: Path, tmp_path: Path, dtype: str) -> None:
    done = run_export(trained / "checkpoints" / "step-20", tmp_path / "out", dtype=dtype)
    wanted = getattr(torch, dtype)
    model = load(tmp_path / "out", dtype="auto")
    assert model.dtype is wanted
    expected = load(trained / "checkpoints" / "step-20" / "policy").to(wanted)
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert done.weight_bytes == sum(p.numel() for p in expected.parameters()) * 2


def test_an_adapter_on_its_start_is_the_policy(trained: Path, tmp_path: Path) -> None:
    run_export(trained, tmp_path / "out", What.ADAPTER, base_model="owner/start")
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == "owner/start"
    base: Any = load(trained.parent / "start")
    adapted = PeftModel.from_pretrained(base, tmp_path / "out")
    policy = load(trained / "checkpoints" / "step-20" / "policy")
    assert torch.allclose(logits(adapted), logits(policy), atol=1e-5)
    assert not torch.allclose(logits(policy), logits(load(trained.parent / "start")), atol=1e-2)
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_card_says_data_start_metrics_evaluation_versions_and_licence(trained: Path, tmp_path: Path) -> None:
    (trained / "environment.json").write_text(json.dumps({"packages": {"torch": "9.9", "numpy": "1"}}))
    share = {"mean": 0.75, "error": 0.01}
    policy = trained / "checkpoints" / "step-20" / "policy"
    results = {str(policy): {"greedy": share, "prompts": 77}, "/far/runs/a/checkpoints/step-3/ema": {"greedy": share}}
    (tmp_path / "scores.json").write_text(json.dumps(results))
    run_export(trained, tmp_path / "out", evaluation=tmp_path / "scores.json", base_model="owner/start")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    found = card.data.to_dict()
    assert (found["base_model"], found["datasets"], found["license"]) == ("owner/start", ["owner/rows"], "apache-2.0")
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "text-generation")
    for line in (
        "for 20 of 30 optimizer steps",
        "| this model | greedy | 0.750 ± 0.010 | 77 |",
        "| a, step-3, ema | greedy | 0.750 ± 0.010 |  |",
        "| `loss` | 1 | 0.06688 | loss |",  # of steps 11 to 20
        "torch 9.9",
        "`fingerprint`",
        "rank: 4",
    ):
        assert line in card.text, line
    assert str(trained.parent) not in card.content
    assert "numpy" not in card.text


def test_a_checkpoint_outside_its_run_has_no_metrics_and_says_so(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoints" / "step-20", tmp_path / "moved")
    run_export(tmp_path / "moved", tmp_path / "out", license="mit")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "were not at hand" in text
    assert "`mit`, as its author states" in text
    assert "Not evaluated." in text


def test_what_cannot_be_exported_is_one_line_and_writes_nothing(
    trained: Path, without_adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    (tmp_path / "bad.json").write_text("[]")
    (tmp_path / "none.json").write_text('{"m": {}}')
    to = tmp_path / "out"
    for bad, message in (
        (job(trained, tmp_path / "there"), r"--to .*there: is there already"),
        (job(tmp_path / "gone", to), r"gone: no such folder; give a run"),
        (job(tmp_path, to), r"no run with a checkpoint, and no checkpoint"),
        (job(without_adapter, to, What.ADAPTER), r"--what adapter: .*model\.lora is not set"),
        (job(trained, to, max_shard_size="5 apples"), r"--max-shard-size 5 apples: write a size"),
        (job(trained, to, max_shard_size="0GB"), r"--max-shard-size 0GB: write a size"),
        (job(trained, to, evaluation=tmp_path / "gone.json"), r"gone\.json: can't be read"),
        (job(trained, to, evaluation=tmp_path / "bad.json"), r"bad\.json: damaged: no JSON object"),
        (job(trained, to, evaluation=tmp_path / "none.json"), r"--evaluation .*: has no figures"),
        (job(trained, to, push_to_hub="no/such/name"), r"--push-to-hub no/such/name: "),
        (job(trained, tmp_path / "bad.json" / "out"), r"--to .*: can't be written"),
    ):
        with pytest.raises(UserError, match=message):
            export(bad)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json", "none.json", "there", "whole"]
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]


def test_a_damaged_checkpoint_is_not_exported(without_adapter: Path, tmp_path: Path) -> None:
    weights = without_adapter / "checkpoints" / "step-20" / "policy" / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x77")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged: its checksum"):
        run_export(without_adapter, tmp_path / "out")
    run_export(without_adapter, tmp_path / "ema", What.AVERAGE)  # is whole


def test_all_chat_templates_of_a_tokenizer_are_exported(without_adapter: Path, tmp_path: Path) -> None:
    checkpoint = without_adapter / "checkpoints" / "step-20"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "policy")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages[0].content }} by tools"}
    tokenizer.save_pretrained(checkpoint / "policy")
    write_manifest(checkpoint, step=20, data="d", total_steps=30)
    written = run_export(without_adapter, tmp_path / "out")
    turns = [{"role": "user", "content": "write"}]
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported.apply_chat_template(turns, chat_template="tool_use", tokenize=False) == "write by tools"
    assert any("tool_use" in file for file in written.files)


def test_a_file_that_the_checkpoint_does_not_list_stays_behind(without_adapter: Path, tmp_path: Path) -> None:
    (without_adapter / "checkpoints" / "step-20" / "policy" / "planted.py").write_text("import os")
    assert "planted.py" not in run_export(without_adapter, tmp_path / "out").files


def test_values_that_float16_cannot_hold_are_not_made_infinite(without_adapter: Path, tmp_path: Path) -> None:
    checkpoint = without_adapter / "checkpoints" / "step-20"
    model = load(checkpoint / "policy")
    with torch.no_grad():
        model.model.norm.weight[0] = 1e5
    model.save_pretrained(checkpoint / "policy")
    write_manifest(checkpoint, step=20, data="d", total_steps=30)
    with pytest.raises(UserError, match=r"--dtype float16: model\.norm\.weight has values beyond"):
        run_export(without_adapter, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.tmp").exists()


class Hub:
    """Stands in for the hub's client; remembers what it was asked."""

    def __init__(self, *, there: bool = False, error: Exception | None = None) -> None:
        self.there, self.error, self.files = there, error, list[str]()

    def repo_exists(self, name: str) -> bool:
        return self.there

    def create_repo(self, name: str, *, private: bool) -> str:
        if self.error:
            raise self.error
        return f"https://hub/{name}?private={private}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.files = sorted(path.name for path in folder_path.iterdir())


def test_a_push_uploads_the_folder_to_a_new_repository(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr("cluster.export.hub.HfApi", lambda: hub)
    done = run_export(trained, tmp_path / "out", push_to_hub="me/mine", private=True)
    assert done.address == "https://hub/me/mine?private=True"
    assert hub.files == sorted(done.files)
    assert 'from_pretrained("me/mine")' in (tmp_path / "out" / "README.md").read_text()


def test_a_repository_that_is_there_is_left_alone_and_a_failed_upload_keeps_the_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.export.hub.HfApi", lambda: Hub(there=True))
    with pytest.raises(UserError, match="me/mine: is there already"):
        run_export(trained, tmp_path / "out", push_to_hub="me/mine")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("cluster.export.hub.HfApi", lambda: Hub(error=OSError("no token\nmore")))
    with pytest.raises(UserError, match=r"not uploaded: no token; the export is in .*out: `hf auth login`"):
        run_export(trained, tmp_path / "out", push_to_hub="me/mine")
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.contract
def test_the_hub_s_client_takes_what_it_is_given() -> None:
    """The stand-in above has the signatures of the real one."""
    import inspect

    from huggingface_hub import HfApi

    for name, needed in (("create_repo", {"repo_id", "private"}), ("upload_folder", {"repo_id", "folder_path"})):
        assert needed <= set(inspect.signature(getattr(HfApi, name)).parameters)
