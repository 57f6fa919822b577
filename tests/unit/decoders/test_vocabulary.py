"""Which vocabularies can decode together: the cases of Qwen2.5 and Qwen3, and unrelated ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.unit.decoders.conftest import byte_tokenizer, make_engine, tiny
from tracefactory.core.errors import UserError
from tracefactory.decoders.reverse_speculative import ReverseSpeculative
from tracefactory.decoding.decoder import Role
from tracefactory.decoding.draft_schedule import DraftPlan, DraftScheduler
from tracefactory.decoding.rollout import Rollout, RolloutSpec
from tracefactory.decoding.vocabulary import compare

QWEN3_ONLY = {"<tool_response>": 151665, "</tool_response>": 151666, "<think>": 151667, "</think>": 151668}


def qwen25() -> Any:
    folder = os.environ.get("TRACEFACTORY_TEST_MODELS", "")
    file = Path(folder) / "qwen2.5-coder-0.5b.gguf"
    if not folder or not file.exists():
        pytest.skip("no qwen2.5-coder-0.5b.gguf: set TRACEFACTORY_TEST_MODELS")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, gguf_file=file.name)


def qwen3(from_qwen25: Any) -> Any:
    """Qwen3's tokenizer: that of Qwen2.5 with four more tokens where Qwen2.5 has nothing."""
    plain = json.loads(from_qwen25.backend_tokenizer.to_str())
    plain["model"]["vocab"] = {text: id for text, id in plain["model"]["vocab"].items() if id < 151665}
    template = plain["added_tokens"][-1]
    plain["added_tokens"] += [
        {**template, "id": id, "content": text, "special": False} for text, id in QWEN3_ONLY.items()
    ]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(plain)), eos_token="<|im_end|>")


def test_the_same_vocabulary_is_identical() -> None:
    found = compare(byte_tokenizer(), byte_tokenizer())
    assert (found.kind, dict(found.translated)) == ("identical", {})
    assert found.proposable.all()
    assert found.sized(300).proposable.sum() == 259


def test_qwen3_as_the_student_of_qwen25_has_its_tags_translated() -> None:
    teacher = qwen25()
    student = qwen3(teacher)
    assert student.encode("<think>") == [151667]
    found = compare(teacher, student)
    assert found.kind == "family"
    assert {text: found.to_teacher(id) for text, id in QWEN3_ONLY.items()} == {
        "<tool_response>": (27, 14172, 9655, 29),
        "</tool_response>": (522, 14172, 9655, 29),
        "<think>": (13708, 766, 29),
        "</think>": (522, 26865, 29),
    }
    assert found.to_teacher(1000) == (1000,)
    assert not found.proposable[list(QWEN3_ONLY.values())].any()
    assert found.proposable[:151665].all()


def test_qwen25_as_the_student_of_qwen3_needs_no_translation_of_its_words() -> None:
    student = qwen25()
    found = compare(qwen3(student), student)
    assert found.kind == "family"
    assert min(found.translated) == 151665
    assert not found.proposable[151665:].any()


def test_unrelated_vocabularies_are_refused_with_an_alternative() -> None:
    other = byte_tokenizer(extra=("the", "and"))
    vocabulary = {text: (id + 7) % 256 for text, id in byte_tokenizer().get_vocab().items() if id < 256}
    plain = json.loads(other.backend_tokenizer.to_str())
    plain["model"]["vocab"], plain["added_tokens"] = vocabulary, []
    shifted = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(plain)))
    with pytest.raises(UserError) as caught:
        compare(shifted, byte_tokenizer(), ("long_teacher", "small"))
    message = str(caught.value)
    assert "long_teacher and small have unrelated vocabularies" in message
    assert "`reverse_speculative`" in message


@pytest.mark.parametrize("drafter", list(Role))
def test_a_token_that_only_the_student_has_is_translated_for_the_teacher(drafter: Role) -> None:
    """The student's last token is unknown to the teacher, and the student writes it often."""
    teacher_tokenizer, student_tokenizer = byte_tokenizer(("<|end|>",)), byte_tokenizer(("<|end|>", "</think>"))
    teacher = tiny(1, size=257)
    student = tiny(4, size=258)
    student.lm_head.weight[257] = 1.2 * student.lm_head.weight[18:40].max(dim=0).values
    vocabulary = compare(teacher_tokenizer, student_tokenizer).sized(257)
    assert vocabulary.to_teacher(257) == tuple(teacher_tokenizer.encode("</think>"))
    decoder = ReverseSpeculative(p=0.3, draws=1, student_temperature=2.0, top_k=100)
    runs = {}
    for length in (1, 6):
        engine = make_engine(
            teacher,
            student,
            student_tokenizer,
            rows=2,
            scheduler=DraftScheduler(DraftPlan(drafter, length)),
            vocabulary=vocabulary,
        )
        added = [engine.add(RolloutSpec((5, 6, 7), decoder, key, 60)) for key in (1, 2, 3)]
        while engine.busy:
            engine.round()
        runs[length] = added
    assert [run.tokens for run in runs[1]] == [run.tokens for run in runs[6]]
    tags = sum(run.tokens.count(257) for run in runs[1])
    assert tags > 0
    assert "".join(run.written.text() for run in runs[1]).count("</think>") == tags
    assert all(told(run) for run in runs[6])


def told(run: Rollout) -> bool:
    """Whether the teacher's sequence is the student's, token by token translated."""
    expected = [id for token in run.sequences[Role.STUDENT] for id in run.vocabulary.to_teacher(token)]
    return run.sequences[Role.TEACHER] == expected
