"""What it would take to make a stage again whose folder was deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
from pydantic import ValidationError

from tracefactory.core.environment import Environment
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.refs import find_refs
from tracefactory.core.stage import STAGES
from tracefactory.core.tables import Table
from tracefactory.stages._sampling import SampleStage
from tracefactory.store.damage import reading
from tracefactory.store.requests import RequestStore
from tracefactory.store.stages import StageFolder

_FREE = {
    "filter": "decided again from its inputs",
    "select": "decided again from its inputs",
    "mix": "decided again from its inputs",
    "publish": "written again from its inputs",
}
"""Verbs that ask no model for rows, with how their rows come back."""
_COMMIT_DIGITS = 40


class Keep(Exception):  # noqa: N818
    """Why a stage cannot be made again for nothing."""


class Remaking:
    """Tells how stages would be made again.

    Args:
        root: the folder of the project, which has the files of its sources.
        store: the completions that were paid for.
    """

    def __init__(self, root: Path, store: RequestStore) -> None:
        self.environment = Environment(root=root)
        self.store = store

    def how(self, folder: StageFolder) -> str:
        """Return how the rows of a stage come back for nothing, from its inputs or from where they were read.

        Raises:
            Keep: when they would have to be paid or measured again, or may not come back.
        """
        if not folder.finished_shards():
            return "it has no rows"
        identity = folder.identity()
        if identity is None:
            raise Keep("it does not say what it was made from")
        op = str(identity["op"])
        verb = op.partition(":")[0]
        if "key_version" not in identity:
            raise Keep("an earlier version of tracefactory made it in another layout")
        if verb in _FREE:
            return _FREE[verb]
        if verb == "measure":
            raise Keep("its measures took the time of a student, mostly GPU time")
        stage, params = _operation(op, identity.get("parameters", {}))
        if verb == "source":
            return self._read_again(stage, params, identity["uses"])
        if not any(one.kind == "model" for one in find_refs(type(params), params)):
            return "computed again on CPUs, without requests"
        if isinstance(stage, SampleStage):
            return self._stored(folder)
        raise Keep("its rows do not name all requests that they were made with")

    def _read_again(self, stage: Any, params: Any, uses: Mapping[str, Any]) -> str:
        source = stage.source
        if not stage.offline:
            revision = str(getattr(params, "revision", ""))
            moving = getattr(params, "allow_moving", False)
            if moving or len(revision) != _COMMIT_DIGITS or not set(revision) <= set("0123456789abcdef"):
                raise Keep("its source is not pinned to a commit, so that it may give other rows")
            return f"read again at commit {revision[:12]}"
        try:
            read = source.identity(source.located(params, self.environment.environ), self.environment.root)
        except (UserError, RunError, OSError) as error:
            raise Keep(f"its source cannot be read again: {str(error).splitlines()[0]}") from error
        if orjson.loads(orjson.dumps(read)) != uses.get("read"):
            raise Keep("its source has other content now")
        return "read again from its source"

    def _stored(self, folder: StageFolder) -> str:
        rows = missing = failed = 0
        for index, count in folder.finished_shards():
            record = folder.shard_record(index, count)
            made = _column(folder.part(Table.TRACES, index, count), "request_key")
            fails = _column(folder.part(Table.JUDGED, index, count), "failed")
            if record is None or len(fails) != len(made):
                raise Keep("it is damaged: `tracefactory fsck` tells what is wrong")
            failed += sum(map(bool, fails))
            keys = {str(key or "") for key, fail in zip(made, fails, strict=True) if not fail}
            rows, missing = rows + len(keys), missing + len(keys) - len(self.store.present(keys - {""}))
        if missing:
            raise Keep(f"{missing:,} of its {rows:,} completions are not stored, and would be paid again")
        if failed:
            raise Keep(f"{failed:,} requests without an answer would be sent again")
        return f"made again from {rows:,} stored completions"


def _operation(op: str, parameters: Mapping[str, Any]) -> tuple[Any, Any]:
    if op not in STAGES.names():
        raise Keep(f"there is no operation {op!r}")
    stage = STAGES.get(op)
    try:
        return stage, stage.Params.model_validate(dict(parameters))
    except ValidationError as error:
        raise Keep(f"this version has other parameters of {op.replace(':', ': ')}") from error


def _column(path: Path, name: str) -> Sequence[Any]:
    try:
        with reading(path):
            found: Sequence[Any] = pq.read_table(path, columns=[name], partitioning=None)[name].to_pylist()
            return found
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise Keep(f"it is damaged ({path.name}: {error})") from error
