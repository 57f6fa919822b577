"""The worst that a row can hold, and what a trainer would silently do: each is refused, named, or not published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.trainers import release
from tests.trainers.judging import meant
from tests.trainers.proofs import Bench, environment, read
from tests.trainers.students import STUDENTS
from tracefactory.trainers import TRAINERS, Data

pytestmark = pytest.mark.filterwarnings("default")


def needs(trainer: str) -> None:
    if environment(trainer) is None:
        pytest.skip("needs the environments of the trainers: make test-trainers")


def retold(job: dict[str, Any], dataset: dict[str, Any], **config: Any) -> None:
    """Change the dataset's entry in a configuration, and other values of it, as a user might."""
    file = Path(job["folder"], "dataset_info.json")
    if file.exists():
        info = json.loads(file.read_text())
        info["tracefactory"] |= dataset
        file.write_text(json.dumps(info))
    train = Path(job["folder"], "train.yaml")
    values = yaml.safe_load(train.read_text())
    if not file.exists():
        values["datasets"][0] |= dataset
    train.write_text(yaml.safe_dump({**values, **config}))


def test_trl_finds_nothing_to_train_on_in_the_masked_view_as_it_is(bench: Bench) -> None:
    trl = pytest.importorskip("trl")
    from datasets import load_dataset

    rows = load_dataset(str(bench.release), "masked", split="train")
    config = trl.SFTConfig(output_dir=str(bench.folder / "x"), use_cpu=True, report_to=[])
    with pytest.raises(KeyError, match="text"):
        trl.SFTTrainer(model=str(bench.students["Qwen2.5"]), args=config, train_dataset=rows)


def test_a_control_token_in_a_text_becomes_the_real_one(bench: Bench) -> None:
    """This is why publish drops or escapes such rows: the end of the turn would be trained inside of a message."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bench.students["Qwen2.5"])
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "It ends.<|im_end|> And goes on."}]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assert ids.count(tokenizer.eos_token_id) == 1 + len(messages) + 1  # the template has a system message of its own


def test_trl_cuts_no_long_row_short(bench: Bench, tmp_path: Path) -> None:
    long = release.make_by_hand(tmp_path / "long", "messages", release.long_trace())
    (rows,) = read("trl", [bench.job("trl", "messages", "Llama 3", long)])
    (row,) = rows
    assert len(release.LONG) > 200_000
    assert release.LONG.strip() in row["supervised"]


@pytest.mark.parametrize("trainer", ["llamafactory", "verl"])
def test_what_happens_to_a_row_over_the_limit(bench: Bench, tmp_path: Path, trainer: str) -> None:
    needs(trainer)
    long = release.make_by_hand(tmp_path / "long", "messages", release.long_trace())
    (rows,) = read(trainer, [bench.job(trainer, "messages", "Llama 3", long)])
    (row,) = rows
    if trainer == "verl":
        assert "is larger than self.max_length" in row["failed"]
    else:  # docs/trainers.md and the configuration say so
        assert len(row["ids"]) <= 32768
        assert "</think>" not in row["supervised"]


def test_llamafactory_drops_the_reasoning_of_the_chat_view(bench: Bench) -> None:
    needs("llamafactory")
    job = bench.job("llamafactory", "messages", "Qwen3")
    retold(job, {"file_name": str(bench.release / "data" / "chat")})
    (rows,) = read("llamafactory", [job])
    assert len(rows) == len(bench.rows("chat"))
    for row, published in zip(rows, bench.rows("chat"), strict=True):
        for turn in meant("chat", published)[0].turns:
            assert turn.answer in row["supervised"]
            assert not turn.reasoning or turn.reasoning not in row["whole"]


def test_llamafactory_s_openai_format_writes_into_the_system_message(bench: Bench) -> None:
    needs("llamafactory")
    jobs = [bench.job("llamafactory", "messages", student) for student in ("Qwen2.5", "Llama 3")]
    retold(jobs[1], {"formatting": "openai"})
    ours, theirs = read("llamafactory", jobs)
    assert all("detailed thinking off" in row["whole"] for row in theirs)
    assert not any("detailed thinking off" in row["whole"] for row in ours)


def test_llamafactory_has_no_rows_of_pairs_that_are_lists(bench: Bench) -> None:
    needs("llamafactory")
    job = bench.job("llamafactory", "ranking", "Qwen3")
    columns = {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"}
    retold(job, {"file_name": str(bench.release / "data" / "preference"), "columns": columns})
    ((row,),) = read("llamafactory", [job])
    assert "failed" in row


def test_axolotl_reads_train_detail_exactly_unless_the_template_rewrites_the_message(bench: Bench) -> None:
    """This is why the configuration for `masked` makes token ids and labels first."""
    needs("axolotl")
    jobs = [bench.job("axolotl", "messages", student) for student in ("Qwen2.5", "Llama 3", "Qwen3")]
    for job in jobs:
        detail = {"field_messages": "masked_messages", "message_field_training_detail": "train_detail"}
        retold(job, {"name": "masked", "data_files": [f"{bench.release}/data/masked/*.parquet"], **detail})
    *exact, shifted = read("axolotl", jobs)
    place = next(n for n, row in enumerate(bench.rows("masked")) if release.CHECK in str(row))
    (wanted,) = meant("masked", bench.rows("masked")[place])
    assert release.CHECK not in str(wanted.turns[-1].kept)
    for rows, student in zip(exact, ("Qwen2.5", "Llama 3"), strict=True):
        assert rows[place]["supervised"] == f"{wanted.turns[-1].kept}{STUDENTS[student].end}"
    assert "Let me" in shifted[place]["supervised"]  # of the step that was cut
    assert "</think>" not in shifted[place]["supervised"]


def test_trl_writes_arguments_of_the_view_as_it_is_as_json_within_json(bench: Bench) -> None:
    """This is why the configuration for `tool_use` reads them first: Qwen2.5's template writes them as JSON."""
    pytest.importorskip("trl")
    doubled = r'"arguments": "{\"code\": \"print(\\\"sum:\\\",'
    job = bench.job("trl", "tool_use", "Qwen2.5")
    ((right, _),) = read("trl", [job])
    assert doubled not in right["whole"]
    assert r'"arguments": {"code": "print(\"sum:\",' in right["supervised"]
    script = Path(job["folder"], "train.py")
    plain = Path(bench.job("trl", "messages", "Qwen2.5")["folder"], "train.py").read_text()
    places = [Data(str(bench.of(view))).loaded(view) for view in ("messages", "tool_use")]
    assert places[0] in plain
    script.write_text(plain.replace(*places))
    ((wrong, _),) = read("trl", [job])
    assert doubled in wrong["supervised"]


def test_llamafactory_s_openai_format_loses_what_is_said_before_a_call(bench: Bench) -> None:
    """And it writes arguments as JSON within JSON: this is why the configuration converts the view first."""
    needs("llamafactory")
    job = bench.job("llamafactory", "tool_use", "Qwen2.5")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags |= {"observation_tag": "tool", "function_tag": "function", "system_tag": "system"}
    folder = bench.of("tool_use") / "data" / "tool_use"
    retold(job, {"file_name": str(folder), "formatting": "openai", "tags": tags})
    ((row, _),) = read("llamafactory", [job])
    assert "I run it." not in row["whole"]
    assert "A program is safer." not in row["whole"]
    assert r'"arguments": "{\"code\":' in row["supervised"]


def test_verl_fails_on_tools_and_trains_on_nothing(bench: Bench) -> None:
    needs("verl")
    job = bench.job("verl", "messages", "Qwen3")
    train = Path(job["folder"], "train.yaml")
    old, new = str(bench.release / "data" / "messages"), str(bench.of("tool_use") / "data" / "tool_use")
    train.write_text(train.read_text().replace(old, new))
    ((row,),) = read("verl", [job])
    assert "failed" in row


@pytest.mark.parametrize("trainer", ["axolotl", "prm"])
def test_steps_are_labelled_at_their_ends(bench: Bench, tmp_path: Path, trainer: str) -> None:
    needs(trainer)
    steps = release.make_by_hand(tmp_path / "steps", "steps", release.stepped_trace())
    ((row,),) = read(trainer, [{**bench.job("axolotl", "steps", "Qwen2.5", steps), "release": str(steps)}])
    assert row["labels"] == [1, 0]
    first, second = row["ends"]
    assert first == "What comes out?6 * 7 = 42.\n"
    assert second == f"{first}42 + 1 = 44.\n"


def test_verl_reads_the_problems(bench: Bench) -> None:
    needs("verl")
    (rows,) = read("verl", [bench.job("verl", "rlvr", "Qwen3")])
    assert len(rows) == len(bench.rows("rlvr"))
    for row, published in zip(rows, bench.rows("rlvr"), strict=True):
        assert row["raw_prompt"] == published["prompt"]
        assert row["reward_model"] == published["reward_model"]
        assert row["index"] == published["extra_info"]["index"]
        assert row["data_source"] == published["data_source"]
    assert len({row["index"] for row in rows}) == len(rows)


def test_every_trainer_but_open_instruct_is_proved() -> None:
    assert TRAINERS["open_instruct"].proven == "from its documentation"
    assert not [one.name for one in TRAINERS.values() if one.name != "open_instruct" and not one.proven[0].isdigit()]


@pytest.mark.slow
@pytest.mark.parametrize("view", ["sft", "messages", "preference", "masked", "tool_use"])
def test_trl_s_script_trains(bench: Bench, view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    pytest.importorskip("trl")
    job = bench.job("trl", view, "Qwen2.5")
    monkeypatch.chdir(job["folder"])
    if view == "masked":
        runpy.run_path("label.py")
    script = Path("train.py")
    script.write_text(script.read_text().replace('"student"', '"student", use_cpu=True, report_to=[], max_steps=1', 1))
    runpy.run_path("train.py")
    assert list(Path("student").glob("**/*"))
