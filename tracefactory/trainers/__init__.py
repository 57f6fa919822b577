"""Trainers: which views each of them reads, what it supervises, and the configuration that makes it so."""

from tracefactory.trainers import axolotl, llamafactory, open_instruct, trl, verl
from tracefactory.trainers.base import Data, File, Reading, Trainer, snippet

TRAINERS = {
    one.name: one
    for one in (trl.TRL, llamafactory.LLAMA_FACTORY, axolotl.AXOLOTL, verl.VERL, open_instruct.OPEN_INSTRUCT)
}
"""Every trainer by name."""

__all__ = ["TRAINERS", "Data", "File", "Reading", "Trainer", "snippet"]
