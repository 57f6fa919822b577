"""The user's mistakes on the command line: file:line, the nearest name, all at once, exit 2, no traceback."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Project
from tracefactory.cli import main

URL = "http://127.0.0.1:9/v1"
BROKEN = {
    "unknown key": ("retries: 8", "retrys: 8", r"sums.yaml:4: .*retrys.*did you mean 'retries'"),
    "wrong type": ("samples: 2", "samples: many", r"sums.yaml:10: .*samples.*whole number"),
    "missing prompt": ("prompt: long,", "prompt: lang,", r"sums.yaml:10: .*prompt 'lang'.*did you mean 'long'"),
    "two verbs": ("verify: auto,", "verify: auto, filter: length,", r"sums.yaml:12: .*verify.*filter|filter.*verify"),
    "cycle in from": ("from: [long, short]", "from: [long, clean]", r"sums.yaml:12: .*clean"),
    "unset env": (
        'base_url: "http://127.0.0.1:9/v1", r',
        "base_url: env:NO_SUCH_URL, r",
        r"sums.yaml:4: .*NO_SUCH_URL",
    ),
    "duplicate id": ("id: short,", "id: long,", r"sums.yaml:11: .*long"),
    "unknown filter parameter": ("length: {max_tokens", "length: {max_tokns", r"sums.yaml:13: .*max_tokns.*max_tokens"),
    "bad ratio": ("long: 0.2,", "long: 0.9,", r"sums.yaml:14: .*must be 1, not 1.7"),
    "a list for a mapping": ("models:\n", "models: [a, b]\nmodes:\n", r"sums.yaml:3: .*mapping"),
}


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the command line in this process (starting one takes seconds), expect exit 2, return its stderr."""

    def run(project: Project, *arguments: str) -> str:
        monkeypatch.chdir(project.root)
        monkeypatch.setattr(sys, "argv", ["tracefactory", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        assert (end.value.code, output.out) == (2, "")
        return output.err

    return run


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_pipeline_is_answered_readably(
    name: str, project_of: Callable[..., Project], refused: Refused
) -> None:
    project = project_of(URL)
    right, wrong, answer = BROKEN[name]
    text = project.pipeline.read_text()
    assert right in text
    project.pipeline.write_text(text.replace(right, wrong, 1))
    output = refused(project, "run", str(project.pipeline))
    assert re.search(answer, output), output
    for noise in ("Traceback", "pydantic", "https://", "validation error"):
        assert noise not in output
    assert not (project.root / ".tracefactory").exists()  # nothing was begun


def test_all_mistakes_are_said_at_once(project_of: Callable[..., Project], refused: Refused) -> None:
    project = project_of(URL)
    text = project.pipeline.read_text()
    for right, wrong, _ in (BROKEN["unknown key"], BROKEN["missing prompt"], BROKEN["bad ratio"]):
        text = text.replace(right, wrong, 1)
    project.pipeline.write_text(text)
    output = refused(project, "check", str(project.root))
    assert [line.split(": ")[0].rsplit(":")[-1] for line in output.splitlines()] == ["4", "10", "14"]


def test_unknown_runs_rows_and_projects(project_of: Callable[..., Project], refused: Refused) -> None:
    project = project_of(URL)
    assert "no run under" in refused(project, "show")
    assert "no finished run" in refused(project, "explain", "abc")
    assert "does not exist" in project.run("run", "pipelines/sms.yaml", expect=2)  # a process of its own, for once
    assert "is in no project" in refused(project, "show", "--project", "/")
