"""The pruners, one file each; importing this package registers them all."""

from tracefactory.pruners import after_answer as after_answer
from tracefactory.pruners import binary_cut as binary_cut
from tracefactory.pruners import low_information as low_information
from tracefactory.pruners import rewrite as rewrite
from tracefactory.pruners import sufficient_prefix as sufficient_prefix
from tracefactory.pruners import verification_steps as verification_steps
