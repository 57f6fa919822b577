"""Stream problems from a data set on the Hugging Face Hub, at a fixed revision."""

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
    """The data set, its configuration, split and revision, and the mapping of its fields."""

    repo: str = Field(description="Repository of the data set: owner/name.")
    name: str | None = Field(None, description="Configuration of the data set, if it has several.")
    split: str = Field("train", description="Split to read.")
    revision: str = Field(description="Commit (40 hex digits) or tag. A branch is refused, because it can change.")
    allow_moving: bool = Field(False, description="Accept a branch; its commit is requested from the Hub in each run.")


@SOURCES.register("hub_dataset")
class HubDataset(Source[HubDatasetParams]):
    """Streams rows in the order of the data set; no file is downloaded as a whole."""

    name = "hub_dataset"
    version = "1"
    Params = HubDatasetParams
    offline = False

    def read(self, params: HubDatasetParams, *, base_dir: Path, limit: int | None) -> Iterator[Problem | Rejected]:
        """Yield the problems of the split."""
        yield from take(self._rows(params), limit)

    def identity(self, params: HubDatasetParams, base_dir: Path) -> dict[str, Any]:
        """Return the revision of the parameters; with `allow_moving`, its commit, which is requested from the Hub."""
        return {"revision": _commit(params.repo, params.revision) if params.allow_moving else params.revision}

    def verifiers(self, params: HubDatasetParams) -> frozenset[str]:
        """Return the verifier of the mapping."""
        return frozenset({params.verifier_name})

    def describe(self, params: HubDatasetParams) -> str:
        """Return the repository and the split."""
        return f"Hub dataset {params.repo}, {params.split}"

    def check(self, params: HubDatasetParams, base_dir: Path) -> list[str]:
        """Return mistakes in the repository and the revision, without asking the Hub."""
        mistakes = []
        if not _REPO.fullmatch(params.repo):
            mistakes.append(f"repo {params.repo!r} is not written owner/name")
        elif Path(params.repo).exists():
            # load_dataset would read the folder and ignore the revision.
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
        # This import takes longer than all others of the command line.
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
    """Return the commit of a revision. It is requested once per process, so that key and rows use the same commit."""
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(repo, revision=revision).sha
    if commit is None:
        raise UserError(f"the Hub names no commit for revision {revision!r} of {repo!r}")
    return str(commit)


def _refuse_branch(repo: str, revision: str) -> None:
    """Raise UserError unless a revision is a tag, according to the Hub."""
    from huggingface_hub import HfApi

    refs = HfApi().list_repo_refs(repo, repo_type="dataset")
    if revision in {branch.name for branch in refs.branches}:
        raise UserError(f"revision {revision!r} of {repo!r} is a branch, which moves; give a commit or a tag")
    tags = [tag.name for tag in refs.tags]
    if revision not in tags:
        hint = nearest(revision, tags)
        raise UserError(f"{repo!r} has no tag {revision!r}" + (f" ({hint})" if hint else ""))
