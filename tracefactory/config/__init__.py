"""Configuration: read and check pipeline files, apply overlays, and return frozen models."""

from tracefactory.config.model import resolved
from tracefactory.config.read import check_project, load_pipeline, unset_variables

__all__ = ["check_project", "load_pipeline", "resolved", "unset_variables"]
