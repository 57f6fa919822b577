"""Compatibility imports for filters of version 0.1; new filters import from `tracefactory.filters`."""

from tracefactory.filters.api import Band, StudentBand

__all__ = ["Band", "StudentBand"]
