"""The contrast of an expert and an amateur model at every token of a trace (LightReasoner, arXiv 2510.07962).

At each position both models give a distribution over the whole vocabulary, P_E and P_A. The paper keeps the positions
with KL(P_E || P_A) >= 0.4; there it trains the expert itself on the soft label softmax(ln P_E - ln P_A) over the tokens
with P_E >= 0.2 max P_E. It looks at text that the expert generated, at most 128 tokens of it, and at no gold answer.
The measures here are of any text, so they say where expert and amateur part ways on this trace, not that it is right.

The divergence needs both whole distributions: log-probabilities of sampled tokens do not give it. So both models are in
this process, and have one vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from tracefactory.core.columns import Column
from tracefactory.core.errors import UserError
from tracefactory.core.fingerprint import digest
from tracefactory.core.refs import Ref
from tracefactory.core.rows import Frozen
from tracefactory.core.token_scores import TokenScores
from tracefactory.students.over import Over
from tracefactory.students.render import Rendered

if TYPE_CHECKING:
    from tracefactory.students.student import Student


class ContrastParams(Frozen):
    """The amateur, and the cut-offs of the paper. The student of the stage is the expert."""

    amateur: Annotated[str, Ref("model")] = Field(
        description="The weaker model, with `use: transformers` and the vocabulary of the student."
    )
    kl: float = Field(default=0.4, ge=0, description="Least divergence of a token that counts, in nats.")
    support: float = Field(
        default=0.2, ge=0, le=1, description="Tokens with at least this share of the expert's best probability count."
    )


def contrast_names(params: ContrastParams) -> tuple[str, str, str]:
    """Return the names of the measures: the mean divergence, the share above the cut-off, the agreement there."""
    return "contrast_kl", f"contrast_share_kl{params.kl:g}", f"contrast_agreement_kl{params.kl:g}"


def contrast_columns(student: str, params: ContrastParams, over: Over) -> list[Column]:
    """Return the columns of `contrast_measures` under a student."""
    mean, share, agreement = (f"{student}/{name}" for name in contrast_names(params))
    source, pair = "arXiv 2510.07962", f"of the student from {params.amateur}"
    return [
        Column(
            name=mean,
            description=f"Mean divergence KL {pair}. Over {over.about}.",
            unit="nats per token",
            source=source,
        ),
        Column(
            name=share,
            description=f"Share of tokens where the divergence {pair} is at least {params.kl:g}. Over {over.about}.",
            unit="share",
            source=source,
        ),
        Column(
            name=agreement,
            description="Mean weight of the trace's own token in the contrastive label of those tokens.",
            unit="probability",
            source=source,
        ),
    ]


def contrast_measures(scores: TokenScores, params: ContrastParams) -> dict[str, float]:
    """Return the measures of a trace; the agreement is missing when no token reaches the cut-off.

    Args:
        scores: the scores of a `Contrast` of the tokens to measure over, at least one.
        params: the cut-offs.
    """
    mean, share, agreement = contrast_names(params)
    chosen = scores.entropies >= params.kl
    found = {mean: float(scores.entropies.mean(dtype=np.float64)), share: float(chosen.mean())}
    weights = np.exp(scores.logprobs[chosen].astype(np.float64))
    return {**found, agreement: float(weights.mean())} if chosen.any() else found


def contrast_of(expert: Any, amateur: Any, tokens: Any, support: float) -> tuple[Any, Any]:
    """Return KL(P_E || P_A) in nats, and the logarithm of a token's weight in the contrastive label, by position.

    The label is the softmax of ln P_E - ln P_A over the tokens with P_E >= support * max P_E; all others have weight 0.

    Args:
        expert: the expert's logits, [n, vocabulary].
        amateur: the amateur's logits, [n, vocabulary].
        tokens: the token at each position, [n].
        support: the share of the best probability that a token of the label needs.
    """
    log_e, log_a = expert.log_softmax(dim=-1), amateur.log_softmax(dim=-1)
    gain = log_e - log_a
    divergence = (log_e.exp() * gain).sum(dim=-1)
    least = log_e.amax(dim=-1, keepdim=True) + math.log(support) if support else -math.inf
    label = gain.masked_fill(log_e < least, -math.inf).log_softmax(dim=-1)
    return divergence, label.gather(-1, tokens[:, None])[:, 0]


def contrast_key(expert: str, amateur: str, params: ContrastParams) -> str:
    """Return the key of stored scores of a pair; the cut-off `kl` needs no other scores."""
    return digest({"contrast": 1, "expert": expert, "amateur": amateur, "support": params.support})


class Contrast:
    """Scores traces by the contrast of two models, with the interface of a `Student`.

    In its scores, `entropies` are the divergences, and `logprobs` the logarithms of a token's weight in the label (-inf
    outside of the support); `ranks` are 0. The text is rendered as for the expert. Both models' logits of `chunk`
    positions are in memory at once.

    Raises:
        UserError: when the models have different vocabularies.
    """

    def __init__(self, expert: Student, amateur: Student, params: ContrastParams) -> None:
        if expert.tokenizer.get_vocab() != amateur.tokenizer.get_vocab():
            raise UserError(
                f"contrast: {params.amateur!r} has another vocabulary than the student, so their distributions cannot "
                "be compared; name a smaller model of the same family"
            )
        self._expert, self._amateur, self._params = expert, amateur, params
        self.render = expert.render
        known = [one.max_tokens for one in (expert, amateur) if one.max_tokens is not None]
        self.max_tokens = min(known, default=None)

    def score(self, rendered: Sequence[Rendered]) -> list[TokenScores]:
        """Score the supervised tokens of every rendering, in order."""
        return [self._scored(item) for item in rendered]

    def _scored(self, item: Rendered) -> TokenScores:
        states, wanted = self._expert.states([item])
        others, _ = self._amateur.states([item])
        chunk, vocabulary = self._expert.spec.chunk, len(self._expert.tokenizer)
        found = [
            contrast_of(
                self._expert.logits(expert)[:, :vocabulary],
                self._amateur.logits(amateur)[:, :vocabulary],
                tokens,
                self._params.support,
            )
            for expert, amateur, tokens in zip(
                states.split(chunk), others.to(states.device).split(chunk), wanted.split(chunk), strict=True
            )
        ]
        divergences, weights = (
            np.concatenate([part.float().cpu().numpy() for part in one]) for one in zip(*found, strict=True)
        )
        return TokenScores(
            token_ids=item.ids[item.first : item.stop],
            starts=item.starts,
            ends=item.ends,
            ranks=np.zeros(item.supervised, dtype=np.int32),
            logprobs=weights,
            entropies=divergences,
            body_start=item.body_start,
        )
