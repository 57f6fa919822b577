"""Steps of reasoning: cutting a text into them without loss, and typing them by rules a person can read."""

from tracefactory.text.steps.classify import classify, classify_all
from tracefactory.text.steps.model import Granularity, Step, StepKind
from tracefactory.text.steps.segment import segment

VERSION = "3"
"""Goes up when some text is cut or typed otherwise than before: part of the key of every stage that works on steps."""

__all__ = ["VERSION", "Granularity", "Step", "StepKind", "classify", "classify_all", "segment"]
