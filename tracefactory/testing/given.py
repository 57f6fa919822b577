"""`source: given`: the operation that reads the rows given to `run_stage`, with their verdicts, measures and fields.

It is registered by a plugin file in the temporary project of `run_stage`, and only there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from tracefactory.core.columns import Column, column_like
from tracefactory.core.decisions import Made
from tracefactory.core.environment import Environment
from tracefactory.core.fingerprint import digest_file
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen, Kind, Problem, Row, Trace
from tracefactory.core.stage import Stage, Work
from tracefactory.core.tables import judgement_of

PLUGIN = """\
from tracefactory.core.stage import STAGES
from tracefactory.testing.given import {kind}

STAGES.register("source:given")({kind}())
"""


class GivenParams(Frozen):
    """The file of the rows."""

    file: str = Field(description="The rows as JSON lines, from the project's folder.")


class GivenProblems(Stage[GivenParams]):
    """Read problems without changes."""

    verb, name, version = "source", "given", "1"
    Params = GivenParams
    takes, makes, judges, many_inputs = frozenset({Kind.NONE}), Kind.PROBLEMS, False, False
    work_on = Work.SOURCE

    def uses(self, stage: StageSpec[GivenParams], pipeline: Pipeline) -> Mapping[str, Any]:
        """Return the digest of the file."""
        return {"rows": digest_file(pipeline.project.root / stage.params.file)}

    def columns(self, stage: StageSpec[GivenParams], pipeline: Pipeline) -> Sequence[Column]:
        """Return a column for every measure and field of the rows."""
        rows = self._rows(stage, Environment(root=pipeline.project.root))
        values = {name: value for row in rows for name, value in judgement_of(Made(row)).values.items()}
        return [column_like(name, value) for name, value in values.items()]

    def read(self, stage: StageSpec[GivenParams], pipeline: Pipeline, environment: Environment) -> Iterator[Made]:
        """Yield the rows of the file."""
        yield from map(Made, self._rows(stage, environment))

    def _rows(self, stage: StageSpec[GivenParams], environment: Environment) -> Iterator[Row]:
        model = Problem if self.makes is Kind.PROBLEMS else Trace
        with (environment.root / stage.params.file).open(encoding="utf-8") as lines:
            yield from map(model.model_validate_json, lines)


class GivenTraces(GivenProblems):
    """Read traces without changes."""

    makes = Kind.TRACES
