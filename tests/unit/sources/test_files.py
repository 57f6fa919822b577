"""Files as sources: every format, every way a row can be bad, and what decides the rows."""

import bz2
import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Problem
from tracefactory.reading.base import SOURCES, Rejected
from tracefactory.sources.files import Files

DATA = Path(__file__).parents[3].parent / "shared" / "data" / "problems"
ROWS = [{"question": f"What is {n} + {n}?", "answer": 2 * n} for n in range(5)]


def read(folder: Path, limit: int | None = None, **params: Any) -> list[Problem | Rejected]:
    return list(Files().read(Files.Params.model_validate(params), base_dir=folder, limit=limit))


def problems(folder: Path, **params: Any) -> list[Problem]:
    rows = read(folder, **params)
    assert all(isinstance(row, Problem) for row in rows), rows
    return [row for row in rows if isinstance(row, Problem)]


def check(folder: Path, **params: Any) -> list[str]:
    return Files().check(Files.Params.model_validate(params), folder)


def write_lines(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def test_every_format_gives_the_same_problems(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl", *ROWS)
    lines = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.ndjson").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\n"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "b.jsonl.bz2").write_bytes(bz2.compress(lines))
    (tmp_path / "a.json").write_text("\n " + json.dumps(ROWS, indent=1))
    (tmp_path / "array.jsonl").write_text(json.dumps(ROWS, indent=4))
    (tmp_path / "utf16.jsonl").write_text(lines.decode(), encoding="utf-16")
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        pl.DataFrame(ROWS).write_csv(tmp_path / name, separator=separator)
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet", row_group_size=2)
    files = sorted(file.name for file in tmp_path.iterdir())
    found = {name: [(row.id, row.question, row.answer) for row in problems(tmp_path, paths=name)] for name in files}
    assert len(files) == 10
    assert len({str(rows) for rows in found.values()}) == 1, found
    assert found["a.jsonl"][3][1:] == ("What is 3 + 3?", "6")


def test_bad_lines_are_rejected_with_their_number_and_content(tmp_path: Path):
    good = json.dumps({"question": "q", "answer": "1"}).encode()
    bad = [b"{broken", b"[1]", b'{"question": "caf\xe9", "answer": "1"}', b'{"answer": "1"}', b'{"question": "q2"}']
    more = [b'{"question": "a \\ud800", "answer": "1"}', b'{"question": "q3", "answer": NaN}', b"[" * 100_000]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([good, *bad, b"", *more, good]))
    rows = read(tmp_path, paths="rows.jsonl")
    rejected = [row for row in rows if isinstance(row, Rejected)]
    assert [row.reason for row in rejected] == [
        *("bad_json", "not_an_object", "bad_encoding", "no_question", "no_answer"),
        *("bad_encoding", "no_answer", "bad_json"),
    ]
    numbers = [int(row.detail.split("line ")[1].split(":")[0]) for row in rejected]
    assert numbers == [2, 3, 4, 5, 6, 8, 9, 10]
    assert all(row.detail.startswith("rows.jsonl: ") or "line" in row.detail for row in rejected)
    assert json.loads(rejected[0].row) == "{broken"
    assert "caf" in json.loads(rejected[2].row)
    assert json.loads(rejected[4].row) == {"question": "q2"}
    for row in rejected:
        row.row.encode("utf-8")
    assert isinstance(rows[-1], Problem)
    assert json.loads(rows[-1].meta) == {"line": 11}


def test_bad_csv_rows_are_rejected(tmp_path: Path):
    (tmp_path / "rows.csv").write_bytes(
        b'question,answer\n"two\nlines, and ""quotes""",1\nonly one\nq,2,3\n\ncaf\xe9,4\nlast,5\n'
    )
    rows = read(tmp_path, paths="rows.csv")
    assert [getattr(row, "reason", getattr(row, "answer", None)) for row in rows] == [
        *("1", "bad_csv", "bad_csv", "bad_encoding", "5")
    ]
    assert isinstance(rows[0], Problem)
    assert rows[0].question == 'two\nlines, and "quotes"'
    assert "line 4" in getattr(rows[1], "detail", "")
    latin = problems(tmp_path, paths="rows.csv", encoding="latin-1", limit=1)
    assert latin[0].answer == "1"


def test_an_unclosed_quote_rejects_only_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tracefactory.reading.records._MAX_FIELD", 1000)
    before = csv.field_size_limit()
    try:
        (tmp_path / "rows.csv").write_text('question,answer\nfine,1\n"open,2\n' + "filler,3\n" * 1000)
        rows = read(tmp_path, paths="rows.csv")
    finally:
        csv.field_size_limit(before)
    assert isinstance(rows[0], Problem)
    assert isinstance(rows[1], Rejected)
    assert rows[1].reason == "bad_csv"


def test_numbers_become_text_in_their_usual_form(tmp_path: Path):
    values = [145.0, 0.5, 7, "x", ["2"], 1e-7, -0.0]
    write_lines(tmp_path / "rows.jsonl", *({"question": f"q{n}", "answer": v} for n, v in enumerate(values)))
    assert [row.answer for row in problems(tmp_path, paths="rows.jsonl")] == ["145", "0.5", "7", "x", "2", "1e-07", "0"]
    write_lines(tmp_path / "bad.jsonl", *({"question": "q", "answer": v} for v in (True, ["1", "2"], {"a": 1}, [], "")))
    reasons = [getattr(row, "reason", None) for row in read(tmp_path, paths="bad.jsonl")]
    assert reasons == ["not_a_text", "not_a_text", "not_a_text", "not_a_text", "no_answer"]


def test_all_mapped_fields_become_parts_of_the_problem(tmp_path: Path):
    row = {
        "body": "Tom has 3 apples.",
        "ask": "How many?  Think step by step.",
        "gold": {"text": ["no", "3 (apples)"]},
        "key": 17,
        "kind": "addition",
        "terms": "CC0",
        "a.b": "dotted",
    }
    write_lines(tmp_path / "rows.jsonl", row)
    (problem,) = problems(
        tmp_path,
        paths="rows.jsonl",
        question=["body", "ask"],
        answer="gold.text.1",
        answer_from="without_unit",
        id="key",
        domain_field="kind",
        licence_field="terms",
        meta=["a.b", "gold"],
        remove=["Think step by step."],
        spec={"tolerance": 0.1},
    )
    assert problem.question == "Tom has 3 apples.\nHow many?"
    assert (problem.answer, problem.verifier, problem.spec) == ("3", "math", '{"tolerance": 0.1}')
    assert (problem.domain, problem.licence, problem.source) == ("addition", "CC0", "rows.jsonl")
    assert json.loads(problem.meta) == {"a.b": "dotted", "gold": row["gold"], "id": 17, "line": 1}
    (ungraded,) = problems(tmp_path, paths="rows.jsonl", question="body", answer=None, domain="math", verifier="text")
    assert (ungraded.answer, ungraded.verifier, ungraded.domain) == (None, "text", "math")


OPTIONS = {"A": "one", "B": "two", "C": "3"}


@pytest.mark.parametrize(
    ("choices", "answer", "label"),
    [
        (["one", "two", "3"], "B", "B"),
        (["one", "two", "3"], 1, "B"),
        (["one", "two", "3"], "two", "B"),
        (["A)one", "B) two", "C. 3"], "(B)", "B"),
        (["(A) one", "(B) two", "(C) 3"], "B.", "B"),
        ({"label": ["A", "B", "C"], "text": ["one", "two", "3"]}, "B", "B"),
        (OPTIONS, "B", "B"),
    ],
)
def test_multiple_choice_options_are_read_in_all_forms(tmp_path: Path, choices: Any, answer: Any, label: str):
    write_lines(tmp_path / "rows.jsonl", {"question": "Which?", "answer": answer, "options": choices})
    (problem,) = problems(tmp_path, paths="rows.jsonl", choices="options")
    assert problem.question == "Which?\n\nA) one\nB) two\nC) 3"
    assert (problem.answer, problem.verifier) == (label, "choice")


def test_unusable_multiple_choice_rows_are_rejected(tmp_path: Path):
    rows = [("D", ["x", "y"]), (5, ["x", "y"]), ("A", ["x"]), ("A", "x y"), ("A", ["x", ""])]
    write_lines(tmp_path / "r.jsonl", *({"question": "q", "answer": a, "options": o} for a, o in rows))
    reasons = [getattr(row, "reason", None) for row in read(tmp_path, paths="r.jsonl", choices="options")]
    assert reasons == ["answer_not_a_choice", "answer_not_a_choice", "no_choices", "no_choices", "no_choices"]


def test_limit_counts_problems_and_keeps_their_order(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl", {"answer": "1"}, *ROWS)
    write_lines(tmp_path / "b.jsonl", *ROWS)
    rows = read(tmp_path, limit=3, paths="*.jsonl")
    assert [type(row) for row in rows] == [Rejected, Problem, Problem, Problem]
    assert read(tmp_path, paths="*.jsonl")[:4] == rows
    assert read(tmp_path, limit=0, paths="*.jsonl") == []


def test_reading_streams_rows_and_stops_at_the_limit(tmp_path: Path):
    file = tmp_path / "big.jsonl"
    with file.open("w") as out:
        out.write(json.dumps(ROWS[0]) + "\n")
        out.writelines('{"question": "filler", "answer": 1}\n' for _ in range(50_000))
    opened = Files().read(Files.Params(paths="big.jsonl"), base_dir=tmp_path, limit=None)
    assert isinstance(next(iter(opened)), Problem)
    table = pa.Table.from_pylist(ROWS * 1000)
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=100)
    assert len(read(tmp_path, limit=7, paths="big.parquet")) == 7


def test_file_identity_depends_on_content_and_not_on_the_folder(tmp_path: Path):
    def identity(folder: Path, paths: str) -> dict[str, Any]:
        return Files().identity(Files.Params(paths=paths), folder)

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "rows.jsonl", *ROWS)
    assert identity(tmp_path / "one", "*.jsonl") == identity(tmp_path / "two", "rows.jsonl")
    assert str(tmp_path) not in json.dumps(identity(tmp_path / "one", str(tmp_path / "two" / "*.jsonl")))
    before = identity(tmp_path / "one", "rows.jsonl")
    write_lines(tmp_path / "one" / "rows.jsonl", *ROWS[:4])
    assert identity(tmp_path / "one", "rows.jsonl") != before


def test_a_file_found_twice_is_read_once(tmp_path: Path):
    write_lines(tmp_path / "rows.jsonl", *ROWS)
    assert len(read(tmp_path, paths=["*.jsonl", "rows.jsonl", "**/*.jsonl"])) == len(ROWS)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"paths": "row.jsonl"}, "no file 'row.jsonl' (did you mean 'rows.jsonl'?)"),
        ({"paths": "none/*.csv"}, "no file 'none/*.csv'"),
        ({"paths": []}, "paths names no file"),
        ({"paths": "rows.jsonl", "question": "qestion"}, "has no field 'qestion' (did you mean 'question'?)"),
        ({"paths": "rows.jsonl", "meta": ["level"]}, "has no field 'level' (one of: answer, question)"),
        (
            {"paths": "rows.jsonl", "answer_from": "gsm8k"},
            "none of the first rows of rows.jsonl gives a problem (no_answer",
        ),
        ({"paths": "rows.jsonl", "encoding": "utf-9"}, "unknown encoding 'utf-9'"),
        ({"paths": "rows.txt"}, "unknown format of 'rows.txt'; set format"),
        ({"paths": "rows.txt", "format": "parquet"}, "cannot be read as parquet"),
        ({"paths": "object.json", "format": "json"}, "one JSON dict instead of an array"),
        ({"paths": "broken.json"}, "broken.json:3: is not valid JSON"),
        ({"paths": "empty.jsonl"}, "it is empty"),
        ({"paths": "twice.csv"}, "has a column name twice: answer"),
    ],
)
def test_check_finds_mistakes_before_anything_runs(tmp_path: Path, params: dict[str, Any], message: str):
    write_lines(tmp_path / "rows.jsonl", *ROWS)
    (tmp_path / "rows.txt").write_text("hello")
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "broken.json").write_text("[\n1,\n}")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "twice.csv").write_text("question,answer,answer\na,b,c\n")
    found = check(tmp_path, **params)
    assert len(found) == 1
    assert message in found[0]


def test_check_is_silent_about_good_parameters(tmp_path: Path):
    write_lines(tmp_path / "rows.jsonl", ROWS[0], {**ROWS[1], "level": 3})
    assert check(tmp_path, paths="rows.jsonl", meta=["level"]) == []


def test_missing_files_raise_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="no file"):
        read(tmp_path, paths="none.jsonl")
    with pytest.raises(ValidationError, match="Extra inputs"):
        Files.Params.model_validate({"paths": "x", "fromat": "csv"})
    assert SOURCES.get("files") is Files


REAL: dict[str, dict[str, Any]] = {
    "aime24_test.jsonl": {"question": "problem", "id": "id"},
    "aime25_test.jsonl": {
        "question": "prompt",
        "remove": ["Please reason step by step, and put your final answer within \\boxed{}."],
    },
    "amc23_test.jsonl": {"question": "problem"},
    "aqua_test.jsonl": {"choices": "options", "answer": "correct"},
    "asdiv_test.jsonl": {"question": ["body", "question"], "answer_from": "without_unit"},
    "cmath_test.jsonl": {"meta": ["grade"]},
    "gsm8k_test.jsonl": {"answer_from": "gsm8k"},
    "gsm8k_train.jsonl": {"answer_from": "gsm8k"},
    "math_test.jsonl": {"question": "problem", "answer": "solution", "answer_from": "boxed", "domain_field": "type"},
    "math_train.json": {"question": "problem"},
    "mawps_test.jsonl": {"question": "input", "answer": "target"},
    "minerva_math_test.jsonl": {"question": "problem", "answer": "solution", "answer_from": "boxed"},
    "olympiadbench_test.jsonl": {"answer": "final_answer", "domain_field": "subfield"},
    "svamp_test.jsonl": {"question": ["Body", "Question"], "answer": "Answer"},
}


def test_real_problem_sets_are_read():
    if not DATA.exists():
        pytest.skip("no shared data here")
    counts: dict[str, tuple[int, dict[str, int]]] = {}
    samples: dict[str, Problem] = {}
    for name, mapping in REAL.items():
        assert check(DATA, paths=name, **mapping) == []
        rows = read(DATA, paths=name, **mapping)
        good = [row for row in rows if isinstance(row, Problem)]
        counts[name] = (len(good), dict(Counter(row.reason for row in rows if isinstance(row, Rejected))))
        samples[name] = good[0]
    assert set(REAL) == {file.name for file in DATA.iterdir()}
    assert counts == EXPECTED
    assert samples["aqua_test.jsonl"].question.endswith("E) None of these")
    assert samples["amc23_test.jsonl"].answer == "27"
    assert samples["svamp_test.jsonl"].answer == "145"
    assert samples["asdiv_test.jsonl"].answer == "9"
    assert samples["gsm8k_train.jsonl"].answer == "72"
    assert samples["aime25_test.jsonl"].question.endswith("$97_b.$")


EXPECTED: dict[str, tuple[int, dict[str, int]]] = {
    "aime24_test.jsonl": (30, {}),
    "aime25_test.jsonl": (30, {}),
    "amc23_test.jsonl": (40, {}),
    "aqua_test.jsonl": (254, {}),
    "asdiv_test.jsonl": (2215, {}),
    "cmath_test.jsonl": (600, {}),
    "gsm8k_test.jsonl": (1319, {}),
    "gsm8k_train.jsonl": (7473, {}),
    "math_test.jsonl": (5000, {}),
    "math_train.json": (7470, {"no_answer": 4}),
    "mawps_test.jsonl": (2065, {}),
    "minerva_math_test.jsonl": (272, {}),
    "olympiadbench_test.jsonl": (675, {}),
    "svamp_test.jsonl": (1000, {}),
}


TOOL = {"name": "python", "description": "Run a program.", "parameters": {"type": "object"}}


def test_tools_are_read_whole_and_without_their_envelope(tmp_path: Path):
    given = [TOOL, {"type": "function", "function": TOOL}, {"name": "search"}]
    write_lines(tmp_path / "a.jsonl", *({**ROWS[0], "tools": tools} for tools in (given, json.dumps(given))))
    for row in problems(tmp_path, paths="a.jsonl", tools="tools"):
        found = [(tool.name, tool.description, json.loads(tool.parameters)) for tool in row.tools]
        assert found == [("python", "Run a program.", {"type": "object"})] * 2 + [("search", "", {})]


@pytest.mark.parametrize("tools", ["[{", [{"description": "nameless"}], ["python"], [{"function": "python"}]])
def test_tools_without_a_name_reject_the_row(tmp_path: Path, tools: Any):
    write_lines(tmp_path / "a.jsonl", {**ROWS[0], "tools": tools})
    (row,) = read(tmp_path, paths="a.jsonl", tools="tools")
    assert isinstance(row, Rejected)
    assert row.reason == "bad_tools"
