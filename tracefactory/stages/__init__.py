"""Every operation a pipeline can name. Importing this package registers them all."""

from tracefactory.op import OPS, Op
from tracefactory.stages import filter, mix, prune, publish, sample, source, source_traces, verify

__all__ = ["OPS", "Op", "filter", "mix", "prune", "publish", "sample", "source", "source_traces", "verify"]
