"""Requests in which a row spells a control token, for servers that would make the real token of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.core.pipeline import Pipeline
from tracefactory.text.control_tokens import Marks

_MARKS = Marks()


class PromptCheck:
    """Refuses such requests; the control tokens that the project's own prompts spell are meant."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def refused(self, model: str, requests: Mapping[str, ChatRequest]) -> dict[str, RequestFailed]:
        """Return the failures of requests that are not to be sent, by request key.

        Args:
            model: the name of the model in the pipeline.
            requests: requests without a completion, by key.
        """
        if not self._pipeline.models[model].reads_control_tokens:
            return {}
        spelled = {key: _spelled(_texts(request)) - self._meant for key, request in requests.items()}
        return {key: _failure(model, min(marks)) for key, marks in spelled.items() if marks}

    @cached_property
    def _meant(self) -> frozenset[str]:
        prompts = self._pipeline.prompts.values()
        own = (text for one in prompts for text in (one.body, one.system or "", *map(_content, one.outline())))
        return _spelled(own)


def _texts(request: ChatRequest) -> Iterable[str]:
    return map(_content, request.messages)


def _content(message: Mapping[str, object]) -> str:
    return str(message.get("content") or "")


def _spelled(texts: Iterable[str]) -> frozenset[str]:
    return frozenset[str]().union(*map(_MARKS.every, texts))


def _failure(model: str, mark: str) -> RequestFailed:
    message = f"the row spells {mark}, which the server of {model!r} reads as a control token"
    return RequestFailed("control_token_in_prompt", message, attempts=0, retryable=False)
