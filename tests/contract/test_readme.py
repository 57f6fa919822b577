"""The README says what is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_make_target_and_command_it_names_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= targets
    commands = {file.stem for file in (ROOT / "tracefactory" / "cli").glob("*.py")}
    assert set(re.findall(r"`tracefactory ([a-z]+)", text)) <= commands
