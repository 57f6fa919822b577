"""Whatever servers answer and whatever is stored: a run ends with all rows accounted for, and the next one works."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from tests.e2e.conftest import Project, Teacher
from tests.unit.models.hostile import bodies
from tracefactory.store.journals import encode
from tracefactory.store.requests import compact

Projects = Callable[..., Project]
STAGES = """\
name: hostile
version: "1"
models: {{t: {{use: openai, model: m, base_url: "{url}", retries: 0, max_pause_s: 60, price: {{input: 1, output: 2}},
             skip_checks: [empty, reasoning, duplicate, unclosed, answer, siblings, logprobs, truncated, model]}}}}
stages:
  - id: problems
    source: files
    with: {{paths: sums.jsonl}}
  - {{id: asked, sample: chat, from: problems, with: {{model: t, prompt: short, samples: 1, max_tokens: 64}}}}
  - {{id: checked, verify: auto}}
run: {{max_error_rate: 1}}
"""


@pytest.fixture
def hostile_url() -> Iterator[str]:
    """Serve a mutated answer to every request, another one each time."""
    replies = cycle(list(bodies("openai", 100, seed=61)))  # a list, because threads take from it

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = next(replies).encode("utf-8", "surrogatepass")
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *given: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def tally_of(outcome: dict[str, Any], stage: str) -> dict[str, Any]:
    return next(one["tally"] for one in outcome["stages"] if one["id"] == stage)


def test_a_run_against_a_hostile_server_ends_with_all_rows_accounted_for(
    hostile_url: str, project_of: Projects
) -> None:
    project = project_of(hostile_url, size=100)
    project.pipeline.write_text(STAGES.format(url=hostile_url))
    kept = []
    for _ in range(2):
        tally = tally_of(project.make(), "asked")
        assert tally["kept"] + tally["dropped"] + tally["errors"] == 100
        assert (
            tally["errors"]
            == tally["owed"]
            == tally["reasons"].get("bad_response", 0) + tally["reasons"].get("server_error", 0)
        )
        kept.append(tally["kept"])
    assert 30 < kept[0] <= kept[1] < 100
    assert len(project.paid_lines()) == len(set(project.paid_lines())) == kept[1]


def mistreat(record: dict[str, Any], number: int) -> Any:
    """Return a stored record as an earlier version or a program may have written it."""
    completion = record["completion"]
    match number:
        case 0:
            completion |= {"prompt_tokens": 1e30, "completion_tokens": -1}
        case 1:
            completion |= {"served_model": 7, "logprobs": {}, "attempts": "x", "later": 1, "created": "now"}
            record |= {"cost": "much", "price": 3}
        case 2:
            record["completion"] = None
        case 3:
            completion["content"] = None
        case 4:
            return [record]
        case 5:
            completion["reasoning"] = ["\u001b[2J", 3]
    return record


@pytest.mark.parametrize("compacted", [False, True])
def test_a_stored_record_that_cannot_be_read_is_a_failed_row_and_is_not_paid_again(
    teacher_of: Callable[..., Teacher], project_of: Projects, compacted: bool
) -> None:
    teacher = teacher_of()
    project = project_of(teacher.url, size=12)
    project.pipeline.write_text(STAGES.format(url=teacher.url))
    project.make()
    state = project.root / ".tracefactory"
    (journal,) = (state / "requests").glob("journal-*.jsonl")
    lines = [orjson.loads(line) for line in journal.read_bytes().splitlines()]
    keys = [line["key"] for line in lines]
    journal.write_bytes(
        b"".join(encode(one["key"], mistreat(one["record"], n), one["near"]) for n, one in enumerate(lines))
    )
    if compacted:
        compact(state, at_least=0)
        assert not list((state / "requests").glob("journal-*.jsonl"))
    shutil.rmtree(state / "stages")

    received = teacher.stats()["received"]
    tally = tally_of(project.make(), "asked")
    assert (tally["kept"], tally["errors"], tally["owed"]) == (8, 4, 0)
    assert tally["reasons"] == {"unreadable_record": 4}
    assert teacher.stats()["received"] == received
    for number in range(6):
        shown = project.run("explain", keys[number][: 64 - number * 10])
        assert keys[number] in shown
        assert ("cannot be read" in shown) == (number > 1)
        assert "\x1b" not in shown
    assert json.loads(project.run("explain", keys[4], "--json"))[0]["completion"]["content"]
    assert "no row of run" in project.run("explain", "0123456789abcdef", expect=2)
    project.run("plan", str(project.pipeline))


def test_the_row_of_an_unreadable_record_names_it(teacher_of: Callable[..., Teacher], project_of: Projects) -> None:
    teacher = teacher_of()
    project = project_of(teacher.url, size=4)
    project.pipeline.write_text(STAGES.format(url=teacher.url))
    outcome = project.make()
    state = project.root / ".tracefactory"
    (journal,) = (state / "requests").glob("journal-*.jsonl")
    first = orjson.loads(journal.read_bytes().splitlines()[0])
    journal.write_bytes(encode(first["key"], mistreat(first["record"], 2), first["near"]))
    shown = project.run("explain", row_of(state, first["key"]), "--run", outcome["run"])
    assert f"`tracefactory explain {first['key']}` shows it" in shown
    shutil.rmtree(state / "stages")
    project.make()
    shown = project.run("explain", row_of(state, first["key"]))
    assert "asked [sample: chat] failed: unreadable_record" in shown
    assert f"`tracefactory explain {first['key']}` shows it" in shown


def row_of(state: Path, key: str) -> str:
    """Return the id of the row that was made from a request."""
    frames = [pl.read_parquet(one) for one in sorted((state / "stages").glob("asked-*/*.parquet"))]
    (found,) = {row for frame in frames if "request_key" in frame.columns
                for row in frame.filter(pl.col("request_key") == key)["id"].to_list()}  # fmt: skip
    return str(found)
