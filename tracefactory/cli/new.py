"""`tracefactory new`."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tracefactory.cli.options import ProjectFolder
from tracefactory.config.project import find_project
from tracefactory.core.errors import UserError
from tracefactory.core.files import write_text

FILTER = '''"""Say in one line what {name} drops."""

from __future__ import annotations

from tracefactory.filters import KEEP, Decision, Params, Trace, drop, trace_filter


class {title}Params(Params):
    """Parameters of {name}."""

    min_words: int = 3


@trace_filter
def {name}(trace: Trace, params: {title}Params) -> Decision:
    """Keep traces whose answer has at least min_words words."""
    words = len(trace.answer_text.split())
    return KEEP if words >= params.min_words else drop("too_few_words", f"{{words}} words")
'''
PROMPT = """---
name: {name}
style: long
description: Say in one line what it asks for.
---
Solve the problem step by step.

{{{{ question }}}}
"""
PIPELINE = """# {name}: say what it makes, what it costs, and the exact command:
#   tracefactory run pipelines/{name}.yaml
name: {name}
version: "1"
models:
  teacher: {{use: fake, model: demo}}
stages:
  - id: problems
    source: reasoning_gym
    with: {{size: 20, seed: 1, tasks: [{{name: chain_sum}}]}}
  - {{id: sampled, sample: chat, with: {{model: teacher, prompt: math_long, samples: 2, max_tokens: 512}}}}
  - {{id: checked, verify: auto}}
  - {{id: clean, filter: [verdict]}}
  - {{id: dataset, publish: dataset}}
"""


class Kind(StrEnum):
    """What can be made."""

    FILTER = "filter"
    PROMPT = "prompt"
    PIPELINE = "pipeline"


def new(
    kind: Annotated[Kind, typer.Argument(show_default=False)],
    name: Annotated[str, typer.Argument(help="Letters, digits and underscores.", show_default=False)],
    project: ProjectFolder = Path(),
) -> None:
    """Write a filter, a prompt or a pipeline to start from: one file, nothing to register."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name!r} cannot be a name: small letters, digits and underscores, a letter first")
    where = find_project(project)
    path, template = {
        Kind.FILTER: (where.filters / f"{name}.py", FILTER),
        Kind.PROMPT: (where.prompts / f"{name}.md", PROMPT),
        Kind.PIPELINE: (where.pipelines / f"{name}.yaml", PIPELINE),
    }[kind]
    if path.exists():
        raise UserError(f"{path} exists")
    write_text(path, template.format(name=name, title="".join(part.title() for part in name.split("_"))))
    print(path)
