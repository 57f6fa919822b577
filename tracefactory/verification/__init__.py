"""Verdicts on answers: the interface of verifiers, and a pool of worker processes with deadlines."""

from tracefactory.verification.base import VERIFIERS, Verifier, VerifyTask, check_policy
from tracefactory.verification.pool import VerifierPool
from tracefactory.verification.single import verify_one

__all__ = ["VERIFIERS", "Verifier", "VerifierPool", "VerifyTask", "check_policy", "verify_one"]
