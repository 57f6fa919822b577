"""A training is what its job says, is proved in its own process, and survives a kill."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from tests.unit.teaching.conftest import ARGUMENTS, ROWS, job_of
from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.teach import TrainingBudget
from tracefactory.store.trainings import RECORD
from tracefactory.students.render import Renderer
from tracefactory.teaching import training
from tracefactory.teaching.budget import plan_rows, write_plan
from tracefactory.teaching.encoding import digest_of_rows, encode_rows
from tracefactory.teaching.job import MODEL, TRAINER, Arguments, Record, TrainingJob, done
from tracefactory.teaching.training import run_here, train

trainer = pytest.importorskip("tracefactory.teaching.trainer")
pytestmark = pytest.mark.filterwarnings("default")
Lines = list[Mapping[str, Any]]


@pytest.fixture(autouse=True)
def _determinism_as_before() -> Iterator[None]:
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def trained_here(job: TrainingJob, root: Path) -> tuple[Path, Record, Lines]:
    folder = job.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    output: Lines = []
    return folder, run_here(job, folder, output.append), output


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny: Checkpoint, renderer: Renderer) -> TrainingJob:
    return job_of(tmp_path_factory.mktemp("rows"), tiny, renderer)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, job: TrainingJob) -> tuple[Path, Record, Lines]:
    return trained_here(job, tmp_path_factory.mktemp("undisturbed"))


def test_the_record_says_what_was_trained(undisturbed: tuple[Path, Record, Lines], job: TrainingJob) -> None:
    folder, record, output = undisturbed
    rows = trainer.planned_rows(job)
    assert record.rows == len(rows) == len(ROWS)
    assert record.steps == 5  # the last one has a single row
    assert record.tokens == sum(label != -100 for row in rows["labels"].to_pylist() for label in row)
    assert [one["step"] for one in output if "step" in one] == [1, 2, 3, 4, 5]
    assert [one["saved"] for one in output if "saved" in one] == [2, 4]  # the model itself follows the last step
    assert output[-1]["tokens"] == record.tokens
    assert record.curve[-1].loss < record.curve[0].loss
    assert record.lora_rank is None
    assert record.trained_parameters == record.parameters
    assert record.versions["trl"] != "not installed"
    assert record.trainer["max_length"] is None
    assert record.trainer["report_to"] == []
    assert record.trainer["bf16"] is False
    before, loss, *_ = record.mask
    assert before.startswith("not in it")
    assert "assistant" in before
    assert loss.startswith("in the loss")
    assert "<think>" in loss
    assert not (folder / TRAINER).exists()
    assert done(folder) == record


def test_the_weights_are_others_than_before_and_load(undisturbed: tuple[Path, Record, Lines], tiny: Checkpoint) -> None:
    from tracefactory.serving.loading import load_model, load_tokenizer

    folder = undisturbed[0] / MODEL
    after = load_model(Checkpoint(model=str(folder), device="cpu")).state_dict()
    before = load_model(tiny).state_dict()
    assert after.keys() == before.keys()
    assert all((after[name] != before[name]).any() for name in after)
    text = "a b<|im_end|>"
    one, other = (load_tokenizer(Checkpoint(model=path)) for path in (str(folder), tiny.model))
    assert one(text)["input_ids"] == other(text)["input_ids"]


def test_a_killed_training_goes_on_to_the_same_weights(
    undisturbed: tuple[Path, Record, Lines], job: TrainingJob, tmp_path: Path
) -> None:
    def kill_after_a_checkpoint(line: Mapping[str, Any]) -> None:
        if line.get("step") == 3:
            children = psutil.Process().children()  # a test of this process may have started others
            (child,) = [one for one in children if "tracefactory.teaching.training" in one.cmdline()]
            child.kill()

    with pytest.raises(RunError, match="status -9"):
        train(job, tmp_path, kill_after_a_checkpoint)
    folder = job.folder(tmp_path)
    assert done(folder) is None
    (folder / TRAINER / "checkpoint-4").mkdir(exist_ok=True)  # killed while it was written
    (folder / TRAINER / "checkpoint-4" / "whole").unlink(missing_ok=True)
    _, record, output = trained_here(job, tmp_path)
    assert record.resumed_at == 2
    assert next(one["step"] for one in output if "step" in one) == 3
    assert record.files == undisturbed[1].files
    assert record.curve == undisturbed[1].curve
    again = train(job, tmp_path, lambda line: pytest.fail("it was trained already"))
    assert again.reused
    assert again.record == record


@pytest.mark.parametrize("damage", ["record", "weights", "missing", "moved"])
def test_a_damaged_training_is_not_reused(undisturbed: tuple[Path, Record, Lines], tmp_path: Path, damage: str) -> None:
    folder = tmp_path / (undisturbed[0].name if damage != "moved" else "0" * 16)
    shutil.copytree(undisturbed[0], folder)
    weights = folder / MODEL / "model.safetensors"
    if damage == "record":
        (folder / RECORD).write_text((folder / RECORD).read_text()[:-40])
    elif damage == "weights":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "missing":
        weights.unlink()
    assert done(folder) is None


def test_every_argument_the_rows_the_student_and_the_seed_are_in_the_key(
    job: TrainingJob, tiny: Checkpoint, tmp_path: Path
) -> None:
    others: dict[str, Any] = {
        "learning_rate": 0.5,
        "batch_rows": 7,
        "accumulate": 3,
        "warmup": 0.5,
        "schedule": "constant",
        "weight_decay": 0.5,
        "max_length": 99,
        "dtype": "bfloat16",
        "lora_rank": 3,
        "save_every": 77,
        "recompute": True,
        "device": "cuda:1",
    }
    assert others.keys() == Arguments.model_fields.keys()
    jobs = [
        job.model_copy(update={"arguments": ARGUMENTS.model_copy(update={name: one})}) for name, one in others.items()
    ]
    jobs += [job.model_copy(update={"seed": 6}), job.model_copy(update={"rows_digest": "other"})]
    copied = tmp_path / "copy"
    shutil.copytree(tiny.model, copied)
    same = job.model_copy(update={"student": Checkpoint(model=str(copied), device="cpu"), "rows": Path("elsewhere")})
    assert same.key() == job.key()
    (copied / "chat_template.jinja").write_text("another")
    assert len({one.key() for one in (job, same, *jobs)}) == len(jobs) + 2


def test_a_collator_that_unmasks_a_token_stops_before_the_first_step(
    job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling.torch_call

    def on_everything(self: Any, examples: Any) -> Any:
        batch = collate(self, examples)
        batch["labels"] = batch["input_ids"].clone()
        return batch

    monkeypatch.setattr(DataCollatorForLanguageModeling, "torch_call", on_everything)
    with pytest.raises(RunError, match="row 0 of the first batch has other labels than were encoded, from token 0"):
        trained_here(job, tmp_path)
    assert not list(job.folder(tmp_path).rglob("checkpoint-*"))
    assert done(job.folder(tmp_path)) is None


def test_a_batch_is_checked_to_its_padding(job: TrainingJob) -> None:
    import torch

    rows = trainer.planned_rows(job)
    lengths = [len(row) for row in rows["input_ids"][:3].to_pylist()]
    width = max(lengths) + 1

    def batch() -> Any:
        made = {"input_ids": torch.zeros(3, width, dtype=torch.long)}
        made |= {"labels": torch.full((3, width), -100), "attention_mask": torch.zeros(3, width, dtype=torch.long)}
        for number, length in enumerate(lengths):
            for name in ("input_ids", "labels"):
                made[name][number, :length] = torch.tensor(rows[name][number].as_py())
            made["attention_mask"][number, :length] = 1
        return made

    trainer.check_batch(batch(), rows)
    for name, number, place, value in (
        ("labels", 2, width - 1, 0),
        ("labels", 1, lengths[1] - 2, -100),
        ("input_ids", 0, 0, 9),
        ("attention_mask", 1, width - 1, 1),
    ):
        wrong = batch()
        wrong[name][number, place] = value
        with pytest.raises(RunError, match=f"row {number} of the first batch has other {name}.*token {place} on"):
            trainer.check_batch(wrong, rows)


def test_a_dropped_batch_is_an_error(job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer._config

    def dropping(*args: Any) -> Any:
        config = made(*args)
        config.dataloader_drop_last = True
        return config

    monkeypatch.setattr(trainer, "_config", dropping)
    with pytest.raises(RunError, match=r"made 4 steps with \d+ tokens in the loss; the plan has 5"):
        trained_here(job, tmp_path)
    assert done(job.folder(tmp_path)) is None


def test_adapters_are_merged_and_go_on_after_an_interruption(
    job: TrainingJob, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracefactory.serving.loading import load_model

    monkeypatch.setattr(trainer, "FULL_BELOW", 20_000)  # the student has more
    monkeypatch.setattr(trainer, "AUTO_RANK", 2)
    arguments = ARGUMENTS.model_copy(update={"accumulate": 2, "dtype": "bfloat16", "recompute": True})
    small = job.model_copy(update={"arguments": arguments})
    folder, record, _ = trained_here(small, tmp_path)
    assert record.lora_rank == 2
    assert 0 < record.trained_parameters < record.parameters
    assert record.steps == 3  # of four rows
    after = load_model(Checkpoint(model=str(folder / MODEL), device="cpu")).state_dict()
    before = load_model(tiny).state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if (after[name] != before[name]).any()}
    assert changed == {name for name in after if "_proj" in name}

    def stop(line: Mapping[str, Any]) -> None:
        if line.get("step") == 3:
            raise KeyboardInterrupt

    again = small.folder(tmp_path / "again")
    again.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        run_here(small, again, stop)
    resumed = run_here(small, again, lambda line: None)
    assert (resumed.resumed_at, resumed.files) == (2, record.files)


def test_a_loss_that_is_no_number_stops_the_training(job: TrainingJob, tmp_path: Path) -> None:
    from tracefactory.serving.loading import load_model

    student = tmp_path / "student"
    shutil.copytree(job.student.model, student)
    model = load_model(job.student)
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(student)
    with pytest.raises(RunError, match="the loss is nan at step 1"):
        trained_here(job.model_copy(update={"student": Checkpoint(model=str(student))}), tmp_path)


def test_other_rows_than_the_job_was_made_for_are_refused(
    job: TrainingJob, tmp_path: Path, tiny: Checkpoint, renderer: Renderer
) -> None:
    (tmp_path / "other").mkdir()
    other = job_of(tmp_path / "other", tiny, renderer, ROWS[:4])
    nothing = pq.read_table(other.rows).slice(0, 0)
    pq.write_table(nothing, tmp_path / "none")
    empty = digest_of_rows(nothing)
    for wrong, message in (
        (job.model_copy(update={"rows": other.rows}), "it was changed"),
        (job.model_copy(update={"rows": tmp_path / "missing"}), "cannot read the rows"),
        (job.model_copy(update={"rows": tmp_path / "none", "rows_digest": empty}), "there is no row"),
        (job_of(tmp_path, tiny, renderer, max_length=20), r"a row has \d+ tokens; `max_length` is 20"),
    ):
        with pytest.raises(UserError, match=message):
            trainer.planned_rows(wrong)


def test_the_process_names_a_missing_package(job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs torch: pip install 'tracefactory\[teach\]'"):
        train(job, tmp_path)
    assert json.loads((job.folder(tmp_path) / "job.json").read_text())["seed"] == 5


def test_one_device_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, device, visible in (
        (None, "auto", "0"),
        (None, "cuda:2", "2"),
        (None, "cpu", ""),
        ("4,7", "auto", "4"),
        ("4,7", "cuda:1", "7"),
        ("", "auto", ""),
        ("GPU-a", "cuda", "GPU-a"),
    ):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert training._environment(device)["CUDA_VISIBLE_DEVICES"] == visible
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UserError, match="has 1 devices"):
        training._environment("cuda:1")


def test_no_other_device_is_trained_on_than_was_asked_for(
    job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ARGUMENTS.model_copy(update={"device": "cuda"})
    with pytest.raises(UserError, match="finds no GPU"):
        trained_here(job.model_copy(update={"arguments": arguments}), tmp_path)


def test_two_processes_do_not_train_in_one_folder(job: TrainingJob, tmp_path: Path) -> None:
    folder = job.folder(tmp_path)
    folder.mkdir()
    with (folder / "log.txt").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process trains in"):
            run_here(job, folder, lambda line: None)


def test_rows_that_were_cut_are_in_the_record(tiny: Checkpoint, renderer: Renderer, tmp_path: Path) -> None:
    table = encode_rows(ROWS[:3], renderer, 45).table
    file, digest = write_plan(tmp_path, table, plan_rows(table, TrainingBudget(rows=6), 0))
    job = TrainingJob(student=tiny, rows=file, rows_digest=digest, arguments=ARGUMENTS)
    _, record, _ = trained_here(job, tmp_path)
    assert (record.rows, record.cut, record.answers_lost) == (6, 6, 6)
