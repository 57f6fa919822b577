from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tracefactory.core.token_scores import TOKEN_SCORES_SCHEMA, TokenScores, scores_from_table, scores_to_table
from tracefactory.store.scores import ScoreStore

INTS = ("token_ids", "starts", "ends", "ranks")
FLOATS = ("logprobs", "entropies")


def random_scores(size: int, seed: int) -> TokenScores:
    rng = np.random.default_rng(seed)
    ints = {name: rng.integers(1, 100_000, size).astype(np.int32) for name in INTS}
    floats = {name: -rng.random(size).astype(np.float32) for name in FLOATS}
    words = {"text": f"text {seed}", "instead": tuple("a" if n % 3 else None for n in range(size))} if seed % 2 else {}
    return TokenScores(**ints, **floats, body_start=seed, **words)


def test_scores_survive_parquet_bit_by_bit(tmp_path: Path) -> None:
    rows = [(f"t{i}", "key", random_scores(size, i)) for i, size in enumerate([3, 0, 500, 1])]
    pq.write_table(scores_to_table(rows), tmp_path / "scores.parquet")
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.schema.equals(TOKEN_SCORES_SCHEMA)
    for (trace_id, key, scores), (found_id, found_key, found) in zip(rows, scores_from_table(table), strict=True):
        assert (trace_id, key, scores.body_start, len(scores)) == (found_id, found_key, found.body_start, len(found))
        for name in (*INTS, *FLOATS):
            assert getattr(found, name).dtype == getattr(scores, name).dtype
            np.testing.assert_array_equal(getattr(found, name), getattr(scores, name))
        assert (found.text, found.instead) == (scores.text, scores.instead)


def test_the_score_store_reads_texts_on_request_and_files_without_texts(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, "0123456789abcdef0123")
    store.put({"new": random_scores(4, 1)})
    older = scores_to_table([("old", "key", random_scores(3, 2))]).drop_columns(["text", "instead"])
    pq.write_table(older, store.folder / "part-00000000.parquet")  # sorts first: it must not decide what is read
    plain, told = store.get(["new", "old"]), store.get(["new", "old"], words=True)
    assert [plain[name][0].text for name in ("new", "old")] == [None, None]
    assert [told[name][0].text for name in ("new", "old")] == ["text 1", None]
    assert told["new"][0].instead == (None, "a", "a", None)
    np.testing.assert_array_equal(told["old"][0].ranks, random_scores(3, 2).ranks)


def test_scores_of_another_writer_are_found_and_each_file_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ScoreStore(tmp_path, "0123456789abcdef0123")
    assert store.get(["t0"]) == {}
    for number in range(30):
        store.put({f"t{number}": random_scores(3, number)})
    looked: list[object] = []
    real = pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda path, **rest: (looked.append(path), real(path, **rest))[1])
    other = ScoreStore(tmp_path, "0123456789abcdef0123")
    for number in range(30):
        (found,) = other.get([f"t{number}", "nobody"])[f"t{number}"]
        np.testing.assert_array_equal(found.ranks, random_scores(3, number).ranks)
    assert len(looked) == 30


def test_a_slice_of_a_table_reads_its_own_rows() -> None:
    rows = [(f"t{i}", "key", random_scores(4, i)) for i in range(6)]
    table = pa.concat_tables([scores_to_table(rows[:3]), scores_to_table(rows[3:])])
    found = list(scores_from_table(table.slice(2, 3)))
    assert [row[0] for row in found] == ["t2", "t3", "t4"]
    np.testing.assert_array_equal(found[1][2].logprobs, rows[3][2].logprobs)


def test_an_empty_table_keeps_its_types() -> None:
    assert scores_to_table([]).schema.equals(TOKEN_SCORES_SCHEMA)
    assert list(scores_from_table(scores_to_table([]))) == []
