"""Damage in the state folder, and the bytes that are set aside when a file is rewritten without its damaged parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tracefactory.core.errors import RunError
from tracefactory.core.files import whole_file

REPAIR = "tracefactory fsck --repair"


@dataclass(frozen=True)
class Damage:
    """Damage of one file.

    Attributes:
        path: the file.
        place: the place in the file, such as "byte 4711" or "row group 3".
        what: what is wrong there.
        consequence: what it means for the next run.
    """

    path: Path
    place: str
    what: str
    consequence: str

    def __str__(self) -> str:
        return f"{self.path}, {self.place}: {self.what}; {self.consequence}"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise ValueError for any content of a Parquet file that cannot be decoded.

    Raises:
        FileNotFoundError: when the file does not exist.
        RunError: when the operating system refuses to read it. This may pass, and a completion that only cannot be
            read now must not be paid again.
        ValueError: when the content is damaged.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise RunError(f"{path} cannot be read: {error.strerror}") from error
        raise ValueError(_first_line(error)) from error
    except (pa.ArrowException, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(_first_line(error)) from error


def set_aside(folder: Path, name: str, content: bytes) -> Path:
    """Write damaged bytes into `folder/damaged` and return the file, which is named by their origin and digest."""
    path = folder / "damaged" / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.bin"
    if not path.exists():
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
    return path


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
