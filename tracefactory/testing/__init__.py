"""Helpers for tests of filters, pruners, verifiers, stages and other plugins of a project.

`make_problem` and `make_trace` build rows; `fake_teacher` serves scripted answers in this process; `run_stage` runs one
stage, given as in a pipeline file, and returns its rows, judgements and numbers; `plugin` returns the entry that a file
of the project registers:

>>> import asyncio
>>> from tracefactory.testing import fake_teacher, make_problem, make_trace, run_stage
>>> sums = [make_problem("What is 2 + 3?", "5"), make_problem("What is 7 + 8?", "15")]

>>> async def sample():
...     async with fake_teacher(accuracy=1.0, style="short") as teacher:
...         stage = {"sample": "chat", "with": {"model": "teacher", "prompt": "math_short", "samples": 2}}
...         return await run_stage(stage, sums, models={"teacher": teacher.entry}), teacher.requests

>>> sampled, requests = asyncio.run(sample())
>>> len(sampled.made), requests, sampled.numbers["requests"]
(4, 4, 4.0)

>>> traces = [make_trace(problem=sums[0], answer_text=f"The answer is {number}.") for number in (5, 6)]
>>> checked = asyncio.run(run_stage({"verify": "auto"}, traces))
>>> [str(checked.judgements[trace.id].values["verdict"].outcome) for trace in traces]
['correct', 'incorrect']

A test in the folder `tests/` of a project passes `project=Path(__file__).parents[1]`, so that the stage can use the
prompts, filters and plugins of the project.
"""

from tracefactory.testing.rows import make_problem, make_trace
from tracefactory.testing.run import StageRun, plugin, run_stage, unwatched
from tracefactory.testing.teacher import FakeTeacher, fake_teacher

__all__ = [
    "FakeTeacher",
    "StageRun",
    "fake_teacher",
    "make_problem",
    "make_trace",
    "plugin",
    "run_stage",
    "unwatched",
]
