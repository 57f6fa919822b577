"""Landlock (landlock(7)): a second fence around files, TCP and signals, which needs no privileges.

It holds also where namespaces are missing. Rights that the kernel does not know yet are left out.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

from tracefactory.sandbox.inside.kernel import call

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, equal on all architectures
_EXECUTE, _READ_FILE, _READ_FOLDER, _WRITE_FILE, _TRUNCATE, _DEVICE_CONTROL = 1, 4, 8, 2, 1 << 14, 1 << 15
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""By version, the rights on files that are refused where no rule grants them."""
_RIGHTS_OF_A_FILE = _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE | _DEVICE_CONTROL
_TCP = 0b11  # bind and connect, from version 4
_SCOPES = 0b11  # abstract sockets and signals, from version 6


def restrict(readable: Sequence[str], writable: Sequence[str]) -> int:
    """Restrict this process and its children to some files, no TCP, and no signals to processes outside.

    Args:
        readable: files and folders that may be read and executed.
        writable: files and folders that may be changed, too.

    Returns:
        The version of Landlock.

    Raises:
        OSError: where the kernel has no Landlock.
    """
    version = call("syscall", _CREATE, None, ctypes.c_size_t(0), 1)
    handled = _FILE_RIGHTS[min(version, 5)]
    attributes = struct.pack("QQQ", handled, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = call("syscall", _CREATE, attributes, ctypes.c_size_t(size), 0)
    rights = dict.fromkeys(readable, _EXECUTE | _READ_FILE | _READ_FOLDER) | dict.fromkeys(writable, handled)
    for path, granted in rights.items():
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            granted &= _RIGHTS_OF_A_FILE
        rule = struct.pack("=Qi", granted & handled, descriptor)
        call("syscall", _ADD, ruleset, 1, rule, 0)
        os.close(descriptor)
    call("syscall", _RESTRICT, ruleset, 0)
    os.close(ruleset)
    return version
