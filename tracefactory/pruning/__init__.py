"""Pruning: select the steps of a reasoning trace to keep, and record how a pruned row derives from its parent."""

from tracefactory.pruning.base import (
    CONTEXT_LENGTH,
    PRUNERS,
    Asks,
    ConcludeItem,
    Conclusion,
    PruneItem,
    Pruner,
    PruneResult,
    RewriteItem,
    ScoreItem,
    Scorer,
    StepScores,
    Student,
    TextScores,
    Tools,
    Verify,
    Writer,
    keep,
    parent,
)
from tracefactory.pruning.derivation import Derivation, LengthCounter, derive, edited, read_derivation, restored
from tracefactory.pruning.diff import diff
from tracefactory.pruning.forms import Masked, loss_mask, masked
from tracefactory.pruning.measures import measures
from tracefactory.pruning.preference import Pair, Unpaired, pair
from tracefactory.pruning.reverify import Checked, reverify

__all__ = [
    "CONTEXT_LENGTH",
    "PRUNERS",
    "Asks",
    "Checked",
    "ConcludeItem",
    "Conclusion",
    "Derivation",
    "LengthCounter",
    "Masked",
    "Pair",
    "PruneItem",
    "PruneResult",
    "Pruner",
    "RewriteItem",
    "ScoreItem",
    "Scorer",
    "StepScores",
    "Student",
    "TextScores",
    "Tools",
    "Unpaired",
    "Verify",
    "Writer",
    "derive",
    "diff",
    "edited",
    "keep",
    "loss_mask",
    "masked",
    "measures",
    "pair",
    "parent",
    "read_derivation",
    "restored",
    "reverify",
]
