"""Run everything hostile that is tried on this package, and print a table: what was tried, as whom, and how it ended.

`make attack` runs it. Nothing here is expected to get through: the exit status is 1 when anything did, or when nothing
could be tried.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.attacks.programs import ESCAPES, TOO_MUCH
from tests.attacks.test_judging import LEAKS, OWN_FAILURES, REPLACING, STYLES, VACUOUS
from tests.attacks.users import PROJECT, possible_users
from tracefactory.sandbox.protections import PROTECTIONS, protections

GROUPS = {
    "programs that try to leave the sandbox": ("test_confinement.py", "leaves_the_sandbox", len(ESCAPES)),
    "programs that take too much": ("test_confinement.py", "passes_its_limits", len(TOO_MUCH)),
    "a machine without namespaces": ("test_confinement.py", "missing_protection", 1),
    "the interpreter below a folder of root": ("test_confinement.py", "folder_of_root", 1),
    "what the minimal root shows": ("test_confinement.py", "minimal_root", 1),
    "ordinary programs, which must run": ("test_confinement.py", "ordinary_programs", 1),
    "programs that replace what tests use": ("test_judging.py", "cannot_replace", len(REPLACING)),
    "programs that break their tests": ("test_judging.py", "own_failure", len(OWN_FAILURES)),
    "tests that assert nothing": ("test_judging.py", "assert_nothing", len(VACUOUS)),
    "styles of tests, right and wrong": ("test_judging.py", "every_style", len(STYLES)),
    "what a program read, in verdicts": ("test_judging.py", "a_program_read", len(LEAKS)),
    "other ways to fool a verdict": ("test_judging.py", "", 0),
    "programs of the verifiers' own tests": ("test_code.py", "", 0),
    "answers of servers": ("test_hostile_answers.py", "", 0),
    "servers, whole runs": ("test_hostile_servers.py", "", 0),
    "patterns on hostile texts": ("test_patterns.py", "", 0),
    "prompt templates": ("test_template_budget.py", "", 0),
    "pipeline files": ("test_hostile_files.py", "", 0),
    "pipelines with programs": ("test_sandbox.py", "", 0),
    "control tokens in texts": ("control_tokens.py", "", 0),
}
"""By what is tried: the end of the file's name, a part of the test's name, and how many programs each test runs."""


class _Results:
    """Counts the tests of each group and user, and how they ended."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one test when it has run or was skipped."""
        if report.when != "call" and report.outcome == "passed":
            return
        file, _, test = report.nodeid.partition("::")
        group = next((name for name, (end, part, _) in GROUPS.items() if file.endswith(end) and part in test), file)
        user = test.partition("[")[2].rstrip("]") if "confinement" in file else ""
        self.counts.setdefault((group, user if user in possible_users() else ""), Counter())[report.outcome] += 1


def main() -> int:
    """Run all groups and print the table; return the exit status."""
    ends = tuple(end for end, _, _ in GROUPS.values())
    files = [str(file) for file in sorted(Path(PROJECT, "tests").rglob("test_*.py")) if file.name.endswith(ends)]
    results = _Results()
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-m", "not bench and not vllm", "--tb=short"]
    status = pytest.main([*options, *files], plugins=[results])
    found = protections()
    print(f"\nsandbox: {found.outside}, landlock: {'yes' if found.landlock else 'no'}")
    for name, (what, _) in PROTECTIONS.items():
        print(f"  {'MISSING' if name in found.possible else 'holds  '}  {name}: {what}")
    print(f"\n{'tried':<40} {'as':<15} {'cases':>6} {'through':>8} {'skipped':>8}")
    for group, (_, _, programs) in GROUPS.items():
        for (name, user), count in sorted(results.counts.items()):
            if name == group:
                whole = programs if user else 1
                cases = (count["passed"] + count["failed"]) * whole
                print(f"{group:<40} {user:<15} {cases:>6} {count['failed']:>8} {count['skipped']:>8}")
    return 0 if status == pytest.ExitCode.OK else 1


if __name__ == "__main__":
    sys.exit(main())
