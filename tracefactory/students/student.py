"""A student in this process, which renders traces and scores their supervised tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import UserError
from tracefactory.core.token_scores import Ints, TokenScores
from tracefactory.serving.loading import load_model, load_tokenizer
from tracefactory.students.head import ScoringHead, to_host
from tracefactory.students.render import Rendered, Renderer


class Student:
    """A causal language model that scores traces.

    A `score` call needs, for any number of traces, the memory of one forward pass of the transformer body over at most
    `max_batch_tokens` padded tokens (or one trace, if that is longer), its final hidden states twice, and
    `head.peak_bytes(chunk, vocab)`. The output layer is applied only to supervised positions. There is no key/value
    cache and no attention mask: rows are padded on the right, where a causal model does not attend to the padding.

    `render` renders a trace as in training (see `Renderer.render`). `max_tokens` is the longest conversation in tokens,
    None when the model's configuration has no limit.

    Loading raises UserError when the checkpoint cannot be loaded, or when its logits are not the output layer applied
    to the final hidden states.
    """

    def __init__(self, spec: Checkpoint) -> None:
        self.spec = spec
        self.key = spec.key()
        self.tokenizer = load_tokenizer(spec)
        self.renderer = Renderer(self.tokenizer, spec.reasoning)
        self.render = self.renderer.render
        self.model = load_model(spec)
        self.max_tokens: int | None = getattr(self.model.config, "max_position_embeddings", None)
        self._body = self.model.base_model
        check_head(self.model, len(self.tokenizer))
        self._texts: dict[int, str] = {}
        self._head = ScoringHead(self.model.get_output_embeddings(), spec.chunk)

    def score(self, rendered: Sequence[Rendered]) -> list[TokenScores]:
        """Score the supervised tokens of every rendering, in order.

        Raises:
            ValueError: when one is longer than `max_tokens`, because scores beyond it are meaningless.
            ArithmeticError: when the logits are not finite.
        """
        longest = max(map(len, rendered), default=0)
        if self.max_tokens is not None and longest > self.max_tokens:
            raise ValueError(
                f"a rendering of {longest} tokens is longer than the student's {self.max_tokens} positions"
            )
        scores: list[TokenScores | None] = [None] * len(rendered)
        for batch in length_batches([item.stop for item in rendered], self.spec.max_batch_tokens):
            chosen = [rendered[index] for index in batch]
            for index, item in zip(batch, self._score_batch(chosen), strict=True):
                scores[index] = item
        return [item for item in scores if item is not None]

    def states(self, batch: Sequence[Rendered]) -> tuple[Any, Any]:
        """Return the hidden states before the supervised tokens of all renderings, [n, d], and these tokens, [n]."""
        device = self.model.device
        width = max(item.stop for item in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        for row, item in enumerate(batch):
            ids[row, : item.stop] = torch.from_numpy(item.ids[: item.stop])
        with torch.inference_mode():
            hidden = self._body(input_ids=ids.to(device), use_cache=False).last_hidden_state
            # the state at position t predicts token t + 1
            states = torch.cat([hidden[row, item.first - 1 : item.stop - 1] for row, item in enumerate(batch)])
            del hidden
            return states, torch.cat([ids[row, item.first : item.stop] for row, item in enumerate(batch)]).to(device)

    def logits(self, states: Any) -> Any:
        """Return the logits after some hidden states in float32, [n, vocabulary]."""
        with torch.inference_mode():
            return self._head.logits(states)

    def _score_batch(self, batch: Sequence[Rendered]) -> Iterator[TokenScores]:
        logprobs, ranks, entropies, likeliest = to_host(*self._head.score(*self.states(batch)))
        start = 0
        for item in batch:
            part = slice(start, start + item.supervised)
            start = part.stop
            yield TokenScores(
                token_ids=item.ids[item.first : item.stop],
                starts=item.starts,
                ends=item.ends,
                ranks=ranks[part],
                logprobs=logprobs[part],
                entropies=entropies[part],
                body_start=item.body_start,
                text=item.text,
                instead=tuple(self._words(likeliest[part], ranks[part])),
            )

    def _words(self, likeliest: Ints, ranks: Ints) -> Iterator[str | None]:
        """Yield for every token the likeliest token as text, None where the token itself is the likeliest."""
        for token_id, rank in zip(likeliest.tolist(), ranks.tolist(), strict=True):
            if rank == 1:
                yield None
                continue
            if token_id not in self._texts:
                self._texts[token_id] = self.tokenizer.decode([token_id])
            yield self._texts[token_id]


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices into batches of similar length, longest first, with at most `budget` tokens including padding.

    A row longer than the budget is a batch by itself. The longest rows come first, so that insufficient memory is
    detected at once; ties keep their order, so that equal inputs give equal batches.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def check_head(model: Any, tokens: int) -> None:
    """Check that the logits of a model are the output of a linear layer with a row for every token.

    Models with soft caps or scales after the output layer are rejected.

    Args:
        model: a causal language model of transformers.
        tokens: the number of tokens of its tokenizer.

    Raises:
        UserError: when they are not.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        raise UserError(f"{type(model).__name__} has no linear output layer; it cannot be scored as a student")
    if tokens > layer.out_features:
        raise UserError(f"the tokenizer has {tokens} tokens, but the output layer only {layer.out_features}")
    probe = torch.arange(8, device=model.device)[None]
    with torch.inference_mode():
        whole = model(input_ids=probe, use_cache=False).logits
        parts = layer(model.base_model(input_ids=probe, use_cache=False).last_hidden_state)
    if not torch.allclose(whole, parts, rtol=1e-2, atol=1e-2 * float(whole.abs().max())):
        name = type(model).__name__
        raise UserError(f"{name} changes its logits after the output layer; it cannot be scored as a student")
