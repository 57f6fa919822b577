"""Every operation a pipeline can name. Importing this package registers them all."""

from tracefactory.core.op import OPS, Op
from tracefactory.publish import stage as publish_stage
from tracefactory.stages.filter import chain
from tracefactory.stages.measure import student
from tracefactory.stages.mix import long_short
from tracefactory.stages.prune import any
from tracefactory.stages.sample import chat, decoded
from tracefactory.stages.select import best
from tracefactory.stages.source import problems, traces
from tracefactory.stages.verify import auto, consensus, judge

__all__ = [
    "OPS",
    "Op",
    "any",
    "auto",
    "best",
    "chain",
    "chat",
    "consensus",
    "decoded",
    "judge",
    "long_short",
    "problems",
    "publish_stage",
    "student",
    "traces",
]
