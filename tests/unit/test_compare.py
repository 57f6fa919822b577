"""What differs between two releases: rows that came, went and changed, and what made them."""

import json

import pytest
from typer.testing import CliRunner

from tests.unit.test_release import CARD, row_id, traces, write
from tracefactory.cli import app
from tracefactory.core.errors import UserError
from tracefactory.publish.compare import compare


def test_a_comparison_finds_rows_that_differ_in_id_or_any_column(tmp_path):
    rows = traces(30)
    write(tmp_path / "1.0", rows)
    edited = rows[3].model_copy(update={"measures": {"tokens": -1.0}})
    rewritten = rows[4].model_copy(update={"answer_text": "It is nothing."})
    new = traces(31)
    added = next(one for one in new if one.id == row_id(30))
    write(tmp_path / "1.1", [*rows[5:], edited, rewritten, added])
    found = compare(tmp_path / "1.0", tmp_path / "1.1")
    assert not found.identical
    sft, raw = found.views
    assert (sft.view, sft.same, sft.changed_columns) == ("sft", 26, {"completion": 1})
    assert sft.changed == (rewritten.id,)
    assert raw.changed == tuple(sorted((edited.id, rewritten.id)))
    assert raw.changed_columns == {"answer_text": 1, "measures": 1}
    for view in found.views:
        assert view.only_first == tuple(sorted(one.id for one in rows[:3]))
        assert view.only_second == (row_id(30),)
        assert sum(before for before, _ in view.styles.values()) == 30
        assert sum(after for _, after in view.styles.values()) == 28
    assert found.made_by == {}


def test_equal_rows_of_different_recipes_are_identical(tmp_path):
    write(tmp_path / "1.0", traces(8))
    other = CARD.models[0].model_copy(update={"model": "org/other"})
    write(tmp_path / "1.1", traces(8), card=CARD.model_copy(update={"models": (other,), "licence": "cc0-1.0"}))
    found = compare(tmp_path / "1.0", tmp_path / "1.1")
    assert found.identical
    assert found.made_by["licence"] == ("mit", "cc0-1.0")
    assert "org/big" in found.made_by["model long"][0]
    assert "org/other" in found.made_by["model long"][1]
    assert found.made_by.keys() == {"licence", "model long"}


def test_a_changed_parameter_is_told_as_the_plan_tells_it(tmp_path):
    rows, folders = traces(12), [tmp_path / "1.0", tmp_path / "1.1"]
    for folder, share in zip(folders, (0.4, 0.2), strict=True):
        write(folder, rows)
        identity = {"op": "mix:long_short", "version": "1", "uses": {}, "with": {"long": share}, "inputs": {}}
        changed = {**json.loads((folder / "manifest.json").read_text()), "recipe": {"mixed": identity}}
        (folder / "manifest.json").write_text(json.dumps(changed | {"stages": {"mixed": str(share)}}))
    output = CliRunner().invoke(app, ["diff", *map(str, folders)]).stdout
    assert "• mixed: long: 0.4 -> 0.2" in output
    assert "stage mixed" not in output


def test_the_diff_command_prints_tables_and_json(tmp_path):
    rows = traces(12)
    write(tmp_path / "1.0", rows)
    write(tmp_path / "1.1", rows[7:])
    output = CliRunner().invoke(app, ["diff", str(tmp_path / "1.0"), str(tmp_path / "1.1")]).stdout
    first = ", ".join(sorted(one.id[:12] for one in rows[:7])[:5])
    assert f"only in the first: {first} and 2 more" in " ".join(output.split())
    machine = json.loads(
        CliRunner().invoke(app, ["diff", str(tmp_path / "1.0"), str(tmp_path / "1.1"), "--json"]).stdout
    )
    assert machine["views"][0]["same"] == 5


def test_a_folder_that_is_not_a_release_or_has_no_common_view_is_refused(tmp_path):
    write(tmp_path / "1.0", traces(3), views=("sft",))
    write(tmp_path / "1.1", traces(3), views=("raw",))
    with pytest.raises(UserError, match=r"no view in common: 1\.0 has sft; 1\.1 has raw"):
        compare(tmp_path / "1.0", tmp_path / "1.1")
    with pytest.raises(UserError, match="none"):
        compare(tmp_path / "1.0", tmp_path / "none")
