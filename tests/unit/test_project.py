"""Projects on disk: found from anywhere inside, and started from the shipped one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracefactory.config import project as project_module
from tracefactory.config.project import find_project, init_project, pipeline_files, starter_dir
from tracefactory.core.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "pipelines" / "more").mkdir(parents=True)
    (folder / "pipelines" / "b.yaml").write_text("name: b\n")
    (folder / "pipelines" / "a.yml").write_text("name: a\n")
    (folder / "pipelines" / "notes.txt").write_text("no pipeline\n")
    return folder


@pytest.mark.parametrize("inside", [".", "pipelines", "pipelines/b.yaml", "pipelines/more"])
def test_a_project_is_found_from_anywhere_inside(root: Path, inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    project = find_project(Path(inside), {})
    assert project.root == root
    folders = [project.pipelines, project.prompts, project.filters, project.state_dir, project.out_dir]
    assert folders == [root / name for name in ("pipelines", "prompts", "filters", ".tracefactory", "out")]
    assert [file.name for file in pipeline_files(project)] == ["a.yml", "b.yaml"]


def test_the_state_can_be_kept_elsewhere(root: Path, tmp_path: Path) -> None:
    project = find_project(root, {"TRACEFACTORY_HOME": str(tmp_path / "state")})
    assert project.state_dir == tmp_path / "state"
    assert find_project(root, {"TRACEFACTORY_HOME": ""}).state_dir == root / ".tracefactory"


def test_the_state_can_be_shared(root: Path) -> None:
    assert find_project(root, {}).shared == ""
    project = find_project(root, {"TRACEFACTORY_SHARED": "s3://bucket/state/"})
    assert (project.shared, project.state_dir) == ("s3://bucket/state", root / ".tracefactory")
    with pytest.raises(UserError, match="names no object store"):
        find_project(root, {"TRACEFACTORY_SHARED": "s4://bucket"})
    with pytest.raises(UserError, match="TRACEFACTORY_SHARED is the object store"):
        find_project(root, {"TRACEFACTORY_HOME": "s3://bucket"})


def test_a_path_outside_of_projects_is_refused(tmp_path: Path, root: Path) -> None:
    lost = tmp_path / "lost.yaml"
    lost.write_text("name: x\n")
    with pytest.raises(UserError, match="is in no project"):
        find_project(lost, {})
    with pytest.raises(UserError, match=r"does not exist \(the folder has: a.yml, b.yaml\)"):
        find_project(root / "pipelines" / "c.yaml", {})


def test_the_starter_of_a_checkout_is_the_repository() -> None:
    repository = Path(__file__).resolve().parents[2]
    assert starter_dir() == repository
    assert (starter_dir() / "pyproject.toml").is_file()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as the wheel installs it: the three folders are under `starter/`."""
    package = tmp_path / "site-packages" / "tracefactory"
    for name, text in [("pipelines/p.yaml", "name: p\n"), ("prompts/long.md", "x"), ("filters/length.py", "y")]:
        file = package / "starter" / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    (package / "starter" / "filters" / "__pycache__").mkdir()
    (package / "starter" / "filters" / "__pycache__" / "length.pyc").write_text("z")
    monkeypatch.setattr(project_module, "__file__", str(package / "config" / "project.py"))
    return package / "starter"


def test_init_copies_the_starter(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "project"
    written = init_project(target)
    assert [str(file) for file in written] == [".gitignore", "filters/length.py", "pipelines/p.yaml", "prompts/long.md"]
    assert {"/.tracefactory/", "/out/"} <= set((target / ".gitignore").read_text().splitlines())
    assert sorted(file.relative_to(target) for file in target.rglob("*") if file.is_file()) == written
    assert find_project(target / "pipelines" / "p.yaml", {}).root == target
    assert [item.name for item in target.parent.iterdir()] == ["project"]


def test_init_takes_an_empty_folder_and_no_other(wheel: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert init_project(empty)
    before = {file: file.read_bytes() for file in empty.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="not an empty folder"):
        init_project(empty)
    assert {file: file.read_bytes() for file in empty.rglob("*") if file.is_file()} == before
    with pytest.raises(UserError, match="not an empty folder"):
        init_project(next(iter(before)))


def test_init_leaves_nothing_when_it_fails(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(project_module.shutil, "copytree", full)
    with pytest.raises(OSError, match="no space"):
        init_project(tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["site-packages"]


def test_a_missing_starter_project_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project_module, "__file__", str(tmp_path / "tracefactory" / "config" / "project.py"))
    with pytest.raises(FileNotFoundError, match="installation is incomplete"):
        starter_dir()
