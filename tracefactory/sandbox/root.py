"""What the minimal root file system of the sandbox shows: the interpreter and its libraries, and nothing else."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_LOADER = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64")
_LOADER_CACHE = "/etc/ld.so.cache"
_TIME_ZONES = "/usr/share/zoneinfo"


@dataclass(frozen=True)
class Root:
    """The files and folders to show, each with all below it, and the symbolic links (path, target) to make."""

    paths: tuple[str, ...]
    links: tuple[tuple[str, str], ...]

    @property
    def work(self) -> str:
        """The folder that a program can write to: /tmp, unless that would hide an interpreter below it."""
        hides = any(is_below(path, "/tmp") for path in (*self.paths, *package_files(), *dict(self.links)))
        return "/sandbox" if hides else "/tmp"


@lru_cache(maxsize=1)
def minimal_root() -> Root:
    """Return what a program needs to run with this interpreter: its modules, its shared libraries, its executable.

    The folders of the project, of packages that are installed from a working copy, and of users are not among them,
    also where they are on `sys.path`.
    """
    prefixes = dict.fromkeys((sys.prefix, sys.base_prefix))
    modules = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    modules += [sysconfig.get_path(name, vars=base) for name in ("purelib", "platlib")]
    modules += site.getsitepackages(list(prefixes))
    executables = [sys.executable, *(f"{prefix}/pyvenv.cfg" for prefix in prefixes)]
    links: dict[str, str] = {}
    wanted = [*modules, *executables, *_shared_libraries(), *_loader(), _LOADER_CACHE, _TIME_ZONES]
    paths = _without_nested(real for path in wanted if (real := _follow(path, links)) is not None)
    outside = {path: target for path, target in links.items() if not any(is_below(path, one) for one in paths)}
    return Root(paths, tuple(sorted(outside.items())))


def package_files() -> tuple[str, ...]:
    """Return the files of this package that the sandbox itself imports, for a sandbox that is closed before it does."""
    package = Path(__file__).parents[1]
    return (str(package / "__init__.py"), str(package / "sandbox/__init__.py"), str(package / "sandbox/inside"))


def is_below(path: str, folder: str) -> bool:
    """Return whether a path is a folder or lies below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _follow(path: str, links: dict[str, str]) -> str | None:
    """Return the real path, None where there is none; note the symbolic links on the way, also those of folders."""
    current = "/"
    rest = [part for part in path.split("/") if part]
    for _ in range(1000):
        if not rest:
            return current if os.path.exists(current) else None
        current, rest = os.path.join(current, rest[0]), rest[1:]
        if rest and rest[0] == "..":
            current, rest = os.path.dirname(current), rest[1:]
        elif os.path.islink(current):
            target = os.readlink(current)
            links[current] = target
            parts = [part for part in target.split("/") if part and part != "."]
            current, rest = ("/" if target.startswith("/") else os.path.dirname(current)), parts + rest
            while rest and rest[0] == "..":
                current, rest = os.path.dirname(current), rest[1:]
    return None


def _shared_libraries() -> set[str]:
    """Return the folders of the shared libraries that this process has loaded from outside of the interpreter."""
    with open("/proc/self/maps") as file:
        mapped = {line.split(None, 5)[5].strip() for line in file if line.count("/")}
    return {os.path.dirname(path) for path in mapped if ".so" in path and _is_system(path)}


def _is_system(path: str) -> bool:
    prefixes = (f"{prefix}/lib/" for prefix in (sys.prefix, sys.base_prefix))
    return path.startswith(("/lib", "/usr/lib", "/usr/local/lib", "/nix/store", "/gnu/store", *prefixes))


def _loader() -> Iterable[str]:
    """Return the paths of dynamic loaders, such as /lib64/ld-linux-x86-64.so.2, which every executable names."""
    for folder in _LOADER:
        if os.path.isdir(folder):
            yield from (f"{folder}/{name}" for name in os.listdir(folder) if name.startswith(("ld-linux", "ld-musl")))


def _without_nested(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the paths without those that lie below another one."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: path.split("/")):
        if not (kept and is_below(path, kept[-1])):
            kept.append(path)
    return tuple(kept)
