"""The README's tree, made from what every file says of itself; `python -m tests.contract.readme_tree` renews it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->"
FOLDERS = {
    "pipelines": "one YAML file = one dataset",
    "prompts": "one Markdown file = one prompt",
    "filters": "one Python file = one filter",
    "tracefactory": "the engine",
}
WIDTH = 118


def summary(file: Path) -> str:
    """Return the first sentence a file says of itself."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    if file.suffix == ".md":
        return str(yaml.safe_load(text.split("---")[1])["description"])
    if file.suffix == ".yaml":
        return text.split("\n")[0].lstrip("# ").partition(": ")[2]
    return {"card_template.md.j2": "the text of the dataset card", "py.typed": "the package has types"}[file.name]


def lines() -> Iterator[str]:
    """Yield the tree, one line per file; `__init__.py` speaks for its folder."""
    for top, about in FOLDERS.items():
        yield f"{top + '/':<34}{about}"
        yield from _inside(ROOT / top, 1)


def _inside(folder: Path, depth: int) -> Iterator[str]:
    for entry in sorted(folder.iterdir(), key=lambda one: (one.is_dir(), one.name)):
        if entry.name.startswith((".", "__")):
            continue
        name = "  " * depth + entry.name + ("/" if entry.is_dir() else "")
        about = summary(entry / "__init__.py") if entry.is_dir() else summary(entry)
        yield f"{name:<34}{about}"[:WIDTH].rstrip()
        if entry.is_dir():
            yield from _inside(entry, depth + 1)


def renewed(text: str) -> str:
    """Return the README's text with the tree as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n".join(lines()) + "\n" + END + after


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
