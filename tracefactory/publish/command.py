"""The command that makes a release again, and the pipeline that it ran, for the card."""

from __future__ import annotations

from tracefactory import __version__
from tracefactory.config.command import run_command
from tracefactory.config.model import resolved_file
from tracefactory.core.environment import env_names
from tracefactory.core.model import public_name
from tracefactory.core.pipeline import Change, Pipeline
from tracefactory.core.rows import Frozen


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
    file may have been edited since. Of a model that is named by a path on this machine, only the last part is told.
    """
    written = pipeline.written
    resolved = bool(written.changes or written.sets or pipeline.profile is not None or pipeline.limit is not None)
    used = {name for stage in pipeline.stages for name in stage.model_names}
    parts = [*(pipeline.models[name] for name in used), *(stage.params for stage in pipeline.stages)]
    paths = sorted({pipeline.models[name].model for name in used}, key=len, reverse=True)

    def told(text: str) -> str:
        """Return text without the folders of this machine that models are named with."""
        for path in paths:
            text = text.replace(path, public_name(path))
        return text

    return RecipeLine(
        command=told(run_command(pipeline)),
        file=written.file,
        pipeline=told(resolved_file(pipeline) if resolved else written.text),
        resolved=resolved,
        changes=tuple(
            one.model_copy(update={"before": told(one.before), "after": told(one.after)}) for one in written.changes
        ),
        limit=pipeline.limit,
        environment=tuple(sorted({name for part in parts for name in env_names(part)})),
    )
