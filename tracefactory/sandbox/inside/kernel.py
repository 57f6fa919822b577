"""Calls of the kernel that Python has no functions for."""

from __future__ import annotations

import ctypes
import os
import struct

CAPABILITY_HEADER = struct.pack("Ii", 0x20080522, 0)
"""Version 3 of the capabilities, of this process (capget(2))."""
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object) -> int:
    """Call a function of the C library.

    Args:
        name: the name of the function.
        args: its arguments.

    Returns:
        Its result.

    Raises:
        OSError: when the function returns a negative number.
    """
    result: int = getattr(libc, name)(*args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def error_of(name: str, *args: object) -> int:
    """Call a function of the C library and return its error number; 0 when it succeeded."""
    try:
        call(name, *args)
    except OSError as error:
        return error.errno or -1
    return 0
