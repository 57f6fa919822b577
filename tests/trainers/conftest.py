"""The dataset and the students, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainers import release, students
from tests.trainers.proofs import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root: Path = tmp_path_factory.mktemp("trainers")
    return Bench(release.make(root / "project"), students.make(root / "students"), root / "jobs")
