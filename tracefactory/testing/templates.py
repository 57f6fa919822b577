"""The table of docs/templates.md: which chat template can be used for what. `make templates-table` writes it.

The templates are those that the package trl ships, with the tokenizer of the packaged model. A cell is what the package
itself says: `ok`, or the reason of its refusal.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import UserError
from tracefactory.models.local import packaged_weights
from tracefactory.publish.rendering import NOT_RENDERED, view_fault
from tracefactory.publish.views import VIEWS
from tracefactory.serving.loading import load_tokenizer
from tracefactory.students.render import Renderer
from tracefactory.text.chat_templates import RenderError
from tracefactory.text.prompt_rendering import Continues, prompt_faults

MEASURES = ("measure inline", "measure field", "no reasoning")
PROMPTS = ("system", "examples", "prefill")
_QUESTION, _ANSWER = "A box holds 84 apples. Half are sold. How many are left?", "There are \\boxed{42} apples left."
_REASONING = "Half of 84 is 42.\n\nWait, 84 − 42 = 42, that fits. 半分は42個。"
_CONTROL = re.compile(r"<[|｜][^<>{}\s]{1,40}[|｜]>|<(?:start|end)_of_turn>|<[|]?turn[|]?>|<[|]?channel[|]?>")
_DOC = """\
# Chat templates

A chat template writes messages as the text that a student is trained on, and many lose a part of it without an error:
they drop the reasoning, put a second pair of think tags around it, or write no end of the turn. This page says what
each template can be used for. `make templates-table` makes it with the code by which `tracefactory check`, a run and
`publish` refuse: for every template that TRL {version} ships (`trl/chat_templates`) and the one of the packaged
SmolLM2, with its tokenizer.

`ok` means: the reasoning and the answer carry loss, the tokens with loss spell exactly what the template writes for the
assistant's turn, one pair of delimiters is around the reasoning, and one marker ends the turn. Every other cell is the
reason of a refusal, before anything is paid; the reasons are explained at the end.

## Students and prompts

- `measure inline`, `measure field`: `measure: student` of a model with `reasoning: inline` (think tags in the text) or
  `reasoning: field` (the field `reasoning_content`).
- `no reasoning`: a row without reasoning, in whichever of the two forms works.
- `system`, `examples`, `prefill`: a prompt with a system message, with worked examples that reason, or with the prefill
  `<think>`, for a student that decodes together with a teacher.

{uses}

`tracefactory check FILE` tries the prompts of a pipeline on the templates of all models that get them, and a prefill in
the way in which the model's server continues it. A model behind an API applies its template on its server, where it
cannot be tried: `check` says so in a note, and the first answers of a run with `--limit 5` show what became of it.

## Views

With `student:`, `publish: dataset` refuses a view whose cell is not `ok` (`tracefactory check` does so too), and leaves
out single rows that would train the student on something else: an empty turn, a text that spells a control token of the
student's tokenizer, a token across the edge of what carries loss. Without `student:`, such rows under the students of
stages above are counted, and the run says how many. Every row is tokenized for it: about half a million tokens a second
on one core.

`tool_use` is tried with a conversation that reasons, calls a tool and answers. `raw`, `rlvr` and `steps` are not
rendered by a chat template for training.

{views}

## Reasons

{reasons}
"""
_REASONS = {
    "reasoning_not_rendered": "the template drops or rewrites the reasoning: use the other form of it, or a template "
    "for training such as `deepseek_r1_distill_training`",
    "no_reasoning": "the prompt for generation opens the thinking, so a trace without reasoning cannot be rendered; "
    "only such rows are refused",
    "thinking_closed_in_prompt": "the prompt for generation closes the thinking: the template of a mode without it",
    "prompt_not_a_prefix": "the text for training begins otherwise than the prompt for generation",
    "think_tags_doubled": "a second pair of think tags is written around the reasoning: use `reasoning: field`, the "
    "view `chat`, and no `examples:` that reason",
    "no_end_of_turn": "nothing ends the assistant's turn, so the student would not learn to stop",
    "end_doubled": "the turn ends twice; a copy of the template without `eos_token` at its end works",
    "tool_call_not_rendered": "the template drops tool calls, or writes their arguments as JSON within JSON",
    "marks_differ": "TRL finds what `assistant_only_loss` trains by the marks `{% generation %}` of the template, and "
    "these are not around the whole messages of the assistant: after a tool's result, its header is left out",
    "ranges_moved": "the template changes the text to which the ranges of the view `masked` refer",
    "no_system_role": "the template has no system role: write the text of `system:` at the beginning of the body",
    "example_reasoning_dropped": "the reasoning of earlier turns is removed: write the examples into `system:` or the "
    "body",
    "prefill_not_in_turn": "a header is before the thinking, which a prefill would replace",
    "question_not_rendered": "the template drops a user's message, because it takes no plain text",
    "system_not_rendered": "the template drops the system message: write its text at the beginning of the body",
    "template_failed": "the template fails: it takes no plain text, or no messages of tools",
    "answer_not_rendered": "the template drops the answer",
}


@dataclass(frozen=True)
class _Outline:
    messages: tuple[Mapping[str, str], ...]

    def outline(self) -> list[dict[str, str]]:
        """Return the messages."""
        return [dict(message) for message in self.messages]


_USER = {"role": "user", "content": _QUESTION}
_INLINE = f"<think>\n{_REASONING}\n</think>\n\n{_ANSWER}"
_OUTLINES = {
    "system": _Outline(({"role": "system", "content": "Be brief."}, _USER)),
    "examples": _Outline(({"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": _INLINE}, _USER)),
    "prefill": _Outline((_USER, {"role": "assistant", "content": "<think>\n"})),
}


@lru_cache(maxsize=1)
def shipped() -> dict[str, str]:
    """Return the sources of the templates by name; the packaged model's is `smollm2`.

    Raises:
        UserError: when the package trl is not installed.
    """
    own = _packaged_tokenizer().chat_template
    return {"smollm2": own, **{file.stem: file.read_text(encoding="utf-8") for file in template_files()}}


def template_files() -> list[Path]:
    """Return the files of the templates that trl ships, sorted.

    Raises:
        UserError: when the package trl is not installed.
    """
    found = find_spec("trl")
    if found is None or found.origin is None:
        raise UserError("the package trl, whose templates are tried, is not installed: make dev")
    return sorted((Path(found.origin).parent / "chat_templates").glob("*.jinja"))


def with_template(source: str) -> Any:
    """Return the packaged model's tokenizer with a chat template, whose control tokens are tokens of it."""
    tokenizer = copy.copy(_tokenizer())
    tokenizer.chat_template = source
    return tokenizer


def row_of(source: str) -> dict[str, str]:
    """Return what a template can be used for: `ok` or a reason by use."""
    tokenizer = with_template(source)
    inline, field = Renderer(tokenizer, "inline"), Renderer(tokenizer, "field")
    row = {"measure inline": _measured(inline, _REASONING), "measure field": _measured(field, _REASONING)}
    row["no reasoning"] = _measured(field if row["measure field"] == "ok" else inline, "")
    for name in PROMPTS:
        faults = list(prompt_faults(inline.template, _OUTLINES[name], Continues.JOINED))
        row[name] = faults[0].reason if faults else "ok"
    return {**row, **{name: _viewed(name, inline) for name in VIEWS}}


def table() -> dict[str, dict[str, str]]:
    """Return `row_of` every template, by name."""
    return {name: row_of(source) for name, source in shipped().items()}


def document(found: Mapping[str, Mapping[str, str]], version: str) -> str:
    """Return the text of docs/templates.md.

    Args:
        found: the table.
        version: the version of trl.
    """
    views = [name for name in VIEWS if any(row[name] != NOT_RENDERED for row in found.values())]
    used = sorted({value for row in found.values() for value in row.values()} - {"ok", NOT_RENDERED})
    reasons = "\n".join(f"- `{reason}`: {_REASONS[reason]}." for reason in used)
    return _DOC.format(
        version=version,
        uses="\n".join(_lines(found, (*MEASURES, *PROMPTS))),
        views="\n".join(_lines(found, views)),
        reasons=reasons,
    )


@lru_cache(maxsize=1)
def _packaged_tokenizer() -> Any:
    return load_tokenizer(Checkpoint(model=str(packaged_weights("smollm2-135m"))))


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    tokenizer = copy.deepcopy(_packaged_tokenizer())
    markers = {marker for source in shipped().values() for marker in _CONTROL.findall(source)}
    tokenizer.add_tokens(sorted(markers), special_tokens=True)
    return tokenizer


def _measured(renderer: Renderer, reasoning: str) -> str:
    try:
        renderer.check_mask(renderer.render(_QUESTION, reasoning, _ANSWER))
    except RenderError as error:
        return error.reason
    return "ok"


def _viewed(name: str, renderer: Renderer) -> str:
    fault = view_fault(VIEWS.get(name), renderer)
    return "ok" if fault is None else fault.reason if isinstance(fault, RenderError) else fault


def _lines(found: Mapping[str, Mapping[str, str]], columns: Any) -> Iterator[str]:
    """Yield a Markdown table; templates with equal cells share a line."""
    yield f"| template | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, row in found.items():
        alike.setdefault(tuple(row[column] for column in columns), []).append(name)
    for cells, names in alike.items():
        yield f"| {', '.join(names)} | {' | '.join(cells)} |"


if __name__ == "__main__":
    from importlib.metadata import version

    text = document(table(), version("trl"))
    (Path(__file__).parents[1] / "docs" / "templates.md").write_text(text, encoding="utf-8")
