"""What a person asks of a finished run: its funnel, a row's whole life, what another run would do."""

from __future__ import annotations

import json
from collections.abc import Callable

import pyarrow.parquet as pq

from tests.e2e.conftest import Project, Teacher
from tracefactory.core.spans import Span
from tracefactory.store.rows import stored_rows


def test_show_explain_plan_and_limit(teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]) -> None:
    teacher = teacher_of(accuracy=0.7, rate_truncate=0.1)
    project = project_of(teacher.url, size=30)
    plan = json.loads(project.run("plan", str(project.pipeline), "--json"))
    assert [stage["state"] for stage in plan["stages"]] == ["new"] * 7
    assert sum(stage["to_pay"]["requests"] for stage in plan["stages"] if stage["to_pay"]) == 120
    assert not (project.root / ".tracefactory" / "stages").exists()  # a plan writes nothing

    limited = project.make("--limit", "5")
    assert limited["stages"][0]["tally"]["kept"] == 5
    assert (project.root / "out" / "sums" / "1-limit5" / "README.md").exists()
    assert teacher.stats()["completed_total"] == 20
    assert "100 requests to pay" in project.run("plan", str(project.pipeline))  # the 20 are paid for

    outcome = project.make()
    assert teacher.stats()["completed_total"] == 120
    shown = project.run("show")
    for stage in outcome["stages"]:
        assert stage["id"] in shown
    assert "100 requests paid in this run" in shown
    assert "median" in shown
    assert json.loads(project.run("show", "--json")) == outcome

    (file,) = (project.root / "out" / "sums" / "1" / "data" / "raw").glob("*.parquet")
    published = pq.read_table(file).to_pylist()[0]
    life = json.loads(project.run("explain", published["id"], "--json"))
    assert [event["fate"] for event in life["events"]] == ["kept"] * 5
    assert life["request"]["request"]["messages"][-1]["content"].endswith(published["problem"]["question"])
    assert published["problem"]["question"] in project.run("explain", published["id"][:12])

    clean = next(stage for stage in outcome["stages"] if stage["id"] == "clean")
    judged = stored_rows(project.root / ".tracefactory", clean["id"], clean["key"]).judged(Span.all())
    row = judged.filter(~judged["kept"]).row(0, named=True)
    told = project.run("explain", row["id"])
    assert f"dropped: {row['reason']}" in told
