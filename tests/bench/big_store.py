"""A project whose sampling and verification are done: rows in the store's own layout, made without any request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tracefactory.config import load_pipeline
from tracefactory.core.columns import VERDICT, VERDICT_TYPE, column_for
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.rows import Kind
from tracefactory.core.spans import Span
from tracefactory.core.stage import kinds_of, stage_of
from tracefactory.core.tables import Table, schema_of
from tracefactory.engine.identity import Identity, identities
from tracefactory.store.stages import StageFolder, StageRecord, Tables, input_token, stage_digest

MADE = ("problems", "long", "short", "checked")
PIPELINE = """\
name: big
version: "1"
models:
  teacher: {use: openai, model: fake, base_url: "http://127.0.0.1:9/v1"}
stages:
  - {id: problems, source: files, with: {paths: one.jsonl}}
  - {id: long, sample: chat, from: problems, with: {model: teacher, prompt: long, samples: 2}}
  - {id: short, sample: chat, from: problems, with: {model: teacher, prompt: short, samples: 2}}
  - {id: checked, verify: auto, from: [long, short]}
"""
TAIL = """\
  - {id: hard, filter: [verdict, length: {max_tokens: 3000}, band: {column: pass_rate, min: 0.25, max: 0.75}]}
  - {id: mixed, mix: long_short, from: checked, with: {long: 0.2, short: 0.8, seed: 7}}
run: {executor: inline}
"""
PROMPT = "---\nstyle: {style}\n---\n{{{{ question }}}}\n"


def project(root: Path, *, tail: str, filters: Path) -> Path:
    """Write a project whose pipeline ends in the stages of `tail`; return the pipeline's file."""
    for folder in ("pipelines", "prompts"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for style in ("long", "short"):
        (root / "prompts" / f"{style}.md").write_text(PROMPT.format(style=style))
    (root / "one.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    if not (root / "filters").exists():
        (root / "filters").symlink_to(filters)
    file = root / "pipelines" / "big.yaml"
    file.write_text(PIPELINE + tail)
    return file


def fill(
    file: Path, *, problems: int, characters: int, shards: int, stages: Sequence[str] = MADE, seed: int = 1
) -> dict[str, float]:
    """Write finished stages; return seconds and bytes of text.

    Every trace has `characters` characters; three of four are correct.
    """
    pipeline = load_pipeline(file)
    root, found = pipeline.project.state_dir, identities(pipeline)
    started = time.perf_counter()
    maker = _Maker(pipeline, found, root, shards, np.random.default_rng(seed), characters)
    ids = maker.rng.integers(0, 2**63, problems, np.uint64) * 2 + maker.rng.integers(0, 2, problems, np.uint64)
    ids = np.unique(ids)
    for stage in stages:
        maker.write(stage, ids)
    return {"seconds": time.perf_counter() - started, "text": float(maker.text)}


class _Maker:
    def __init__(
        self,
        pipeline: Pipeline,
        found: dict[str, Identity],
        root: Path,
        shards: int,
        rng: np.random.Generator,
        characters: int,
    ) -> None:
        self.pipeline, self.found, self.root, self.shards = pipeline, found, root, shards
        self.rng, self.characters, self.text = rng, characters, 0
        words = ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 9))) for _ in range(4096)]
        pool = " ".join(np.array(words)[rng.integers(0, len(words), 8_000_000)])
        self.pool = pool[: 40 << 20]
        self.traces: dict[str, dict[int, pa.Table]] = {}

    def write(self, stage_id: str, ids: np.ndarray) -> None:
        stage = self.pipeline.stage(stage_id)
        op, key = stage_of(stage), self.found[stage_id].key
        folder = StageFolder(self.root, stage_id, key)
        folder.write_identity(self.found[stage_id].stored())
        declared = op.columns(stage, self.pipeline)
        records = []
        bounds = [int(Span.of(index, self.shards).first, 16) for index in range(self.shards)] + [2**64]
        inputs = {one: StageFolder(self.root, one, self.found[one].key) for one in stage.inputs}
        for index in range(self.shards):
            low, high = np.searchsorted(ids, [np.uint64(bounds[index])])[0], len(ids)
            if index + 1 < self.shards:
                high = np.searchsorted(ids, [np.uint64(bounds[index + 1])])[0]
            problems = [f"{one:016x}" for one in ids[low:high].tolist()]
            with Tables(folder, index, self.shards) as tables:
                if op.makes is Kind.PROBLEMS:
                    tables.add_made(Table.PROBLEMS, self._problems(problems))
                    judged = _judged(problems, problems)
                elif op.makes is Kind.TRACES:
                    made = self._traces(stage_id, problems, stage.params.samples)
                    tables.add_made(Table.TRACES, made)
                    judged = _judged(made["problem_id"].to_pylist(), made["id"].to_pylist())
                    self.traces.setdefault(stage_id, {})[index] = made.select(["problem_id", "id"])
                else:
                    judged = self._verdicts([self.traces[one][index] for one in stage.inputs])
                columns = [column_for(name, declared) for name in judged.column_names[7:]]
                tables.add_judged(judged, columns)
                span = Span.of(index, self.shards)
                tokens = {one: input_token(inputs[one], self.shards, span) for one in stage.inputs}
                records.append(folder.write_shard(index, self.shards, tables, "bench", tokens))
        tally = records[0].tally
        for record in records[1:]:
            tally += record.tally
        digests = {one: inputs[one].record().digest for one in stage.inputs}  # type: ignore[union-attr]
        folder.write_record(
            StageRecord(
                stage=stage_id,
                key=key,
                gives=kinds_of(self.pipeline)[stage_id],
                makes=op.makes,
                judges=op.judges,
                shards=self.shards,
                inputs=digests,
                digest=stage_digest((one.digest for one in records), digests),
                tally=tally,
                columns=records[0].columns,
                finished=time.time(),
            )
        )

    def _problems(self, ids: list[str]) -> pa.Table:
        questions = [f"What is the value of number {one} of the list?" for one in ids]
        return _table(Table.PROBLEMS, {"problem_id": ids, "id": ids, "question": questions, "answer": ids}, len(ids))

    def _traces(self, stage_id: str, problems: list[str], samples: int) -> pa.Table:
        owners = [one for one in problems for _ in range(samples)]
        ids = [f"{one:016x}" for one in self.rng.integers(0, 2**63, len(owners), np.uint64).tolist()]
        order = sorted(range(len(ids)), key=lambda at: (owners[at], ids[at]))
        owners, ids = [owners[at] for at in order], [ids[at] for at in order]
        starts = self.rng.integers(0, len(self.pool) - self.characters, len(ids)).tolist()
        texts = [self.pool[start : start + self.characters] for start in starts]
        self.text += self.characters * len(ids)
        values = {
            "problem_id": owners,
            "id": ids,
            "op": ["sample"] * len(ids),
            "stage": [stage_id] * len(ids),
            "teacher": ["teacher"] * len(ids),
            "style": [stage_id] * len(ids),
            "reasoning": texts,
            "answer_text": ["The answer is 7."] * len(ids),
            "thinking": ["closed"] * len(ids),
            "finish_reason": ["stop"] * len(ids),
            "completion_tokens": self.rng.integers(100, 4000, len(ids)).tolist(),
            "reasoning_characters": [self.characters] * len(ids),
            "answer_characters": [16] * len(ids),
        }
        return _table(Table.TRACES, values, len(ids))

    def _verdicts(self, traces: list[pa.Table]) -> pa.Table:
        rows = pa.concat_tables(traces).sort_by([("problem_id", "ascending"), ("id", "ascending")])
        right = self.rng.random(rows.num_rows) < 0.75
        outcome = np.where(right, "correct", "incorrect")
        count = rows.num_rows
        verdict = pa.StructArray.from_arrays(
            [
                pa.array(outcome),
                pa.array([str(one) for one in self.rng.integers(0, 10**6, count).tolist()]),
                pa.array(np.zeros(count, np.int64)),
                pa.array(np.full(count, 7)),
                pa.array(["exact"] * count),
                pa.array(["math"] * count),
                pa.array(["1"] * count),
                pa.nulls(count, pa.string()),
            ],
            fields=list(VERDICT_TYPE),
        )
        judged = _judged(rows["problem_id"].to_pylist(), rows["id"].to_pylist())
        judged = judged.append_column(VERDICT.name, verdict)
        return judged.append_column("pass_rate", pa.array(self.rng.integers(0, 5, count) / 4))


def _table(table: Table, values: dict[str, list[object]], count: int) -> pa.Table:
    empty: dict[pa.DataType, object] = {pa.string(): "", pa.int64(): 0, pa.float64(): 0.0}
    schema = schema_of(table)
    arrays = []
    for field in schema:
        if field.name in values:
            arrays.append(pa.array(values[field.name], field.type))
        elif field.nullable:
            arrays.append(pa.nulls(count, field.type))
        else:
            arrays.append(pa.array([empty[field.type]] * count, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _judged(problem_ids: list[str], ids: list[str]) -> pa.Table:
    count = len(ids)
    schema = schema_of(Table.JUDGED)
    columns = {
        "problem_id": problem_ids,
        "id": ids,
        "kept": [True] * count,
        "failed": [False] * count,
        "owed": [False] * count,
        "reason": [None] * count,
        "detail": [None] * count,
    }
    return pa.Table.from_pydict(columns, schema=schema)
