"""Preloaded last for forked processes: the garbage collector leaves alone what is imported by now."""

import gc

import tests.conftest  # noqa: F401 - not written through to the disk

gc.collect()
gc.freeze()
