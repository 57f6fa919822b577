"""The process that generates reasoning_gym problems: a request on stdin, one JSON line per problem on stdout.

A process of its own because several tasks iterate over sets of strings and give other problems under every hash seed
(`knight_swap`, `ransom_note` and `word_ladder` are some), and a hash seed can be fixed only where a process starts. It
also keeps what tasks print and leave open away from ours.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

from tracefactory.reading import gym


def main() -> None:
    """Read {"tasks": [[task, params]], "seed": n, "order": [index of a task, ...]} and write one problem per index."""
    request: dict[str, Any] = json.load(sys.stdin)
    with gym.quietly(), os.fdopen(os.dup(1), "w", encoding="utf-8") as results:
        os.dup2(2, 1)  # what is printed below Python goes to stderr too
        streams = [gym.problems(task, params, request["seed"]) for task, params in request["tasks"]]
        for index in request["order"]:
            made = dataclasses.asdict(next(streams[index]))
            results.write(json.dumps({"task": request["tasks"][index][0], **made}) + "\n")
            results.flush()


if __name__ == "__main__":
    main()
