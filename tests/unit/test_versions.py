"""The order of versions."""

from __future__ import annotations

import random

import pytest

from tracefactory.publish.versions import version_order

ORDERED = [
    "draft",
    "0.9",
    "1.0.dev1",
    "1.0-limit5",
    "1.0a1",
    "1.0-alpha.2",
    "1.0b2",
    "1.0-beta.10",
    "1.0rc1-limit5",
    "1.0rc1",
    "1.0-rc.2",
    "1.0RC10",
    "1.0",
    "1.0b",
    "1.0-fixed",
    "1.0.1",
    "1.2",
    "1.9",
    "1.10",
    "2",
    "2.0",
    "2026.2",
    "2026.11.1-limit5",
    "2026.11.1",
    "2026.11.1b",
    "2026.11.02",
    "2026.11.10",
    "9" * 6000,
    "1" + "0" * 6000,
]


def test_versions_are_ordered_by_number_and_pre_releases_come_first() -> None:
    shuffled = random.Random(5).sample(ORDERED, len(ORDERED))
    assert sorted(shuffled, key=version_order) == ORDERED


@pytest.mark.parametrize(("one", "other"), [("1.0", "1.00"), ("1.0-rc1", "1.0RC.1"), ("v2", "2"), ("1_0", "1.0")])
def test_versions_that_are_written_differently_are_equal(one: str, other: str) -> None:
    assert version_order(one) == version_order(other)
