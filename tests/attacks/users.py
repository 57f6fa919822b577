"""Start Python as root or as an ordinary user, in an environment in which the sandbox is to be tried.

An ordinary user cannot enter folders such as /root, where the interpreter or the working copy may lie. They are shown
to it in a mount namespace, where nothing else of such a folder is seen.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
ORDINARY = 12345
"""The id of an ordinary user; it needs no account."""
AS_ROOT, AS_USER, IN_BUBBLEWRAP = "root", "user", "user+bubblewrap"


def possible_users() -> list[str]:
    """Return as whom the sandbox can be tried here."""
    users = [AS_ROOT] if os.geteuid() == 0 else []
    if os.geteuid() != 0 or shutil.which("setpriv"):
        users += [AS_USER, *([IN_BUBBLEWRAP] if shutil.which("bwrap") else [])]
    return users


def command(user: str) -> list[str]:
    """Return the beginning of a command that runs another one as this user."""
    path = os.environ["PATH"] if user == IN_BUBBLEWRAP else "/nowhere"
    environment = ["env", "-i", f"PATH={path}", "HOME=/tmp", f"PYTHONPATH={PROJECT}"]
    if user == AS_ROOT or os.geteuid() != 0:
        return environment
    change = ["setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups", "--inh-caps=-all", "--"]
    if not (covered := _covered()):
        return [*change, *environment]
    lines = ["set -e"]
    for folder, shown in covered.items():
        stash = f"/tmp/tracefactory-shown-{os.getpid()}"
        for number, one in enumerate(shown):
            lines += [f"mkdir -p {stash}/{number}", f"mount --bind {shlex.quote(one)} {stash}/{number}"]
        lines.append(f"mount -t tmpfs -o mode=0755 tmpfs {shlex.quote(folder)}")
        for number, one in enumerate(shown):
            lines += [f"mkdir -p {shlex.quote(one)}", f"mount --bind {stash}/{number} {shlex.quote(one)}"]
    lines.append('exec "$@"')
    return ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh", *change, *environment]


@lru_cache(maxsize=1)
def _covered() -> dict[str, list[str]]:
    """Return the folders that an ordinary user cannot enter, with what of the interpreter and this project is below."""
    found: dict[str, list[str]] = {}
    for wanted in dict.fromkeys(map(os.path.realpath, (sys.base_prefix, sys.prefix, str(PROJECT)))):
        for folder in reversed(Path(wanted).parents):
            if not folder.stat().st_mode & 0o001:
                found.setdefault(str(folder), []).append(wanted)
                break
    return found


def run(user: str, requests: list[dict[str, Any]], *prefix: str) -> list[dict[str, Any]]:
    """Run programs in the sandbox as a user, in one process of this package, and return what is known of each.

    Args:
        user: who runs them.
        requests: what to run, see `tests.attacks.driver`.
        prefix: a command to run the process with.
    """
    driver = [*prefix, sys.executable, "-m", "tests.attacks.driver"]
    done = subprocess.run(  # noqa: PLW1510  # what it wrote is shown
        [*command(user), *driver], input=json.dumps(requests), capture_output=True, text=True, cwd="/", timeout=600
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
