"""Every operation a pipeline can name. Importing this package registers them all."""

from tracefactory.op import OPS, Op
from tracefactory.stages import (
    consensus,
    decoded,
    filter,
    judge,
    measure,
    mix,
    prune,
    publish,
    sample,
    select,
    source,
    source_traces,
    verify,
)

__all__ = [
    "OPS",
    "Op",
    "consensus",
    "decoded",
    "filter",
    "judge",
    "measure",
    "mix",
    "prune",
    "publish",
    "sample",
    "select",
    "source",
    "source_traces",
    "verify",
]
