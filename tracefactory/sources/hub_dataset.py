"""Problems out of a data set on the Hugging Face Hub, streamed, at a revision that cannot move."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from tracefactory.core.errors import UserError, nearest
from tracefactory.core.rows import Problem
from tracefactory.reading.base import SOURCES, Rejected, Source, take
from tracefactory.reading.mapping import FieldMapping, to_problem
from tracefactory.reading.records import Record

_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_BRANCHES = {"main", "master", "dev", "develop", "HEAD"}


class HubDatasetParams(FieldMapping):
    """A data set, which part of it, at which revision, and which field is which."""

    repo: str = Field(description="Repository of the data set: owner/name.")
    name: str | None = Field(None, description="Configuration of the data set, where it has several.")
    split: str = Field("train", description="Split to read.")
    revision: str = Field(description="Commit (40 hex digits) or tag. A branch moves, so it is refused.")
    allow_moving: bool = Field(False, description="Accept a branch; the commit it points to is looked up each time.")


@SOURCES.register("hub_dataset")
class HubDataset(Source[HubDatasetParams]):
    """Streams rows in the order of the data set; nothing is downloaded as a whole."""

    name = "hub_dataset"
    version = "1"
    Params = HubDatasetParams
    offline = False

    def read(self, params: HubDatasetParams, *, base_dir: Path, limit: int | None) -> Iterator[Problem | Rejected]:
        yield from take(self._rows(params), limit)

    def identity(self, params: HubDatasetParams, base_dir: Path) -> dict[str, Any]:
        """Return the revision as it was given; for one that may move, the commit it points to (this asks the Hub)."""
        return {"revision": _commit(params.repo, params.revision) if params.allow_moving else params.revision}

    def verifiers(self, params: HubDatasetParams) -> frozenset[str]:
        return frozenset({params.verifier_name})

    def describe(self, params: HubDatasetParams) -> str:
        return f"Hub dataset {params.repo}, {params.split}"

    def check(self, params: HubDatasetParams, base_dir: Path) -> list[str]:
        mistakes = []
        if not _REPO.fullmatch(params.repo):
            mistakes.append(f"repo {params.repo!r} is not written owner/name")
        elif Path(params.repo).exists():
            # load_dataset prefers such a folder and then ignores the revision.
            mistakes.append(f"{params.repo!r} is also a folder here, which would be read instead; run from elsewhere")
        moving = params.revision in _BRANCHES or params.revision.startswith("refs/")
        if moving and not params.allow_moving:
            mistakes.append(f"revision {params.revision!r} moves; give a commit or a tag, or set allow_moving: true")
        return mistakes

    def _rows(self, params: HubDatasetParams) -> Iterator[Problem | Rejected]:
        if mistakes := self.check(params, Path()):
            raise UserError("; ".join(mistakes))
        revision = params.revision
        if params.allow_moving:
            revision = _commit(params.repo, revision)
        elif not _COMMIT.fullmatch(revision):
            _refuse_branch(params.repo, revision)
        # Imported where it is used: it takes longer than all the rest of the command line.
        import datasets
        from datasets.exceptions import DatasetNotFoundError

        try:
            rows = datasets.load_dataset(
                params.repo, params.name, split=params.split, revision=revision, streaming=True
            )
        except DatasetNotFoundError as error:
            raise UserError(f"no data set {params.repo!r} at revision {revision!r}: {error}") from error
        label = f"{params.repo}@{revision}"
        for number, values in enumerate(rows, 1):
            yield to_problem(Record(values, "row", number), params, label)


@functools.lru_cache(maxsize=64)
def _commit(repo: str, revision: str) -> str:
    """Return the commit a revision points to; asked once per process, so that key and rows agree."""
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(repo, revision=revision).sha
    if commit is None:
        raise UserError(f"the Hub names no commit for revision {revision!r} of {repo!r}")
    return str(commit)


def _refuse_branch(repo: str, revision: str) -> None:
    """Raise unless a revision is a tag; the Hub alone can tell."""
    from huggingface_hub import HfApi

    refs = HfApi().list_repo_refs(repo, repo_type="dataset")
    if revision in {branch.name for branch in refs.branches}:
        raise UserError(f"revision {revision!r} of {repo!r} is a branch, which moves; give a commit or a tag")
    tags = [tag.name for tag in refs.tags]
    if revision not in tags:
        hint = nearest(revision, tags)
        raise UserError(f"{repo!r} has no tag {revision!r}" + (f" ({hint})" if hint else ""))
