"""The kinds of verifier, one file each; importing this package registers them all."""

from tracefactory.verification.base import VERIFIERS
from tracefactory.verifiers.auto import AutoVerifier
from tracefactory.verifiers.choice import ChoiceVerifier
from tracefactory.verifiers.code import CodeVerifier
from tracefactory.verifiers.math import MathVerifier
from tracefactory.verifiers.plain import ExactVerifier, NumericVerifier, TextVerifier
from tracefactory.verifiers.program import ProgramVerifier
from tracefactory.verifiers.reasoning_gym import ReasoningGymVerifier

for _verifier in (
    AutoVerifier(),
    ChoiceVerifier(),
    CodeVerifier(),
    ExactVerifier(),
    MathVerifier(),
    NumericVerifier(),
    ProgramVerifier(),
    ReasoningGymVerifier(),
    TextVerifier(),
):
    VERIFIERS.register(_verifier.name)(_verifier)
