"""The command line. Results go to stdout, progress to stderr.

Exit status: 0 ok, 1 a failed run, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from tracefactory.cli.check import check
from tracefactory.cli.diff import diff
from tracefactory.cli.explain import explain
from tracefactory.cli.filters import filters
from tracefactory.cli.init import init
from tracefactory.cli.measures import measures
from tracefactory.cli.new import new
from tracefactory.cli.plan import plan
from tracefactory.cli.publish import publish
from tracefactory.cli.run import run
from tracefactory.cli.serve import serve
from tracefactory.cli.show import show
from tracefactory.cli.teachers import teachers
from tracefactory.cli.verify import verify
from tracefactory.core.errors import Interrupted, RunError, UserError

app = typer.Typer(
    help="Sample, verify, prune, fit, mix and publish reasoning traces for a named student model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
for _command in (init, check, plan, run, serve, show, explain, measures, teachers, diff, publish, filters, new, verify):
    app.command()(_command)


def main() -> None:
    """Run the command line and end the process."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(*error.mistakes, sep="\n", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except (Interrupted, KeyboardInterrupt):
        print("stopped; everything that was paid for is kept: run the same command to go on", file=sys.stderr)
        sys.exit(130)
