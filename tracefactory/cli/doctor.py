"""`tracefactory doctor`."""

from __future__ import annotations

import platform
import sys

import typer

from tracefactory.cli.options import Json


def doctor(json: Json = False) -> None:
    """Try what a hostile program would try, and print which protections hold on this machine for this user.

    Exit status: 0 when all hold, 1 otherwise; then programs are only run by pipelines that allow it.
    """
    import orjson

    from tracefactory.sandbox.protections import PROTECTIONS, protections

    found = protections()
    how = {
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
        "sandbox": "bubblewrap" if found.outside == "bubblewrap" else "namespaces of this package",
        "landlock": "yes" if found.landlock else "no, the kernel has none",
    }
    if json:
        rows = {
            name: {"holds": name not in found.possible, "possible": found.possible.get(name), "remedy": remedy}
            for name, (_, remedy) in PROTECTIONS.items()
        }
        print(orjson.dumps({**how, "protections": rows}, option=orjson.OPT_INDENT_2).decode())
    else:
        for name, value in how.items():
            print(f"{name:<15}{value}")
        print()
        for name, (what, _) in PROTECTIONS.items():
            print(f"{name:<15}{'MISSING' if name in found.possible else 'holds':<9}{what}")
            if name in found.possible:
                print(f"{'':<15}{'':<9}a program can {found.possible[name]}")
        for remedy in dict.fromkeys(PROTECTIONS[name][1] for name in found.missing()):
            print(f"\nremedy: {remedy}")
    raise typer.Exit(1 if found.possible else 0)
