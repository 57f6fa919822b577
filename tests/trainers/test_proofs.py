"""Every view that a trainer reads, by the trainer's own code: the findings are those of docs/trainers.md."""

from __future__ import annotations

import pytest

from tests.trainers import table
from tests.trainers.proofs import ENVIRONMENTS, Bench, environment

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(("trainer", "view"), table.PROVEN)
def test_what_a_trainer_makes_of_a_view_is_what_the_documentation_says(bench: Bench, trainer: str, view: str) -> None:
    if trainer in ENVIRONMENTS and environment(trainer) is None:
        pytest.skip("needs the environments of the trainers: make test-trainers")
    assert table.line(trainer, view, table.cells(bench, trainer, view)) in table.written()
