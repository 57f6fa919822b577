"""The command line. Results go to stdout, progress to stderr.

Exit status: 0 success, 1 a failed run, 2 a mistake of the user, 3 stopped by a cap of the budget, 130 interrupted.

A command is a function in the file of its name. The file is imported only when the command is run, so that `--help` and
shell completion are fast.
"""

from __future__ import annotations

import errno
import sys
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from tracefactory import __version__
from tracefactory.core.errors import BudgetReached, Interrupted, Mistake, RunError, UserError, nearest

COMMANDS = {
    "init": "Make a project: pipelines, prompts and filters to start from.",
    "check": "Check one pipeline, or a whole project, without sending requests.",
    "plan": "Show what a run would do, and its requests, tokens and cost.",
    "run": "Make the dataset of a pipeline, without repeating stored work.",
    "serve": "Start the vLLM servers of one model and keep them until Ctrl-C.",
    "show": "Print the funnel of a run with the lengths of its traces, or list all runs.",
    "watch": "Follow a run of another terminal or machine to its end.",
    "explain": "Show where a row comes from: problem, request, verdict, stages.",
    "measures": "Print the measures of a run under its students.",
    "render": "Print one row as the student is trained on it, and what is lost.",
    "teachers": "Try every teacher on a few problems and rank them for the student.",
    "teach": "Train a student on several datasets and say which taught it better.",
    "diff": "Compare the rows of two published versions.",
    "fsck": "Read everything that is stored, list every damage, and repair it on request.",
    "gc": "Delete what nobody needs and what can be made again without paying.",
    "du": "Show what the state and the releases take: files and bytes by kind.",
    "doctor": "Measure what protects this machine from programs that models write.",
    "publish": "Push a finished version to the Hub as one commit and one tag.",
    "filters": "List the filters of the project with parameters and drop reasons.",
    "ops": "List operations, verifiers, views, models, measures and their parameters.",
    "new": "Write a template: a filter, a pruner, a verifier, a stage ...",
    "deploy": "Write a file that starts a pipeline on SLURM, KubeRay or SkyPilot.",
    "verify": "Check one answer against the correct one, or the pairs of a file.",
}
"""Every command with its line in `--help`."""

_OPTIONS: dict[str, Any] = {"pretty_exceptions_enable": False, "rich_markup_mode": None, "add_completion": False}


class _Completion(NamedTuple):
    """A completion for a shell, with the attributes that click expects."""

    value: str
    help: str
    type: str = "plain"


class _Commands(TyperGroup):
    """The commands by name. The module of a command is imported for running it and for its own `--help`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            raise UserError(Mistake(f"there is no command {cmd_name!r}", hint=nearest(cmd_name, COMMANDS)))
        one = typer.Typer(**_OPTIONS)
        one.command(cmd_name)(getattr(import_module(f"tracefactory.cli.{cmd_name}"), cmd_name))
        return typer.main.get_command(one)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        names = [_Completion(name, text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return names or super().shell_complete(ctx, incomplete)


app = typer.Typer(
    cls=_Commands,
    help="Sample, verify, prune, fit, mix and publish reasoning traces for a named student model.",
    no_args_is_help=True,
    **{**_OPTIONS, "add_completion": True},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"tracefactory {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Sample, verify, prune, fit, mix and publish reasoning traces for a named student model."""


def main() -> None:
    """Run the command line and end the process."""
    try:
        app(standalone_mode=True, prog_name="tracefactory")
    except UserError as error:
        print(*error.mistakes, sep="\n", file=sys.stderr)
        sys.exit(2)
    except BudgetReached as error:
        print(f"stopped by a cap: {error}", file=sys.stderr)
        sys.exit(3)
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the disk"
        print(f"failed: {where}: {error.strerror}; free space and run the same command again", file=sys.stderr)
        sys.exit(1)
    except (Interrupted, KeyboardInterrupt):
        print("stopped; paid completions are stored: run the same command to continue", file=sys.stderr)
        sys.exit(130)
