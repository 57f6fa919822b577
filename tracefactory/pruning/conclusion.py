"""Check that a pruned reasoning leads to the answer: a student concludes from it, without being shown the answer.

The verdict on the answer text of a pruned trace says nothing of its reasoning, because most pruners copy that text from
the parent. Here the student gets the question and the pruned reasoning without the sentences that state the answer,
and has to conclude correctly in `valid` of `samples` completions. Without those sentences, because a student reads the
answer off "Bananas are yellow, so the answer is 17 bananas."

A student may know the answer without any reasoning, or from the numbers in it alone. Controls tell: the same check on
no reasoning, and on the sentences of the reasoning in random order. Where the control without reasoning passes, the
check proves nothing.

Source: the validity test of Efficient Long CoT Reasoning in Small Language Models (arXiv 2505.18440).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from tracefactory.core.rows import Frozen, Outcome, Problem, Trace
from tracefactory.pruning.answers import last_statement, statements
from tracefactory.pruning.base import CONTEXT_LENGTH, ConcludeItem, Stating, Student, Verify, correct
from tracefactory.text.steps.classify import states_answer
from tracefactory.text.steps.protect import protected
from tracefactory.text.steps.sentences import sentence_starts

Control = Literal["empty", "shuffled"]


class Votes(Frozen):
    """The student's answers to one prefix or text.

    `correct` of `samples` were verified as correct, `unsure` is the number on which the verifier failed, `answer` the
    first correct answer text. `error` is why there is an answer missing, a snake_case reason.
    """

    samples: int
    correct: int = 0
    unsure: int = 0
    answer: str | None = None
    error: str | None = None


class Sampling(Frozen):
    """How often the student concludes, and how often it must be right."""

    samples: int = Field(default=1, ge=1, description="Answers of the student to each text; one is greedy.")
    valid: int = Field(default=1, ge=1, description="How many of the answers must be correct.")
    temperature: float = Field(default=0.6, ge=0, description="Sampling temperature, where several are drawn.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.valid > self.samples:
            raise ValueError(f"valid: {self.valid} of {self.samples} samples cannot be correct")
        return self


class Check(Sampling):
    """How the check is made."""

    samples: int = Field(default=4, ge=1, description="Answers of the student to each text; one is greedy.")
    valid: int = Field(default=2, ge=1, description="How many of the answers must be correct.")
    controls: tuple[Control, ...] = Field(
        default=("empty",),
        description="The same check without the reasoning (`empty`, once per problem), and on its sentences in random "
        "order (`shuffled`). Where `empty` passes, the check proves nothing.",
    )


class Evidence(Frozen):
    """The result of the check for one pruned reasoning. `votes` is None when nothing is left without the answer."""

    check: Check
    votes: Votes | None = None
    controls: Mapping[Control, Votes] = Field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the student concluded correctly often enough."""
        return self.votes is not None and self.votes.correct >= self.check.valid

    @property
    def known(self) -> bool:
        """Whether the student concludes correctly without the reasoning too, so that the check proves nothing."""
        return "empty" in self.controls and self.controls["empty"].correct >= self.check.valid

    @property
    def reason(self) -> str | None:
        """Why the parent is kept, None when the check passed."""
        if self.passed:
            return None
        if self.votes is None:
            return "nothing_but_the_answer"
        if self.votes.error == CONTEXT_LENGTH:
            return "too_long_to_conclude"
        return "student_error" if self.votes.error else "not_concluded"


class Text(Frozen):
    """A reasoning text to conclude from. `id` is that of a trace, or of a problem for a text that its traces share."""

    id: str
    problem: Problem
    reasoning: str


async def conclude(
    reasonings: Sequence[tuple[Trace, str, Stating]], check: Check, student: Student, verify: Verify
) -> list[Evidence]:
    """Check pruned reasoning; one batch of requests to the student.

    Args:
        reasonings: parent traces, each with its pruned reasoning and what states an answer in it.
        check: how the check is made.
        student: the student.
        verify: verifies answer texts.
    """
    texts: dict[tuple[str, str], Text] = {}
    for trace, reasoning, stating in reasonings:
        shown = without_answer(reasoning, stating)
        if not shown:
            continue
        texts["pruned", trace.id] = Text(id=trace.id, problem=trace.problem, reasoning=shown)
        if "shuffled" in check.controls:
            mixed = shuffled(shown, seed=trace.id)
            texts["shuffled", trace.id] = Text(id=trace.id, problem=trace.problem, reasoning=mixed)
        if "empty" in check.controls:
            texts["empty", trace.problem_id] = Text(id=trace.problem_id, problem=trace.problem, reasoning="")
    votes = dict(zip(texts, await vote(list(texts.values()), check, student, verify), strict=True))
    found = []
    for trace, _, _ in reasonings:
        keys = {"empty": trace.problem_id, "shuffled": trace.id}
        controls = {name: votes[name, keys[name]] for name in check.controls if (name, keys[name]) in votes}
        found.append(Evidence(check=check, votes=votes.get(("pruned", trace.id)), controls=controls))
    return found


async def vote(texts: Sequence[Text], sampling: Sampling, student: Student, verify: Verify) -> list[Votes]:
    """Let the student conclude from reasoning texts, and verify its answers; one batch each.

    A truncated answer does not count, because its last number can be correct by chance.

    Args:
        texts: the reasoning texts.
        sampling: the number of answers to each text, and their temperature.
        student: the student.
        verify: verifies answer texts.
    """
    temperature = sampling.temperature if sampling.samples > 1 else 0.0
    asked = [
        (
            index,
            ConcludeItem(
                id=text.id,
                question=text.problem.question,
                reasoning=text.reasoning,
                sample=sample,
                temperature=temperature,
            ),
        )
        for index, text in enumerate(texts)
        for sample in range(sampling.samples)
    ]
    replies = await student.conclude([item for _, item in asked]) if asked else []
    replied = [(index, reply) for (index, _), reply in zip(asked, replies, strict=True)]
    finished = [(index, reply.text) for index, reply in replied if reply.error is None and reply.closed]
    verdicts = await verify([(texts[index].problem, text) for index, text in finished]) if finished else []
    errors = {index: reply.error for index, reply in replied if reply.error}
    right: defaultdict[int, list[str]] = defaultdict(list)
    unsure: Counter[int] = Counter()
    for (index, text), verdict in zip(finished, verdicts, strict=True):
        unsure[index] += verdict.outcome is Outcome.VERIFIER_ERROR
        if correct(verdict):
            right[index].append(text)
    return [
        Votes(
            samples=sampling.samples,
            correct=len(right[index]),
            unsure=unsure[index],
            answer=right[index][0] if right[index] else None,
            error=errors.get(index),
        )
        for index in range(len(texts))
    ]


def without_answer(reasoning: str, stating: Stating = "explicit") -> str:
    """Return a reasoning text without the sentences that state an answer, stripped.

    Args:
        reasoning: the text.
        stating: what states an answer. With `result`, the closing result ("So the total is 18.") does, too, wherever
            it is; other results are part of the derivation.
    """
    last = last_statement(reasoning, "result") if stating == "result" else None
    return "".join(
        sentence
        for sentence in _sentences(reasoning)
        if not states_answer(sentence.strip()) and (last is None or last not in statements(sentence, "result"))
    ).strip()


def shuffled(reasoning: str, seed: str) -> str:
    """Return the sentences of a reasoning text in an order that depends on nothing but the text and `seed`."""
    sentences = [sentence.strip() for sentence in _sentences(reasoning)]
    random.Random(f"{seed}\n{reasoning}").shuffle(sentences)
    return "\n".join(sentences)


def _sentences(text: str) -> list[str]:
    spans = [(span.start, span.end) for span in protected(text)]
    return [text[start:end] for start, end in pairwise([0, *sentence_starts(text, 0, len(text), spans), len(text)])]
