"""The release folder: Parquet files per view, the card and the manifest, moved to its place atomically."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from tracefactory import __version__
from tracefactory.core.digests import combined_digest
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.files import sync_folder, write_text
from tracefactory.core.fingerprint import digest, digest_file
from tracefactory.core.rows import Frozen
from tracefactory.publish.card import CardInputs, ConfigLine, ModelLine, ViewColumn, render
from tracefactory.publish.taught import TaughtLine
from tracefactory.publish.views import VIEWS, described
from tracefactory.publish.writing import RangePart

MANIFEST = "manifest.json"
CARD = "README.md"
FORMAT = 2
# The characters of a git tag (git-check-ref-format) that need no quoting in a shell or a URL.
_VERSION = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z_+-]|\.(?!\.|lock$|$))*")


class FileLine(Frozen):
    """One file of a release: its path in the folder, digest and size. `rows` is None for files without rows."""

    path: str
    sha256: str
    bytes: int
    rows: int | None = None


class ConfigDigest(Frozen):
    """The rows of one configuration. `digest` is the digest of the rows (`core.digests`), not of the files."""

    view_version: str
    rows: int
    digest: str


class CardSource(Frozen):
    """What the card of a release was made from, so that it can be made again for a repository on the Hub."""

    inputs: CardInputs
    configs: tuple[ConfigLine, ...]


class Manifest(Frozen):
    """The manifest of a release. `content` is a digest of name, version, licence and rows, not of time, files or card.

    `format` is the version of these digests (1 up to tracefactory 0.1). `stages` maps stage ids to stage keys, and
    `recipe` to what the keys were made from. `pipeline` is the name of the pipeline that made it, "" up to tracefactory
    0.2. `created` is ISO 8601, UTC. `missing` are the rows of stages that are missing because their requests failed.
    `card` is what the card was made from, None up to tracefactory 0.2.
    """

    format: int = 1
    name: str
    version: str
    content: str
    pipeline: str = ""
    licence: str | None
    tracefactory: str
    created: str
    configs: Mapping[str, ConfigDigest]
    files: tuple[FileLine, ...]
    stages: Mapping[str, str]
    recipe: Mapping[str, Any] = Field(default_factory=dict)
    models: tuple[ModelLine, ...]
    missing: Mapping[str, int] = Field(default_factory=dict)
    card: CardSource | None = None


def check_version(version: str) -> None:
    """Check that a version can be a tag on the Hub.

    Raises:
        UserError: when it cannot.
    """
    if not _VERSION.fullmatch(version):
        raise UserError(f"version: {version!r} cannot be a tag; use letters, digits and . _ + -")


def assemble(
    scratch: Path,
    parts: Sequence[RangePart],
    *,
    name: str,
    version: str,
    pipeline: str,
    card: CardInputs,
    recipe: Mapping[str, Mapping[str, Any]],
    keys: Mapping[str, str],
) -> Manifest:
    """Make a release from the ranges in `scratch`; the first view is loaded by default.

    Raises:
        UserError: when the version is invalid.
        RunError: when a view that is not partial has no rows.
    """
    check_version(version)
    digests, files = _placed(scratch, parts)
    configs = tuple(_config_line(view, found) for view, found in digests.items())
    write_text(scratch / CARD, render(card, version=version, configs=configs))
    files.append(_file_line(scratch, scratch / CARD, None))
    manifest = Manifest(
        format=FORMAT,
        name=name,
        version=version,
        content=_content(name, version, card.licence, digests),
        pipeline=pipeline,
        licence=card.licence,
        tracefactory=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        configs=digests,
        files=tuple(files),
        stages=dict(keys),
        recipe={stage: dict(identity) for stage, identity in recipe.items()},
        models=card.models,
        missing={line.stage: line.rows for line in card.missing},
        card=CardSource(inputs=card, configs=configs),
    )
    write_text(scratch / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _placed(scratch: Path, parts: Sequence[RangePart]) -> tuple[dict[str, ConfigDigest], list[FileLine]]:
    """Move the files of all ranges to their places in the release; return digests by view, and the files.

    Raises:
        RunError: when a view that is not partial has no rows, or no view has any.
    """
    digests: dict[str, ConfigDigest] = {}
    files: list[FileLine] = []
    for view in parts[0].views if parts else ():
        found = [part.views[view] for part in parts]
        rows = sum(one.rows for one in found)
        if not rows:  # `datasets` raises on a configuration without rows
            if VIEWS.get(view).partial and any(part.views[other].rows for part in parts for other in part.views):
                continue
            raise RunError(f"no row is left for the view {view!r}; nothing was published")
        written = [(one.file, one.rows) for one in found if one.file is not None]
        for number, (file, count) in enumerate(written):
            path = scratch / "data" / view / f"train-{number:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            file.replace(path)
            files.append(_file_line(scratch, path, count))
        version_of = VIEWS.get(view).version
        digests[view] = ConfigDigest(
            view_version=version_of, rows=rows, digest=combined_digest(one.digest for one in found)
        )
    for view in parts[0].views if parts else ():
        shutil.rmtree(scratch / view, ignore_errors=True)
    if not digests:
        raise RunError("no row is left; nothing was published")
    return digests, files


@contextmanager
def addressed_to(repo: str, folder: Path, manifest: Manifest) -> Iterator[tuple[Path, Manifest]]:
    """Yield a release whose card tells how to load it from a repository: itself, or one with another card.

    Args:
        repo: the repository on the Hub.
        folder: the folder of the release, which is not changed.
        manifest: its manifest.
    """
    if manifest.card is None or manifest.card.inputs.repo == repo:
        yield folder, manifest
        return
    card = manifest.card.model_copy(update={"inputs": manifest.card.inputs.model_copy(update={"repo": repo})})
    with tempfile.TemporaryDirectory(prefix="tracefactory-card-") as name:
        copy = Path(name)
        (copy / "data").symlink_to(folder.resolve() / "data", target_is_directory=True)
        write_text(copy / CARD, render(card.inputs, version=manifest.version, configs=card.configs))
        files = [line for line in manifest.files if line.path != CARD]
        told = {"card": card, "files": (*files, _file_line(copy, copy / CARD, None))}
        found = manifest.model_copy(update=told)
        write_text(copy / MANIFEST, found.model_dump_json(indent=2) + "\n")
        yield copy, found


def add_comparison(folder: Path, line: TaughtLine) -> None:
    """Write a comparison on the card of a release, in place of an earlier one of the same name; its rows stay.

    Args:
        folder: the folder of the release.
        line: the comparison.

    Raises:
        UserError: when the folder is not a release, or one of a version that did not keep the content of its card.
    """
    manifest = read_manifest(folder)
    if manifest.card is None:
        made_by = f"tracefactory {manifest.tracefactory}, which did not keep what its card is made from"
        raise UserError(f"{folder} was made by {made_by}; run its pipeline again")
    others = [one for one in manifest.card.inputs.taught if one.comparison != line.comparison]
    inputs = manifest.card.inputs.model_copy(update={"taught": (*others, line)})
    write_text(folder / CARD, render(inputs, version=manifest.version, configs=manifest.card.configs))
    files = (*(one for one in manifest.files if one.path != CARD), _file_line(folder, folder / CARD, None))
    told = {"card": manifest.card.model_copy(update={"inputs": inputs}), "files": files}
    write_text(folder / MANIFEST, manifest.model_copy(update=told).model_dump_json(indent=2) + "\n")


def put_in_place(scratch: Path, folder: Path) -> None:
    """Move an assembled release to `folder`, which must not exist or be empty."""
    for inner in (scratch, *(path for path in scratch.rglob("*") if path.is_dir())):
        sync_folder(inner)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.rename(scratch, folder)
    sync_folder(folder.parent)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a release folder.

    Raises:
        UserError: when the folder is not a release.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError) as error:
        raise UserError(f"{folder} is not a release: {MANIFEST} is missing or unreadable") from error


def verify_release(folder: Path) -> Manifest:
    """Check the digests of all files of a release and return its manifest.

    Raises:
        UserError: for the first file that is missing or was changed.
    """
    manifest = read_manifest(folder)
    for line in manifest.files:
        path = folder / line.path
        if not path.is_file() or digest_file(path) != line.sha256:
            raise UserError(
                f"{path} is missing or was changed after it was written; move the folder away and run again"
            )
    return manifest


def _content(name: str, version: str, licence: str | None, configs: Mapping[str, ConfigDigest]) -> str:
    rows = {key: value.model_dump() for key, value in configs.items()}
    return digest({"format": FORMAT, "name": name, "version": version, "licence": licence, "configs": rows})


def _config_line(view: str, found: ConfigDigest) -> ConfigLine:
    kind = VIEWS.get(view)
    columns = tuple(ViewColumn(name=name, type=type_, about=about) for name, type_, about in described(kind))
    return ConfigLine(name=view, summary=kind.summary, rows=found.rows, files=f"data/{view}/*.parquet", columns=columns)


def _file_line(built: Path, path: Path, rows: int | None) -> FileLine:
    relative = path.relative_to(built).as_posix()
    return FileLine(path=relative, sha256=digest_file(path), bytes=path.stat().st_size, rows=rows)
