"""Pruners: which steps of a reasoning trace stay. Importing the package registers them all."""

from tracefactory.pruners.after_answer import AfterAnswer
from tracefactory.pruners.base import (
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
from tracefactory.pruners.binary_cut import BinaryCut
from tracefactory.pruners.derivation import Derivation, Ruler, derive, edited, read_derivation, restored
from tracefactory.pruners.diff import diff
from tracefactory.pruners.forms import Masked, loss_mask, masked
from tracefactory.pruners.low_information import LowInformation
from tracefactory.pruners.measures import measures
from tracefactory.pruners.preference import Pair, Unpaired, pair
from tracefactory.pruners.reverify import Checked, reverify
from tracefactory.pruners.rewrite import Rewrite
from tracefactory.pruners.sufficient_prefix import SufficientPrefix
from tracefactory.pruners.verification_steps import VerificationSteps

__all__ = [
    "CONTEXT_LENGTH",
    "PRUNERS",
    "AfterAnswer",
    "Asks",
    "BinaryCut",
    "Checked",
    "ConcludeItem",
    "Conclusion",
    "Derivation",
    "LowInformation",
    "Masked",
    "Pair",
    "PruneItem",
    "PruneResult",
    "Pruner",
    "Rewrite",
    "RewriteItem",
    "Ruler",
    "StepScores",
    "Student",
    "SufficientPrefix",
    "Tools",
    "Unpaired",
    "VerificationSteps",
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
