"""The kinds of pruner, one file each.

The two names are what the filter `pruned` that version 0.1 wrote into projects imports; new ones use
`tracefactory.pruning`.
"""

from tracefactory.pruning import edited, read_derivation

__all__ = ["edited", "read_derivation"]
