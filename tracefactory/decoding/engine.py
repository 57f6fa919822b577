"""The in-process engine: drafts by one model, scored by the other in one pass, many traces at once.

The result does not depend on how it is computed: not on how far ahead is drafted, by which model, or beside which other
traces. Every decision is a function of the two models' distributions at its place and of the randomness of that place.
In float64 runs are identical token by token; in float32 they part only where two scores, or a score and the threshold,
are closer than the arithmetic's error, because passes of other shapes round differently.
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
from tracefactory.decoding.lane import Feed, Lane
from tracefactory.decoding.pace import Pace
from tracefactory.decoding.run import Run, Script
from tracefactory.decoding.vocabulary import Vocabulary
from tracefactory.sampling.acceptance import Acceptance, decide, foresee
from tracefactory.sampling.candidates import NO_TOKEN, Pools, pools_of
from tracefactory.sampling.noise import STUDENT, TEACHER, Floats, Longs, Noise


@dataclass(eq=False)
class _Draft:
    """The tokens drafted for one run in one round. `starts` are the lengths of its sequences before them."""

    run: Run
    turn: Turn
    front: Role
    limit: int
    starts: dict[Role, int]
    guesses: list[int] = field(default_factory=list)
    pools: list[Pools] = field(default_factory=list)
    logits: list[Any] = field(default_factory=list)
    ended: bool = False

    @property
    def position(self) -> int:
        """The position in the trace of the next token to draft."""
        undecided = 0 if self.turn.rule is None else len(self.guesses)
        return len(self.run.tokens) + undecided


class Engine:
    """Writes traces with two models; `Lane`s of both hold the same rows."""

    def __init__(
        self,
        lanes: Mapping[Role, Lane],
        vocabulary: Vocabulary,
        tokenizer: Any,
        stops: frozenset[int],
        pace: Pace | None = None,
    ) -> None:
        self.lanes, self.vocabulary, self.tokenizer, self.stops = lanes, vocabulary, tokenizer, stops
        self.pace = pace or Pace()
        self.seconds = dict.fromkeys(Role, 0.0)
        self._waiting: deque[Run] = deque()
        self._active: list[Run] = []  # the run of row i is at place i

    def add(self, script: Script) -> Run:
        """Queue a trace; it is begun as soon as a row is free."""
        run = Run(script, self.vocabulary, self.tokenizer)
        self._waiting.append(run)
        return run

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._active)

    def round(self) -> list[Run]:
        """Advance every active trace by at least one token and return those that ended."""
        self._admit()
        plan = self.pace.plan(len(self._active))
        drafts = [self._begin(run, plan.front, plan.length) for run in self._active]
        while open_drafts := [draft for draft in drafts if not draft.ended]:
            for role in Role:
                if mine := [draft for draft in open_drafts if draft.front is role]:
                    self._advance(role, mine)
        for role in Role:
            if mine := [draft for draft in drafts if draft.turn.rule is not None and draft.front.other is role]:
                self._settle(role, mine)
        for run in self._active:
            for role, lane in self.lanes.items():
                lane.keep(run.row, len(run.sequences[role]) - 1)  # the last token is always fed anew
        return self._release()

    def _begin(self, run: Run, front: Role, length: int) -> _Draft:
        turn = run.script.decoder.turn(run.written)
        starts = {role: len(sequence) for role, sequence in run.sequences.items()}
        limit = min(length, run.script.max_tokens - len(run.tokens))
        return _Draft(run, turn, turn.writer if turn.rule is None else front, limit, starts)

    def _advance(self, role: Role, drafts: list[_Draft]) -> None:
        """Draft one token for each, after one pass of the model in front."""
        lane = self.lanes[role]
        feeds = []
        for draft in drafts:
            feeds.append(Feed(draft.run.row, draft.run.sequences[role][lane.lengths[draft.run.row] :], 1))
        logits, pools = self._pass(role, feeds, [draft.run for draft in drafts])
        noise = _noise([(draft.run, draft.position) for draft in drafts])
        guesses = pools.draw(noise, TEACHER if role is Role.TEACHER else STUDENT)
        if role is Role.STUDENT and (judged := [i for i, draft in enumerate(drafts) if draft.turn.rule is not None]):
            chosen = np.array(judged)
            guesses[chosen] = foresee([_rule(drafts[i]) for i in judged], pools[chosen], noise[chosen])
        for index in np.flatnonzero(guesses == NO_TOKEN).tolist():
            if drafts[index].turn.rule is None:  # nobody else can say what comes here
                guesses[index] = self._likeliest(logits[index])
        logprobs = _logprobs(logits, pools, guesses)
        for index, (draft, guess) in enumerate(zip(drafts, guesses.tolist(), strict=True)):
            draft.guesses.append(guess)
            if draft.turn.rule is None:
                draw = 1 if role is Role.TEACHER else 0
                draft.run.write(guess, role, draw=draw, logprobs={role: logprobs[index]}, stops=self.stops)
            else:
                draft.pools.append(pools[index : index + 1])
                draft.logits.append(logits[index])
            self._push(draft, guess)

    def _likeliest(self, logits: Any) -> int:
        """Return the teacher's likeliest token among those that the student has."""
        proposable = torch.from_numpy(self.vocabulary.proposable).to(logits.device)
        return int(logits.masked_fill(~proposable, -torch.inf).argmax())

    def _push(self, draft: _Draft, guess: int) -> None:
        """Put a guess into the sequences and see whether to draft on behind it."""
        run = draft.run
        if guess != NO_TOKEN:
            run.push([guess])
        draft.ended = (
            guess == NO_TOKEN
            or guess in self.stops
            or guess in self.vocabulary.translated  # its positions differ between the models
            or len(draft.guesses) == draft.limit
            or (draft.turn.rule is None and run.script.decoder.turn(run.written) != draft.turn)
        )

    def _settle(self, role: Role, drafts: list[_Draft]) -> None:
        """Let the other model score all drafts in one pass, and decide by the rule."""
        feeds = []
        for draft in drafts:
            count = len(draft.guesses)
            sequence = draft.run.sequences[role][: draft.starts[role] + count - 1]
            feeds.append(Feed(draft.run.row, sequence[self.lanes[role].lengths[draft.run.row] :], count))
        places = [(draft, offset) for draft in drafts for offset in range(len(draft.guesses))]
        logits, back = self._pass(role, feeds, [draft.run for draft, _ in places])
        front = Pools.join([pool for draft in drafts for pool in draft.pools])
        teacher, student = (back, front) if role is Role.TEACHER else (front, back)
        rules = [_rule(draft) for draft, _ in places]
        noise = _noise([(draft.run, len(draft.run.tokens) + offset) for draft, offset in places])
        decided = decide(rules, teacher, student, noise)
        foreseen = foresee(rules, student, noise)
        drafted = [draft.logits[offset] for draft, offset in places]
        found = {role: _logprobs(logits, back, decided.tokens), role.other: _logprobs(drafted, front, decided.tokens)}
        settled: list[int] = []
        for first, draft in zip(np.cumsum([0, *(len(one.guesses) for one in drafts)]), drafts, strict=False):
            kept = self._keep(
                draft, decided.tokens[first:], decided.draws[first:], {r: p[first:] for r, p in found.items()}
            )
            settled += range(first, first + kept)
        self.pace.saw(Role.TEACHER, int((decided.draws[settled] == 1).sum()), len(settled))
        self.pace.saw(Role.STUDENT, int((decided.tokens[settled] == foreseen[settled]).sum()), len(settled))

    def _keep(self, draft: _Draft, tokens: Longs, draws: Longs, logprobs: Mapping[Role, Floats]) -> int:
        """Write a draft's tokens as they were decided, up to the first that was not drafted; return how many."""
        run = draft.run
        for offset, guess in enumerate(draft.guesses):
            token, draw = int(tokens[offset]), int(draws[offset])
            given = {role: float(values[offset]) for role, values in logprobs.items()}
            writer = Role.TEACHER if draw else Role.STUDENT
            run.write(token, writer, draw=draw, logprobs=given, stops=self.stops)
            if token != guess:
                self._rewind(draft, offset)
                run.push([token])
            elif not run.finish and run.script.decoder.turn(run.written) != draft.turn:
                self._rewind(draft, offset + 1)
            else:
                continue
            return offset + 1
        return len(draft.guesses)

    def _rewind(self, draft: _Draft, kept: int) -> None:
        """Take back all but the first `kept` guesses; those before the last stand for one token of either model."""
        for role, lane in self.lanes.items():
            sequence = draft.run.sequences[role]
            behind = draft.starts[role] + kept
            if kept < len(draft.guesses):
                del sequence[behind:]
            lane.keep(draft.run.row, behind)

    def _pass(self, role: Role, feeds: Sequence[Feed], asked: Sequence[Run]) -> tuple[Any, Pools]:
        """Feed a model and return its logits and their pools; `asked` is the run of every row of logits."""
        started = time.perf_counter()
        logits = self.lanes[role].run(feeds)
        allowed = self.vocabulary.proposable if role is Role.TEACHER else None
        pools = pools_of(logits, [run.script.decoder.sampling(role) for run in asked], allowed)
        took = time.perf_counter() - started
        self.seconds[role] += took
        self.pace.took(role, sum(len(feed.tokens) for feed in feeds), took)
        return logits, pools

    def _admit(self) -> None:
        """Give free rows to waiting runs and feed their prompts."""
        filled = list(self._active)
        fresh: list[Run] = []
        twins: list[Run] = []
        prompts = {run.script.prompt for run in filled}
        while self._waiting and len(self._active) < self.lanes[Role.TEACHER].rows:
            run = self._waiting.popleft()
            run.row = len(self._active)
            self._active.append(run)
            (twins if run.script.prompt in prompts else fresh).append(run)
            prompts.add(run.script.prompt)
        if fresh and not filled:
            self._fill(fresh[:1], [])  # so that the others find in its row what they begin with
            filled, fresh = fresh[:1], fresh[1:]
        self._fill(fresh, filled)
        self._fill(twins, [*filled, *fresh])

    def _fill(self, runs: Sequence[Run], filled: Sequence[Run]) -> None:
        """Feed prompts, but for their last token. A beginning that some filled row has already is copied from there."""
        for role, lane in self.lanes.items():
            feeds = []
            for run in runs:
                sequence = run.sequences[role][:-1]
                shared = {one.row: _shared(sequence, one.sequences[role][: lane.lengths[one.row]]) for one in filled}
                lane.keep(run.row, 0)
                if any(shared.values()):
                    donor = max(shared, key=shared.__getitem__)
                    lane.copy(donor, run.row, shared[donor])
                if rest := sequence[lane.lengths[run.row] :]:
                    feeds.append(Feed(run.row, rest, 0))
            if feeds:
                lane.run(feeds)

    def _release(self) -> list[Run]:
        """Take out the runs that ended and close the gaps, so that active rows stay next to each other."""
        ended = [run for run in self._active if run.finish]
        for run in ended:
            last = self._active.pop()
            if last is not run:
                for lane in self.lanes.values():
                    lane.copy(last.row, run.row, lane.lengths[last.row])
                last.row = run.row
                self._active[last.row] = last
        return ended


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _rule(draft: _Draft) -> Acceptance:
    assert draft.turn.rule is not None
    return draft.turn.rule


def _noise(places: Sequence[tuple[Run, int]]) -> Noise:
    keys = np.array([run.script.key for run, _ in places], dtype=np.uint64)
    return Noise(keys, np.array([position for _, position in places], dtype=np.int64))


def _logprobs(logits: Any, pools: Pools, tokens: Longs) -> Floats:
    """Return the log-probabilities of one token per place; NaN for one the model has no logit for."""
    known = [0 <= token < len(row) for row, token in zip(logits, tokens, strict=True)]
    picked = [row[token] if there else row[0] for row, token, there in zip(logits, tokens, known, strict=True)]
    values = torch.stack(picked).double().cpu().numpy() - pools.totals
    return np.where(known, values, np.nan)
