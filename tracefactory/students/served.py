"""A student that vLLM serves: the same rendering and scores as in process, except what servers do not report."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.fingerprint import digest
from tracefactory.core.model import RequestFailed
from tracefactory.core.token_scores import TokenScores
from tracefactory.serving.client import ChatClient
from tracefactory.serving.loading import load_tokenizer
from tracefactory.serving.tokens import TokenClient
from tracefactory.students.render import Rendered, Renderer

_PROBED, _LONGEST_PROBE = 16, 256  # tokens of the trace after its prompt, and of both


class ServedStudent:
    """Scores traces through a server's prompt log-probabilities, many traces at once.

    `tokenizer` is the checkpoint whose tokenizer and chat template render the traces. The caller owns `client`.
    `max_tokens` is the longest conversation of the servers. At most `chunk` tokens of a trace are scored per request,
    which limits the logits on the server to chunk * vocabulary * 4 bytes (311 MB for 512 tokens and a vocabulary of
    151,936); between requests the trace stays in the prefix cache. `render` renders a trace (see `Renderer.render`).

    Before the first trace, the servers are probed: they must report the model's own log-probabilities (see
    `serving.logprobs_mode`). They do not report entropies: `entropies` are NaN, and measures of them are omitted. Their
    `ranks` count an exact tie as better; in process it counts as equal.
    """

    def __init__(self, tokenizer: Checkpoint, client: ChatClient, max_tokens: int | None, chunk: int = 512) -> None:
        self.max_tokens = max_tokens
        self.renderer = Renderer(load_tokenizer(tokenizer), tokenizer.reasoning)
        self.render = self.renderer.render
        self._tokens = TokenClient(client)
        self._chunk = chunk

    async def score(self, rendered: Sequence[Rendered]) -> list[TokenScores | RequestFailed]:
        """Score the supervised tokens of every rendering, in order; a failed one does not affect the others.

        Raises:
            RunError, UserError: as `TokenClient.score` and `TokenClient.require_raw` do.
        """
        return list(await asyncio.gather(*map(self._score, rendered)))

    async def _score(self, item: Rendered) -> TokenScores | RequestFailed:
        ids = item.ids[: item.stop].tolist()
        try:
            await self._tokens.require_raw(ids[: min(item.first + _PROBED, _LONGEST_PROBE)])
            scored = await self._tokens.score(ids, start=item.first, chunk=self._chunk, near=digest(ids))
        except RequestFailed as failed:
            return failed
        return TokenScores(
            token_ids=item.ids[item.first : item.stop],
            starts=item.starts,
            ends=item.ends,
            ranks=np.array([row.rank for row in scored.rows], dtype=np.int32),
            logprobs=np.array([row.logprob for row in scored.rows], dtype=np.float32),
            entropies=np.full(len(scored.rows), np.nan, dtype=np.float32),
            body_start=item.body_start,
            text=item.text,
        )
