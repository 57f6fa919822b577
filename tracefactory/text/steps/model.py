"""What a step of reasoning is: a character range of the text, with a kind and the rule that gave it."""

from __future__ import annotations

from enum import StrEnum

from tracefactory.core.rows import Frozen


class StepKind(StrEnum):
    """What a step does for the answer.

    The types follow the nodes of Marco-o1 v2 (arXiv 2503.01461: double_check, reflection, thinking_from_scratch,
    answer) and the verification / core split of Prune-on-Logic (arXiv 2505.14582).
    """

    DERIVATION = "derivation"  # moves the solution on; also everything no rule speaks about
    VERIFICATION = "verification"  # checks what is already there
    REFLECTION = "reflection"  # doubts or takes back what is already there
    RESTART = "restart"  # begins again, or begins another way
    CONCLUSION = "conclusion"  # states the answer
    FILLER = "filler"  # says nothing about the problem


class Granularity(StrEnum):
    """How fine the steps are."""

    PARAGRAPH = "paragraph"  # blocks of the text
    STEP = "step"  # blocks, opened where a sentence turns the reasoning and where a block runs long
    SENTENCE = "sentence"  # every sentence; LaTeX, code, lists and tables still whole


class Step(Frozen):
    """Characters [start, end) of a reasoning text, number `index` of it (from 0). `rule` says why it has its kind."""

    index: int
    start: int
    end: int
    kind: StepKind
    rule: str

    def of(self, text: str) -> str:
        """Return the step's characters, including the white space that follows it."""
        return text[self.start : self.end]
