"""Addresses of servers: an address says where a server is, never who asks it."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

_NAMES = re.compile(
    r"(.*[-_.])?(api[-_]?)?(key|keys|apikey|token|secret|password|passwd|pwd|pass|auth|authorization|bearer|jwt"
    r"|sig|signature|credentials?|pat|sas|user|username)([-_.].*)?",
    re.IGNORECASE,
)
"""Names of parameters of a query that carry credentials: api_key, key, access_token, X-Amz-Signature ..."""
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(sk-|sk_|hf_|gsk_|ghp_|gho_|github_pat_|glpat-|xox[abprs]-|AIza|AKIA|ya29\.|eyJ|nvapi-|r8_|fw_)"
    r"[A-Za-z0-9_.-]{16,}"
)
"""Tokens by the beginnings that providers give them, wherever they stand."""
_LONG = re.compile(r"(?=[^=]*[0-9])(?=[^=]*[A-Za-z])[A-Za-z0-9_+/=-]{32,}")
"""A value of a query that is as long and as mixed as keys are."""


@lru_cache(maxsize=1024)
def address_fault(address: str) -> str:
    """Return what is wrong with the address of a server, without repeating any of it; empty when nothing is.

    Args:
        address: the address, as it is written in a file or in an environment variable.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "a base URL is a host, a port and a path, such as http://localhost:8000/v1"
    if parts.scheme not in ("http", "https") or not host:
        return "a base URL starts with http:// or https:// and a host"
    where = ""
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        where = "a user or a password"
    elif any(_NAMES.fullmatch(name) or _LONG.fullmatch(value) for name, value in _pairs(parts.query, parts.fragment)):
        where = "a key among its parameters"
    elif _TOKENS.search(address):
        where = "a key"
    return f"a base URL with {where} would be shown and published" if where else ""


REMEDY = "write the address without it, and `api_key: env:NAME`"


def _pairs(*queries: str) -> list[tuple[str, str]]:
    return [pair for query in queries for pair in parse_qsl(query.replace(";", "&"), keep_blank_values=True)]
