"""Sources of problems: reasoning_gym's generators, files, and data sets on the Hugging Face Hub."""

from tracefactory.sources.base import SOURCES, Rejected, Source, normalised_question
from tracefactory.sources.files import Files
from tracefactory.sources.hub_dataset import HubDataset
from tracefactory.sources.reasoning_gym import ReasoningGym

__all__ = ["SOURCES", "Files", "HubDataset", "ReasoningGym", "Rejected", "Source", "normalised_question"]
