"""Steps of reasoning: cutting a text into them without loss, and typing them by rules a person can read."""

from tracefactory.steps.classify import classify, classify_all
from tracefactory.steps.model import Granularity, Step, StepKind
from tracefactory.steps.segment import segment

__all__ = ["Granularity", "Step", "StepKind", "classify", "classify_all", "segment"]
