"""Mutation testing: change a package in small ways, one at a time, and count what its own tests notice.

    make mutants PACKAGE=tracefactory/pruners             # one package, or one file
    make mutants PACKAGE="--sample 60 tracefactory/core"  # 60 of its mutants, drawn with a fixed seed
    make mutants PACKAGE="--sample 60"                    # the same for every package of OWN_TESTS: hours

Prints the share of killed mutants and the diff of each survivor. mutmut runs the tests that call the mutant in their
own process. A mutant that these do not notice is written into a copy of the sources and tried with all tests of the
package, since worker processes can run it, too.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SANDBOX = " ".join(f"tests/unit/verifiers/test_{name}.py" for name in ("code", "other_verifiers", "sandbox_places"))
EXECUTORS = " ".join(
    f"tests/unit/executors/test_{name}.py" for name in ("choice", "clients", "dashboard", "joining", "lost_actors")
)
"""Those that start no Ray cluster."""
REPORTING = " ".join(
    f"tests/unit/test_{name}.py" for name in ("progress", "display", "plain_lines", "run_log", "metrics", "watch")
)
RUNS = " ".join(
    f"tests/unit/stages/test_{name}.py"
    for name in (
        "failed_runs",
        "former_keys",
        "lost_rows",
        "measure",
        "measure_left",
        "shared_runs",
        "sources",
        "stage_rows",
        "upgrade",
    )
)
"""Those tests of stages that are of the engine."""
PLUGINS = (
    "tests/unit/test_plugins.py "
    "--deselect=tests/unit/test_plugins.py::test_plugins_run_on_ray_workers_that_have_no_files"
)
OWN_TESTS = {
    "tracefactory/core": "tests/unit/test_fingerprint.py tests/unit/test_digests.py tests/unit/test_yamlfile.py "
    "tests/unit/test_yamlmodel.py tests/unit/test_prices.py tests/unit/test_processes.py tests/unit/test_config.py "
    f"{PLUGINS} tests/unit/test_ops.py tests/contract/test_golden_keys.py tests/unit/test_store.py "
    "tests/unit/students/test_scores.py "
    # mutmut doubles the depth of the stack, which this test measures:
    "--deselect=tests/unit/test_fingerprint.py::test_values_nested_too_deep_for_orjson_are_encoded",
    "tracefactory/config": "tests/unit/test_config.py tests/unit/test_project.py",
    "tracefactory/store": "tests/unit/store tests/unit/test_store.py tests/unit/test_requests.py "
    "tests/unit/test_lease.py tests/unit/test_gc.py tests/unit/test_sharing.py tests/unit/students/test_scores.py",
    "tracefactory/answers": "tests/unit/verifiers",
    "tracefactory/maths": "tests/unit/verifiers tests/unit/test_arithmetic.py",
    "tracefactory/sandbox/inside": f"{SANDBOX} tests/attacks/test_judging.py",
    "tracefactory/sandbox": SANDBOX,
    "tracefactory/text/steps": "tests/unit/steps",
    "tracefactory/text": "tests/unit/steps tests/unit/test_prompts.py tests/unit/models/test_reasoning.py "
    "tests/unit/test_control_tokens.py tests/unit/test_template_budget.py",
    "tracefactory/sampling": "tests/unit/decoders/test_rule.py tests/unit/decoders/test_noise.py "
    "tests/unit/decoders/test_family.py tests/unit/decoders/test_served.py",
    "tracefactory/decoding": "tests/unit/decoders",
    "tracefactory/decoders": "tests/unit/decoders",
    "tracefactory/filters": "tests/unit/filters tests/filters tests/unit/students/test_student_filters.py",
    "tracefactory/pruning": "tests/unit/pruners",
    "tracefactory/pruners": "tests/unit/pruners",
    "tracefactory/rollouts": "tests/unit/rollouts",
    "tracefactory/verifiers": "tests/unit/verifiers",
    "tracefactory/verification": "tests/unit/verifiers",
    "tracefactory/reading": "tests/unit/sources",
    "tracefactory/sources": "tests/unit/sources",
    "tracefactory/views": "tests/unit/views tests/unit/test_release.py tests/unit/students/test_masks.py",
    "tracefactory/publish": "tests/unit/test_card.py tests/unit/test_release.py tests/unit/test_compare.py "
    "tests/unit/test_publishing.py tests/unit/test_hub.py tests/unit/test_versions.py "
    "tests/unit/stages/test_publish.py tests/unit/stages/test_templates.py tests/unit/students/test_templates.py",
    "tracefactory/students": "tests/unit/students",
    "tracefactory/stages": f"tests/contract/test_golden_keys.py tests/unit/stages {PLUGINS}",
    "tracefactory/models": "tests/contract/test_golden_keys.py tests/unit/models tests/unit/test_prices.py",
    "tracefactory/serving": "tests/unit/models tests/unit/executors/test_clients.py",
    "tracefactory/engine/executors": EXECUTORS,
    "tracefactory/engine/garbage": "tests/unit/test_gc.py",
    "tracefactory/engine/reporting": REPORTING,
    "tracefactory/engine": f"{REPORTING} {EXECUTORS} {RUNS} tests/unit/test_gc.py tests/unit/test_spending.py "
    "tests/unit/test_sharing.py tests/unit/test_file_count.py tests/unit/models/test_gpu_turns.py",
    "tracefactory/trainers": "tests/unit/trainers tests/trainers",
    "tracefactory/teaching": "tests/unit/teaching",
    "tracefactory/cli": "tests/unit/test_ops.py tests/unit/test_new.py tests/unit/test_deploy.py "
    "tests/unit/test_serve.py tests/unit/test_watch.py tests/unit/test_gc.py tests/unit/test_compare.py "
    "tests/unit/trainers tests/unit/students/test_view.py tests/unit/verifiers/test_other_verifiers.py "
    "tests/unit/stages/test_templates.py tests/e2e/test_teachers.py tests/e2e/test_outcomes.py "
    "tests/e2e/test_mistakes.py",
    "tracefactory/testing": f"tests/unit/test_testing.py tests/unit/students/test_templates.py {PLUGINS}",
}
"""Tests by the folder that they are of; the first folder that holds the given path counts."""

WITHOUT_MUTMUT = "tracefactory/sandbox/inside"
"""Runs where mutmut cannot be imported, so all of its mutants are written into the sources."""

UNNOTICED, NOT_TRIED = {0, 5, 33}, {None, 2, 34}
"""Exit codes of mutmut, by what they say of a mutant; a test failed, crashed or timed out with all others."""


COPIED = ["tracefactory", "tests", "prompts", "filters", "pipelines", "README.md", "Makefile"]
"""What the tests read."""

START_OF_CHILDREN = """import os
if os.environ.get("MUTANT_UNDER_TEST") == "stats":
    del os.environ["MUTANT_UNDER_TEST"]
"""
"""A `sitecustomize` for the processes that tests start: they cannot record for mutmut which tests run which code."""


def mutate(package: str, tests: list[str], sample: int) -> None:
    """Try mutants of a package in a copy of the repository; print the share that is killed and the survivors.

    Args:
        package: the folder or file to change.
        tests: the paths of its tests.
        sample: the number of mutants to try; 0 tries all.

    Raises:
        SystemExit: its tests fail on the unchanged code, or there is nothing to change.
    """
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        _copy_repository(folder, package, tests)
        _mutmut(folder, "run", "no mutant has this name")  # only makes the mutants
        names = sorted(_exit_codes(folder))
        chosen = random.Random(0).sample(names, min(sample or len(names), len(names)))
        if not chosen:
            sys.exit(f"{package}: nothing to change, or mutmut failed: see {_log(folder)}")
        unnoticed = chosen
        if not package.startswith(WITHOUT_MUTMUT):
            _mutmut(folder, "run", *chosen)
            codes = _exit_codes(folder)
            if any(codes[mutant] in NOT_TRIED for mutant in chosen):
                sys.exit(f"{package}: mutants were not tried; do its tests pass? see {_log(folder)}")
            unnoticed = [mutant for mutant in chosen if codes[mutant] in UNNOTICED]
        survived = _applied(folder, package, tests, unnoticed)
        killed = len(chosen) - len(survived)
        share = f"{killed} of {len(chosen)} mutants killed ({killed / len(chosen):.0%}), {len(names)} in all"
        print(f"{package}: {share}, by {' '.join(tests)}", flush=True)
        for mutant in survived:
            print(_mutmut(folder, "show", mutant), flush=True)


def _copy_repository(folder: Path, package: str, tests: list[str]) -> None:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    present = "\0".join(sorted({file for file in files if file and (ROOT / file).exists()}))
    archive = ["tar", "c", "--null", "-T", "-", "-f", f"{folder}/all.tar"]
    subprocess.run(archive, cwd=ROOT, input=present.encode(), check=True)
    subprocess.run(["tar", "x", "-f", "all.tar"], cwd=folder, check=True)
    configured = {
        "source_paths": [package],
        "do_not_mutate": [] if package.startswith(WITHOUT_MUTMUT) else [f"{WITHOUT_MUTMUT}/*"],
        "pytest_add_cli_args_test_selection": tests,
        "process_isolation": "forkserver",  # "fork" stops at a process that a test leaves behind
        "timeout_multiplier": 5,  # of the time that the tests of the mutant take
        "also_copy": [*COPIED, "sitecustomize.py"],
    }
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in configured.items())
    with (folder / "pyproject.toml").open("a") as file:
        file.write(f"\n[tool.mutmut]\n{lines}")
    (folder / "sitecustomize.py").write_text(START_OF_CHILDREN)
    (folder / "home").mkdir()
    (folder / "mutants").mkdir()  # Python leaves out a folder of PYTHONPATH that does not exist when it starts


def _applied(folder: Path, package: str, tests: list[str], mutants: list[str]) -> list[str]:
    """Write each mutant into the copied sources, run all tests, and return the mutants that they passed with."""
    if not mutants:
        return []
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    began = time.monotonic()
    clean = _run(command, folder, folder)
    if clean.returncode:
        sys.exit(f"{package}: its tests fail on the unchanged code:\n{clean.stdout[-3000:]}")
    limit = 30 + 5 * (time.monotonic() - began)
    survived = []
    for mutant in mutants:
        path = source_of(folder, mutant)
        before = path.read_bytes()
        path.write_text(with_mutant(folder, mutant), "utf-8")
        try:
            if _run(command, folder, folder, limit).returncode == 0:
                survived.append(mutant)
        except subprocess.TimeoutExpired:
            pass  # the tests notice a change that makes them hang
        path.write_bytes(before)
    return survived


def source_of(folder: Path, mutant: str) -> Path:
    """Return the file of a copied repository that a mutant is of."""
    module = folder.joinpath(*mutant.split(".")[:-1])
    return module / "__init__.py" if module.is_dir() else module.with_suffix(".py")


def with_mutant(folder: Path, mutant: str) -> str:
    """Return the text of the file of a mutant with the mutant in place of its function.

    `mutmut apply` writes a method over the first one of its name in the file, of whatever class.

    Args:
        folder: a copied repository with the files that mutmut made, which have all mutants beside their function.
        mutant: its name, such as `tracefactory.core.prices.xǁPriceǁcost__mutmut_1`.
    """
    path = source_of(folder, mutant)
    name = mutant.rpartition(".")[2]
    owner, _, function = name.partition("__mutmut_")[0].removeprefix("x").removeprefix("ǁ").rpartition("ǁ")
    function = function if owner else function.removeprefix("_")
    lines = path.read_text("utf-8").splitlines(keepends=True)
    made = (folder / "mutants" / path.relative_to(folder)).read_text("utf-8").splitlines(keepends=True)
    old, new = _lines_of(lines, owner, function), _lines_of(made, owner, name)
    lines[old] = [made[new.start].replace(name, function, 1), *made[new.start + 1 : new.stop]]
    return "".join(lines)


def _lines_of(lines: list[str], owner: str, function: str) -> slice:
    """Return the lines of a function of a module, or of a method of its class `owner`, without its decorators."""
    body = ast.parse("".join(lines)).body
    if owner:
        body = next(one.body for one in body if isinstance(one, ast.ClassDef) and one.name == owner)
    found = (one for one in body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name == function)
    node = next(found)
    return slice(node.lineno - 1, node.end_lineno)


def _run(
    command: list[str], folder: Path, imports: Path, limit: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command whose processes import from `imports` first, in a home of its own: mutants also write caches."""
    home = folder / "home"
    own = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONPATH": str(imports), "TERM": "dumb"}
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False, timeout=limit
    )


def _mutmut(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = _run(command, folder, folder / "mutants")
    with (folder / "mutmut.log").open("a") as log:
        log.write(f"{' '.join(arguments[:1])}\n{done.stdout}{done.stderr}")
    return done.stdout


def _log(folder: Path) -> str:
    """Keep the log of mutmut, and return its path."""
    descriptor, kept = tempfile.mkstemp(prefix="mutmut-", suffix=".log")
    os.write(descriptor, (folder / "mutmut.log").read_bytes())
    os.close(descriptor)
    return kept


def _exit_codes(folder: Path) -> dict[str, int | None]:
    """Return what the tests ended with, by mutant; None for one that was not tried."""
    found: dict[str, int | None] = {}
    for meta in folder.glob("mutants/**/*.meta"):
        found.update(json.loads(meta.read_text())["exit_code_by_key"])
    return found


def main(arguments: Sequence[str]) -> None:
    """Mutate the packages that are named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("packages", nargs="*")
    given = parser.parse_args(arguments)
    for package in given.packages or OWN_TESTS:
        named = package.rstrip("/")
        tests = next((own for name, own in OWN_TESTS.items() if f"{named}/".startswith(f"{name}/")), None)
        if tests is None or not (ROOT / named).exists():
            sys.exit(f"no tests are known for {package}; add it to OWN_TESTS in {Path(__file__).name}")
        mutate(named, tests.split(), given.sample)


if __name__ == "__main__":
    main(sys.argv[1:])
