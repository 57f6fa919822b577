"""`tracefactory publish`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracefactory.cli.options import Json
from tracefactory.publish.hub import push
from tracefactory.publish.release import read_manifest


def publish(
    folder: Annotated[Path, typer.Argument(help="The folder of a published version.", show_default=False)],
    repo: Annotated[str, typer.Option(help="The dataset repository on the Hub: owner/name.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    json: Json = False,
) -> None:
    """Push a finished version to the Hub as one commit and one tag, as `publish: dataset` does with `hub:`.

    The machine's login (or HF_TOKEN) is used. A version that is already published with the same content is
    not changed. A version older than the one on the main branch gets its tag, and main stays as it is.
    """
    version = read_manifest(folder).version
    receipt = push(folder, repo=repo, version=version, private=not public, token=None)
    if json:
        print(receipt.model_dump_json(indent=2))
    else:
        done = "pushed" if receipt.created else "already published"
        print(f"{done}: {receipt.url} (tag {receipt.tag} on commit {receipt.commit}{receipt.main_note})")
