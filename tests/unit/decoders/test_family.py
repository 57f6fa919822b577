"""The small decoders: who writes where, and that the engine needs nothing more for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.unit.decoders.conftest import make_engine, perturbed, tiny
from tests.unit.decoders.reference import draw_one, pool
from tracefactory.decoders.foreal import Foreal
from tracefactory.decoders.reverse_speculative import ReverseSpeculative
from tracefactory.decoders.speculative_thinking import SpeculativeThinking
from tracefactory.decoders.student_prefix import StudentPrefix
from tracefactory.decoders.teacher_prefix import TeacherPrefix
from tracefactory.decoding.decoder import DECODERS, Decoder, PartialTrace, Role, Turn
from tracefactory.decoding.rollout import RolloutSpec
from tracefactory.sampling.noise import STUDENT, TEACHER

S, T = Role.STUDENT, Role.TEACHER


def written(*pieces: tuple[str, Role]) -> PartialTrace:
    return PartialTrace(7, [text for text, _ in pieces], [role for _, role in pieces])


def writer(decoder: Decoder, *pieces: tuple[str, Role]) -> Role:
    return decoder.turn(written(*pieces)).writer


def test_every_decoder_is_registered() -> None:
    assert set(DECODERS) == {
        "foreal",
        "reverse_speculative",
        "speculative_thinking",
        "student_prefix",
        "teacher_prefix",
    }


def test_the_prefix_decoders_change_the_writer_after_the_prefix() -> None:
    assert [writer(StudentPrefix(tokens=2), *[("a", S)] * n) for n in range(4)] == [S, S, T, T]
    assert [writer(TeacherPrefix(tokens=2), *[("a", T)] * n) for n in range(4)] == [T, T, S, S]


@pytest.mark.parametrize("end", [". ", "!", "?\n", "。", "\n", '."', ".)"])
def test_foreal_lets_the_teacher_begin_each_sentence(end: str) -> None:
    decoder = Foreal(lead=2)
    assert writer(decoder) is T
    assert writer(decoder, (" So", T), (" we", T)) is S
    assert writer(decoder, (" So", T), (" we", T), (" add", S)) is S
    assert writer(decoder, (" So", T), (" we", T), (" add" + end, S)) is T
    assert writer(decoder, (" So", T), (" we", T), (" add" + end, S), (" Then", T)) is T


def test_the_foreal_gate_opens_for_whole_sentences_at_its_rate() -> None:
    decoder, opened = Foreal(lead=3, gate=0.3), 0
    for key in range(600):
        first = [decoder.turn(PartialTrace(key, ["x"] * n, [T] * n)).writer for n in range(4)]
        assert first in ([T, T, T, S], [S, S, S, S])
        opened += first[0] is T
    assert 0.24 < opened / 600 < 0.36


def test_the_teacher_takes_over_where_the_student_reflects() -> None:
    decoder = SpeculativeThinking(opening=2, tokens=3)
    begun = [("So", T), (" it", T)]
    assert [writer(decoder, *begun[:n]) for n in range(3)] == [T, T, S]
    own = [*begun, (" is", S), (" 5.\n\n", S)]
    assert writer(decoder, *own) is S
    assert writer(decoder, *own, ("Then", S)) is S
    assert writer(decoder, *own, ("Wa", S)) is S
    taken = [*own, ("Wa", S), ("it", S)]
    assert writer(decoder, *taken) is T
    assert writer(decoder, *taken, (",", T), (" is", T)) is T
    assert writer(decoder, *taken, (",", T), (" is", T), (" it", T)) is S
    assert writer(decoder, *taken, (",", T), (" is", T), (" it", T), ("?", S)) is S
    assert writer(decoder, *begun, (" Wait", S)) is S  # not at the beginning of a paragraph


class Alternating(Decoder):
    """Judged and free turns in one trace, changing by what is written."""

    name = "alternating"
    version = "1"

    def turn(self, written: PartialTrace) -> Turn:
        if len(written) % 7 < 4:
            return ReverseSpeculative(p=0.1).turn(written)
        return Turn(S if len(written) % 7 < 6 else T)


@pytest.mark.parametrize(
    "decoder",
    [Alternating(), StudentPrefix(tokens=5), TeacherPrefix(tokens=5), Foreal(lead=4, gate=0.6), SpeculativeThinking()],
)
def test_batched_traces_equal_traces_written_alone(tokenizer: Any, decoder: Decoder) -> None:
    teacher = tiny(1)
    student = perturbed(teacher, 0.3)
    specs = [RolloutSpec(tuple(range(3 + 2 * key)), decoder, key, 30) for key in range(4)]
    alone = [finished(make_engine(teacher, student, tokenizer, rows=1), [spec])[0] for spec in specs]
    together = finished(make_engine(teacher, student, tokenizer, rows=3), specs)
    assert [run.tokens for run in together] == [run.tokens for run in alone]
    assert [run.written.writers for run in together] == [run.written.writers for run in alone]


def test_turns_without_a_rule_are_draws_of_the_writer(tokenizer: Any) -> None:
    teacher = tiny(1)
    student = perturbed(teacher, 0.3)
    run = finished(
        make_engine(teacher, student, tokenizer, rows=1), [RolloutSpec((1, 2), StudentPrefix(tokens=6), 3, 14)]
    )[0]
    sequence, settings = [1, 2], ReverseSpeculative()
    for position, token in enumerate(run.tokens):
        model, stream = (student, STUDENT) if position < 6 else (teacher, TEACHER)
        logits = model(input_ids=torch.tensor([sequence])).logits[0, -1]
        assert token == draw_one(pool(logits, 0.7, settings, [])[0], 3, position, stream, [])
        sequence.append(token)


def finished(engine: Any, specs: list[RolloutSpec]) -> list[Any]:
    runs = [engine.add(spec) for spec in specs]
    while engine.busy:
        engine.round()
    return runs
