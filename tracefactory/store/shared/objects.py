"""What an object store has to do for a shared state: six operations, of which two are conditional."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from tracefactory.core.errors import RunStopped

AT_ONCE = 16
"""Objects that are fetched at the same time."""


class Unreachable(RunStopped):
    """An object store did not do what it was asked for, after several attempts, or refused it."""


class Listed(NamedTuple):
    """One object of a list; `size` is in bytes."""

    name: str
    size: int


class Head(NamedTuple):
    """What an object store tells about an object without its content.

    `size` is in bytes, `etag` names this version of the content, `modified` is in Unix seconds of the store's clock.
    """

    size: int
    etag: str
    modified: float


class Objects(Protocol):
    """An object store. Names are paths with `/`. Every operation may raise `Unreachable`."""

    @property
    def url(self) -> str:
        """Where it is, for messages; it contains no secret."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        """Yield the objects in a folder and below, in the order of their names.

        Args:
            prefix: the folder, without a final `/`.
            after: only names after this one; all by default.
        """
        ...

    def get(self, name: str) -> tuple[bytes, Head]:
        """Return an object.

        Raises:
            FileNotFoundError: when there is none.
        """
        ...

    def head(self, name: str) -> Head:
        """Return what is known about an object.

        Raises:
            FileNotFoundError: when there is none.
        """
        ...

    def create(self, name: str, content: bytes) -> str | None:
        """Write an object unless there is one of this name; return its etag, None when there is one."""
        ...

    def replace(self, name: str, content: bytes, etag: str) -> str | None:
        """Write an object if it still has this etag; return its new etag, None when it has another or is gone."""
        ...

    def delete(self, name: str) -> None:
        """Delete an object, which may be missing."""
        ...


def put_whole(objects: Objects, name: str, content: bytes) -> Head:
    """Write an object that is named by its content, and make sure that all of it is there.

    An object of another size under this name is what a torn upload has left, or the same records compressed otherwise:
    it is replaced.

    Raises:
        Unreachable: when it is not there in the end.
    """
    objects.create(name, content)
    for _ in range(3):
        try:
            found = objects.head(name)
        except FileNotFoundError:
            objects.create(name, content)
            continue
        if found.size == len(content):
            return found
        objects.replace(name, content, found.etag)
    raise Unreachable(f"{objects.url}/{name} was written three times, and never had the {len(content)} bytes sent")
