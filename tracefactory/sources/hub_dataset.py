"""Stream problems from a data set on the Hugging Face Hub, at a fixed revision."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from tracefactory.core.errors import Mistake, RunError, UserError, nearest
from tracefactory.core.rows import Problem
from tracefactory.reading.base import SOURCES, Rejected, Source, take
from tracefactory.reading.mapping import FieldMapping, missing_fields, to_problem
from tracefactory.reading.records import Record

_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_AT_ONCE = 20  # rows; the first ones are looked at for missing fields
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
            with _asking(params.repo):
                _refuse_branch(params.repo, revision)
        # This import takes longer than all others of the command line.
        import datasets
        from datasets.exceptions import DatasetNotFoundError

        label = f"{params.repo}@{revision}"
        try:
            with _asking(params.repo):
                rows = datasets.load_dataset(
                    params.repo, params.name, split=params.split, revision=revision, streaming=True
                )
                records = (Record(values, "row", number) for number, values in enumerate(rows, 1))
                some = list(islice(records, _AT_ONCE))
        except DatasetNotFoundError as error:
            raise UserError(f"no data set {params.repo!r} at revision {revision!r}: {error}") from error
        except ValueError as error:  # an unknown configuration or split
            raise UserError(f"{label}: {error}") from error
        if missing := missing_fields(some, params, label):
            raise UserError([Mistake(text) for text in missing])
        while some:
            yield from (to_problem(record, params, label) for record in some)
            with _asking(params.repo):
                some = list(islice(records, _AT_ONCE))


@contextmanager
def _asking(repo: str) -> Iterator[None]:
    """Turn the failures of the Hub and of the way there into messages.

    Raises:
        UserError: when the Hub refuses the repository or revision.
        RunError: when it cannot be reached or does not answer.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        what = f"the Hub answers {status} for the data set {repo!r}: {' '.join(str(error).split())[:300]}"
        if 400 <= status < 500 and status not in (408, 429):
            raise UserError(f"{what}; check `repo:`, `revision:` and, of a gated data set, the login") from error
        raise RunError(f"{what}; run the same command again") from error
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(
            f"the Hub cannot be reached for the data set {repo!r} ({why}); check the network, or read a copy from here "
            "with `source: files`"
        ) from error


@functools.lru_cache(maxsize=64)
def _commit(repo: str, revision: str) -> str:
    """Return the commit of a revision. It is requested once per process, so that key and rows use the same commit."""
    from huggingface_hub import HfApi

    with _asking(repo):
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
