"""Plugins of a project: found, refused, marked with their source, and carried to where their files do not exist."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle  # parameters are of classes that are made when a pipeline is read, which pickle refuses

from tracefactory.cli.verify import verify
from tracefactory.config import check_project, load_pipeline
from tracefactory.config.project import find_project
from tracefactory.core import plugins
from tracefactory.core.errors import UserError
from tracefactory.core.marks import mark_of, split_version
from tracefactory.core.model import MODELS
from tracefactory.core.registry import registry
from tracefactory.core.stage import STAGES
from tracefactory.engine.identity import identities
from tracefactory.engine.run import run_pipeline
from tracefactory.pruning import PRUNERS
from tracefactory.testing import fake_teacher, make_problem, make_trace, run_stage, unwatched
from tracefactory.verification.base import VERIFIERS, VerifyTask
from tracefactory.verification.pool import VerifierPool

ROOT = Path(__file__).parents[2]
PRUNER = '''\
"""Keep the first step."""

from typing import ClassVar

from pydantic import Field

from tracefactory.pruning import PRUNERS, Pruner, keep, parent


@PRUNERS.register("first_step")
class FirstStep(Pruner):
    """Keep the first steps."""

    steps: int = Field(default=1, ge=1, description="Steps that are kept.")

    async def prune(self, items, tools):
        return [keep(item, range(self.steps), item.trace.answer_text) for item in items]
'''
VERIFIER = '''\
import os

from tracefactory.core.rows import Frozen, Outcome
from tracefactory.verification.base import Verifier, verifier


class Params(Frozen):
    """None."""


@verifier
class Slow(Verifier):
    """Decide in the child process."""

    name, version, Params = "slow", "3", Params

    def quick(self, task, params):
        return None

    def full(self, task, params):
        same = task.problem.answer in task.answer_text
        return self.verdict(Outcome.CORRECT if same else Outcome.INCORRECT, "here", detail=str(os.getpid()))
'''
MODEL = '''\
from typing import Literal

from tracefactory.core.model import MODELS, ModelSpec
from tracefactory.serving.managed import FixedEndpoint


@MODELS.register("mine")
class Mine(ModelSpec):
    """A server."""

    use: Literal["mine"] = "mine"
    base_url: str

    @property
    def provider_label(self):
        return "mine"

    def endpoint(self, environment):
        return FixedEndpoint([self.base_url])
'''
STAGE = '''\
from tracefactory.core.decisions import Judgement, drop, KEEP
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import STAGES, Result, Stage


class Params(Frozen):
    """None."""


class Short(Stage[Params]):
    """Drop long answers."""

    verb, name, version, Params = "trim", "short", "1", Params

    async def run(self, stage, batch, services):
        found = {one.id: KEEP if len(one.answer_text) < 99 else drop("long") for one in batch.traces}
        return Result(judged=[Judgement(row_id, decision) for row_id, decision in found.items()])


STAGES.register("trim:short")(Short())
'''
PIPELINE = """\
name: t
version: "1"
models:
  teacher: {{use: mine, model: fake, base_url: "{url}"}}
stages:
  - {{id: problems, source: files, with: {{paths: problems.jsonl, verifier: slow}}}}
  - {{id: sampled, sample: chat, with: {{model: teacher, prompt: math_long, samples: 1}}}}
  - {{id: checked, verify: auto}}
  - {{id: pruned, prune: first_step, with: {{check: answer}}}}
  - {{id: trimmed, trim: short}}
run: {{executor: {executor}, shards: 1, workers: 1}}
"""
FILES = {
    "pruners/first_step.py": PRUNER,
    "verifiers/slow.py": VERIFIER,
    "models/mine.py": MODEL,
    "stages/trim/short.py": STAGE,
}


@pytest.fixture(autouse=True)
def _no_plugins_afterwards() -> Iterator[None]:
    yield
    plugins.activate(Path(), {})


def project_with(root: Path, files: dict[str, str]) -> Path:
    (root / "pipelines").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def whole_project(root: Path, url: str = "http://127.0.0.1:9/v1", executor: str = "inline") -> Path:
    """Make a project whose pipeline uses a plugin of four kinds; returns the pipeline file."""
    project_with(root, FILES)
    for shipped in ("prompts", "filters"):
        (root / shipped).symlink_to(ROOT / shipped)
    lines = [json.dumps({"question": f"What is {n} + {n}?", "answer": str(2 * n)}) for n in range(2, 8)]
    (root / "problems.jsonl").write_text("\n".join(lines))
    file = root / "pipelines" / "t.yaml"
    file.write_text(PIPELINE.format(url=url, executor=executor))
    return file


def mistakes(root: Path) -> list[str]:
    return [str(one).removeprefix(f"{root}/") for one in check_project(find_project(root))]


def edit(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def ran(file: Path, *edits: tuple[str, str, str]) -> dict[str, Any]:
    """Run a pipeline against a fake teacher, once as it is and once after edits; return the second outcome by stage."""

    async def run() -> dict[str, Any]:
        async with fake_teacher(accuracy=1.0, style="long") as teacher:
            edit(file, "http://127.0.0.1:9/v1", teacher.server.base_url)
            outcome = await run_pipeline(load_pipeline(file), unwatched)
            for name, old, new in edits:
                edit(file.parent.parent / name, old, new)
                outcome = await run_pipeline(load_pipeline(file), unwatched)
        return {stage.id: stage for stage in outcome.stages}

    return asyncio.run(run())


def test_every_kind_is_one_file_and_runs_in_a_pipeline(tmp_path: Path) -> None:
    stages = ran(whole_project(tmp_path))
    assert stages["checked"].tally.numbers == {"correct": 6.0}
    assert stages["pruned"].tally.numbers["pruned"] == 6
    assert stages["trimmed"].tally.kept == 6
    assert STAGES.origin("prune:first_step") == PRUNERS.origin("first_step") == "project"


BROKEN = {
    "pruners/syntax.py": ("from x import (\n", "pruners/syntax.py:1: not Python: '(' was never closed"),
    "pruners/raises.py": ("\n1 / 0\n", "pruners/raises.py:2: pruner 'raises' does not load: ZeroDivisionError"),
    "pruners/exits.py": (
        "import sys\nsys.exit(3)\n",
        "pruners/exits.py:2: pruner 'exits' does not load: SystemExit: 3",
    ),
    "pruners/other.py": (PRUNER, "pruners/other.py:10: registers 'first_step', but no pruner 'other'"),
    "pruners/empty.py": ("", "pruners/empty.py:1: registers no pruner 'empty'"),
    "pruners/after_answer.py": (PRUNER, "pruners/after_answer.py:1: the pruner 'after_answer' is built in"),
    "pruners/Big.py": (PRUNER, "pruners/Big.py:1: 'Big' is no name of a pruner"),
    "pruners/test_it.py": (PRUNER, "pruners/test_it.py:10: registers 'first_step'"),
    "decoders/chat.py": ("", "decoders/chat.py:1: `sample: chat` is built in"),
    "stages/loose.py": ("", "stages/loose.py:1: an operation belongs into stages/<verb>/"),
    "stages/filter/mine.py": ("", "stages/filter/mine.py:1: `filter:` takes filters"),
    "stages/verify/auto.py": ("", "stages/verify/auto.py:1: `verify: auto` is built in"),
    "stages/sample/foreal.py": ("", "stages/sample/foreal.py:1: `sample: foreal` is built in"),
    "stages/trim/long.py": (STAGE, "stages/trim/long.py:20: registers 'trim:short', but no operation 'trim:long'"),
    "models/yours.py": (
        MODEL.replace('register("mine")', 'register("yours")'),
        "models/yours.py:7: Mine is named 'mine', but the name of the file is 'yours'",
    ),
    "verifiers/half.py": (
        VERIFIER.replace("slow", "half").replace("def quick", "def slowly"),
        "verifiers/half.py:11: verifier 'half' does not load: TypeError: Can't instantiate abstract class",
    ),
    "pruners/lacking.py": (
        PRUNER.replace("first_step", "lacking").replace("async def prune", "async def cut"),
        "pruners/lacking.py:10: FirstStep lacks prune()",
    ),
    "pruners/hidden.py": (
        PRUNER.replace("first_step", "hidden").replace("steps: int", "student: int"),
        "pruners/hidden.py:10: student: every `prune:` stage has a parameter of this name",
    ),
    "pruners/two.py": (
        PRUNER.replace("first_step", "two") + '\n\nPRUNERS.register("three")(FirstStep)\n',
        "pruners/two.py:20: registers 'three' in addition to the pruner 'two'",
    ),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_plugin_is_refused_with_its_file_and_line(name: str, tmp_path: Path) -> None:
    source, message = BROKEN[name]
    found = mistakes(project_with(tmp_path, {name: source}))
    assert [one[: len(message)] for one in found] == [message]


def test_all_broken_plugins_are_reported_and_register_nothing(tmp_path: Path) -> None:
    before = {kind: set(registry(kind).registered) for kind in plugins.kinds()}
    files = {name: source for name, (source, _) in BROKEN.items()}
    assert len(mistakes(project_with(tmp_path, files))) == len(BROKEN)
    for kind, names in before.items():  # besides what loading them imported of the package itself
        assert registry(kind).registered.keys() - names <= set(registry(kind).built_in()), kind
    for name in files:
        (tmp_path / name).unlink()
    project_with(tmp_path, {"pruners/first_step.py": PRUNER})
    assert mistakes(tmp_path) == []
    assert PRUNERS.get("first_step")().steps == 1


def test_a_plugin_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    project_with(tmp_path, {"views/latin.py": ""})
    (tmp_path / "views" / "latin.py").write_bytes(b"# \xe9\n")
    assert mistakes(tmp_path)[0].startswith("views/latin.py:1: cannot be read: 'utf-8' codec")


def test_a_broken_plugin_that_a_pipeline_uses_is_reported_once(tmp_path: Path) -> None:
    file = whole_project(tmp_path)
    for name in FILES:
        (tmp_path / name).write_text("1 / 0\n")
    found = mistakes(tmp_path)
    assert sorted(one.partition(":")[0] for one in found) == sorted(FILES)
    with pytest.raises(UserError) as raised:
        load_pipeline(file)
    assert len(raised.value.mistakes) == len(FILES)


def test_one_name_in_folders_of_different_kinds_is_no_conflict(tmp_path: Path) -> None:
    files = {"pruners/slow.py": PRUNER.replace("first_step", "slow"), "verifiers/slow.py": VERIFIER}
    assert mistakes(project_with(tmp_path, files)) == []
    assert PRUNERS.get("slow").__module__ == "tracefactory_project_pruner_slow"
    assert type(VERIFIERS.get("slow")).__module__ == "tracefactory_project_verifier_slow"


def test_an_operation_file_takes_the_place_of_the_operation_made_from_a_pruner(tmp_path: Path) -> None:
    own = STAGE.replace("trim", "prune").replace('"short"', '"first_step"').replace(":short", ":first_step")
    files = {"pruners/first_step.py": PRUNER, "stages/prune/first_step.py": own}
    assert mistakes(project_with(tmp_path, files)) == []
    assert type(STAGES.get("prune:first_step")).__module__ == "tracefactory_project_stage_prune_first_step"
    assert PRUNERS.get("first_step")().steps == 1


def test_a_plugin_may_look_up_another_one_while_it_is_loaded(tmp_path: Path) -> None:
    using = "from tracefactory.verification.base import VERIFIERS\n\nVERIFIERS.get('slow')\n\n" + PRUNER
    assert mistakes(project_with(tmp_path, {"pruners/first_step.py": using, "verifiers/slow.py": VERIFIER})) == []
    assert split_version(VERIFIERS.get("slow").version) == ("3", mark_of(VERIFIER))


def test_an_unknown_name_is_answered_with_the_nearest_plugin(tmp_path: Path) -> None:
    file = whole_project(tmp_path)
    edit(file, "prune: first_step", "prune: frist_step")
    assert any("did you mean 'first_step'?" in one for one in mistakes(tmp_path))


def test_the_version_of_a_plugin_has_the_digest_of_its_source(tmp_path: Path) -> None:
    pipeline = load_pipeline(whole_project(tmp_path))
    found = identities(pipeline)
    assert found["trimmed"].content["version"] == f"1+{mark_of(STAGE)}"
    assert found["checked"].content["uses"]["versions"] == {"slow": f"3+{mark_of(VERIFIER)}"}
    assert found["pruned"].content["uses"]["versions"]["pruner"] == f"1+{mark_of(PRUNER)}"
    assert found["sampled"].content["uses"]["model"]["plugin"] == mark_of(MODEL)
    assert split_version(VERIFIERS.get("slow").version) == ("3", mark_of(VERIFIER))
    assert split_version(VERIFIERS.get("auto").version)[1] == ""


@pytest.mark.parametrize(
    ("name", "old", "new", "changed"),
    [
        ("pruners/first_step.py", '"""Keep the first steps."""', '"""Keep some."""  # a comment', set()),
        ("pruners/first_step.py", "range(self.steps)", "range(self.steps + 1)", {"pruned", "trimmed"}),
        ("verifiers/slow.py", '"here"', '"there"', {"checked", "pruned", "trimmed"}),
        ("stages/trim/short.py", "< 99", "< 98", {"trimmed"}),
        ("models/mine.py", 'return "mine"', 'return "mine" + ""', {"sampled", "checked", "pruned", "trimmed"}),
    ],
)
def test_a_changed_plugin_changes_the_keys_of_its_stages_and_of_those_below_them(
    name: str, old: str, new: str, changed: set[str], tmp_path: Path
) -> None:
    file = whole_project(tmp_path)
    before = identities(load_pipeline(file))
    edit(tmp_path / name, old, new)
    after = identities(load_pipeline(file))
    assert {stage for stage in after if after[stage].key != before[stage].key} == changed


def test_a_changed_plugin_runs_its_stage_again_and_no_other(tmp_path: Path) -> None:
    stages = ran(
        whole_project(tmp_path),
        ("pruners/first_step.py", "for item in items]", "for item in items]  # each of them"),
        ("stages/trim/short.py", "< 99", "< 1"),
    )
    assert {name for name, stage in stages.items() if not stage.cached} == {"trimmed"}
    assert stages["trimmed"].tally.kept == 0
    assert sum(stage.paid.get("requests", 0) for stage in stages.values()) == 0


def test_a_changed_plugin_is_a_change_of_the_user_under_a_published_version(tmp_path: Path) -> None:
    file = whole_project(tmp_path)
    edit(file, "\nrun:", "\n  - {id: dataset, publish: dataset, with: {views: [sft]}}\nrun:")
    with pytest.raises(UserError, match=r"exists .* with other content .trimmed: code.version: .* -> "):
        ran(file, ("stages/trim/short.py", "< 99", "< 25"))


def test_two_projects_in_one_process_keep_their_own_plugins(tmp_path: Path) -> None:
    first = load_pipeline(whole_project(tmp_path / "a"))
    kind = type(first.stages[3].params)
    project_with(tmp_path / "b", {"pruners/first_step.py": PRUNER.replace("default=1", "default=2")})
    assert mistakes(tmp_path / "b") == []
    assert PRUNERS.get("first_step")().steps == 2
    assert "trim:short" not in STAGES
    assert "mine" not in MODELS
    assert identities(first)["pruned"].content["uses"]["versions"]["pruner"] == f"1+{mark_of(PRUNER)}"
    assert issubclass(kind, PRUNERS.get("first_step"))  # the same class as before, not one of the same name
    assert pickle.loads(cloudpickle.dumps(first)).models == first.models


UNPICKLED = """
import pickle, sys
pipeline = pickle.load(sys.stdin.buffer)
from tracefactory.core.stage import STAGES
from tracefactory.engine.identity import identities
print(identities(pipeline)["trimmed"].key)
try:
    STAGES.get("trim:short").run(None, None, None).send(None)
except AttributeError:
    import traceback
    print(traceback.format_exc())
"""


def test_a_pickled_pipeline_has_its_plugins_in_a_process_without_their_files(tmp_path: Path) -> None:
    pipeline = load_pipeline(whole_project(tmp_path))
    package = cloudpickle.dumps(pipeline)
    key = identities(pipeline)["trimmed"].key
    for name in FILES:
        (tmp_path / name).unlink()
    command = [sys.executable, "-c", UNPICKLED]
    done = subprocess.run(command, input=package, capture_output=True, cwd=ROOT, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    printed_key, traceback_text = done.stdout.decode().split("\n", 1)
    assert printed_key == key
    assert "for one in batch.traces}" in traceback_text  # its lines show without a file


def test_plugins_run_on_ray_workers_that_have_no_files(tmp_path: Path) -> None:
    async def run() -> dict[str, Any]:
        async with fake_teacher(accuracy=1.0, style="long") as teacher:
            pipeline = load_pipeline(whole_project(tmp_path, teacher.server.base_url, "ray"))
            for name in FILES:
                (tmp_path / name).unlink()
            outcome = await run_pipeline(pipeline, unwatched)
        return {stage.id: stage for stage in outcome.stages}

    stages = asyncio.run(run())
    assert stages["checked"].tally.numbers == {"correct": 6.0}
    assert stages["pruned"].tally.numbers["pruned"] == 6
    assert stages["trimmed"].tally.kept == 6


def test_a_verifier_decides_in_the_child_process_and_follows_its_source(tmp_path: Path) -> None:
    project_with(tmp_path, {"verifiers/slow.py": VERIFIER})
    plugins.load(tmp_path)
    (tmp_path / "verifiers" / "slow.py").unlink()
    task = VerifyTask(problem=make_problem(verifier="slow"), answer_text="It is 42.")
    with VerifierPool(workers=1) as pool:
        first = pool.verify_now(task)
        assert (first.outcome, first.method, first.version) == ("correct", "here", f"3+{mark_of(VERIFIER)}")
        assert first.detail != str(os.getpid())
        changed = VERIFIER.replace('"here"', '"there"')
        plugins.activate(tmp_path, {"verifiers/slow.py": changed})
        second = pool.verify_now(task)
        assert (second.method, second.version) == ("there", f"3+{mark_of(changed)}")
        assert second.detail == first.detail  # the same process


HELPED = VERIFIER.replace("import os\n", "import os\n\nfrom . import _words\n").replace(
    "task.problem.answer in task.answer_text", "task.problem.answer in _words.clean(task.answer_text)"
)
HELPERS = {
    "verifiers/_words.py": "from ._signs import SIGNS\n\n\ndef clean(text):\n    return text.strip(SIGNS)\n",
    "verifiers/_signs.py": 'SIGNS = " ."\n',
    "verifiers/_unused.py": "1 / 0\n",
}


def test_a_plugin_uses_helpers_also_in_a_process_without_their_files(tmp_path: Path) -> None:
    project_with(tmp_path, {"verifiers/slow.py": HELPED, **HELPERS})
    plugins.load(tmp_path)
    for file in (tmp_path / "verifiers").glob("*.py"):
        file.unlink()
    task = VerifyTask(problem=make_problem(verifier="slow"), answer_text="It is 42.")
    with VerifierPool(workers=1) as pool:
        verdict = pool.verify_now(task)
    assert (verdict.outcome, verdict.method) == ("correct", "here")


@pytest.mark.parametrize(
    ("name", "old", "new", "changes"),
    [
        ("verifiers/_words.py", "text.strip(SIGNS)", "text.lstrip(SIGNS)", True),
        ("verifiers/_signs.py", '" ."', '" .!"', True),
        ("verifiers/_signs.py", "SIGNS =", "# a comment\nSIGNS =", False),
        ("verifiers/_unused.py", "1 / 0", "2 / 0", False),
    ],
)
def test_an_edited_helper_changes_the_version_of_the_plugins_that_import_it(
    name: str, old: str, new: str, changes: bool, tmp_path: Path
) -> None:
    project_with(tmp_path, {"verifiers/slow.py": HELPED, **HELPERS})
    plugins.load(tmp_path)
    before = VERIFIERS.get("slow").version
    edit(tmp_path / name, old, new)
    plugins.load(tmp_path)
    assert (VERIFIERS.get("slow").version != before) is changes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from . import fast", "verifiers/slow.py:3: imports 'fast', and there is no helper fast.py beside it"),
        ("from ._none import clean", "verifiers/slow.py:3: imports '_none', and there is no helper _none.py"),
        ("from .. import pruners", "verifiers/slow.py:3: imports '.pruners'"),
        ("from verifiers import fast", "verifiers/slow.py:3: imports 'verifiers.fast', a file of the project"),
        ("import verifiers.fast", "verifiers/slow.py:3: imports 'verifiers.fast', a file of the project"),
    ],
)
def test_an_import_of_a_file_that_is_no_helper_is_refused_with_its_line(
    line: str, message: str, tmp_path: Path
) -> None:
    files = {"verifiers/slow.py": VERIFIER.replace("import os\n", f"import os\n\n{line}\n")}
    other = VERIFIER.replace('"slow"', '"fast"')
    found = mistakes(project_with(tmp_path, {**files, "verifiers/fast.py": other}))
    assert [one[: len(message)] for one in found] == [message]


def test_a_syntax_error_in_a_helper_is_reported_at_the_helper(tmp_path: Path) -> None:
    project = project_with(tmp_path, {"verifiers/slow.py": HELPED, **HELPERS, "verifiers/_signs.py": "SIGNS = (\n"})
    assert mistakes(project) == ["verifiers/_signs.py:1: not Python: '(' was never closed"]


def test_the_verify_command_uses_a_verifier_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project_with(tmp_path, {"verifiers/slow.py": VERIFIER})
    verify(gold="42", answer="It is 42.", kind="slow", project=tmp_path)
    assert capsys.readouterr().out.startswith("correct\tby here")
    monkeypatch.chdir(tmp_path)
    verify(gold="42", answer="It is 43.", kind="slow")
    assert capsys.readouterr().out.startswith("incorrect\tby here")


ASKING = '''\
from typing import ClassVar

from tracefactory.pruning import PRUNERS, ConcludeItem, Pruner, keep


@PRUNERS.register("asking")
class Asking(Pruner):
    """Keep the first step, and end with the student's answer to it."""

    needs: ClassVar[frozenset[str]] = frozenset({NEEDS})

    async def prune(self, items, tools):
        student = tools.require_student("asking")
        answers = await student.conclude([self.about(item) for item in items])
        return [keep(item, range(1), reply.text) for item, reply in zip(items, answers, strict=True)]

    def about(self, item):
        return ConcludeItem(id=item.trace.id, question=item.trace.problem.question, reasoning=item.prefix(1))
'''


def test_a_pruner_that_uses_a_student_without_declaring_it_is_refused(tmp_path: Path) -> None:
    project_with(tmp_path, {"pruners/asking.py": ASKING.replace("NEEDS", "")})
    assert mistakes(tmp_path) == [
        "pruners/asking.py:6: the pruner 'asking' asks a student and does not say so "
        "(add to its class: needs = frozenset({'student'}))"
    ]


def test_a_pruner_that_needs_a_student_has_its_parameters_and_asks_it(tmp_path: Path) -> None:
    project_with(tmp_path, {"pruners/asking.py": ASKING.replace("NEEDS", '"student"')})
    (tmp_path / "prompts").symlink_to(ROOT / "prompts")
    trace = make_trace(question="What is 3 + 4?", gold="7", reasoning="3 + 4 is 7.\n\nLet me check: 7 - 4 = 3.")

    async def prune(**parameters: Any) -> Any:
        async with fake_teacher(reply="The answer is 7.") as student:
            stage = {"prune": "asking", "with": parameters}
            return await run_stage(stage, [trace], models={"student": student.entry}, project=tmp_path)

    run = asyncio.run(prune(model="student", prompt="prune_conclude", check="answer"))
    assert [(one.reasoning, one.answer_text) for one in run.made] == [("3 + 4 is 7.", "The answer is 7.")]
    assert run.numbers["requests"] == 1
    with pytest.raises(UserError, match="model is missing"):
        asyncio.run(prune())


INSTALLED = """
import json, sys
from tracefactory.core import plugins
from tracefactory.core.errors import UserError
from tracefactory.pruning import PRUNERS
from pathlib import Path
told = []
plugins.read(Path(sys.argv[1]), told)
found = {"wrong": [str(one) for one in told], "names": sorted(PRUNERS)}
import theirs.first_step  # imported by somebody before it is looked up
for name in ("first_step", "absent", "broken"):
    try:
        entry = PRUNERS.get(name)
        found[name] = [entry.version, PRUNERS.origin(name)]
    except UserError as error:
        found[name] = str(error)
from tracefactory.core.stage import STAGES
if "trim:short" in STAGES:
    found["stage"] = STAGES.get("trim:short").version
print(json.dumps(found))
"""


STAGES_GROUP = "[tracefactory.stages]\ntrim:short = theirs.short\n"


def installed(tmp_path: Path, entries: dict[str, str]) -> dict[str, Any]:
    """Return what a process sees of an installed package with these entry points, and a project with `first_step`."""
    site = tmp_path / "site"
    files = {"theirs/__init__.py": "", "theirs/first_step.py": PRUNER, "theirs/broken.py": "\n\n1 / 0\n"}
    project_with(site, {**files, "theirs/short.py": STAGE})
    lines = "\n".join(f"{name} = {module}" for name, module in entries.items())
    project_with(
        site / "theirs-1.dist-info",
        {
            "METADATA": "Name: theirs\nVersion: 1\n",
            "entry_points.txt": f"[tracefactory.pruners]\n{lines}\n{STAGES_GROUP}",
        },
    )
    project_with(tmp_path / "project", {"pruners/first_step.py": PRUNER})
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED, str(tmp_path / "project")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_entries_of_an_installed_package_are_marked(tmp_path: Path) -> None:
    entries = {"first_step": "theirs.first_step", "absent": "theirs.nowhere", "broken": "theirs.broken"}
    found = installed(tmp_path, entries)
    assert found["first_step"] == [f"1+{mark_of(PRUNER)}", "theirs.first_step"]
    assert {"first_step", "after_answer"} <= set(found["names"])
    assert found["stage"] == f"1+{mark_of(STAGE)}"
    assert "theirs.nowhere" in found["absent"]
    assert f"{tmp_path}/site/theirs/broken.py:3: pruner 'broken' does not load: ZeroDivisionError" in found["broken"]
    (wrong,) = found["wrong"]  # the project's own file of that name
    assert (
        "pruners/first_step.py:1: the installed module theirs.first_step provides the pruner 'first_step' too" in wrong
    )


def test_an_installed_package_cannot_take_the_name_of_a_built_in(tmp_path: Path) -> None:
    found = installed(tmp_path, {"after_answer": "theirs.first_step"})
    assert (
        "the installed module theirs.first_step provides the pruner 'after_answer', as this package does"
        in found["wrong"][0]
    )
