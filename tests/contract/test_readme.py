"""What the README and the pages under docs/ show exists and works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tracefactory.cli import COMMANDS
from tracefactory.config import load_pipeline
from tracefactory.core.errors import UserError
from tracefactory.core.stage import STAGES
from tracefactory.filters import load_filters
from tracefactory.publish.views import VIEWS
from tracefactory.serving.failures import FAILURES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "tracefactory" / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_make_target_command_operation_and_link_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    shell = "\n".join(blocks(page, "sh"))
    commands = re.findall(r"`tracefactory +([a-z]+)\b", text) + re.findall(
        r"^tracefactory +([a-z]+)", shell, re.MULTILINE
    )
    assert set(commands) <= set(COMMANDS)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link
    named = {f"{verb}:{name}" for verb, name in re.findall(r"`(sample|verify|measure|select|mix): ([a-z_]+)`", text)}
    assert named <= set(STAGES)


def test_the_readme_says_what_it_is_in_its_first_lines_and_fits_a_screen() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "reasoning traces for distilling" in lines[2]
    assert len(lines) < 90


def test_the_pipeline_of_the_readme_is_one(tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "README.md", "yaml")
    for folder in ("prompts", "filters"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "What is 2 + 2?", "answer": "Add them. #### 4"}\n')
    file = tmp_path / "pipelines" / "math_mix.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:  # this machine lacks the weights, and nothing else
        load_pipeline(file, environ={"TEACHER_URL": "http://a/v1", "TEACHER_KEY": "k", "HF_TOKEN": "t"})
    assert [one.message.split(":")[0] for one in caught.value.mistakes] == ["model 'short_teacher'"]


def test_the_filters_of_the_guide_load(tmp_path: Path) -> None:
    for number, text in enumerate(blocks(DOCS / "guide.md", "python")):
        name = re.findall(r"^def (\w+)\(", text, re.MULTILINE)[0]
        (tmp_path / f"{name}.py").write_text(text)
        assert number < 2
    assert sorted(load_filters(tmp_path)) == ["easy_and_long", "hedging"]


def test_the_guide_names_every_view() -> None:
    table = (DOCS / "guide.md").read_text().split("| view |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(VIEWS)


def test_the_table_of_failures_is_that_of_the_code() -> None:
    text = (DOCS / "money.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (\w+) \| (\w+) \| (\w+) \|$", text, re.MULTILINE)
    assert rows == [(one.name, one.cause, one.retries, one.owed, one.stops) for one in FAILURES.values()]
