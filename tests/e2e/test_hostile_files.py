"""Files and variables that would cost secrets, time or memory end with a message and status 2, without a traceback."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests import forked
from tests.e2e.conftest import Project

Projects = Callable[..., Project]
SECRET = "hunter2hunter2"


def refused(project: Project, command: str, **environ: str) -> str:
    """Run a command on the pipeline, with little memory; return what it said."""
    started = time.monotonic()
    given = {"environ": environ, "data_bytes": 3 << 30}
    status, output, errors = forked.finish("tracefactory", (command, str(project.pipeline)), project.root, 120, **given)
    assert status == 2, f"{status}\n{output}\n{errors}"
    assert "Traceback" not in output + errors
    assert SECRET not in output + errors
    assert time.monotonic() - started < 60
    return errors


@pytest.mark.parametrize("command", ["check", "plan", "run"])
@pytest.mark.parametrize(
    "body", ["{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**9 }}",
             "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"],
    ids=["range", "repeated", "nested"],
)  # fmt: skip
def test_a_hostile_prompt_is_refused_by_every_command(project_of: Projects, command: str, body: str) -> None:
    project = project_of("http://127.0.0.1:9/v1")
    (project.root / "prompts" / "long.md").write_text(f"---\nstyle: long\n---\n{{{{ question }}}}\n{body}\n")
    assert "long.md:5: the template is over the budget of a prompt" in refused(project, command)


def test_a_prompt_that_grows_with_the_row_ends_the_run_with_its_name(project_of: Projects) -> None:
    project = project_of("http://127.0.0.1:9/v1", size=2)
    loops = "{% for a in range(question|length * 50) %}{% for b in range(999) %}{% endfor %}{% endfor %}"
    (project.root / "prompts" / "long.md").write_text(f"---\nstyle: long\n---\n{{{{ question }}}}\n{loops}\n")
    assert "long.md:1: prompt 'long' cannot be rendered: OverBudget: it takes more than" in refused(project, "run")


@pytest.mark.parametrize("key", ["", ", api_key: env:SOME_KEY"])
@pytest.mark.parametrize("place", ["file", "environment"])
def test_credentials_in_an_address_are_a_message(project_of: Projects, key: str, place: str) -> None:
    address = f"http://me:{SECRET}@127.0.0.1:9/v1"
    project = project_of(address if place == "file" else "env:SOME_URL", size=2)
    project.pipeline.write_text(project.pipeline.read_text().replace("retries: 8", "retries: 0" + key))
    printed = refused(project, "run", SOME_URL=address, SOME_KEY="k")
    assert "a base URL with a user or a password would be shown and published" in printed
    assert "api_key: env:NAME" in printed
    if place == "file":
        assert "sums.yaml:4: " in printed


@pytest.mark.parametrize(
    ("before", "after"),
    [("seed: 3", "seed: " + "3" * 5000), ("seed: 3", "seed: " + "[" * 10_000), ("seed: 3", "seed: 1e999"),
     ("seed: 3", "seed: 3, seed: 4"), ("name: sums", "# x\n" * 12_500_000 + "name: sums")],
    ids=["digits", "brackets", "float", "twice", "50 MB"],
)  # fmt: skip
def test_a_hostile_pipeline_is_a_mistake_at_its_line(project_of: Projects, before: str, after: str) -> None:
    project = project_of("http://127.0.0.1:9/v1", gym=True)
    text = project.pipeline.read_text()
    line = 1 if len(after) > 1_000_000 else text[: text.index(before)].count("\n") + 1
    project.pipeline.write_text(text.replace(before, after, 1))
    assert f"sums.yaml:{line}: " in refused(project, "check")
