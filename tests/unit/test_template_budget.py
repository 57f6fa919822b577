"""Templates of prompts within their budget: what would take for ever or all memory ends with a message, soon."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.rows import Problem
from tracefactory.text import prompts
from tracefactory.text.prompts import Prompt, prompt_files, read_prompts
from tracefactory.text.template_budget import MOST_CHARS, BudgetedEnvironment, OverBudget, render

DOUBLING = "{% set n = namespace(s='xx') %}{% for i in range(99) %}{% set n.s = STEP %}{% endfor %}{{ n.s|length }}"
HOSTILE = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ 10**9 * 'x' }}",
    "{{ ['x'] * 10**9 }}",
    "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "{% for i in range(90000) %}" + "x" * 2000 + "{% endfor %}",
    "{% set a %}{% for i in range(90000) %}" + "x" * 2000 + "{% endfor %}{% endset %}{{ a|length }}",
    "{{ 10**(10**10) }}",
    "{{ 2**(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%.1000000000f'|format(1.0) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 1000000000) }}",
    "{{ 'x'|center(10**9) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x'.zfill(10**9) }}",
    "{{ '\t'.expandtabs(10**9) }}",
    "{{ 'x'|indent(10**9, true) }}",
    "{{ ('x\n' * 100000)|indent(100000) }}",
    "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "{{ ('x' * 100000)|replace('x', 'y' * 100000) }}",
    "{{ ('x' * 100000)|join('y' * 100000) }}",
    "{{ ('y' * 100000).join('x' * 100000) }}",
    "{{ ('x' * 1000000)|wordwrap(1, true, 'y' * 100000) }}",
    "{{ [[[[[1]]]]]|tojson(10**9) }}",
    "{{ [1]|batch(10**9, 'x')|list }}",
    "{{ [1]|slice(10**9)|list }}",
    DOUBLING.replace("STEP", "n.s ~ n.s"),
    DOUBLING.replace("STEP", "n.s + n.s"),
    DOUBLING.replace("STEP", "n.s * 2"),
    DOUBLING.replace("STEP", "n.s|replace('x', 'xx')"),
    DOUBLING.replace("STEP", "'%s%s' % (n.s, n.s)"),
    DOUBLING.replace("STEP", "'%s%s'|format(n.s, n.s)"),
    DOUBLING.replace("STEP", "'{0}{0}'.format(n.s)"),
    DOUBLING.replace("STEP", "[n.s, n.s]|join"),
    DOUBLING.replace("STEP", "[n.s, n.s]|string"),
    DOUBLING.replace("STEP", "[n.s, n.s]").replace("|length", ""),
    DOUBLING.replace("STEP", "(n.s, n.s)").replace("|length", ""),
    DOUBLING.replace("STEP", "{'a': n.s, 'b': n.s}").replace("|length", ""),
    "{% set n = namespace(s=[]) %}{% for i in range(90000) %}{% set n.s = [n.s, 'x' * 4000000] %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(200) }}",
    "{% for a in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{{ range(90000)|map('string')|map('center', 90000)|join }}",
    "{{ 'x' * 4000000 }}{{ 'x' * 4000000 }}",
]


@pytest.mark.slow  # up to 18 s each, because every allocation is traced
@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_template_ends_soon_and_small(text: str) -> None:
    environment = BudgetedEnvironment(undefined=jinja2.StrictUndefined)
    started = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises((OverBudget, RecursionError)):
            render(environment.from_string(text), {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 60  # tracing memory takes most of it
    assert peak < 600 << 20


@pytest.mark.slow  # up to 18 s each, because every allocation is traced
@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_template_is_a_mistake_when_it_is_read(tmp_path: Path, text: str) -> None:
    file, mistakes = tmp_path / "p.md", list[Mistake]()
    file.write_text("---\nstyle: long\n---\n{{ question }}\n" + text.replace("\n", "\\n").replace("\t", "\\t") + "\n")
    read_prompts(tmp_path, mistakes)
    if "recursive" in text or "macro" in text:
        assert len(mistakes) <= 1  # the depth of Python's stack ends it, in a run with a message too
        return
    (mistake,) = mistakes
    assert mistake.line in (4, 5)  # what is too large as a whole has no line of its own
    assert "over the budget of a prompt" in mistake.message
    assert len(mistake.message) < 300


def test_a_template_that_grows_with_the_row_ends_the_run_with_a_message(tmp_path: Path) -> None:
    body = "{% for a in question %}{% for b in question %}{% for c in question %}x{% endfor %}{% endfor %}{% endfor %}"
    prompt = Prompt(name="p", style="long", body=body, file=tmp_path / "p.md")
    assert len(prompt.messages_for(Problem.make(question="ab", answer=None))[0]["content"]) == 8
    with pytest.raises(UserError, match=r"p\.md:1: prompt 'p' cannot be rendered: OverBudget: it takes more than"):
        prompt.messages_for(Problem.make(question="x" * 1000, answer=None))


@pytest.mark.parametrize(
    "text", ["{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "{{ " + "9" * 5000 + " }}",
             "{% for i in [1] %}" * 100 + "{% endfor %}" * 100, "{{ " + "[" * 10_000 + "]" * 10_000 + " }}"],
    ids=["parentheses", "number", "loops", "lists"],
)  # fmt: skip
def test_a_template_that_cannot_be_compiled_is_a_mistake(tmp_path: Path, text: str) -> None:
    mistakes = list[Mistake]()
    (tmp_path / "p.md").write_text(f"---\nstyle: long\n---\n{text}\n")
    read_prompts(tmp_path, mistakes)
    (mistake,) = mistakes
    assert "the template" in mistake.message
    assert mistake.line == 4


SOUND: list[tuple[str, dict[str, Any]]] = [
    ("{% for a in xs %}{{ loop.index }}/{{ loop.length }}{{ a }}{{ '' if loop.last else ', ' }}{% endfor %}", {}),
    ("{% for a in [] %}{% else %}none{% endfor %}{% for k, v in d.items() %}{{ k ~ '=' ~ v }}{% endfor %}", {}),
    ("{% for a in xs if a != 'b' %}{{ loop.nextitem is defined }}{{ a|upper }}{% endfor %}", {}),
    ("{{ q|replace('a', 'bb')|trim|indent(4) }}{{ '%05.1f %s' % (2, q) }}{{ '{:>5}'.format(q) }}**{{ q }}**", {}),
    ("{{ xs|join(', ') }}{{ xs|length }}{{ xs|map('upper')|list }}{{ xs|batch(2)|list }}{{ d|tojson(2) }}", {}),
    ("{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(q) }}{{ xs[0:2] + ['z'] }}", {}),
    ("{% macro c() %}{{ caller() }}{% endmacro %}{% call c() %}{{ q }}{% endcall %}", {}),
    ("{% for a in tree recursive %}{{ a.n }}{{ loop(a.c) }}{% endfor %}{{ 2 ** 10 * 3 }}{{ 7 % 4 }}", {}),
    ("{% set n = namespace(i=0) %}{% for a in xs %}{% set n.i = n.i + 1 %}{% endfor %}{{ n.i }}{{ q * 3 }}", {}),
    ("{% filter upper %}{{ q }}{% endfilter %}{{ xs|sort(reverse=true)|first }}{{ q|wordwrap(3) }}{{ none }}", {}),
]


@pytest.mark.parametrize(("text", "values"), SOUND)
def test_other_templates_are_rendered_as_in_the_plain_sandbox(text: str, values: dict[str, Any]) -> None:
    tree = [{"n": 1, "c": [{"n": 2, "c": []}]}]
    values = {"xs": ["a", "b", "c"], "d": {"k": 1}, "q": " a word\nmore ", "tree": tree, **values}
    options: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    plain = ImmutableSandboxedEnvironment(**options).from_string(text).render(values)
    assert render(BudgetedEnvironment(**options).from_string(text), values) == plain


def test_an_ordinary_prompt_with_a_long_question_is_within_the_budget() -> None:
    folder = Path(prompts.__file__).parents[2] / "prompts"
    mistakes = list[Mistake]()
    read = read_prompts(folder, mistakes)
    assert not mistakes
    assert len(read) == len(prompt_files(folder)) > 3
    body = "{{ question|trim|replace('\\n', ' ') }}{% for one in context %}{{ one.text }}{% endfor %}"
    prompt = Prompt(name="p", style="long", body=body, file=Path("p.md"))
    passages = tuple({"text": "y" * 100_000} for _ in range(20))
    row = Problem.make(question="x\n" * 500_000, answer=None, context=passages)
    assert len(prompt.messages_for(row)[0]["content"]) == 2_999_999


def test_a_row_may_be_longer_than_what_a_template_may_make_of_a_short_one() -> None:
    environment = BudgetedEnvironment(undefined=jinja2.StrictUndefined)
    question = "x" * (2 * MOST_CHARS)
    assert render(environment.from_string("Solve: {{ q }}"), {"q": question}) == f"Solve: {question}"
    with pytest.raises(OverBudget):
        render(environment.from_string("{{ q * 20 }}"), {"q": question})
