"""The process that generates reasoning_gym problems: a request on stdin, one JSON line per problem on stdout.

It is a separate process because several tasks iterate over sets of strings and give different problems for every hash
seed (for example `knight_swap`, `ransom_note` and `word_ladder`), and the hash seed can be set only at the start of a
process. This also isolates the output and open files of the tasks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

from tracefactory.reading import gym


def main() -> None:
    """Read {"tasks": [[task, params]], "seed": n, "order": [index of a task, ...]}; write one problem per index."""
    request: dict[str, Any] = json.load(sys.stdin)
    with gym.quietly(), os.fdopen(os.dup(1), "w", encoding="utf-8") as results:
        os.dup2(2, 1)  # output of C code goes to stderr too
        streams = [gym.problems(task, params, request["seed"]) for task, params in request["tasks"]]
        for index in request["order"]:
            made = dataclasses.asdict(next(streams[index]))
            results.write(json.dumps({"task": request["tasks"][index][0], **made}) + "\n")
            results.flush()


if __name__ == "__main__":
    main()
