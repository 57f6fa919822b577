"""Prompt files: what they become, and how their mistakes are told."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tracefactory.core.errors import UserError
from tracefactory.text.prompts import Prompt, load_prompts

LONG = """---
name: math_long
style: long
description: Think first.
system: You solve {{ domain }} problems.
prefill: "<think>\\n"
---

Solve this problem.

{{ question }}
"""


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return folder


def read(folder: Path, text: str) -> Prompt:
    return load_prompts(write(folder, one=text))["one"]


def test_a_prompt_becomes_messages(tmp_path: Path) -> None:
    prompt = load_prompts(write(tmp_path, math_long=LONG))["math_long"]
    assert (prompt.style, prompt.description) == ("long", "Think first.")
    assert prompt.variables == {"question", "domain"}
    assert prompt.render(question="  1 + {{ 1 }} = ?\n", domain="math", unused=1) == [
        {"role": "system", "content": "You solve math problems."},
        {"role": "user", "content": "Solve this problem.\n\n  1 + {{ 1 }} = ?"},
        {"role": "assistant", "content": "<think>\n"},
    ]


def test_system_and_prefill_are_optional(tmp_path: Path) -> None:
    prompt = read(tmp_path, "---\nstyle: short\n---\n{{ question }}\n\n---\nbelow a rule\n")
    assert prompt.render(question="q") == [{"role": "user", "content": "q\n\n---\nbelow a rule"}]
    assert not prompt.opened_in_prompt


@pytest.mark.parametrize(
    ("prefill", "opened"),
    [("<think>\\n", True), ("<think>Okay</think>", False), ("Sure: <think>ok</think> <think>", True), ("think", False)],
)
def test_whether_the_prefill_opens_the_thinking(tmp_path: Path, prefill: str, opened: bool) -> None:
    assert read(tmp_path, f'---\nstyle: long\nprefill: "{prefill}"\n---\n{{{{ question }}}}').opened_in_prompt is opened


def test_the_digest_is_of_what_changes_rows_and_of_nothing_else(tmp_path: Path) -> None:
    def digest(text: str, name: str = "math_long") -> str:
        return load_prompts(write(tmp_path / name, **{name: text}))[name].digest

    first = digest(LONG)
    assert digest(LONG.replace("name: math_long\n", ""), "another_name") == first
    assert digest(LONG.replace("Think first.", "Think well first.")) == first
    assert digest(LONG.replace("style: long\n", "").replace("---\n\n", "style:   'long'\n---\n\n\n") + "\n\n") == first
    changes = [("style: long", "style: short"), ("You solve", "We solve"), ("<think>", "<thinking>"), ("this", "the")]
    others = {digest(LONG.replace(before, after)) for before, after in changes}
    assert len(others | {first}) == 5


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("Just a body {{ question }}\n", 1, "front matter"),
        ("---\nstyle: long\n{{ question }}\n", 1, "front matter"),
        ("---\nstyle: long\n---\n\n \n", 3, "no body"),
        ("---\nstlye: long\n---\n{{ question }}\n", 2, "unknown key 'stlye' (did you mean 'style'?)"),
        ("---\ndescription: x\n---\n{{ question }}\n", 2, "style is missing"),
        ("---\nstyle: 3\n---\n{{ question }}\n", 2, "style must be text, found the number 3"),
        ("---\nstyle: a\nname: other\n---\n{{ question }}\n", 3, "named after its file: 'one'"),
        ("---\nstyle: a\nstyle: b\n---\n{{ question }}\n", 3, "given twice"),
        ("---\nstyle: [a\n---\n{{ question }}\n", 2, "not valid YAML"),
        ("---\nstyle: a\n---\n\nSolve:\n{{ qestion }}\n", 6, "unknown variable 'qestion' (did you mean 'question'?)"),
        ("---\nstyle: a\nsystem: Be {{ kind }}.\n---\n{{ question }}\n", 3, "unknown variable 'kind'"),
        ("---\nstyle: a\n---\nx\n{% if question %}\ny\n", 6, "template is not valid"),
        ("---\nstyle: a\n---\nx\n{{ question | nope }}\n", 5, "No filter named 'nope'"),
        ("---\nstyle: a\n---\nx\n{{ [1, 2] | random }}\n", 5, "No filter named 'random'"),
        ("---\nstyle: a\n---\nx\n{{ lipsum() }}\n", 5, "unknown variable 'lipsum'"),
        ("---\nstyle: a\n---\nx\n\n{% include 'other.md' %}\n", 6, "one file"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    places = [(mistake.file, mistake.line) for mistake in caught.value.mistakes]
    assert (tmp_path / "one.md", line) in places
    assert message in str(caught.value)


def test_all_mistakes_of_all_prompts_are_told_at_once(tmp_path: Path) -> None:
    bad = "---\nstyle: 3\nsystem: '{{ a1 }}'\nsytem: x\n---\n{{ b1 }}\n{{ b1 }} {{ c1 }}\n"
    with pytest.raises(UserError) as caught:
        load_prompts(write(tmp_path, good=LONG.replace("math_long", "good"), first=bad, second=bad))
    told = [(mistake.file.name, mistake.line) for mistake in caught.value.mistakes if mistake.file]
    assert sorted(told) == sorted((f"{name}.md", line) for name in ("first", "second") for line in (2, 3, 4, 6, 7))


def test_names_that_the_template_sets_itself_are_no_mistake(tmp_path: Path) -> None:
    prompt = read(
        tmp_path,
        "---\nstyle: a\n---\n{% for n in range(2) %}\n{% set m = n + 1 %}\n{{ m }}. {{ question }}\n{% endfor %}\n",
    )
    assert prompt.render(question="q")[0]["content"] == "1. q\n2. q"


def test_rendering_without_a_value_is_the_users_mistake(tmp_path: Path) -> None:
    prompt = read(tmp_path, "---\nstyle: a\n---\n{{ question }} {{ reasoning }}\n")
    with pytest.raises(UserError, match="'reasoning' is undefined") as caught:
        prompt.render(question="q")
    assert caught.value.mistakes[0].file == tmp_path / "one.md"


@pytest.mark.parametrize("expression", ["question.__class__.__mro__", "question + 1", "1 / 0", "meta.append(1)"])
def test_a_template_can_neither_leave_the_sandbox_nor_fail_with_a_traceback(tmp_path: Path, expression: str) -> None:
    prompt = read(tmp_path, f"---\nstyle: a\n---\n{{{{ {expression} }}}}\n")
    with pytest.raises(UserError, match="prompt 'one'"):
        prompt.render(question="q", meta=[])


def test_a_prompt_travels_to_workers(tmp_path: Path) -> None:
    prompt = load_prompts(write(tmp_path, math_long=LONG))["math_long"]
    prompt.render(question="q", domain="d")
    again = pickle.loads(pickle.dumps(prompt))
    assert again == prompt
    assert again.digest == prompt.digest


def test_a_folder_that_is_not_there_holds_no_prompts(tmp_path: Path) -> None:
    assert load_prompts(tmp_path / "prompts") == {}
