"""Segment reasoning texts into steps without loss, and classify the steps by readable rules."""

from tracefactory.text.steps.classify import classify, classify_all
from tracefactory.text.steps.model import Granularity, Step, StepKind
from tracefactory.text.steps.segment import segment

VERSION = "3"
"""Increased when segmentation or classification changes; part of the key of every stage that uses steps."""

__all__ = ["VERSION", "Granularity", "Step", "StepKind", "classify", "classify_all", "segment"]
