"""Prompts: Markdown files with YAML front matter and a Jinja body.

A prompt determines the requests to a teacher, so its digest is part of the key of every stage that uses it. Templates
(https://jinja.palletsprojects.com) are sandboxed and deterministic. They get the values of a row under the names of
`VARIABLES`; other names must be declared in the front matter. An unknown name is a mistake when the file is read; a
name without a value in a stage is a mistake when the pipeline is checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables
from pydantic import Field

from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import Frozen, Kind, Row, Trace
from tracefactory.core.yamlfile import Position, parse_yaml, read_text
from tracefactory.core.yamlmodel import read_model
from tracefactory.text.reasoning import opens_thinking
from tracefactory.text.template_budget import BudgetedEnvironment, render, trial

PROBLEM_VARIABLES: Mapping[str, str] = {
    "question": "the question of the problem",
    "gold": "the gold answer of the problem",
    "answers": "further correct answers, a list",
    "context": "passages that belong to the problem, each with title, text and source",
    "tests": "programs that check an answer, a list",
    "tools": "tools that may be called, each with name, description and parameters",
    "domain": "the domain of the problem",
    "source": "the source of the problem",
    "meta": "further data from the source, a mapping",
}
"""The variables of a problem."""
TRACE_VARIABLES: Mapping[str, str] = {
    "reasoning": "the reasoning of the trace",
    "answer_text": "the text after the reasoning of the trace",
    "style": "the style of the trace",
    "teacher": "the model that wrote the trace",
    "verdict": "the verdict on the trace, with outcome, extracted, method and detail",
    "turns": "the turns between the question and the last one, each with role and content",
}
"""The variables of a trace, in addition to those of its problem."""
ROW_VARIABLES: Mapping[str, str] = {
    "answer": "the answer text of the trace, or the gold answer when there is no trace yet",
    "fields": "values parsed by earlier stages, by name",
    "measures": "measures of earlier stages, by name",
}
"""The variables of problems and traces."""
STAGE_VARIABLES: Mapping[str, str] = {"words": "the requested length in words"}
"""The variables that some stages add to those of the row."""
VARIABLES = {**PROBLEM_VARIABLES, **TRACE_VARIABLES, **ROW_VARIABLES, **STAGE_VARIABLES}
"""The variables that need no declaration under `variables:` in the front matter."""

# What a template is tried with when it is read: values of the right kinds, none of which is long.
_PART = {"title": "text", "text": "text", "role": "user", "content": "text", "name": "text", "source": "text"}
_STAND_INS: Mapping[str, Any] = {
    **dict.fromkeys(VARIABLES, "text"),
    **{name: ["text"] for name in ("answers", "tests")},
    **{name: [_PART] for name in ("context", "tools", "turns")},
    **{name: {} for name in ("meta", "fields", "measures", "verdict")},
    "words": 100,
}
_INCLUDES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


class Example(Frozen):
    """One worked example: an earlier turn of the user and the assistant's answer, verbatim."""

    user: str
    assistant: str


class FrontMatter(Frozen):
    """The front matter of a prompt file. `system` and `prefill` are templates, as the body is; `examples` are not."""

    name: str | None = Field(None, description="The file name without suffix; optional.")
    style: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Style of the resulting traces: long, short, ...")
    description: str = Field("", description="The purpose of the prompt, in a sentence.")
    variables: tuple[str, ...] = Field((), description="Variables of the templates that are not of the row.")
    system: str | None = Field(None, description="Template of the system message.")
    examples: tuple[Example, ...] = Field((), description="Worked examples, as earlier turns.")
    prefill: str | None = Field(None, description="Template of the beginning of the assistant's turn.")


class Prompt(Frozen):
    """A prompt: the user's turn and, if given, a system turn, worked examples and the start of the assistant's turn.

    `style` becomes the style of the resulting traces (`long`, `short`, ...); `file` is the file it was read from.
    """

    name: str
    style: str
    description: str = ""
    system: str | None = None
    examples: tuple[Example, ...] = ()
    prefill: str | None = None
    body: str
    file: Path

    @cached_property
    def digest(self) -> str:
        """The sha256 of the parts that determine messages and style, without name, description and file."""
        return digest(self.model_dump(include={"style", "system", "examples", "prefill", "body"}))

    @property
    def opened_in_prompt(self) -> bool:
        """Whether the prefill opens a thinking block, so that completions start inside it."""
        return opens_thinking(self.prefill or "")

    @cached_property
    def variables(self) -> frozenset[str]:
        """The variables that need a value to render this prompt."""
        parsed = (_environment().parse(text) for text in (self.system, self.body, self.prefill) if text)
        return frozenset(name for tree in parsed for name in find_undeclared_variables(tree))

    def check(self, kind: Kind, given: Iterable[str] = ()) -> Iterator[Mistake]:
        """Yield a mistake for every variable without a value.

        Args:
            kind: the kind of the stage's rows.
            given: the variables that the stage adds.
        """
        known = {*PROBLEM_VARIABLES, *ROW_VARIABLES, *(TRACE_VARIABLES if kind is Kind.TRACES else ()), *given}
        for name in sorted(self.variables - known):
            message = f"prompt {self.name!r} uses {name!r}, which has no value in a stage on {kind}"
            yield Mistake(message, hint=f"available: {', '.join(sorted(known))}")

    def messages_for(self, row: Row, **given: Any) -> list[dict[str, str]]:
        """Return the messages for one row.

        Args:
            row: the row.
            given: the values of further variables; they replace those of the row.

        Raises:
            UserError: when a variable has no value, or an expression of the template fails.
        """
        return self.render(**{name: _value(row, name) for name in self.variables - given.keys()}, **given)

    def render(self, **values: Any) -> list[dict[str, str]]:
        """Return the messages: system, worked examples, the user's turn, and the start of the assistant's turn.

        Raises:
            UserError: when a variable has no value, or an expression of the template fails.
        """
        # The prefill must end exactly where the completion starts; the other turns are stripped.
        messages = [{"role": "system", "content": self._fill(self.system, values).strip()}] if self.system else []
        for example in self.examples:
            messages.append({"role": "user", "content": example.user.strip()})
            messages.append({"role": "assistant", "content": example.assistant.strip()})
        messages.append({"role": "user", "content": self._fill(self.body, values).strip()})
        if self.prefill:
            messages.append({"role": "assistant", "content": self._fill(self.prefill, values)})
        return messages

    def outline(self) -> list[dict[str, str]]:
        """Return the messages without values: marks for what is filled in, examples and prefill as they are written."""
        messages = [{"role": "system", "content": "mark of the system message"}] if self.system else []
        for example in self.examples:
            messages.append({"role": "user", "content": example.user.strip()})
            messages.append({"role": "assistant", "content": example.assistant.strip()})
        messages.append({"role": "user", "content": "mark of the user's message"})
        return [*messages, {"role": "assistant", "content": self.prefill}] if self.prefill else messages

    def _fill(self, template: str, values: Mapping[str, Any]) -> str:
        try:
            return render(_compiled(template), values)
        except jinja2.UndefinedError as error:
            message = f"prompt {self.name!r}: {error.message} in the stage that uses it"
            raise UserError(Mistake(message, self.file)) from error
        except Exception as error:  # an expression in a template can raise any exception
            message = f"prompt {self.name!r} cannot be rendered: {type(error).__name__}: {error}"
            raise UserError(Mistake(message, self.file)) from error


def load_prompts(folder: Path) -> Mapping[str, Prompt]:
    """Read the prompts of a folder (`*.md`), by name; none when the folder does not exist.

    Raises:
        UserError: with the mistakes of all files.
    """
    mistakes: list[Mistake] = []
    prompts = read_prompts(folder, mistakes)
    if mistakes:
        raise UserError(mistakes)
    return prompts


def prompt_files(folder: Path) -> list[Path]:
    """Return the prompt files of a folder."""
    return sorted(folder.glob("*.md"))


def read_prompts(folder: Path, mistakes: list[Mistake]) -> dict[str, Prompt]:
    """Read the valid prompts of a folder.

    Args:
        folder: the folder.
        mistakes: the list to which the mistakes in other prompts are added.

    Returns:
        The valid prompts, by name.
    """
    read = (_read_prompt(file, mistakes) for file in prompt_files(folder))
    return {prompt.name: prompt for prompt in read if prompt is not None}


def _read_prompt(file: Path, mistakes: list[Mistake]) -> Prompt | None:
    found: list[Mistake] = []
    text = read_text(file, mistakes)
    if text is None:
        return None
    head, body, body_line = _split(text)
    if head is None:
        message = "no front matter: a prompt starts with a line of three dashes, `style:` ..., and three dashes again"
        mistakes.append(Mistake(message, file, 1))
        return None
    prompt = None
    declared: frozenset[str] = frozenset()
    node = parse_yaml(head, Position(file, line=2), found)
    if node is not None:
        front = read_model(FrontMatter, node, "the front matter", found)
        if front is not None:
            head_values = front.model_dump(exclude={"variables", "name"})
            prompt = Prompt(**head_values, name=file.stem, body=body, file=file)
            declared = frozenset(front.variables)
            if front.name is not None and front.name != file.stem:
                message = (
                    f"the name {front.name!r} differs from the file; a prompt is named after its file: {file.stem!r}"
                )
                found.append(node.find(("name",)).position.mistake(message))
        for key in ("system", "prefill"):
            inner = node.child(key)
            if inner is not None and isinstance(inner.value, str):
                found.extend(_check_template(inner.value, inner.position, declared, exact=False))
    if body:
        found.extend(_check_template(body, Position(file, line=body_line), declared, exact=True))
    else:
        found.append(Mistake("the prompt has no body, so the user's turn is empty", file, body_line))
    mistakes.extend(found)
    return None if found else prompt


def _split(text: str) -> tuple[str | None, str, int]:
    """Return the front matter, the body without blank lines around it, and the first line number of the body."""
    lines = text.split("\n")
    fences = [index for index, line in enumerate(lines) if line.rstrip() == "---"]
    if len(fences) < 2 or fences[0] != 0:
        return None, "", 1
    start = fences[1] + 1
    while start < len(lines) and not lines[start].strip():
        start += 1
    body = "\n".join(lines[start:]).rstrip()
    return "\n".join(lines[1 : fences[1]]), body, (start if body else fences[1]) + 1


def _check_template(text: str, start: Position, declared: frozenset[str], *, exact: bool) -> Iterator[Mistake]:
    """Yield the mistakes of a template; `exact` means that its line breaks are those of the file."""

    def at(line: int) -> Position:
        return Position(start.file, start.line + line - 1) if exact else start

    try:
        tree = _environment().parse(text)
        _compiled(text)
    except jinja2.TemplateSyntaxError as error:
        yield at(error.lineno).mistake(f"the template is not valid: {error.message}")
        return
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:  # of deep nesting, or a number
        yield start.mistake(f"the template cannot be compiled: {type(error).__name__}: {str(error)[:200]}")
        return
    if (over := trial(_compiled(text), {**dict.fromkeys(declared, "text"), **_STAND_INS})) is not None:
        yield at(over[1]).mistake(f"the template is over the budget of a prompt: {over[0]}")
    for node in tree.find_all(_INCLUDES):
        yield at(node.lineno).mistake("a prompt must be one file; include, import and extends are not supported")
    unknown = find_undeclared_variables(tree) - VARIABLES.keys() - declared
    seen: set[str] = set()
    for name in tree.find_all(nodes.Name):
        if name.name in unknown and name.name not in seen:
            seen.add(name.name)
            hint = nearest(name.name, {*VARIABLES, *declared}) or "declare it under `variables:`"
            yield at(name.lineno).mistake(f"unknown variable {name.name!r}", hint)


def _value(row: Row, name: str) -> Any:
    """Return the value of one of the row's variables."""
    problem = row.problem if isinstance(row, Trace) else row
    match name:
        case "gold":
            return problem.answer
        case "answer":
            return row.answer_text if isinstance(row, Trace) else problem.answer
        case "meta":
            return json.loads(problem.meta)
        case "fields" | "measures":
            return {**getattr(problem, name), **getattr(row, name)}
        case "style" | "reasoning" | "answer_text" | "teacher" | "verdict" | "turns":
            return getattr(row, name)
    return getattr(problem, name)


@lru_cache(maxsize=1)
def _environment() -> BudgetedEnvironment:
    environment = BudgetedEnvironment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,  # for prefills such as "<think>\n"
        autoescape=False,
    )
    # Renderings must be deterministic; otherwise every rendering would be a new request.
    environment.globals.pop("lipsum")
    environment.filters.pop("random")
    return environment


@lru_cache(maxsize=256)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)
