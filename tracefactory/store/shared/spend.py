"""What the runs of all machines have spent: the sums of each run, put by its machine and counted by the others.

spend/<pipeline>@<version>.json   the sums of every run by model; what was in flight counts at its worst case
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from tracefactory.core.errors import RunError
from tracefactory.store.leases import alive_file
from tracefactory.store.records import checked, with_checksum
from tracefactory.store.shared.objects import Objects, Unreachable
from tracefactory.store.spend import Amount, Ledger, Writer

Sums = Mapping[tuple[str, str], Amount]
"""What was spent by model and run."""
_ATTEMPTS = 20


def pull_spend(root: Path, ledger: str, objects: Objects) -> None:
    """Add to a ledger what runs of other machines have spent.

    Args:
        root: the state folder.
        ledger: the name of the ledger.
        objects: the shared state.

    Raises:
        RunError: when what was spent is damaged, here or there.
        Unreachable: when the shared state cannot be asked.
    """
    theirs, _ = _read(objects, ledger)
    known = _here(root, ledger)
    for (model, run), amount in theirs.items():
        added = amount.plus(known.get((model, run), Amount()), -1)
        if not _is_own(root, run) and added != Amount():
            book = Ledger(root, ledger, Writer(uuid4().hex, run, lambda writer: False))
            book.charge(model, added)
            book.close()


def push_spend(root: Path, ledger: str, objects: Objects) -> None:
    """Put what the runs of this machine have spent, unless it is known.

    Raises:
        RunError: when what was spent is damaged, here or there.
        Unreachable: when the shared state cannot be asked.
    """
    own = {place: amount for place, amount in _here(root, ledger).items() if _is_own(root, place[1])}
    if not own:
        return
    for _ in range(_ATTEMPTS):
        theirs, etag = _read(objects, ledger)
        sums = {**theirs, **own}
        if sums == theirs:
            return
        lines = [[model, run, list(amount)] for (model, run), amount in sorted(sums.items())]
        content = json.dumps(with_checksum({"sums": lines})).encode()
        name = _name(ledger)
        if (objects.create(name, content) if etag is None else objects.replace(name, content, etag)) is not None:
            return
    raise Unreachable(f"{objects.url}/{_name(ledger)}: other runs wrote it during each of {_ATTEMPTS} attempts")


def _here(root: Path, ledger: str) -> Sums:
    book = Ledger(root, ledger)
    try:
        return book.totals()
    finally:
        book.close()


def _read(objects: Objects, ledger: str) -> tuple[Sums, str | None]:
    try:
        content, head = objects.get(_name(ledger))
    except FileNotFoundError:
        return {}, None
    try:
        lines = checked(content)["sums"]
        return {(str(model), str(run)): Amount(*amount) for model, run, amount in lines}, head.etag
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{objects.url}/{_name(ledger)} is damaged, so that it is not known what other machines have spent. Delete "
            "it if you know, and lower the caps by what is missing"
        ) from error


def _is_own(root: Path, run: str) -> bool:
    """Return whether a run was made with this state folder."""
    return alive_file(root, run).exists()


def _name(ledger: str) -> str:
    return f"spend/{ledger}.json"
