"""Shortens the waits for batches in every process of a run that has this folder on its PYTHONPATH, Ray's too."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

WAITS = (1.0, 0.3, 1.0, 1.0, 0.3)  # quiet, first_poll, longest_poll, settle, again


class Quick(MetaPathFinder):
    """Finds the module of the waits, and changes their defaults when it is loaded."""

    def find_spec(self, name, path, target=None):
        if name != "tracefactory.serving.batches.tending":
            return None
        spec = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.Times.__init__.__defaults__ = WAITS

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Quick())
