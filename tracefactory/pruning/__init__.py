"""Pruning: which steps of a reasoning trace stay, and what a pruned row keeps of its parent."""

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
    StepScores,
    Student,
    Tools,
    Verify,
    Writer,
)
from tracefactory.pruning.derivation import Derivation, Ruler, derive, edited, read_derivation, restored
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
    "Masked",
    "Pair",
    "PruneItem",
    "PruneResult",
    "Pruner",
    "RewriteItem",
    "Ruler",
    "StepScores",
    "Student",
    "Tools",
    "Unpaired",
    "Verify",
    "Writer",
    "derive",
    "diff",
    "edited",
    "loss_mask",
    "masked",
    "measures",
    "pair",
    "read_derivation",
    "restored",
    "reverify",
]
