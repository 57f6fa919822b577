"""The configurations that the trainers' own code has read: `make trainers-table` writes their digests."""

from __future__ import annotations

from pathlib import Path

from tracefactory.core.fingerprint import digest
from tracefactory.trainers import TRAINERS, Data, snippet

FILE = Path(__file__).with_name("proved.json")
_PLACES = (Data("/data/mix/1"), Data("org/mix", hub=True, revision="v1", student="org/tiny", sft_weight=0.3))


def digests() -> dict[str, str]:
    """Return a digest of the files of every trainer and view, for a folder and for the Hub, with their names."""
    return {
        f"{trainer.name}/{view}": digest(
            [[file.name, file.language, file.text] for data in _PLACES for file in snippet(trainer, view, data)]
        )[:16]
        for trainer in TRAINERS.values()
        for view in trainer.readings
    }
