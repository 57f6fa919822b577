"""Mutation testing: change a package in small ways, one at a time, and count what its own tests notice.

    make mutants PACKAGE=tracefactory/pruners        # one package, or one file
    make mutants                                     # every package of OWN_TESTS: hours

Mutants that no test of the package runs count as survivors. What survives is listed; `mutmut show NAME` in the printed
folder shows the change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN_TESTS = {
    "tracefactory/core": "tests/unit/test_fingerprint.py tests/unit/test_digests.py tests/unit/test_yamlfile.py "
    "tests/unit/test_yamlmodel.py tests/contract/test_golden_keys.py",
    "tracefactory/store": "tests/unit/test_store.py tests/unit/test_requests.py tests/unit/test_lease.py",
    "tracefactory/answers": "tests/unit/verifiers",
    "tracefactory/maths": "tests/unit/verifiers",
    "tracefactory/text": "tests/unit/steps tests/unit/test_prompts.py tests/unit/models/test_reasoning.py",
    "tracefactory/sampling": "tests/unit/decoders",
    "tracefactory/filters": "tests/unit/filters",
    "tracefactory/pruning": "tests/unit/pruners",
    "tracefactory/pruners": "tests/unit/pruners",
    "tracefactory/verifiers": "tests/unit/verifiers",
    "tracefactory/verification": "tests/unit/verifiers",
    "tracefactory/reading": "tests/unit/sources",
    "tracefactory/sources": "tests/unit/sources",
    "tracefactory/views": "tests/unit/views tests/unit/test_release.py",
    "tracefactory/students": "tests/unit/students",
    "tracefactory/stages": "tests/unit/stages",
}


def mutate(package: str, tests: str) -> None:
    """Run mutmut on a package in a copy of the repository, and print the share that is killed."""
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
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    mutmut = [sys.executable, "-m", "mutmut"]
    subprocess.run([*mutmut, "run"], cwd=folder, check=False, env={**os.environ, "TERM": "dumb"}, **quiet)  # type: ignore[call-overload]
    subprocess.run([*mutmut, "export-cicd-stats"], cwd=folder, check=True, **quiet)  # type: ignore[call-overload]
    found = json.loads((folder / "mutants" / "mutmut-cicd-stats.json").read_text())
    killed, total = found["killed"] + found["timeout"] + found["suspicious"], found["total"]
    print(f"{package}: {killed} of {total} mutants killed ({killed / max(1, total):.0%}) by {tests}; in {folder}")


def main() -> None:
    """Mutate the packages that are named, or all."""
    for package in sys.argv[1:] or OWN_TESTS:
        tests = next((own for name, own in OWN_TESTS.items() if package.startswith(name)), None)
        if tests is None:
            sys.exit(f"no tests are known for {package}; add it to OWN_TESTS in {Path(__file__).name}")
        mutate(package, tests)


if __name__ == "__main__":
    main()
