"""Every operation a pipeline can name. Importing this package registers them all."""

from tracefactory.op import OPS, Op
from tracefactory.stages import consensus, filter, judge, mix, prune, publish, sample, source, source_traces, verify

__all__ = [
    "OPS",
    "Op",
    "consensus",
    "filter",
    "judge",
    "mix",
    "prune",
    "publish",
    "sample",
    "source",
    "source_traces",
    "verify",
]
