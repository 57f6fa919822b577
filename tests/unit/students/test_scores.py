from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tracefactory.core.token_scores import TOKEN_SCORES_SCHEMA, TokenScores, scores_from_table, scores_to_table
from tracefactory.store import scores as module
from tracefactory.store.scores import ScoreStore, merge

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
    real = module._Index._ids_in
    monkeypatch.setattr(module._Index, "_ids_in", lambda index, path: (looked.append(path), real(index, path))[1])
    other = ScoreStore(tmp_path, "0123456789abcdef0123")
    for number in range(30):
        (found,) = other.get([f"t{number}", "nobody"])[f"t{number}"]
        np.testing.assert_array_equal(found.ranks, random_scores(3, number).ranks)
    assert len(looked) == 30


def files_of(store: ScoreStore) -> list[Path]:
    return sorted(store.folder.glob("part-*.parquet"))


def test_small_files_are_merged_and_every_score_is_found_by_those_who_had_listed_them(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, "0123456789abcdef0123")
    for number in range(70):
        store.put({f"t{number}": random_scores(5, number), f"u{number}": random_scores(0, number)})
    older = scores_to_table([("old", "key", random_scores(3, 2))]).drop_columns(["text", "instead"])
    pq.write_table(older, store.folder / "part-00000000.parquet")
    assert store.get(["t1"])  # the files are listed
    merge(tmp_path)
    assert len(files_of(store)) == 1
    for number in range(70):
        (found,) = store.get([f"t{number}"], words=True)[f"t{number}"]
        np.testing.assert_array_equal(found.logprobs, random_scores(5, number).logprobs)
        assert found.text == random_scores(5, number).text
        assert len(store.get([f"u{number}"])[f"u{number}"][0]) == 0
    assert store.get(["old"], words=True)["old"][0].text is None
    merge(tmp_path, at_least=1)
    assert len(files_of(store)) == 1


def test_a_file_that_is_merged_while_it_is_read_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScoreStore(tmp_path, "0123456789abcdef0123")
    for number in range(3):
        store.put({f"t{number}": random_scores(5, number)})
    real = module._read

    def merged_first(path: Path, groups: list[int], columns: list[str]) -> pa.Table:
        monkeypatch.setattr(module, "_read", real)
        merge(tmp_path, at_least=2)
        return real(path, groups, columns)

    monkeypatch.setattr(module, "_read", merged_first)
    assert store.get(["t0", "t2"]).keys() == {"t0", "t2"}


def test_damaged_files_are_not_merged(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, "0123456789abcdef0123")
    for number in range(3):
        store.put({f"t{number}": random_scores(5, number)})
    damaged = files_of(store)[0]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    merge(tmp_path, at_least=2)
    assert len(files_of(store)) == 2
    assert damaged in files_of(store)
    merge(tmp_path, at_least=2)  # nothing but damage is left beside the merged file
    assert len([name for number in range(3) for name in store.get([f"t{number}"])]) == 2
    assert [one.path for one in store.damage] == [damaged]


def test_merging_stops_where_another_process_merges_and_where_nothing_can_be_written(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, "0123456789abcdef0123")
    for number in range(3):
        store.put({f"t{number}": random_scores(5, number)})
    with module._merging(store.folder):
        merge(tmp_path, at_least=2)
    assert len(files_of(store)) == 3
    merge(tmp_path / "nothing")


def test_a_slice_of_a_table_reads_its_own_rows() -> None:
    rows = [(f"t{i}", "key", random_scores(4, i)) for i in range(6)]
    table = pa.concat_tables([scores_to_table(rows[:3]), scores_to_table(rows[3:])])
    found = list(scores_from_table(table.slice(2, 3)))
    assert [row[0] for row in found] == ["t2", "t3", "t4"]
    np.testing.assert_array_equal(found[1][2].logprobs, rows[3][2].logprobs)


def test_an_empty_table_keeps_its_types() -> None:
    assert scores_to_table([]).schema.equals(TOKEN_SCORES_SCHEMA)
    assert list(scores_from_table(scores_to_table([]))) == []
