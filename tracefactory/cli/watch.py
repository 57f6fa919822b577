"""`tracefactory watch`."""

from __future__ import annotations

import json as json_lines
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from tracefactory.cli.options import Json, ProjectFolder
from tracefactory.config.project import find_project
from tracefactory.core.pipeline import Project
from tracefactory.core.prices import dollars
from tracefactory.engine.reporting.log import one_line
from tracefactory.engine.reporting.plain import PlainLines
from tracefactory.engine.reporting.watching import Watched, named_run, newest_run
from tracefactory.engine.runs import End, load_outcome

POLL_S, PULL_S = 1.0, 30.0
WIDTH = 80
_TOLD = {
    "waiting": "{stage}: {text}",
    "model": "{model}: {notice}",
    "budget_warning": "{text}",
    "shared_state": "{text}",
    "stage_failed": "{stage} failed: {error}",
    "request_failed": "{stage}: a request failed ({kind}): {message}",
    "row_failed": "{stage}: a row failed ({kind}): {message}",
    "stopping": "{signal}: the run is being stopped",
    "metrics": "metrics: http://{host}:{port}/metrics",
}
"""The events that have a line of their own; the others are in the lines of the stages."""


def watch(
    run: Annotated[str | None, typer.Argument(help="The name of a run; the newest one by default.")] = None,
    project: ProjectFolder = Path(),
    json: Json = False,
) -> None:
    """Follow a run of another terminal or machine to its end, and end with its exit status."""
    found = find_project(project)
    try:
        raise typer.Exit(_follow(found, run, json=json))
    except KeyboardInterrupt:
        print("no longer watched; the run itself is not stopped", file=sys.stderr)
        raise typer.Exit(130) from None


def _follow(project: Project, run: str | None, *, json: bool) -> int:
    """Print what a run does until it ends, and return its exit status."""
    root, pull = project.state_dir, _pull(project)
    pull()
    name = named_run(root, run) if run else newest_run(root)
    if name is None:
        print(f"no run has begun under {root / 'runs'}; waits for one", file=sys.stderr, flush=True)
    while name is None:
        time.sleep(POLL_S)
        pull()
        name = newest_run(root)
    with closing(Watched(root, name)) as watched:
        if not json:
            _say(f"run {name}")
        plain = PlainLines(_say)
        stages: list[tuple[str, str, bool]] = []
        while True:
            state = watched.state()  # before its lines are read, so that none is missed
            for line in watched.new():
                if json:
                    print(json_lines.dumps(line), flush=True)
                elif line["event"] == "progress":
                    stages = _stages(line)
                    plain.show(stages)
                elif line["event"] in _TOLD:
                    _say(_told(line))
            if state is not End.RUNNING:
                return _ended(watched, state, json=json)
            if not json:
                plain.show(stages)
            time.sleep(POLL_S)
            pull()


def _ended(watched: Watched, state: End | None, *, json: bool) -> int:
    """Print how a run has ended, and return its exit status."""
    from tracefactory.cli.show import print_outcome, stdout_console

    killed = End.KILLED.exit_status if watched.left is None else watched.left
    if state is End.KILLED and not (watched.folder / "plan.json").exists():
        end, status = End.KILLED, killed
        if not json:
            _say("the run has ended before it was planned")
    else:
        outcome = load_outcome(watched.root, watched.run, finished=False)
        end = outcome.state if state is None else state
        status = end.exit_status if outcome.exit_status is None else outcome.exit_status
        status = killed if state is End.KILLED else status
        if not json:
            print_outcome(
                outcome.model_copy(update={"state": end}), watched.root, as_json=False, console=stdout_console()
            )
    if json:
        print(json_lines.dumps({"event": "ended", "run": watched.run, "state": end, "exit_status": status}), flush=True)
    elif watched.log.damaged:
        _say(f"{watched.log.damaged} lines of {watched.folder / 'log.jsonl'} cannot be read")
    return status


def _pull(project: Project) -> Callable[[], None]:
    """Return a function that fetches the runs of other machines that have ended, every `PULL_S` seconds."""
    if not project.shared:
        return lambda: None
    from tracefactory.store.shared.cloud import open_objects
    from tracefactory.store.shared.objects import Unreachable
    from tracefactory.store.shared.runs import pull_runs

    objects, last = open_objects(project.shared), float("-inf")

    def pull() -> None:
        nonlocal last
        if time.monotonic() - last < PULL_S:
            return
        last = time.monotonic()
        try:
            pull_runs(project.state_dir, objects)
        except Unreachable as error:
            print(f"the shared state is not seen now: {one_line(str(error))}", file=sys.stderr, flush=True)

    return pull


def _stages(line: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Return the lines of the stages in a `progress` line, for `PlainLines.show`."""
    found = []
    stages = line.get("stages")
    for one in stages if isinstance(stages, list) else []:
        if not isinstance(one, dict):
            continue
        stage, state = one_line(str(one.get("stage", "?"))), str(one.get("state", ""))
        counts = ", ".join(f"{name} {_number(one, name)}" for name in ("kept", "dropped", "errors", "requests"))
        told = f"{stage}: {one.get('waiting') or state}; {_number(one, 'shards_done')}/{_number(one, 'shards')} shards"
        paid = [one[name] if isinstance(one.get(name), int | float) else 0 for name in ("cost", "unpriced", "requests")]
        in_flight = f"{_number(one, 'in_flight')} in flight"
        in_flight += f", {_number(one, 'elsewhere')} wait for another process" if one.get("elsewhere") else ""
        text = one_line(f"{told}, {counts}, {in_flight}, {dollars(*paid)} $")
        found.append((stage, "" if state == "waits" and not one.get("waiting") else text, state == "done"))
    return found


def _number(of: Mapping[str, Any], name: str) -> str:
    number = of.get(name)
    return f"{number:,.6g}" if isinstance(number, float) else f"{number:,}" if isinstance(number, int) else "?"


def _told(line: Mapping[str, Any]) -> str:
    return one_line(_TOLD[line["event"]].format_map(_Fields(line)))


class _Fields(dict[str, Any]):
    """The fields of a line, of which some may be missing."""

    def __missing__(self, name: str) -> str:
        return "?"


def _say(text: str) -> None:
    """Print a text in lines of `WIDTH` columns, the first with the time of day."""
    indent = " " * 9
    lines = textwrap.wrap(one_line(text), WIDTH, initial_indent=indent, subsequent_indent=indent)
    print("\n".join(lines).replace(indent, time.strftime("%H:%M:%S "), 1), flush=True)
