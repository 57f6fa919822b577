"""Run programs in the sandbox: a JSON list of requests on stdin, a JSON list of what happened on stdout."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from tracefactory.core.errors import UserError
from tracefactory.sandbox.launch import Limits
from tracefactory.sandbox.protections import allow_missing, protections
from tracefactory.sandbox.run import run_program, run_tests


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one request: `code` with `tests` or `stdin`, and `limits`; `allow` names protections that may be missing."""
    limits = Limits(**{"seconds": 2, "wall": 10, "memory_mb": 256, **request.get("limits", {})})
    allow_missing(request.get("allow", ()))
    try:
        if "tests" in request:
            more = {name: request[name] for name in ("setup", "entry_point") if name in request}
            run = run_tests(request["code"], request["tests"], limits, **more)
        else:
            run = run_program(request["code"], request.get("stdin", ""), limits)
    except UserError as error:
        return {"refused": str(error)}
    return {**dataclasses.asdict(run), "passed": run.passed}


def main() -> None:
    """Answer all requests; the first answer is of the protections."""
    requests = json.load(sys.stdin)
    try:
        found = dataclasses.asdict(protections())
    except UserError as error:
        found = {"error": str(error)}
    print(json.dumps([found, *map(answer, requests)]))


if __name__ == "__main__":
    main()
