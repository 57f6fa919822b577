"""Objects that are never changed, in folders by the hour of the store's clock: what is new is found by a short list."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from tracefactory.store.shared.objects import Objects

_FORMAT = "%Y%m%dT%H"
_HOUR = timedelta(hours=1)


class Hourly(NamedTuple):
    """One object `<folder>/<hour>/<stem>.<suffix>`."""

    name: str
    hour: str
    stem: str


class HourlyObjects:
    """Lists the objects of one folder, and later those that may be new.

    Args:
        objects: the shared state.
        folder: the folder of the hours.
    """

    def __init__(self, objects: Objects, folder: str) -> None:
        self.objects, self.folder = objects, folder
        self._newest = ""

    def new(self) -> Iterator[Hourly]:
        """Yield all objects at the first call, later those since the hour before the newest one.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        after = ""
        if self._newest:
            after = f"{self.folder}/{(datetime.strptime(self._newest, _FORMAT) - _HOUR).strftime(_FORMAT)}"
        for one in self.objects.list(self.folder, after):
            _, hour, file = one.name.split("/")
            self._newest = max(self._newest, hour)
            yield Hourly(one.name, hour, file.partition(".")[0])


def hour_of(seconds: float) -> str:
    """Return the hour of Unix seconds of the store's clock."""
    return datetime.fromtimestamp(seconds, UTC).strftime(_FORMAT)


def end_of(hour: str) -> float:
    """Return when an hour ends, in Unix seconds of the store's clock."""
    return (datetime.strptime(hour, _FORMAT).replace(tzinfo=UTC) + _HOUR).timestamp()
