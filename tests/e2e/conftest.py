"""A project in a temporary folder, a fake teacher in a process of its own, and the command line as a user has it."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import forked

LONG = "---\nstyle: long\n---\nThink step by step, then put the answer in \\boxed{}.\n\n{{ question }}\n"
SHORT = "---\nstyle: short\n---\nAnswer directly, in one line, the answer in \\boxed{}.\n\n{{ question }}\n"
PIPELINE = """\
name: sums
version: "1"
models:
  long_teacher: {{use: openai, model: fake-long, base_url: "{url}", retries: 8, price: {{input: 0, output: 2.0}}}}
  short_teacher: {{use: openai, model: fake-short, base_url: "{url}", retries: 8, price: {{input: 0, output: 1.0}}}}
stages:
  - id: problems
    {source}
  - {{id: long, sample: chat, from: problems, with: {{model: long_teacher, prompt: long, samples: {samples}}}}}
  - {{id: short, sample: chat, from: problems, with: {{model: short_teacher, prompt: short, samples: {samples}}}}}
  - {{id: checked, verify: auto, from: [long, short]}}
  - {{id: clean, filter: [thinking_closed, repetition, verdict, length: {{max_tokens: 2000}}]}}
  - {{id: mixed, mix: long_short, with: {{long: 0.2, short: 0.8, seed: 7}}}}
  - {{id: dataset, publish: dataset}}
run: {{executor: {executor}}}
"""


GYM = (
    "source: reasoning_gym\n    with: {{size: {size}, seed: 3, "
    "tasks: [{{task: chain_sum, params: {{min_terms: 2, max_terms: 4}}}}]}}"
)
SUMS = "source: files\n    with: {paths: sums.jsonl}"
"""The source of the sums that `write_sums` writes: their verdicts need no process, which takes seconds to start."""


def write_sums(root: Path, size: int) -> None:
    """Write a file of different sums and differences of integers, with their answers."""
    chance, lines = random.Random(3), {}
    while len(lines) < size:
        terms = [chance.randint(10, 99) for _ in range(chance.randint(2, 4))]
        question = f"What is {' + '.join(map(str, terms[:-1]))} - {terms[-1]}?"
        lines[question] = json.dumps({"question": question, "answer": str(sum(terms[:-1]) - terms[-1])}) + "\n"
    (root / "sums.jsonl").write_text("".join(lines.values()))


@dataclass
class Teacher:
    """The fake teacher and what it was asked."""

    url: str
    process: ForkServerProcess

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/stats", timeout=30) as answer:
            return json.load(answer)


def environ() -> dict[str, str]:
    """Return the environment without what pytest writes into it, for each test, and torch and polars, when imported."""
    own = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "_RJEM_MALLOC_CONF"}
    return {name: value for name, value in os.environ.items() if name not in own}


@pytest.fixture(autouse=True)
def usual_environ() -> None:
    """Remember the environment before the test changes it, with what libraries wrote when they were imported."""
    USUAL_ENVIRON.clear()
    USUAL_ENVIRON.update(environ())


@pytest.fixture
def teacher_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Teacher]]:
    """Start fake teachers with given scripts; they end with the test."""
    started: list[ForkServerProcess] = []

    def start(**script: Any) -> Teacher:
        folder = tmp_path_factory.mktemp("teacher")
        output, errors = folder / "stdout", folder / "stderr"
        arguments = ("--script", json.dumps(script))
        started.append(forked.start("tracefactory.serving.fake_server", arguments, folder, output, errors))
        return Teacher(forked.first_line(started[-1], output), started[-1])

    yield start
    for process in started:
        process.kill()
        process.join()


USUAL_ENVIRON: dict[str, str] = {}
"""Under another environment a command runs in a new process, whose libraries read it when they are imported."""
READS = {"check", "diff", "explain", "plan", "render", "show"}
"""Commands that only read: they run in the process of the test, because starting one takes a second of a CPU."""


def here(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process; return exit status, stdout and stderr."""
    from tracefactory.cli import main

    output, errors, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["tracefactory", *arguments])
        patch.setenv("COLUMNS", "80")
        try:
            main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return status, output.getvalue(), errors.getvalue()


@dataclass
class Project:
    """A project folder and the commands that are run in it."""

    root: Path
    pipeline: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)
    forks: bool = True  # False: every run is a new process, with a hash seed of its own

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tracefactory", *arguments]

    def run(self, *arguments: str, expect: int = 0, timeout: float = 240) -> str:
        """Run a command to its end and return its stdout, or its stderr where it is expected to fail."""
        if arguments[0] in READS:
            status, output, errors = here(self.root, *arguments)
        elif self.forks and environ() == USUAL_ENVIRON:
            status, output, errors = forked.finish("tracefactory", arguments, self.root, timeout)
        else:
            done = subprocess.run(
                self.command(*arguments), cwd=self.root, capture_output=True, text=True, timeout=timeout, check=False
            )
            status, output, errors = done.returncode, done.stdout, done.stderr
        assert status == expect, f"exit {status}\n{output}\n{errors}"
        return output if expect == 0 else errors

    def make(self, *arguments: str) -> dict[str, Any]:
        """Run the pipeline and return its outcome."""
        return json.loads(self.run("run", str(self.pipeline), "--json", *arguments))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start running the pipeline, in a process group of its own."""
        log = (self.root / "stderr.log").open("a")
        process = subprocess.Popen(
            self.command("run", str(self.pipeline), *arguments),
            cwd=self.root,
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        log.close()
        self.running.append(process)
        return process

    def paid_lines(self) -> list[str]:
        """Return the key of every completion in the request store, duplicates and all."""
        journals = sorted((self.root / ".tracefactory" / "requests").glob("journal-*.jsonl"))
        return [
            line[8:72] for path in journals for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"
        ]


@pytest.fixture
def project_of(tmp_path: Path) -> Iterator[Callable[..., Project]]:
    """Make projects with the pipeline above; with `gym`, problems of reasoning_gym and its verifiers in processes."""
    made: list[Project] = []

    def make(
        url: str, *, size: int = 40, samples: int = 2, executor: str = "inline", name: str = "demo", gym: bool = False
    ) -> Project:
        root = tmp_path / name
        for folder in ("pipelines", "prompts"):
            (root / folder).mkdir(parents=True)
        (root / "prompts" / "long.md").write_text(LONG)
        (root / "prompts" / "short.md").write_text(SHORT)
        (root / "filters").symlink_to(Path(__file__).parents[2] / "filters")
        write_sums(root, size)
        source = GYM.format(size=size) if gym else SUMS
        pipeline = root / "pipelines" / "sums.yaml"
        pipeline.write_text(PIPELINE.format(url=url, source=source, samples=samples, executor=executor))
        made.append(Project(root, pipeline))
        return made[-1]

    yield make
    end(made)


def end(projects: Iterable[Project]) -> None:
    """Kill what still runs of some projects."""
    for project in projects:
        for process in project.running:
            if process.poll() is None:
                kill_tree(process.pid)
            process.wait()


def kill_tree(pid: int) -> None:
    """kill -9 a process and everything it started, all at once as a power cut would."""
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            os.kill(process.pid, signal.SIGSTOP)
        except ProcessLookupError:
            continue
    for process in tree:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_until(condition: Callable[[], bool], seconds: float = 180) -> None:
    """Wait for something that must come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)
