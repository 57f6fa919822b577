"""Where filters that version 0.1 wrote into projects import bands from; new ones use `tracefactory.filters`."""

from tracefactory.filters.api import Band, StudentBand

__all__ = ["Band", "StudentBand"]
