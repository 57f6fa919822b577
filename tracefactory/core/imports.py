"""Imports that another thread must not see half done."""

from __future__ import annotations

import threading

TRANSFORMERS = threading.Lock()
"""Held while `transformers` is imported and while `datasets` looks for it. At its end, `transformers` replaces its own
entry of `sys.modules`: a thread that has imported it before keeps the unfinished module, without its classes."""
