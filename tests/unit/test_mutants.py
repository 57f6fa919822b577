"""`make mutants` tries a mutant in the function that it is of, with tests that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import OWN_TESTS, ROOT, with_mutant

SOURCE = """\
def size(self):
    return 0


class First:
    def size(self):
        return 1


class Second:
    @staticmethod
    def size(
        one,
    ):
        return one + 2

    async def other(self):
        return self.size(1)
"""
MADE = """\
class First:
    def xǁFirstǁsize__mutmut_1(self):
        return 2


class Second:
    def xǁSecondǁsize__mutmut_1(
        one,
    ):
        return one - 2

    async def xǁSecondǁother__mutmut_12(self):
        return None


def x_size__mutmut_1(self):
    return 1
"""


def test_a_mutant_replaces_the_function_of_its_class_alone(tmp_path: Path) -> None:
    for folder, text in (("package", SOURCE), ("mutants/package", MADE)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "code.py").write_text(text)
        (tmp_path / folder / "__init__.py").write_text(text)
    for mutant, old, new in (
        ("package.code.x_size__mutmut_1", "return 0", "return 1"),
        ("package.code.xǁFirstǁsize__mutmut_1", "return 1", "return 2"),
        ("package.code.xǁSecondǁsize__mutmut_1", "one + 2", "one - 2"),
        ("package.xǁSecondǁother__mutmut_12", "return self.size(1)", "return None"),
    ):
        assert with_mutant(tmp_path, mutant) == SOURCE.replace(old, new)


@pytest.mark.parametrize("package", OWN_TESTS)
def test_the_tests_of_a_package_are_there(package: str) -> None:
    assert (ROOT / package).is_dir()
    for named in OWN_TESTS[package].split():
        path, _, test = named.removeprefix("--deselect=").partition("::")
        assert (ROOT / path).exists(), named
        assert not test or f"def {test}(" in (ROOT / path).read_text("utf-8"), named
