"""What a user installs: only tracefactory/ in site-packages, the starter project inside it."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_installs_one_package_with_the_starter_inside(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tracefactory"}
    for folder, suffix in (("pipelines", ".yaml"), ("prompts", ".md"), ("filters", ".py")):
        shipped = {file.name for file in (ROOT / folder).glob(f"*{suffix}")}
        inside = {Path(name).name for name in names if name.startswith(f"tracefactory/starter/{folder}/")}
        assert inside == shipped
    assert "tracefactory/py.typed" in names
    assert "tracefactory/publish/card_template.md.j2" in names


def test_a_project_starts_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    # The dependencies come from this environment; the package itself only from the wheel.
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    (site,) = environment.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    python = environment / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import tracefactory; print(tracefactory.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(environment)
    for arguments in (["init", "demo"], ["check", "demo"], ["plan", "demo/pipelines/mix_distill.yaml", "--limit", "4"]):
        done = subprocess.run(
            [python, "-m", "tracefactory", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "filters" / "verdict.py").is_file()
