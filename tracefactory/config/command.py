"""The shell command that runs a pipeline as it was run."""

from __future__ import annotations

import shlex
import unicodedata

from tracefactory.core.pipeline import Pipeline

# The categories of Unicode for control and format characters, and for separators of lines and paragraphs.
_INVISIBLE = ("Cc", "Cf", "Zl", "Zp")


def run_command(pipeline: Pipeline, command: str = "run") -> str:
    """Return the shell command that runs a pipeline in the folder of its project, one option a line.

    These are all options that change rows. Caps on spending (`--budget`) are among the values of `--set`.
    """
    written = pipeline.written
    file = f"./{written.file}" if written.file.startswith("-") else written.file
    options = [f"--set {quoted(text)}" for text in written.sets]
    if pipeline.profile is not None:
        options.insert(0, f"--profile {quoted(pipeline.profile)}")
    if pipeline.limit is not None:
        options.append(f"--limit {pipeline.limit}")
    separator = " " if len(options) < 2 else " \\\n  "
    return separator.join((f"tracefactory {command} {quoted(file)}", *options))


def quoted(text: str) -> str:
    """Return text as one word of a shell.

    Control and format characters are written as escapes of bash and zsh, `$'...'`: as themselves they are invisible,
    and a carriage return would not survive being copied. Line feeds are kept.
    """
    if not any(unicodedata.category(char) in _INVISIBLE for char in text if char != "\n"):
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(char: str) -> str:
    """Return a character as it is written between `$'` and `'`."""
    if unicodedata.category(char) not in _INVISIBLE:
        return f"\\{char}" if char in "\\'" else char
    # Octal digits end after three, so that digits that follow are not taken for a part of the escape.
    return "".join(f"\\{byte:03o}" for byte in char.encode())
