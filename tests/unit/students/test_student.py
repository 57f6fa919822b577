from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import Gemma2Config, Gemma2ForCausalLM

from tracefactory.core.errors import UserError
from tracefactory.core.token_scores import TokenScores
from tracefactory.students import Checkpoint, open_student
from tracefactory.students.render import Rendered
from tracefactory.students.student import Student, length_batches

TRACES = [
    ("What is 6 times 7?", "", "6 times 7 is \\boxed{42}."),
    (
        "Natalia sold clips to 48 friends in April, and half as many in May. How many in all?",
        "In May she sold 48/2 = 24 clips.\n\nWait, let me check: half of 48 is 24. Yes.\n\nAltogether 48 + 24 = 72.",
        "She sold \\boxed{72} clips.",
    ),
    ("计算 $3^4$。", "3^4 = 81，因为 9·9 = 81。", "答案是 \\boxed{81}。"),
    (
        "Write a function that reverses a list.",
        "Slicing with a step of -1 copies the list backwards; zxqv flurbish is not a word.",
        "```python\ndef reverse(items: list) -> list:\n    return items[::-1]\n```\n",
    ),
    ("Name a prime.", "2 is even.", "\\boxed{2}"),
]


def render_all(student: Student) -> list[Rendered]:
    return [student.render(*trace) for trace in TRACES]


def reference(student: Student, rendered: list[Rendered]) -> list[Any]:
    """Whole-vocabulary float64 log-probabilities of every supervised position, one trace at a time, unpadded."""
    model = copy.deepcopy(student.model).double()
    with torch.inference_mode():
        return [
            model(input_ids=torch.from_numpy(item.ids[: item.stop]).long()[None])
            .logits[0, item.first - 1 : item.stop - 1]
            .log_softmax(dim=1)
            for item in rendered
        ]


def assert_equal_to_reference(student: Student) -> None:
    """Log-probabilities and entropies within 1e-4; ranks equal, words within 1e-4 of the token's logit aside."""
    rendered = render_all(student)
    scores = student.score(rendered)
    unequal = total = 0
    for item, found, whole in zip(rendered, scores, reference(student, rendered), strict=True):
        assert found.token_ids.tolist() == item.ids[item.first : item.stop].tolist()
        target = whole.gather(1, torch.from_numpy(found.token_ids).long()[:, None])
        np.testing.assert_allclose(found.logprobs, target[:, 0].numpy(), atol=1e-4)
        np.testing.assert_allclose(found.entropies, -(whole.exp() * whole).sum(dim=1).numpy(), atol=1e-4)
        ranks = (whole > target).sum(dim=1).numpy() + 1
        best = (whole > target + 1e-4).sum(dim=1).numpy() + 1
        worst = (whole > target - 1e-4).sum(dim=1).numpy()
        assert (best <= found.ranks).all()
        assert (found.ranks <= np.maximum(worst, best)).all()
        unequal += int((found.ranks != ranks).sum())
        total += len(ranks)
    assert total > 150
    assert unequal <= 0.02 * total


def test_batched_float32_scores_equal_an_unbatched_float64_reference(smollm: Student) -> None:
    assert len(length_batches([item.stop for item in render_all(smollm)], smollm.spec.max_batch_tokens)) < len(TRACES)
    assert_equal_to_reference(smollm)


@pytest.mark.slow
def test_batched_float32_scores_equal_an_unbatched_float64_reference_with_a_large_vocabulary(qwen: Student) -> None:
    assert_equal_to_reference(qwen)


def test_scores_keep_the_order_and_do_not_depend_on_the_batch(smollm: Student) -> None:
    rendered = render_all(smollm)[:3]
    together = smollm.score(rendered)
    for item, among in zip(rendered, together, strict=True):
        [alone] = smollm.score([item])
        np.testing.assert_allclose(alone.logprobs, among.logprobs, atol=1e-4)
    backwards = smollm.score(rendered[::-1])[::-1]
    assert [s.token_ids.tolist() for s in backwards] == [s.token_ids.tolist() for s in together]
    assert smollm.score([]) == []


def test_the_prompt_is_context_but_not_scored(smollm: Student) -> None:
    asked = smollm.render("Repeat: flurbish zxqv", "", "flurbish zxqv")
    unasked = smollm.render("Say something.", "", "flurbish zxqv")
    with_hint, without = smollm.score([asked, unasked])
    assert with_hint.token_ids.tolist() == without.token_ids.tolist()
    assert with_hint.logprobs.sum() > without.logprobs.sum() + 5


def test_a_rendering_past_the_students_positions_is_refused(smollm: Student) -> None:
    limit = smollm.max_tokens
    assert limit == 8192
    long = smollm.render("Count.", "one two three four " * 2500, "Done.")
    assert len(long) > limit
    with pytest.raises(ValueError, match=r"8192 positions"):
        smollm.score([long])


@pytest.mark.slow
def test_a_saved_checkpoint_scores_like_the_gguf_it_came_from(smollm: Student, tmp_path: Path) -> None:
    smollm.model.save_pretrained(tmp_path)  # refused while the quantization marker is in place
    smollm.tokenizer.save_pretrained(tmp_path)
    again = open_student(smollm.spec.model_copy(update={"model": str(tmp_path)}))
    item = smollm.render(*TRACES[1])
    assert same(again.score([again.render(*TRACES[1])])[0], smollm.score([item])[0])
    assert again.key != smollm.key


def same(one: TokenScores, other: TokenScores) -> bool:
    return one.token_ids.tolist() == other.token_ids.tolist() and np.allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_logits_changed_behind_the_output_layer_are_refused(smollm: Student, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    capped = Gemma2Config(vocab_size=49_152, **sizes, **heads, final_logit_softcapping=1e-3)
    Gemma2ForCausalLM(capped).save_pretrained(tmp_path)
    smollm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="changes its logits after the output layer"):
        open_student(Checkpoint(model=str(tmp_path)))


def test_a_tokenizer_with_more_words_than_the_student_is_refused(smollm: Student, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    Gemma2ForCausalLM(Gemma2Config(vocab_size=1_000, **sizes, **heads)).save_pretrained(tmp_path)
    smollm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="49152 tokens, but the output layer only 1000"):
        open_student(Checkpoint(model=str(tmp_path)))


def test_a_missing_checkpoint_file_raises_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.gguf: no such file"):
        open_student(Checkpoint(model=str(tmp_path / "none.gguf")))


def test_a_hub_model_needs_a_revision_and_a_file_does_not() -> None:
    with pytest.raises(ValidationError, match="needs a revision"):
        Checkpoint(model="Qwen/Qwen2.5-0.5B-Instruct")
    assert Checkpoint(model="models/some.gguf").revision is None
    with pytest.raises(ValidationError, match="needs a tokenizer_revision"):
        Checkpoint(model="./some.gguf", tokenizer="Qwen/Qwen2.5-0.5B-Instruct")


def test_the_student_key_changes_only_with_what_changes_scores(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"one")
    spec = Checkpoint(model=str(file))
    file.rename(tmp_path / "b.gguf")
    moved = spec.model_copy(update={"model": str(tmp_path / "b.gguf"), "max_batch_tokens": 1, "chunk": 1})
    key = moved.key()
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    others = [moved.model_copy(update=change) for change in ({"reasoning": "field"}, {"chat_template": template})]
    keys = {key, *(other.key() for other in others)}
    template.write_text("{{ messages[0] }}")
    keys.add(others[1].key())
    file.write_bytes(b"one")
    assert spec.key() == key
    file.write_bytes(b"two")
    keys.add(spec.key())
    assert len(keys) == 5


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [5, 90, 7, 7, 30, 1, 200, 31]
    batches = length_batches(lengths, 100)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert batches[0] == [6]  # longer than the budget: alone, and first
    for batch in batches[1:]:
        assert len(batch) * max(lengths[index] for index in batch) <= 100
    assert len(batches) == 4
