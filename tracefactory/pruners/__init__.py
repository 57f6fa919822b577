"""The pruners, one file each.

The filter `pruned` of projects that version 0.1 created imports the two names from here; new code imports them from
`tracefactory.pruning`.
"""

from tracefactory.pruning import edited, read_derivation

__all__ = ["edited", "read_derivation"]
