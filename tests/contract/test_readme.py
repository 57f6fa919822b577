"""The README says what is there."""

from __future__ import annotations

import re

from tests.contract.readme_tree import README, ROOT, lines, renewed


def test_the_tree_is_that_of_the_repository() -> None:
    text = README.read_text(encoding="utf-8")
    assert renewed(text) == text, "run `python -m tests.contract.readme_tree`"


def test_every_file_says_what_it_is() -> None:
    silent = [line for line in lines() if len(line.split(maxsplit=1)) < 2]
    assert silent == []


def test_every_make_target_and_command_it_names_exists() -> None:
    text = README.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= targets
    commands = {file.stem for file in (ROOT / "tracefactory" / "cli").glob("*.py")}
    assert set(re.findall(r"`tracefactory ([a-z]+)", text)) <= commands
