"""Mutation testing: change a package in small ways, one at a time, and count what its own tests notice.

    make mutants PACKAGE=tracefactory/pruners             # one package, or one file
    make mutants PACKAGE="--sample 60 tracefactory/core"  # 60 of its mutants, drawn with a fixed seed
    make mutants PACKAGE="--sample 60"                    # the same for every package of OWN_TESTS: hours

Mutants that no test of the package runs count as survivors. What survives is listed; `mutmut show NAME` in the printed
folder shows the change.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN_TESTS = {
    "tracefactory/core": "tests/unit/test_fingerprint.py tests/unit/test_digests.py tests/unit/test_yamlfile.py "
    "tests/unit/test_yamlmodel.py tests/unit/test_prices.py tests/contract/test_golden_keys.py",
    "tracefactory/config": "tests/unit/test_config.py tests/unit/test_project.py",
    "tracefactory/store": "tests/unit/store tests/unit/test_store.py tests/unit/test_requests.py "
    "tests/unit/test_lease.py",
    "tracefactory/answers": "tests/unit/verifiers",
    "tracefactory/maths": "tests/unit/verifiers",
    "tracefactory/text": "tests/unit/steps tests/unit/test_prompts.py tests/unit/models/test_reasoning.py",
    "tracefactory/sampling": "tests/unit/decoders",
    "tracefactory/filters": "tests/unit/filters",
    "tracefactory/pruning": "tests/unit/pruners",
    "tracefactory/pruners": "tests/unit/pruners",
    "tracefactory/rollouts": "tests/unit/rollouts",
    "tracefactory/verifiers": "tests/unit/verifiers",
    "tracefactory/verification": "tests/unit/verifiers",
    "tracefactory/reading": "tests/unit/sources",
    "tracefactory/sources": "tests/unit/sources",
    "tracefactory/views": "tests/unit/views tests/unit/test_release.py",
    "tracefactory/publish": "tests/unit/test_card.py tests/unit/test_release.py tests/unit/test_compare.py "
    "tests/unit/stages/test_publish.py",
    "tracefactory/students": "tests/unit/students",
    "tracefactory/stages": "tests/unit/stages",
    "tracefactory/models": "tests/unit/models/test_base.py tests/unit/models/test_fake.py tests/unit/test_prices.py",
    "tracefactory/serving": "tests/unit/models",
    "tracefactory/engine": "tests/unit/test_progress.py tests/unit/test_spending.py tests/unit/stages",
}


SURVIVED = {0, 5, 33}
"""Exit codes of mutmut for mutants that all tests passed with, and for those that no test runs."""


def mutate(package: str, tests: str, sample: int) -> None:
    """Run mutmut on a package in a copy of the repository, and print the share that is killed.

    Args:
        package: the folder or file to change.
        tests: the paths of its tests.
        sample: the number of mutants to run; 0 runs all.
    """
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "c", "--null", "-T", "-", "-f", f"{folder}/all.tar"], cwd=ROOT, input=tracked, check=True)
    subprocess.run(["tar", "x", "-f", "all.tar"], cwd=folder, check=True)
    configured = {
        "source_paths": [package],
        "pytest_add_cli_args_test_selection": tests.split(),
        "also_copy": ["tracefactory", "tests", "prompts", "filters", "pipelines", "README.md", "Makefile"],
    }
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in configured.items())
    with (folder / "pyproject.toml").open("a") as file:
        file.write(f"\n[tool.mutmut]\n{lines}")
    _mutmut(folder, "run", *(["no mutant has this name"] if sample else []))  # which makes them, and times the tests
    if sample:
        names = sorted(name for meta in folder.glob("mutants/**/*.meta") for name in _exit_codes(meta))
        _mutmut(folder, "run", *random.Random(0).sample(names, min(sample, len(names))))
    codes = [code for meta in folder.glob("mutants/**/*.meta") for code in _exit_codes(meta).values()]
    tried = [code for code in codes if code is not None]
    killed = sum(code not in SURVIVED for code in tried)
    share = f"{killed} of {len(tried)} mutants killed ({killed / max(1, len(tried)):.0%})"
    print(f"{package}: {share}, {len(codes)} in all, by {tests}; in {folder}", flush=True)


def _mutmut(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "mutmut", *arguments]
    with (folder / "mutmut.log").open("a") as log:
        subprocess.run(command, cwd=folder, check=False, env={**os.environ, "TERM": "dumb"}, stdout=log, stderr=log)


def _exit_codes(meta: Path) -> dict[str, int | None]:
    """Return what the tests ended with, by mutant; None for one that was not run."""
    found: dict[str, int | None] = json.loads(meta.read_text())["exit_code_by_key"]
    return found


def main(arguments: Sequence[str]) -> None:
    """Mutate the packages that are named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("packages", nargs="*")
    given = parser.parse_args(arguments)
    for package in given.packages or OWN_TESTS:
        tests = next((own for name, own in OWN_TESTS.items() if package.startswith(name)), None)
        if tests is None:
            sys.exit(f"no tests are known for {package}; add it to OWN_TESTS in {Path(__file__).name}")
        mutate(package, tests, given.sample)


if __name__ == "__main__":
    main(sys.argv[1:])
