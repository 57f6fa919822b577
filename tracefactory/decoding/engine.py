"""The in-process engine: one model drafts, the other scores the drafts in one forward pass, for a batch of traces.

The tokens do not depend on the draft length, on which model drafts, or on the other traces of the batch. Every decision
is a function of both models' distributions at its position and of the random numbers of that position. In float64,
results are identical token by token; in float32 they diverge only where two scores, or a score and the threshold, are
closer than the rounding error, because passes of different shapes round differently.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tracefactory.decoding.decoder import Role, Turn
from tracefactory.decoding.draft_schedule import DraftScheduler
from tracefactory.decoding.kv_cache import CachedModel, Feed
from tracefactory.decoding.rollout import Rollout, RolloutSpec
from tracefactory.decoding.rows import fill, remove_finished
from tracefactory.decoding.vocabulary import Vocabulary
from tracefactory.sampling.acceptance import decide, predict_decisions
from tracefactory.sampling.candidates import NO_TOKEN, Candidates, candidates_of
from tracefactory.sampling.noise import STUDENT, TEACHER, Floats, Ints, Noise


@dataclass(eq=False)
class _Draft:
    """The tokens drafted for one rollout in one round. `starts` are the lengths of its sequences before the draft."""

    rollout: Rollout
    turn: Turn
    drafter: Role
    limit: int
    starts: dict[Role, int]
    guesses: list[int] = field(default_factory=list)
    candidates: list[Candidates] = field(default_factory=list)
    logits: list[Any] = field(default_factory=list)
    ended: bool = False

    @property
    def position(self) -> int:
        """The position in the trace of the next token to draft."""
        undecided = 0 if self.turn.rule is None else len(self.guesses)
        return len(self.rollout.tokens) + undecided


class Engine:
    """Writes traces with two models. Row i of both caches holds the same rollout.

    Args:
        models: both models.
        vocabulary: the mapping between their tokens.
        tokenizer: the student's tokenizer.
        stops: the student's stop tokens.
        scheduler: the choice of drafts; None for one that measures both models.
    """

    def __init__(
        self,
        models: Mapping[Role, CachedModel],
        vocabulary: Vocabulary,
        tokenizer: Any,
        stops: frozenset[int],
        scheduler: DraftScheduler | None = None,
    ) -> None:
        self.models, self.vocabulary, self.tokenizer, self.stops = models, vocabulary, tokenizer, stops
        self.scheduler = scheduler or DraftScheduler()
        self.seconds = dict.fromkeys(Role, 0.0)
        self._waiting: deque[Rollout] = deque()
        self._active: list[Rollout] = []  # in the order of their rows

    def add(self, spec: RolloutSpec) -> Rollout:
        """Queue a trace; it starts when a row is free."""
        rollout = Rollout(spec, self.vocabulary, self.tokenizer)
        self._waiting.append(rollout)
        return rollout

    @property
    def busy(self) -> bool:
        """Whether a trace is unfinished."""
        return bool(self._waiting or self._active)

    def round(self) -> list[Rollout]:
        """Advance every active trace by at least one token and return those that finished."""
        self._start_waiting()
        plan = self.scheduler.plan(len(self._active))
        drafts = [self._new_draft(rollout, plan.drafter, plan.length) for rollout in self._active]
        while open_drafts := [draft for draft in drafts if not draft.ended]:
            for role in Role:
                if selected := [draft for draft in open_drafts if draft.drafter is role]:
                    self._draft_token(role, selected)
        for role in Role:
            if selected := [draft for draft in drafts if draft.turn.rule is not None and draft.drafter.other is role]:
                self._score_drafts(role, selected)
        for rollout in self._active:
            for role, model in self.models.items():
                model.truncate(rollout.row, len(rollout.sequences[role]) - 1)  # the next pass feeds the last token
        return remove_finished(self._active, self.models.values())

    def _new_draft(self, rollout: Rollout, drafter: Role, length: int) -> _Draft:
        turn = rollout.spec.decoder.turn(rollout.written)
        starts = {role: len(sequence) for role, sequence in rollout.sequences.items()}
        limit = min(length, rollout.spec.max_tokens - len(rollout.tokens))
        return _Draft(rollout, turn, turn.writer if turn.rule is None else drafter, limit, starts)

    def _draft_token(self, role: Role, drafts: list[_Draft]) -> None:
        """Draft one token for each draft, with one pass of the drafting model."""
        model = self.models[role]
        feeds = []
        for draft in drafts:
            feeds.append(Feed(draft.rollout.row, draft.rollout.sequences[role][model.lengths[draft.rollout.row] :], 1))
        logits, candidates = self._forward(role, feeds, [draft.rollout for draft in drafts])
        noise = _noise([(draft.rollout, draft.position) for draft in drafts])
        guesses = candidates.draw(noise, TEACHER if role is Role.TEACHER else STUDENT)
        rules = {index: draft.turn.rule for index, draft in enumerate(drafts) if draft.turn.rule is not None}
        if role is Role.STUDENT and rules:
            chosen = np.array(list(rules))
            guesses[chosen] = predict_decisions(list(rules.values()), candidates[chosen], noise[chosen])
        for index in np.flatnonzero(guesses == NO_TOKEN).tolist():
            if drafts[index].turn.rule is None:  # take the teacher's likeliest token that the student has too
                proposable = torch.from_numpy(self.vocabulary.proposable).to(logits.device)
                guesses[index] = int(logits[index].masked_fill(~proposable, -torch.inf).argmax())
        logprobs = _logprobs(logits, candidates, guesses)
        for index, (draft, guess) in enumerate(zip(drafts, guesses.tolist(), strict=True)):
            draft.guesses.append(guess)
            if draft.turn.rule is None:
                draw = 1 if role is Role.TEACHER else 0
                draft.rollout.write(guess, role, draw=draw, logprobs={role: logprobs[index]}, stops=self.stops)
            else:
                draft.candidates.append(candidates[index : index + 1])
                draft.logits.append(logits[index])
            if guess != NO_TOKEN:
                draft.rollout.push([guess])
            draft.ended = (
                guess == NO_TOKEN
                or guess in self.stops
                or guess in self.vocabulary.translated  # its positions differ between the models
                or len(draft.guesses) == draft.limit
                or (draft.turn.rule is None and draft.rollout.spec.decoder.turn(draft.rollout.written) != draft.turn)
            )

    def _score_drafts(self, role: Role, drafts: list[_Draft]) -> None:
        """Score all drafts with the other model in one pass, and decide their tokens by the rule."""
        feeds = []
        for draft in drafts:
            count = len(draft.guesses)
            sequence = draft.rollout.sequences[role][: draft.starts[role] + count - 1]
            feeds.append(Feed(draft.rollout.row, sequence[self.models[role].lengths[draft.rollout.row] :], count))
        positions = [(draft, offset) for draft in drafts for offset in range(len(draft.guesses))]
        logits, scored = self._forward(role, feeds, [draft.rollout for draft, _ in positions])
        drafted = Candidates.concatenate([part for draft in drafts for part in draft.candidates])
        teacher, student = (scored, drafted) if role is Role.TEACHER else (drafted, scored)
        rules = [draft.turn.rule for draft, _ in positions if draft.turn.rule is not None]  # every draft has a rule
        noise = _noise([(draft.rollout, len(draft.rollout.tokens) + offset) for draft, offset in positions])
        decided = decide(rules, teacher, student, noise)
        predicted = predict_decisions(rules, student, noise)
        drafted_logits = [draft.logits[offset] for draft, offset in positions]
        logprobs = {
            role: _logprobs(logits, scored, decided.tokens),
            role.other: _logprobs(drafted_logits, drafted, decided.tokens),
        }
        written: list[int] = []
        for first, draft in zip(np.cumsum([0, *(len(one.guesses) for one in drafts)]), drafts, strict=False):
            kept = self._accept(
                draft, decided.tokens[first:], decided.draws[first:], {r: p[first:] for r, p in logprobs.items()}
            )
            written += range(first, first + kept)
        correct = {Role.TEACHER: decided.draws == 1, Role.STUDENT: decided.tokens == predicted}
        for drafter in (Role.TEACHER, Role.STUDENT):
            self.scheduler.record_guesses(drafter, int(correct[drafter][written].sum()), len(written))

    def _accept(self, draft: _Draft, tokens: Ints, draws: Ints, logprobs: Mapping[Role, Floats]) -> int:
        """Write the decided tokens up to the first that differs from the draft; return how many were written."""
        rollout = draft.rollout
        for offset, guess in enumerate(draft.guesses):
            token, draw = int(tokens[offset]), int(draws[offset])
            token_logprobs = {role: float(values[offset]) for role, values in logprobs.items()}
            writer = Role.TEACHER if draw else Role.STUDENT
            rollout.write(token, writer, draw=draw, logprobs=token_logprobs, stops=self.stops)
            if token != guess:
                self._rewind(draft, offset)
                rollout.push([token])
            elif not rollout.finish and rollout.spec.decoder.turn(rollout.written) != draft.turn:
                self._rewind(draft, offset + 1)
            else:
                continue
            return offset + 1
        return len(draft.guesses)

    def _rewind(self, draft: _Draft, kept: int) -> None:
        """Remove all but the first `kept` guesses. Only a draft's last guess can be several tokens of the teacher."""
        for role, model in self.models.items():
            sequence = draft.rollout.sequences[role]
            end = draft.starts[role] + kept
            if kept < len(draft.guesses):
                del sequence[end:]
            model.truncate(draft.rollout.row, end)

    def _forward(self, role: Role, feeds: Sequence[Feed], rollouts: Sequence[Rollout]) -> tuple[Any, Candidates]:
        """Run a forward pass and return its logits and candidates; `rollouts` names the rollout of each logits row."""
        started = time.perf_counter()
        logits = self.models[role].forward(feeds)
        allowed = self.vocabulary.proposable if role is Role.TEACHER else None
        candidates = candidates_of(logits, [rollout.spec.decoder.sampling(role) for rollout in rollouts], allowed)
        seconds = time.perf_counter() - started
        self.seconds[role] += seconds
        self.scheduler.record_pass(role, sum(len(feed.tokens) for feed in feeds), seconds)
        return logits, candidates

    def _start_waiting(self) -> None:
        """Assign free rows to waiting rollouts and prefill their prompts, except the last token."""
        filled, new = list(self._active), list[Rollout]()
        while self._waiting and len(self._active) < self.models[Role.TEACHER].rows:
            rollout = self._waiting.popleft()
            rollout.row = len(self._active)
            self._active.append(rollout)
            new.append(rollout)
        for role, model in self.models.items():
            prompts = {rollout.row: rollout.sequences[role][:-1] for rollout in new}
            fill(model, prompts, {rollout.row: rollout.sequences[role] for rollout in filled})


def _noise(positions: Sequence[tuple[Rollout, int]]) -> Noise:
    keys = np.array([rollout.spec.key for rollout, _ in positions], dtype=np.uint64)
    return Noise(keys, np.array([position for _, position in positions], dtype=np.int64))


def _logprobs(logits: Any, candidates: Candidates, tokens: Ints) -> Floats:
    """Return the log-probability of one token per position; NaN where the model has no logit for the token."""
    known = [0 <= token < len(row) for row, token in zip(logits, tokens, strict=True)]
    picked = [row[token] if there else row[0] for row, token, there in zip(logits, tokens, known, strict=True)]
    values = torch.stack(picked).double().cpu().numpy() - candidates.totals
    return np.where(known, values, np.nan)
