"""Pipelines whose problems are programs: where the sandbox does not hold, nothing is asked for and nothing is run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.attacks.test_confinement import WITHOUT_NAMESPACES
from tests.e2e.conftest import Project, Teacher

STAGES = """\
name: programs
version: "1"
models: {{t: {{use: openai, model: m, base_url: "{url}"}}}}
stages:
  - id: problems
    source: files
    with: {{paths: problems.jsonl, question: question, answer: answer, verifier: program}}
  - {{id: asked, sample: chat, from: problems, with: {{model: t, prompt: short, samples: 1, max_tokens: 64}}}}
  - {{id: checked, verify: auto}}
"""


def project(url: str, project_of: Callable[..., Project]) -> Project:
    made = project_of(url)
    rows = [{"question": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(6)]
    (made.root / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made.pipeline.write_text(STAGES.format(url=url))
    return made


def test_a_run_is_refused_before_it_asks_where_the_sandbox_does_not_hold(
    project_of: Callable[..., Project], teacher_of: Callable[..., Teacher]
) -> None:
    teacher = teacher_of()
    made = project(teacher.url, project_of)
    command = [*WITHOUT_NAMESPACES, *made.command("run", str(made.pipeline))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=made.root, env=environment, capture_output=True, text=True, timeout=240)  # noqa: PLW1510
    assert done.returncode == 2, done.stderr
    assert f"{made.pipeline.name}:9" in done.stderr
    assert "sandbox" in done.stderr
    assert "Traceback" not in done.stderr
    assert teacher.stats()["completed_total"] == 0
    # The same command runs where it holds, and what the programs did is accounted for.
    made.make()
    assert teacher.stats()["completed_total"] == 6


def test_protections_are_allowed_by_name(project_of: Callable[..., Project]) -> None:
    made = project("http://127.0.0.1:9/v1", project_of)
    made.pipeline.write_text(made.pipeline.read_text() + "sandbox: {allow: [network, memry]}\n")
    message = made.run("check", str(made.pipeline), expect=2)
    assert f"{made.pipeline.name}:10" in message
    assert "memory" in message
    made.pipeline.write_text(made.pipeline.read_text().replace("memry", "memory"))
    made.run("check", str(made.pipeline))
