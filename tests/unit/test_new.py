"""`tracefactory new`: a project with the written file checks, and the test that is written with it passes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tracefactory.cli import main
from tracefactory.cli.new import Kind
from tracefactory.config import check_project, load_pipeline
from tracefactory.config.project import find_project, init_project
from tracefactory.core import plugins

UNTESTED = {Kind.PROMPT, Kind.PIPELINE}
Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _no_plugins_afterwards() -> Iterator[None]:
    yield
    plugins.activate(Path(), {})


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as `tracefactory init` makes it."""
    root = tmp_path_factory.mktemp("new") / "project"
    init_project(root)
    return root


@pytest.fixture
def new(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `tracefactory new` in this process and return what it prints."""

    def run(root: Path, *arguments: str, expect: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["tracefactory", "new", *arguments, "--project", str(root)])
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        assert (end.value.code or 0) == expect, output.err
        return output.err if expect else output.out

    return run


@pytest.mark.parametrize("kind", list(Kind), ids=str)
def test_the_written_file_is_accepted_by_check(kind: Kind, fresh: Path, new: Run) -> None:
    name = f"measure:some_{kind}" if kind is Kind.STAGE else f"some_{kind}"
    written = [Path(line) for line in new(fresh, kind.value, name).splitlines()]
    assert len(written) == (1 if kind in UNTESTED else 2)
    assert all(file.is_file() for file in written)
    assert "$" not in written[0].read_text()
    assert check_project(find_project(fresh)) == []
    if kind is Kind.PIPELINE:
        assert len(load_pipeline(written[0]).stages) == 5


def test_the_written_tests_pass_in_the_project_with_plain_pytest(tmp_path: Path, new: Run) -> None:
    # All kinds in one process: starting one for each takes a minute.
    root = tmp_path / "project"
    init_project(root)
    for kind in Kind:
        new(root, kind.value, f"measure:my_{kind}" if kind is Kind.STAGE else f"my_{kind}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-rA"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in set(Kind) - UNTESTED:
        what = f"stage_measure_my_{kind}" if kind is Kind.STAGE else f"{kind}_my_{kind}"
        assert f"PASSED tests/test_{what}.py::" in done.stdout, kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pruner", "Big"), "'Big' cannot be a name"),
        (("pruner", "after_answer"), "the pruner 'after_answer' is built in"),
        (("decoder", "chat"), "`sample: chat` is built in"),
        (("stage", "short"), "a stage needs a verb and a name (write verify:short or --verb verify)"),
        (("stage", "ver_ify:short"), "'ver_ify' cannot be a verb"),
        (("stage", "filter:short"), "`filter:` takes filters"),
        (("stage", "verify:auto"), "`verify: auto` is built in"),
        (("view", "mine", "--verb", "verify"), "--verb is only for stages"),
        (("filter", "length"), "filters/length.py exists"),
    ],
)
def test_an_invalid_name_is_refused_and_no_file_is_written(
    arguments: tuple[str, ...], message: str, fresh: Path, new: Run
) -> None:
    before = sorted(fresh.rglob("*"))
    assert message in new(fresh, *arguments, expect=2)
    assert sorted(fresh.rglob("*")) == before


def test_no_test_of_the_user_is_overwritten(tmp_path: Path, new: Run) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "tests").mkdir()
    test = tmp_path / "tests" / "test_pruner_mine.py"
    test.write_text("# mine\n")
    assert "test_pruner_mine.py exists" in new(tmp_path, "pruner", "mine", expect=2)
    assert test.read_text() == "# mine\n"
    assert not (tmp_path / "pruners").exists()


def test_the_verb_of_a_stage_may_be_an_option(tmp_path: Path, new: Run) -> None:
    (tmp_path / "pipelines").mkdir()
    written = new(tmp_path, "stage", "short", "--verb", "trim").splitlines()
    assert written == [str(tmp_path / "stages/trim/short.py"), str(tmp_path / "tests/test_stage_trim_short.py")]
