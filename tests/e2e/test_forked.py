"""A forked process is one like any other: folder, output, exit status, and an end when it takes too long."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import forked
from tests.e2e.conftest import USUAL_ENVIRON, environ

SAYS = (
    "import atexit, json, os, sys\n"
    "atexit.register(print, 'the end')\n"
    "print(json.dumps([os.getcwd(), sys.argv[1:], __name__, 'torch' in sys.modules, 'ray' in sys.modules]))\n"
    "print('so', file=sys.stderr)\n"
    "sys.exit(7)\n"
)


def test_a_forked_process_has_a_folder_output_and_exit_status_of_its_own(tmp_path: Path) -> None:
    assert environ() == USUAL_ENVIRON, "otherwise every command of the tests is a new process: seconds longer each"
    (tmp_path / "says.py").write_text(SAYS)
    status, output, errors = forked.finish("says", ("a", "b c"), tmp_path, 60)
    printed, end = output.splitlines()
    assert json.loads(printed) == [os.path.realpath(tmp_path), ["a", "b c"], "__main__", False, False]
    assert (status, end, errors) == (7, "the end", "so\n")


def test_a_forked_process_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text("import time; print('asleep', flush=True); time.sleep(600)")
    with pytest.raises(TimeoutError, match=r"sleeps  took more than 0\.2 s"):
        forked.finish("sleeps", (), tmp_path, 0.2)
