"""Start the sandbox in bubblewrap (https://github.com/containers/bubblewrap), where it is installed.

It is used by ordinary users. Root does not use it, because the user namespace of bubblewrap maps to the user that
starts it: a program would be root to the kernel.
"""

from __future__ import annotations

import os
import shutil

from tracefactory.sandbox.inside.confine import DEVICES
from tracefactory.sandbox.root import Root, package_files


def find() -> str | None:
    """Return the path of bubblewrap, None where it is not installed or this process is root."""
    return None if os.geteuid() == 0 else shutil.which("bwrap")


def command(program: str, root: Root, user: int) -> list[str]:
    """Return the beginning of the command that runs another one inside of a minimal root file system.

    Args:
        program: the path of bubblewrap.
        root: what the root shows.
        user: the id of the user inside.
    """
    parts = [program, "--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1"]
    parts += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]  # to mount the writable folder, and dropped after that
    parts += ["--uid", str(user), "--gid", str(user)]
    for path in sorted({*root.paths, *package_files()}):
        parts += ["--ro-bind", path, path]
    for path, target in root.links:
        parts += ["--symlink", target, path]
    for device in DEVICES:
        parts += ["--dev-bind", device, device]
    return [*parts, "--dir", root.work, "--remount-ro", "/", "--"]
