"""Filter files: what is wrong with them, their digest, and how they travel."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Kind
from tracefactory.filters import FilterFailed, Params, apply, drop, load_filters
from tracefactory.testing import make_trace

GOOD = '''"""Drop what is short."""

from __future__ import annotations

from dataclasses import dataclass

from tracefactory.filters import KEEP, Decision, Params, Trace, drop, trace_filter


class Inner(Params):
    least: int = 3


class ShortParams(Params):
    """How short is short."""

    inner: Inner = Inner()


@dataclass
class Note:
    words: int


@trace_filter
def short(trace: Trace, params: ShortParams) -> Decision:
    """Keep answers of at least `least` words."""
    note = Note(len(trace.answer_text.split()))  # a comment
    if note.words < params.inner.least:
        return drop("too_few_words", f"{note.words}")
    return KEEP
'''
HEAD = "from tracefactory.filters import *\nfrom tracefactory.filters import Trace, Decision\n"


def write(folder: Path, **files: str) -> Path:
    for name, source in files.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
    return folder


def mistakes(folder: Path) -> list[tuple[str, int | None, str]]:
    with pytest.raises(UserError) as caught:
        load_filters(folder)
    return [(one.file.name if one.file else "", one.line, one.message) for one in caught.value.mistakes]


def test_a_filter_is_found_by_its_file_and_decides(tmp_path: Path):
    filters = load_filters(write(tmp_path, short=GOOD))
    assert list(filters) == ["short"]
    short = filters["short"]
    assert short.doc == "Keep answers of at least `least` words."
    assert short.reasons == ("too_few_words",)
    assert (short.on_columns, short.kind) == (False, Kind.TRACES)
    params = short.params_model.model_validate({"inner": {"least": 5}})
    assert apply(short, make_trace(answer_text="one two three four five"), params).keep
    decision = apply(short, make_trace(answer_text="one two"), params)
    assert (decision.reason, decision.detail) == ("too_few_words", "2")


def test_a_filter_may_have_no_parameters(tmp_path: Path):
    source = HEAD + "@trace_filter\ndef bare(trace: Trace) -> Decision:\n    'Keep.'\n    return KEEP\n"
    bare = load_filters(write(tmp_path, bare=source))["bare"]
    assert bare.params_model is Params
    assert apply(bare, make_trace(), bare.params_model()).keep


def test_an_unknown_filter_comes_with_the_nearest_name(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'short'"):
        load_filters(write(tmp_path, short=GOOD)).named("shortt")


def test_a_missing_folder_has_no_filters(tmp_path: Path):
    assert len(load_filters(tmp_path / "nowhere")) == 0


def test_mistakes_of_all_filters_are_reported_together_with_file_and_line(tmp_path: Path):
    body = "    'Doc.'\n    return KEEP\n"
    write(
        tmp_path,
        a_syntax="def a_syntax(:\n",
        b_none=HEAD + "def b_none(trace: Trace) -> Decision:\n" + body,
        c_two=HEAD
        + f"@trace_filter\ndef c_two(trace: Trace) -> Decision:\n{body}"
        + f"@trace_filter\ndef second(trace: Trace) -> Decision:\n{body}",
        d_name=HEAD + f"@trace_filter\ndef other(trace: Trace) -> Decision:\n{body}",
        e_doc=HEAD + "@trace_filter\ndef e_doc(trace: Trace) -> Decision:\n    return KEEP\n",
        f_args=HEAD + f"@trace_filter\ndef f_args(trace: Trace, params: Params, more: int) -> Decision:\n{body}",
        g_params=HEAD + f"@trace_filter\ndef g_params(trace: Trace, params: dict) -> Decision:\n{body}",
        h_returns=HEAD + f"@trace_filter\ndef h_returns(trace: Trace) -> bool:\n{body}",
        i_raises=HEAD + f"value = 1 / 0\n@trace_filter\ndef i_raises(trace: Trace) -> Decision:\n{body}",
        j_hint=HEAD + f"@trace_filter\ndef j_hint(trace: 'Trce') -> Decision:\n{body}",
        k_reason=HEAD
        + "@trace_filter\ndef k_reason(trace: Trace) -> Decision:\n    'Doc.'\n    return drop('Too Long')\n",
        l_fstring=HEAD
        + "@trace_filter\ndef l_fstring(trace: Trace) -> Decision:\n    'Doc.'\n    return drop(f'x{1}')\n",
        m_async=HEAD + f"@trace_filter\nasync def m_async(trace: Trace) -> Decision:\n{body}",
        N_case=HEAD + f"@trace_filter\ndef N_case(trace: Trace) -> Decision:\n{body}",
        o_files=HEAD + f"@trace_filter\ndef o_files(trace: Trace, *, files: Files) -> Decision:\n{body}",
        p_first=HEAD + f"@trace_filter\ndef p_first(trace: str) -> Decision:\n{body}",
        conftest="",
    )
    (tmp_path / "q_bytes.py").write_bytes(b"'\xff'\n")
    found = {file: (line, message) for file, line, message in mistakes(tmp_path)}
    expected = {
        "a_syntax.py": (1, "not Python"),
        "b_none.py": (None, "no function is decorated"),
        "c_two.py": (8, "a second filter, 'second'"),
        "d_name.py": (4, "the filter is called 'other', its file 'd_name'"),
        "e_doc.py": (4, "has no docstring"),
        "f_args.py": (3, "takes a row and"),
        "g_params.py": (3, "is not a Params model"),
        "h_returns.py": (3, "returns a Decision"),
        "i_raises.py": (3, "ZeroDivisionError"),
        "j_hint.py": (3, "do not resolve"),
        "k_reason.py": (6, "'Too Long' is not snake_case"),
        "l_fstring.py": (6, "one fixed word"),
        "m_async.py": (4, "not async"),
        "N_case.py": (None, "no snake_case name"),
        "o_files.py": (3, "files=(...) in its decorator"),
        "p_first.py": (3, "is not a Trace or a Problem"),
        "conftest.py": (None, "no function is decorated"),
        "q_bytes.py": (None, "not Python"),
    }
    assert found.keys() == expected.keys()
    for file, (line, message) in expected.items():
        assert found[file][0] == line, file
        assert message in found[file][1], file


def test_one_file_reports_all_its_mistakes(tmp_path: Path):
    source = HEAD + "@trace_filter\ndef wrong(trace: Trace) -> Decision:\n    return drop('A b')\n"
    assert len(mistakes(write(tmp_path, right=source))) == 3


def test_the_filter_digest_changes_only_with_the_code(tmp_path: Path):
    def digest_of(source: str) -> str:
        return load_filters(write(tmp_path, short=source))["short"].digest

    digest = digest_of(GOOD)
    commented = GOOD.replace("# a comment", "# another one").replace('"""Drop what is short."""', "# no docstring")
    reworded = GOOD.replace("Keep answers of", "Let pass answers of").replace("How short is short.", "Sizes.")
    spaced = GOOD.replace("\n\n\n", "\n\n\n\n\n").replace('f"{note.words}")', 'f"{note.words}"\n    )')
    assert digest_of(commented) == digest_of(reworded) == digest_of(spaced) == digest
    assert digest_of(GOOD.replace("least: int = 3", "least: int = 4")) != digest
    assert digest_of(GOOD.replace("note.words <", "note.words <=")) != digest
    assert digest_of(GOOD.replace('"too_few_words"', '"too_few"')) != digest
    assert digest_of(GOOD.replace("least: int = 3", "least: int = True")) != digest_of(
        GOOD.replace("least: int = 3", "least: int = 1")
    )


def test_the_filter_digest_is_the_same_in_every_version_of_python(tmp_path: Path):
    # Written down once: a change here means that every filter stage of every user is done again.
    source = HEAD + "@trace_filter\ndef bare(trace: Trace) -> Decision:\n    'Keep.'\n    return KEEP\n"
    found = load_filters(write(tmp_path, bare=source))["bare"].digest
    assert found == "2cd161ff89e90ae6ea8bc55f3745b631160d3ca4920d8cfcb67da37cab442c0c"


def test_a_filter_works_where_its_file_does_not_exist(tmp_path: Path):
    folder = tmp_path / "filters"
    folder.mkdir()
    loaded = load_filters(write(folder, short=GOOD))["short"]
    package = pickle.dumps((loaded, make_trace(answer_text="one"), {"inner": {"least": 2}}))
    (folder / "short.py").unlink()
    script = """
import pickle, sys
loaded, trace, values = pickle.load(sys.stdin.buffer)
from tracefactory.filters import FilterFailed, apply
print(apply(loaded, trace, loaded.params_model.model_validate(values)).reason)
try:
    apply(loaded, trace, None)
except FilterFailed as error:
    print(error.traceback_text)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], input=package, capture_output=True, cwd=root, check=True, timeout=60
    )
    reason, traceback_text = done.stdout.decode().split("\n", 1)
    assert reason == "too_few_words"
    # The lines of the source show although there is no file to read them from.
    assert "if note.words < params.inner.least:" in traceback_text
    assert "AttributeError" in traceback_text


def test_a_filter_that_raises_or_returns_no_decision_fails_for_that_row(tmp_path: Path):
    head = HEAD + "@trace_filter\n"
    filters = load_filters(
        write(
            tmp_path,
            raises=head + "def raises(trace: Trace) -> Decision:\n    'Raise.'\n    return trace.nothing\n",
            truth=head + "def truth(trace: Trace) -> Decision:\n    'Answer.'\n    return True\n",
            silent=head + "def silent(trace: Trace) -> Decision:\n    'Say nothing.'\n",
        )
    )
    trace = make_trace()
    with pytest.raises(FilterFailed, match=r"return trace\.nothing") as caught:
        apply(filters["raises"], trace, Params())
    assert caught.value.row_id == trace.id
    assert isinstance(caught.value.__cause__, AttributeError)
    assert "loader.py" not in caught.value.traceback_text
    with pytest.raises(FilterFailed, match="returned True instead"):
        apply(filters["truth"], trace, Params())
    with pytest.raises(FilterFailed, match="returned None instead"):
        apply(filters["silent"], trace, Params())


READING = (
    HEAD
    + """
@trace_filter(files=("lists/names.txt",))
def reading(trace: Trace, *, files: Files) -> Decision:
    'Drop what asks for a name of the list.'
    found = [name for name in files["lists/names.txt"].split() if name in trace.problem.question]
    return drop("named", found[0]) if found else KEEP
"""
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a folder of filters and the file that READING declares; returns the folder of filters."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "names.txt").write_text("Anna Ben\n")
    (tmp_path / "filters").mkdir()
    return write(tmp_path / "filters", reading=READING)


def test_declared_files_are_passed_to_a_filter_and_are_in_its_digest(project: Path):
    reading = load_filters(project)["reading"]
    decision = apply(reading, make_trace(question="How old is Ben?"), Params())
    assert (decision.reason, decision.detail) == ("named", "Ben")
    assert apply(reading, make_trace(question="How old is Carl?"), Params()).keep
    names = project.parent / "lists" / "names.txt"
    names.write_text("Anna Ben Carl\n")
    changed = load_filters(project)["reading"]
    assert changed.digest != reading.digest
    assert apply(changed, make_trace(question="How old is Carl?"), Params()).reason == "named"
    names.write_text("Anna Ben\n")
    assert load_filters(project)["reading"].digest == reading.digest


def test_a_missing_or_undecodable_declared_file_is_a_mistake(project: Path):
    names = project.parent / "lists" / "names.txt"
    names.write_bytes(b"\xff")
    assert mistakes(project) == [("reading.py", 5, "its file 'lists/names.txt' is no UTF-8 text: invalid start byte")]
    names.rename(names.with_name("name.txt"))
    with pytest.raises(UserError, match=r"did you mean 'name\.txt'"):
        load_filters(project)


RULED = (
    HEAD
    + """
class RuledParams(Params):
    dearest: float = 0.5

@column_filter
def ruled(params: RuledParams) -> Rules:
    'Keep what is cheap and was measured.'
    yield drop_if(column("s/tokens").is_null(), "not_measured", "no tokens")
    yield drop_if(column("cost") > params.dearest, "dear", "{} dollars", column("cost"))
    yield drop_if(column("cost") > 2, "dearest")
"""
)


def test_the_first_rule_that_is_true_drops_a_row_and_an_absent_column_is_null(tmp_path: Path):
    ruled = load_filters(write(tmp_path, ruled=RULED))["ruled"]
    assert ruled.on_columns
    assert ruled.kind is None
    assert ruled.reasons == ("not_measured", "dear", "dearest")
    params = ruled.params_model()
    assert apply(ruled, make_trace(cost=9.0), params) == drop("not_measured", "no tokens")
    measured = {"s/tokens": 3.0}
    assert apply(ruled, make_trace(cost=9.0, measures=measured), params) == drop("dear", "9.0 dollars")
    assert apply(ruled, make_trace(cost=0.5, measures=measured), params).keep
    cheap = ruled.params_model.model_validate({"dearest": 0.1})
    assert apply(ruled, make_trace(cost=0.5, measures=measured), cheap).reason == "dear"


def test_a_column_filter_must_return_rules(tmp_path: Path):
    source = RULED.replace("-> Rules", "-> Decision")
    assert "returns Rules" in mistakes(write(tmp_path, ruled=source))[0][2]


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("import os", "os"),
        ("from pathlib import Path", "pathlib"),
        ("import urllib.request", "urllib.request"),
        ("import time", "time"),
        ("import random", "random"),
        ("import numpy as np\nLOTS = np.random.rand(3)", ".random"),
        ("import polars as pl\nLIST = lambda: pl.read_csv('names.csv')", ".read_csv"),
        ("LIST = lambda: open('names.txt')", "open()"),
    ],
)
def test_a_filter_that_uses_files_clocks_or_randomness_is_refused(tmp_path: Path, code: str, named: str):
    source = HEAD + code + "\n@trace_filter\ndef bare(trace: Trace) -> Decision:\n    'Keep.'\n    return KEEP\n"
    found = mistakes(write(tmp_path, bare=source))
    assert f"a filter may not use {named}: a stage would stay cached when what it reads changes" in [
        message for _, _, message in found
    ]
