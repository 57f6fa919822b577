"""The kinds of source, one file each; importing this package registers them all."""

from tracefactory.sources import files as files
from tracefactory.sources import hub_dataset as hub_dataset
from tracefactory.sources import reasoning_gym as reasoning_gym
