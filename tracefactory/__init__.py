"""tracefactory: sample, verify, prune, fit, mix and publish reasoning traces for a named student model."""

__version__ = "0.2.0"
