"""Object stores in the cloud, with obstore: S3 and what speaks its protocol, Google Cloud Storage, Azure.

Addresses of other endpoints and credentials come from the environment variables of each cloud, such as
`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID` and `GOOGLE_APPLICATION_CREDENTIALS`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.store.shared.objects import Head, Listed, Objects, Unreachable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az")
INSTALL = "pip install 'tracefactory[objects]'"
_RETRY: Any = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
_CLIENT: Any = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=10)}


class CloudObjects:
    """The objects under one URL."""

    def __init__(self, store: ObjectStore, url: str) -> None:
        self.url = url
        self._store = store

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        with self._asking("list", prefix):
            for chunk in self._store.list(prefix, offset=after or None):
                for one in chunk:
                    yield Listed(one["path"], one["size"])

    def get(self, name: str) -> tuple[bytes, Head]:
        with self._asking("get", name):
            found = self._store.get(name)
            return bytes(found.bytes()), _head(found.meta)

    def head(self, name: str) -> Head:
        with self._asking("head", name):
            return _head(self._store.head(name))

    def create(self, name: str, content: bytes) -> str | None:
        return self._put(name, content, "create")

    def replace(self, name: str, content: bytes, etag: str) -> str | None:
        return self._put(name, content, {"e_tag": etag})

    def delete(self, name: str) -> None:
        with self._asking("delete", name), suppress(FileNotFoundError):
            self._store.delete(name)

    def _put(self, name: str, content: bytes, mode: Any) -> str | None:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._asking("put", name):
            try:
                return self._store.put(name, content, mode=mode, use_multipart=False)["e_tag"] or ""
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                return None

    @contextmanager
    def _asking(self, what: str, name: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            raise
        except (BaseError, OSError, ValueError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise Unreachable(f"{self.url}: {what} {name} failed ({why})") from error


def open_objects(url: str) -> Objects:
    """Open an object store and make sure that it keeps its conditions.

    Args:
        url: such as `s3://bucket/folder`.

    Raises:
        UserError: when the URL names no object store, or obstore is not installed.
        Unreachable: when it cannot be read and written, or ignores the conditions of a request.
    """
    objects = connect(url)
    check_conditions(objects)
    return objects


def connect(url: str) -> Objects:
    """Return the objects under a URL without asking for any; see `open_objects`."""
    checked_url(url)
    try:
        from obstore import store as stores
        from obstore.exceptions import BaseError
    except ImportError as error:
        raise UserError(Mistake(f"{url}: object stores need the package obstore", hint=f"`{INSTALL}`")) from error
    # Plain HTTP is used only where the address of an endpoint says so.
    plain = any(os.environ.get(name, "").startswith("http://") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
    try:
        from_url: Any = stores.from_url  # its overloads are by the kind of store, which is in the URL
        store = from_url(url, client_options={**_CLIENT, "allow_http": plain}, retry_config=_RETRY)
    except (BaseError, ValueError) as error:
        raise UserError(Mistake(f"{url} cannot be opened: {str(error).splitlines()[0]}")) from error
    return CloudObjects(store, url.rstrip("/"))


def checked_url(url: str) -> str:
    """Return the URL of an object store.

    Raises:
        UserError: when it names none.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        shared = "a folder on a shared file system is named by TRACEFACTORY_HOME"
        hint = nearest(parts.scheme, SCHEMES) or shared if parts.scheme != "file" else shared
        names = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UserError(Mistake(f"TRACEFACTORY_SHARED={url} names no object store ({names})", hint=hint))
    if not parts.netloc or parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            Mistake(
                f"TRACEFACTORY_SHARED is not of the form {parts.scheme}://bucket/folder",
                hint="keys and options are environment variables of the cloud",
            )
        )
    return url


def check_conditions(objects: Objects) -> None:
    """Make sure that an object store refuses what its conditions forbid, without which leases do not hold.

    Raises:
        Unreachable: when it does not.
        UserError: when its bucket does not exist.
    """
    name = f"probes/{uuid4().hex}"
    etag = objects.create(name, b"1")
    if etag is None:  # nothing has this name, so that the store does not find the bucket
        raise UserError(Mistake(f"{objects.url}: there is no bucket {urlsplit(objects.url).netloc!r}"))
    try:
        if not etag:
            raise Unreachable(f"{objects.url}: an object written with If-None-Match has no etag")
        second, other = objects.create(name, b"2"), objects.replace(name, b"3", '"0123456789abcdef"')
        content, head = objects.get(name)
        if second is not None or other is not None or content != b"1":
            raise Unreachable(
                f"{objects.url} ignores If-None-Match or If-Match, so that two machines could write the same stage; "
                "use a store with conditional writes"
            )
        if objects.replace(name, b"4", head.etag) is None:
            raise Unreachable(f"{objects.url} refuses a replacement whose If-Match holds")
    finally:
        objects.delete(name)


def _head(meta: Any) -> Head:
    return Head(meta["size"], meta["e_tag"] or "", meta["last_modified"].timestamp())
