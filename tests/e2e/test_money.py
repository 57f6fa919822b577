"""What is not the row's fault stays owed: no credit, refusals, outages, two runs at once, a second Ctrl-C."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

from tests.e2e.conftest import Project, Teacher, wait_until

Teachers, Projects = Callable[..., Teacher], Callable[..., Project]
NO_RETRIES = ["--set", "models.long_teacher.retries=0", "--set", "models.short_teacher.retries=0"]


def card(project: Project) -> str:
    (found,) = (project.root / "out").rglob("README.md")
    return found.read_text()


def tallies(outcome: dict[str, Any]) -> dict[str, Any]:
    return {stage["id"]: stage["tally"] for stage in outcome["stages"]}


def test_a_run_without_credit_stops_and_owes_the_rest(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(outage={"after": 50, "requests": 1, "status": 402}, latency_s=0.05)
    project = project_of(teacher.url)
    output = project.run("run", str(project.pipeline), expect=1)
    assert "add credit, then run the same command" in output
    assert "Traceback" not in output
    assert not (project.root / "out").exists()
    stored = teacher.stats()["completed_total"]
    assert 50 <= stored < 160
    assert stored == len(project.paid_lines())
    assert f"{160 - stored} requests to pay" in project.run("plan", str(project.pipeline))
    made = tallies(project.make())  # credit was added
    assert made["long"]["errors"] == made["short"]["errors"] == 0
    assert teacher.stats()["completed_total"] == 160


def test_one_403_is_a_failed_row_and_not_the_end_of_the_run(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(outage={"after": 88, "requests": 1, "status": 403}, latency_s=0.02)
    project = project_of(teacher.url)
    made = tallies(project.make())
    assert made["long"]["errors"] + made["short"]["errors"] == 1
    assert made["long"]["reasons"] | made["short"]["reasons"] == {"forbidden": 1}
    assert made["long"]["owed"] + made["short"]["owed"] == 0
    assert teacher.stats()["completed_total"] == 159
    assert all(stage["cached"] for stage in project.make()["stages"])
    assert teacher.stats()["received"] == 160
    again = tallies(project.make("--retry-failed", "forbidden", "--set", "version=2"))
    assert again["long"]["errors"] + again["short"]["errors"] == 0
    assert teacher.stats()["received"] == 161


def test_a_server_that_refuses_everything_stops_the_run(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(outage={"after": 60, "requests": 10**6, "status": 403})
    project = project_of(teacher.url)
    output = project.run("run", str(project.pipeline), expect=1)
    assert "refused 8 requests in a row after answering others" in output
    assert teacher.stats()["received"] <= 60 + 2 * 8 + 2 * 16


def test_an_incomplete_dataset_is_not_published_unless_it_is_allowed(
    teacher_of: Teachers, project_of: Projects
) -> None:
    teacher = teacher_of(rate_500=0.3, max_faults=1)
    project = project_of(teacher.url, size=20)
    output = project.run("run", str(project.pipeline), *NO_RETRIES, expect=1)
    assert "nothing is published, because rows are still owed" in output
    assert "server_error" in output
    assert "failed rows to retry" in project.run("plan", str(project.pipeline), *NO_RETRIES)
    assert not (project.root / "out").exists()

    allowed = ["--set", "stages.dataset.with.allow_missing=60%"]
    received = teacher.stats()["received"]
    partial = project.make("--no-requests", *allowed)
    assert teacher.stats()["received"] == received
    owed = sum(one["owed"] for one in tallies(partial).values())
    assert owed > 0
    assert "**Partial:**" in card(project)
    again = project.make(*allowed)  # the published version is never changed, so nothing is paid for it
    assert all(stage["cached"] for stage in again["stages"])
    assert teacher.stats()["received"] == received
    refused = project.run("run", str(project.pipeline), *allowed, "--retry-failed", "server_error", expect=2)
    assert "raise `version:`" in refused

    whole = tallies(project.make("--set", "version=2"))
    assert sum(one["owed"] for one in whole.values()) == 0
    assert teacher.stats()["received"] == received + owed
    assert teacher.stats()["completed_total"] == 80


def test_two_pipelines_with_the_same_requests_pay_once(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(latency_s=0.3)
    project = project_of(teacher.url)
    other = project.pipeline.with_name("other.yaml")
    text = project.pipeline.read_text().replace("name: sums", "name: other")
    other.write_text(
        text.replace("id: long,", "id: long2,")
        .replace("id: short,", "id: short2,")
        .replace("[long, short]", "[long2, short2]")
    )
    assert text.count("id: long,") == 1
    first = project.start()
    second = Project(project.root, other, project.running).start()
    assert [first.wait(120), second.wait(120)] == [0, 0]
    assert teacher.stats()["completed_total"] == 160
    assert len(project.paid_lines()) == len(set(project.paid_lines())) == 160


def test_the_second_ctrl_c_ends_the_run_at_once(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(latency_s=60)
    project = project_of(teacher.url)
    process = project.start()
    wait_until(lambda: teacher.stats()["in_flight"] > 4)
    process.send_signal(signal.SIGINT)
    log = project.root / "stderr.log"
    wait_until(lambda: "Ctrl-C again" in log.read_text())
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert process.wait(10) == 130
    assert time.monotonic() - started < 2
    assert "stopped at once" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_dead_server_costs_no_row(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(latency_s=0.05)
    project = project_of(teacher.url)
    process = project.start("--set", "models.long_teacher.max_pause_s=3", "--set", "models.short_teacher.max_pause_s=3")
    wait_until(lambda: len(project.paid_lines()) > 20)
    teacher.process.kill()
    assert process.wait(60) == 1
    log = (project.root / "stderr.log").read_text()
    assert "longer than max_pause_s: 3" in log
    assert "Traceback" not in log
    done = json.loads(project.run("plan", str(project.pipeline), "--json"))
    assert sum(stage["to_pay"]["requests"] for stage in done["stages"] if stage["to_pay"]) == 160 - len(
        project.paid_lines()
    )


def test_an_expired_key_stops_the_run_and_nothing_is_paid_again(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(outage={"after": 50, "requests": 40, "status": 401}, latency_s=0.05)
    project = project_of(teacher.url)
    output = project.run("run", str(project.pipeline), expect=1)
    assert "check the key, its permissions and its expiry" in output
    for _ in range(6):  # until the outage is over
        if teacher.stats()["faults"]["outage"] < 40:
            project.running.append(project.start())
            project.running[-1].wait(60)
    made = tallies(project.make())
    assert made["long"]["errors"] == made["short"]["errors"] == 0
    assert teacher.stats()["completed_total"] == 160


POISONED = """\
name: poisoned
version: "1"
models:
  teacher: {{use: openai, model: fake, base_url: "{url}", concurrency: 4}}
stages:
  - {{id: problems, source: files, with: {{paths: rows.jsonl, question: question, answer: answer, verifier: math}}}}
  - {{id: short, sample: chat, with: {{model: teacher, prompt: short, samples: 2}}}}
  - {{id: checked, verify: auto}}
  - {{id: dataset, publish: dataset}}
"""


def test_poisoned_rows_fail_alone(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(filtered="forbidden", context=100_000)
    project = project_of(teacher.url)
    rows = [{"question": f"What is {n} + 3?", "answer": str(n + 3)} for n in range(20)]
    rows += [{"question": "What is 2 + 2? " + "word " * 2_000_000, "answer": "4"}]
    rows += [{"question": "What is the forbidden 1 + 1?", "answer": "2"}]
    lines = [*map(json.dumps, rows), '{"question": "half a \\ud800 character: 1 + 2?", "answer": "3"}']
    (project.root / "rows.jsonl").write_text("\n".join(lines) + "\n")
    pipeline = project.pipeline.with_name("poisoned.yaml")
    pipeline.write_text(POISONED.format(url=teacher.url))
    outcome = json.loads(project.run("run", str(pipeline), "--json"))
    made = tallies(outcome)
    assert made["problems"]["rows_in"] == 23
    short = made["short"]
    assert short["rows_in"] == short["kept"] + short["errors"] == 2 * made["problems"]["kept"]
    assert short["reasons"] == {"content_filter": 2, "context_length": 2}
    assert short["owed"] == 0
    assert teacher.stats()["completed_total"] == short["kept"]
    again = json.loads(project.run("run", str(pipeline), "--json"))
    assert all(stage["cached"] for stage in again["stages"])


def test_a_dead_replica_costs_no_row(teacher_of: Teachers, project_of: Projects) -> None:
    one, two = teacher_of(latency_s=0.2), teacher_of(latency_s=0.2)
    project = project_of(one.url)
    text = project.pipeline.read_text().replace(f'base_url: "{one.url}"', f'base_url: ["{one.url}", "{two.url}"]')
    project.pipeline.write_text(text)
    process = project.start()
    wait_until(lambda: len(project.paid_lines()) > 20)
    answered = two.stats()["completed_total"]
    two.process.kill()
    assert process.wait(120) == 0
    assert len(project.paid_lines()) == len(set(project.paid_lines())) == 160
    in_flight = 16  # half of the requests in flight, at most, were at the server that died
    assert one.stats()["completed_total"] + answered + in_flight >= 160
    assert one.stats()["completed_total"] <= 160 - answered + in_flight


def test_a_second_sigterm_does_not_shorten_the_first(teacher_of: Teachers, project_of: Projects) -> None:
    """SLURM sends it to the script of a job and to the run, and the script passes it on."""
    teacher = teacher_of(latency_s=1)
    project = project_of(teacher.url)
    process = project.start()
    wait_until(lambda: teacher.stats()["in_flight"] > 4)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: "at the latest in" in (project.root / "stderr.log").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert "stopped at once" not in (project.root / "stderr.log").read_text()
    assert len(project.paid_lines()) == teacher.stats()["completed_total"] > 4
