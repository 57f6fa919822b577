"""Prompts: one Markdown file each, YAML front matter and a Jinja body.

A prompt decides what a teacher is asked, so its digest is part of the key of every stage that uses it. The template
language (https://jinja.palletsprojects.com) runs sandboxed and without anything random; a variable that is not one of
`VARIABLES` is a mistake when the file is read, not when the first request is due.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from tracefactory.config.yamlfile import Node, Position, parse_yaml, read_text
from tracefactory.config.yamlmodel import read_model
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.fingerprint import digest
from tracefactory.core.schema import Frozen
from tracefactory.text.reasoning import opens_thinking

VARIABLES: Mapping[str, str] = {
    "question": "the question of the problem",
    "answer": "an answer: of the trace that is worked on, or the problem's own where there is no trace yet",
    "gold": "the problem's own answer",
    "domain": "the domain of the problem",
    "source": "the source the problem came from",
    "meta": "what the source knows of the problem besides, as a mapping",
    "reasoning": "the reasoning of the trace that is worked on",
    "answer_text": "the text after the reasoning of the trace that is worked on",
    "style": "the style of the trace that is worked on",
    "words": "how many words a text that is asked for should have",
}
"""What a template may name, and what it stands for. Which of them have a value depends on the stage."""

_INCLUDES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


class Example(Frozen):
    """One worked example: an earlier turn of the user and what the assistant answered, word for word."""

    user: str
    assistant: str


class FrontMatter(Frozen):
    """The head of a prompt file. `system` and `prefill` are templates as the body is; `examples` are plain text."""

    name: str | None = None
    style: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    description: str = ""
    system: str | None = None
    examples: tuple[Example, ...] = ()
    prefill: str | None = None


class Prompt(Frozen):
    """A prompt: what the user's turn says, and, if given, the system's turn, worked examples as earlier turns and the
    start of the assistant's turn.

    `style` travels with every trace it brings forth (`long`, `short`, ...); `file` is where it was read from.
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
        """The sha256 of what decides the messages and the style: not of the name, the description or the file."""
        return digest(self.model_dump(exclude={"name", "description", "file"}))

    @property
    def opened_in_prompt(self) -> bool:
        """Whether the prefill opens a thinking block, so that a completion starts inside it."""
        return opens_thinking(self.prefill or "")

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that must have a value when this prompt is rendered."""
        parsed = (_environment().parse(text) for text in (self.system, self.body, self.prefill) if text)
        return frozenset(name for tree in parsed for name in find_undeclared_variables(tree))

    def render(self, **values: Any) -> list[dict[str, str]]:
        """Return the messages: system, worked examples, the user's turn, the start of the assistant's, as far as given.

        Raises:
            UserError: when a variable has no value here, or an expression of the template fails.
        """
        # A prefill is continued where it ends; around the other turns blank lines mean nothing.
        messages = [{"role": "system", "content": self._fill(self.system, values).strip()}] if self.system else []
        for example in self.examples:
            messages.append({"role": "user", "content": example.user.strip()})
            messages.append({"role": "assistant", "content": example.assistant.strip()})
        messages.append({"role": "user", "content": self._fill(self.body, values).strip()})
        if self.prefill:
            messages.append({"role": "assistant", "content": self._fill(self.prefill, values)})
        return messages

    def _fill(self, template: str, values: Mapping[str, Any]) -> str:
        try:
            return _compiled(template).render(values)
        except jinja2.UndefinedError as error:
            message = f"prompt {self.name!r}: {error.message}, in the stage that uses it"
            raise UserError(Mistake(message, self.file)) from error
        except Exception as error:  # an expression in a template can fail in any way that Python can
            message = f"prompt {self.name!r}: {type(error).__name__} while it was filled in: {error}"
            raise UserError(Mistake(message, self.file)) from error


def load_prompts(folder: Path) -> Mapping[str, Prompt]:
    """Read every prompt of a folder (`*.md`), by name; a folder that is not there holds none.

    Raises:
        UserError: with everything that is wrong in any of them.
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
    """Read the prompts of a folder that are right; what is wrong with the others is added to `mistakes`."""
    read = (_read_prompt(file, mistakes) for file in prompt_files(folder))
    return {prompt.name: prompt for prompt in read if prompt is not None}


def _read_prompt(file: Path, mistakes: list[Mistake]) -> Prompt | None:
    found: list[Mistake] = []
    text = read_text(file, mistakes)
    if text is None:
        return None
    head, body, body_line = _split(text)
    if head is None:
        message = "a prompt starts with its front matter: a line of three dashes, `style:` ..., and three dashes again"
        mistakes.append(Mistake(message, file, 1))
        return None
    prompt = None
    node = parse_yaml(head, Position(file, line=2), found)
    if node is not None:
        front = read_model(FrontMatter, node, "the front matter", found)
        if front is not None:
            prompt = Prompt(**{**front.model_dump(), "name": file.stem}, body=body, file=file)
            found.extend(_check_name(front, node, file))
        found.extend(_check_front_templates(node))
    if body:
        found.extend(_check_template(body, Position(file, line=body_line), exact=True))
    else:
        found.append(Mistake("the prompt has no body: the user's turn is empty", file, body_line))
    mistakes.extend(found)
    return None if found else prompt


def _split(text: str) -> tuple[str | None, str, int]:
    """Return the front matter, the body without the blank lines around it, and the line the body starts in."""
    lines = text.split("\n")
    fences = [index for index, line in enumerate(lines) if line.rstrip() == "---"]
    if len(fences) < 2 or fences[0] != 0:
        return None, "", 1
    start = fences[1] + 1
    while start < len(lines) and not lines[start].strip():
        start += 1
    body = "\n".join(lines[start:]).rstrip()
    return "\n".join(lines[1 : fences[1]]), body, (start if body else fences[1]) + 1


def _check_name(front: FrontMatter, node: Node, file: Path) -> Iterator[Mistake]:
    if front.name is not None and front.name != file.stem:
        message = f"the prompt calls itself {front.name!r}, but a prompt is named after its file: {file.stem!r}"
        yield node.find(("name",)).position.mistake(message)


def _check_front_templates(node: Node) -> Iterator[Mistake]:
    for key in ("system", "prefill"):
        inner = node.child(key)
        if inner is not None and isinstance(inner.value, str):
            yield from _check_template(inner.value, inner.position, exact=False)


def _check_template(text: str, start: Position, *, exact: bool) -> Iterator[Mistake]:
    """Yield what is wrong with a template; `exact` says that its lines are those of the file."""

    def at(line: int) -> Position:
        return Position(start.file, start.line + line - 1) if exact else start

    try:
        tree = _environment().parse(text)
        _compiled(text)
    except jinja2.TemplateSyntaxError as error:
        yield at(error.lineno).mistake(f"the template is not valid: {error.message}")
        return
    for node in tree.find_all(_INCLUDES):
        yield at(node.lineno).mistake("a prompt is one file: include, import and extends are not supported")
    unknown = find_undeclared_variables(tree) - VARIABLES.keys()
    seen: set[str] = set()
    for name in tree.find_all(nodes.Name):
        if name.name in unknown and name.name not in seen:
            seen.add(name.name)
            yield at(name.lineno).mistake(f"unknown variable {name.name!r}", nearest(name.name, VARIABLES))


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,  # of a prefill it matters: "<think>\n"
        autoescape=False,
    )
    # Two renderings of one prompt must be equal, or every request would be a new one.
    environment.globals.pop("lipsum")
    environment.filters.pop("random")
    return environment


@lru_cache(maxsize=256)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)
