"""Measures of the effect of pruning on one trace."""

from __future__ import annotations

from tracefactory.core.columns import Column, Type
from tracefactory.pruning.base import PruneItem, PruneResult
from tracefactory.pruning.conclusion import Evidence
from tracefactory.pruning.derivation import LengthCounter, Unit

CHECK, STATES = "prune_check", "prune_states"
COLUMNS = (
    Column(name="prune_kept_share", description="Characters of the reasoning that are kept.", unit="share"),
    Column(name="prune_kept_steps", description="Steps of the reasoning that are kept.", unit="steps"),
    Column(
        name="prune_tokens_saved",
        description="Tokens that pruning saves over the whole training text, in the student's tokenizer.",
        unit="tokens",
        direction="higher",
    ),
    Column(
        name="prune_tokens_saved_estimated",
        description="The same, estimated from characters and the server's token count of the parent.",
        unit="tokens",
        direction="higher",
    ),
    Column(
        name="prune_characters_saved",
        description="Characters that pruning saves, where no token counts are known.",
        unit="characters",
        direction="higher",
    ),
    Column(name="prune_calls", description="Prefixes or texts that were sent to a model.", unit="calls"),
    Column(name="prune_samples", description="Completions that these calls sampled.", unit="completions"),
    Column(
        name=CHECK,
        type=Type.TEXT,
        description="What was checked of the pruned text in addition to its form. concluded: a student reached the "
        "right answer from the reasoning without the sentences that state it, and not without the reasoning; "
        "uncontrolled: the same, without a control; known: it reached it without the reasoning too, which proves "
        "nothing; searched: the pruner kept what the student concluded from; answer: only the answer text was "
        "verified, which says nothing of the reasoning.",
    ),
    Column(
        name=STATES,
        type=Type.TEXT,
        description="What the pruned reasoning itself states as the answer, last. right: the verifier accepts it; "
        "none: it states no answer; undecided: what it states is no complete value, or the verifier could not decide; "
        "wrong: another answer, for which the parent is kept. after_answer and verification_steps keep the parent for "
        "all but right.",
    ),
    Column(
        name="prune_concluded",
        description="Answers of the student that are right, given the pruned reasoning without its statements of the "
        "answer.",
        unit="share",
        direction="higher",
    ),
    Column(
        name="prune_control_empty",
        description="Answers of the same student that are right without the reasoning.",
        unit="share",
        direction="lower",
    ),
    Column(
        name="prune_control_shuffled",
        description="Answers of the same student that are right given the sentences of the reasoning in random order.",
        unit="share",
        direction="lower",
    ),
)
_SAVED: dict[Unit, str] = {
    "student_tokens": "prune_tokens_saved",
    "estimated_tokens": "prune_tokens_saved_estimated",
    "characters": "prune_characters_saved",
}


def measures(item: PruneItem, result: PruneResult, counter: LengthCounter) -> dict[str, float]:
    """Return the measures of one result.

    `prune_kept_share` is relative to the characters of the parent's reasoning (above 1 if it grew).
    `prune_tokens_saved` is for the whole training text, because the answer text can grow when the reasoning shrinks. It
    is in the student's tokens; without them it is `prune_tokens_saved_estimated` or `prune_characters_saved`.
    `prune_calls` and `prune_samples` count requests to a model.
    """
    parent = item.trace
    pruned = parent.model_copy(update={"reasoning": result.reasoning, "answer_text": result.answer_text})
    return {
        "prune_kept_share": len(result.reasoning) / len(parent.reasoning) if parent.reasoning else 1.0,
        "prune_kept_steps": float(len(result.kept)),
        _SAVED[counter.unit]: float(counter.count(parent.text) - counter.count(pruned.text)),
        "prune_calls": float(result.calls),
        "prune_samples": float(result.samples),
    }


def what_was_checked(evidence: Evidence | None, *, searched: bool) -> str:
    """Return the value of the column `prune_check` for a pruned trace.

    Args:
        evidence: what the student concluded, None where no student was asked.
        searched: whether the pruner itself keeps what the student concludes from.
    """
    if evidence is None:
        return "searched" if searched else "answer"
    if evidence.known:
        return "known"
    return "concluded" if "empty" in evidence.controls else "uncontrolled"


def evidence_measures(evidence: Evidence | None) -> dict[str, float]:
    """Return the shares of right answers of the student that concluded, none where no student was asked."""
    if evidence is None or evidence.votes is None:
        return {}
    shares = {"prune_concluded": evidence.votes} | {
        f"prune_control_{name}": votes for name, votes in evidence.controls.items()
    }
    return {name: votes.correct / votes.samples for name, votes in shares.items()}
