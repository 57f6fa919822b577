"""Steps of reasoning: character ranges of a text, with a kind and the rule that assigned it."""

from __future__ import annotations

from enum import StrEnum

from tracefactory.core.rows import Frozen


class StepKind(StrEnum):
    """The role of a step in the reasoning.

    The kinds follow the nodes of Marco-o1 v2 (arXiv 2503.01461: double_check, reflection, thinking_from_scratch,
    answer) and the verification / core split of Prune-on-Logic (arXiv 2505.14582).
    """

    DERIVATION = "derivation"  # advances the solution; also every step that no rule matches
    VERIFICATION = "verification"  # checks an earlier result
    REFLECTION = "reflection"  # doubts or retracts an earlier result
    RESTART = "restart"  # starts again, or tries another approach
    CONCLUSION = "conclusion"  # states the answer
    FILLER = "filler"  # has no content about the problem


class Granularity(StrEnum):
    """The granularity of the steps."""

    PARAGRAPH = "paragraph"  # blocks of the text
    STEP = "step"  # blocks, split where a sentence changes the direction of the reasoning and in long blocks
    SENTENCE = "sentence"  # sentences; LaTeX, code, lists and tables are not split


class Step(Frozen):
    """Characters [start, end) of a reasoning text; `index` counts from 0, `rule` is the rule that assigned `kind`."""

    index: int
    start: int
    end: int
    kind: StepKind
    rule: str

    def of(self, text: str) -> str:
        """Return the step's characters, including the white space after it."""
        return text[self.start : self.end]
