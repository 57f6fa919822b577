"""Verdicts on answers: the contract of a verifier and a pool of processes that cannot hang."""

from tracefactory.verification.base import VERIFIERS, Verifier, VerifyTask, check_policy
from tracefactory.verification.pool import VerifierPool
from tracefactory.verification.single import verify_one

__all__ = ["VERIFIERS", "Verifier", "VerifierPool", "VerifyTask", "check_policy", "verify_one"]
