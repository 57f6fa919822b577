"""A release that a comparison names: a folder, or a version on the Hugging Face Hub, which is fetched once."""

from __future__ import annotations

import re
from pathlib import Path

from tracefactory.core.errors import Mistake, UserError
from tracefactory.publish.release import CARD, MANIFEST

_ON_HUB = re.compile(r"([\w.-]+/[\w.-]+)@([\w.+-]+)")


def release_folder(name: str, root: Path, cache: Path) -> Path:
    """Return the folder of a release.

    Args:
        name: its folder, relative to `root`, or ORG/REPO@TAG of the Hub.
        root: the folder of the project.
        cache: where releases of the Hub are kept.

    Raises:
        UserError: when there is no such folder, repository or tag.
        RunError: when the Hub cannot be asked.
    """
    found = _ON_HUB.fullmatch(name)
    if found is None or (root / name).exists():
        if not (root / name / MANIFEST).exists():
            hint = "a folder such as out/NAME/VERSION, or ORG/REPO@TAG"
            raise UserError(Mistake(f"{name}: there is no release here", hint=hint))
        return root / name
    repo, tag = found.groups()
    folder = cache / f"{repo.replace('/', '--')}@{tag}"
    from tracefactory.publish.hub_client import fetch

    fetch(repo, tag, folder, [MANIFEST, CARD, "data/*"])
    if not (folder / MANIFEST).exists():
        raise UserError(Mistake(f"{name}: it has no {MANIFEST}, so tracefactory has not published it"))
    return folder
