"""The command that makes a release again, and the pipeline that it ran, for the card."""

from __future__ import annotations

import shlex
import unicodedata

from tracefactory import __version__
from tracefactory.config.model import resolved_file
from tracefactory.core.model import env_names
from tracefactory.core.pipeline import Change, Pipeline
from tracefactory.core.rows import Frozen

# The categories of Unicode for control and format characters, and for separators of lines and paragraphs.
_INVISIBLE = ("Cc", "Cf", "Zl", "Zp")


class RecipeLine(Frozen):
    """How to make the dataset again: the command, run in the project's folder, and the pipeline that it ran.

    `pipeline` is the text of `file` or, if options changed that, the resolved pipeline; `changes` are those. Without
    `limit`, sources are not restricted. `environment` are the names of the variables that the pipeline reads.
    """

    command: str
    file: str
    pipeline: str
    resolved: bool = False
    changes: tuple[Change, ...] = ()
    limit: int | None = None
    environment: tuple[str, ...] = ()
    tracefactory: str = __version__


def recipe_line(pipeline: Pipeline) -> RecipeLine:
    """Return how to run a pipeline as it was run.

    The text of the file is shown unless options apply, because it has the comments. It is the text that was read: the
    file may have been edited since.
    """
    written = pipeline.written
    resolved = bool(written.changes or written.sets or pipeline.profile is not None or pipeline.limit is not None)
    used = {name for stage in pipeline.stages for name in stage.model_names}
    parts = [*(pipeline.models[name] for name in used), *(stage.params for stage in pipeline.stages)]
    return RecipeLine(
        command=run_command(pipeline),
        file=written.file,
        pipeline=resolved_file(pipeline) if resolved else written.text,
        resolved=resolved,
        changes=written.changes,
        limit=pipeline.limit,
        environment=tuple(sorted({name for part in parts for name in env_names(part)})),
    )


def run_command(pipeline: Pipeline) -> str:
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
    return separator.join((f"tracefactory run {quoted(file)}", *options))


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
