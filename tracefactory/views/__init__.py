"""The published forms of a trace. Importing this package registers all of them."""

from __future__ import annotations

from tracefactory.views import chat, masked, preference, raw, sft
from tracefactory.views.base import TRACKING, VIEWS, View, ViewError, tables, view

__all__ = ["TRACKING", "VIEWS", "View", "ViewError", "chat", "masked", "preference", "raw", "sft", "tables", "view"]
