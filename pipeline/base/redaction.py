"""Secrets in text: what is printed, written or logged has *** where a password, a token or a key would stand.

Two means. By form: what stands where addresses, queries, ODBC strings, headers and assignments hold secrets. By value: what
this process knows to be secret, from its environment and from addresses that it was given (`learn`), wherever it stands and
however it is encoded. Imports the standard library alone.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TextIO
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"
# A shorter value, or a number, is hidden by its form alone: hidden wherever it stands, it would spoil other words.
SHORTEST = 6

# Of an address: the user and the password, which go with the @. They end at the last @ before the path; where a password
# holds a slash, which SQLAlchemy takes, before a blank or a quote. A colon that a port follows begins no password there. A
# user without a password is a token in http's addresses alone: in others it may be half of the place (abfs://CONTAINER@HOST).
_SIGN = r"[^\s'\"<>]"
_DATABASE = r"(?:postgres(?:ql)?|mysql|mariadb|mssql|oracle|cockroachdb)(?:\+\w+)?://"
_SLASHES = r"(?:(?<=:)|(?<![\w./~:-]))//"
_LOGINS = (
    rf"{_DATABASE}(?P<database>[^:@/\s'\"]*:(?:(?!://){_SIGN})*)@",
    r"https?://(?P<http>[^/\s'\"<>?#]+)@",
    rf"{_SLASHES}(?P<plain>[^/\s'\"<>?#:@]*:[^/\s'\"<>?#]*)@",
    rf"{_SLASHES}(?P<slash>[^:@/\s'\"<>?#\[]*:(?!\d+(?:[/?#\s]|$))(?:(?!://){_SIGN}){{1,512}})@",
    r"%3A%2F%2F(?P<encoded>(?:(?!%2F|%3F|%23)[^\s'\"<>&/])+)%40",
)
_ADDRESS = re.compile("|".join(_LOGINS), re.IGNORECASE)

# What stands behind such a name is secret; the short names count as a parameter of an address alone.
_NAME = r"(?:pass(?:word|wd|phrase)|secret|token|signature|credentials?|(?:api|access|account|private|secret|shared)[_-]?key)"
_SHORT_NAME = r"(?:(?<=[;?&{\"'=])|(?<=%3B)|(?<=%3D)|(?<=%7B)|(?<=%26)|(?<=%3F))(?:pwd|pass|sig|auth)"
_QUOTED = r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'"
_OPENS = r"(?![\"']\s*(?:[,}\]:]|$))"  # the quote that comes is none that ends a text of JSON
_BRACED, _ENCODED_BRACED = r"\{[^}\s]*\}", r"%7B(?:(?!%7D)[^&\s'\"<>])*(?:%7D|(?=[&\s'\"<>]|$))"
_GIVEN = re.compile(
    "|".join(
        (
            # name=value: ends at the next & of a query, at the next ;name= of an ODBC string, at a blank or a quote.
            rf"(?:{_NAME}|{_SHORT_NAME})=(?P<value>{_BRACED}|{_OPENS}(?:{_QUOTED})|(?:(?!;[\w ]+=)[^&\s'\"<>])+)",
            # The same in an encoded value of a query.
            rf"(?:{_NAME}|{_SHORT_NAME})%3D(?P<inside>{_ENCODED_BRACED}|(?:(?!%3B\w+%3D|%26)[^&\s'\"<>])+)",
            # "name": "value" of JSON and of Python's dicts.
            rf"(?:{_NAME}|pwd|authorization)[\"']\s*:\s*(?P<item>{_QUOTED})",
            r"authorization\s*:\s*(?:(?:basic|bearer|digest|token|negotiate)\s+)?(?P<header>[^\s'\",;]+)",
            r"\bbearer\s+(?P<bearer>[\w.~+/=-]{8,})",
            # --name value of a command line.
            rf"--[\w.-]{{0,40}}{_NAME}\s+(?P<word>{_QUOTED}|[^\s\"'\\-](?:[^\s\"'\\]|\\[^\"'])*)",
        )
    ),
    re.IGNORECASE,
)

# Environment variables whose value is secret; not those that name a file of secrets, nor TOKENIZERS_PARALLELISM.
_SECRET_VARIABLE = re.compile(rf".*{_NAME}", re.IGNORECASE)

_learnt: set[str] = set()


def without_secrets(text: str) -> str:
    """`text` with *** for the secrets in it, and addresses without user and password. Twice gives what once gives."""
    hidden = _hide(text)
    while hidden != text:
        text, hidden = hidden, _hide(hidden)
    return hidden


def holds_secret(address: str) -> bool:
    """Whether `address` has the form of one with a password or a token."""
    return bool(_ADDRESS.search(address) or _GIVEN.search(address))


def learn(address: str) -> str:
    """Let `without_secrets` know what is secret in `address`, which this process was given. It may lack its scheme.

    Returns the address without it, the same in every environment.
    """
    whole = address if "//" in address else f"//{address}"
    _learnt.update(_secrets_in(whole))
    return _hide_forms(whole).removeprefix("" if whole == address else "//")


def redact(stream: TextIO) -> None:
    """From now on nothing that is written to this stream holds a secret; again changes nothing."""
    if getattr(stream, "redacts", False):
        return
    write = stream.write

    def write_redacted(text: str) -> int:
        write(without_secrets(text))
        return len(text)

    def writelines(lines: Iterable[str]) -> None:
        for line in lines:
            write_redacted(line)

    # Attributes of the stream itself: whoever holds it already prints through them, too.
    for name, value in (("write", write_redacted), ("writelines", writelines), ("redacts", True)):
        setattr(stream, name, value)


def _hide(text: str) -> str:
    # Another thread may remove a variable between the two.
    environment = frozenset((name, value) for name in list(os.environ) if (value := os.environ.get(name)) is not None)
    if values := _values(environment, frozenset(_learnt)):
        text = values.sub(HIDDEN, text)
    return _hide_forms(text)


def _hide_forms(text: str) -> str:
    return _GIVEN.sub(_starred, _ADDRESS.sub(_without_login, text))


def _without_login(match: re.Match[str]) -> str:
    return match[0][: match.start(match.lastgroup) - match.start()] if match.lastgroup else match[0]


def _starred(match: re.Match[str]) -> str:
    assert match.lastgroup
    kept = match[0][: match.start(match.lastgroup) - match.start()]
    secret = match[match.lastgroup]
    mark = secret[0] if secret[0] in "\"'" and secret[-1] == secret[0] and len(secret) > 1 else ""
    return f"{kept}{mark}{HIDDEN}{mark}"


@lru_cache(maxsize=8)
def _values(environment: frozenset[tuple[str, str]], learnt: frozenset[str]) -> re.Pattern[str] | None:
    """What finds the secrets that are known by value."""
    known = {*learnt, *_secrets_of(dict(environment))}
    spelt = {
        spelling
        for value in known
        if len(value) >= SHORTEST and not value.isdecimal()
        for spelling in _spellings(value)
    }
    return re.compile("|".join(map(re.escape, sorted(spelt, key=len, reverse=True)))) if spelt else None


def _secrets_of(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if _SECRET_VARIABLE.fullmatch(name) and not os.path.exists(value):  # the place of a file of secrets is none
            yield value
        yield from _secrets_in(value)
    user, password = (environment.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user and password:
        yield _basic(f"{user}:{password}")


def _secrets_in(text: str) -> Iterator[str]:
    """The values that the forms find, and the header that a client makes of an address's user and password."""
    for match in _ADDRESS.finditer(text):
        assert match.lastgroup
        login = unquote(match[match.lastgroup]) if match.lastgroup == "encoded" else match[match.lastgroup]
        user, colon, password = login.partition(":")
        yield password if colon else user
        yield _basic(unquote(login))
    for match in _GIVEN.finditer(text):
        assert match.lastgroup
        given = match[match.lastgroup].strip("\"'{}")
        yield given
        yield given.rpartition(" ")[2]  # behind the kind that a header names


def _basic(login: str) -> str:
    return base64.b64encode(login.encode()).decode()


def _spellings(value: str) -> Iterator[str]:
    """`value` as addresses, JSON, Python and HTML write it."""
    for plain in {value, unquote(value), unquote_plus(value)}:
        if len(plain) < SHORTEST:
            continue
        encoded = {quote(plain, safe=""), quote(plain), quote_plus(plain), quote(quote(plain, safe=""), safe="")}
        yield from encoded
        yield from (re.sub(r"%..", lambda found: found[0].lower(), one) for one in encoded)
        yield from (plain, json.dumps(plain)[1:-1], repr(plain)[1:-1], html.escape(plain))
