"""Verdicts on answers: extraction, equivalence, code, and a pool that cannot hang."""

from tracefactory.verifiers.api import verify_one
from tracefactory.verifiers.auto import AutoVerifier
from tracefactory.verifiers.base import VERIFIERS, Verifier, VerifyTask, check_policy
from tracefactory.verifiers.choice import ChoiceVerifier
from tracefactory.verifiers.code import CodeVerifier
from tracefactory.verifiers.math import MathVerifier
from tracefactory.verifiers.plain import ExactVerifier, NumericVerifier, TextVerifier
from tracefactory.verifiers.pool import VerifierPool
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

__all__ = ["VERIFIERS", "Verifier", "VerifierPool", "VerifyTask", "check_policy", "verify_one"]
