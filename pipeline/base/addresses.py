"""Addresses that may hold a password, as others may read them."""

from __future__ import annotations

import re

_USER = re.compile(r"([\w+.-]+://)[^/\s'\"]*@")


def without_password(text: str) -> str:
    """`text`, an address or a command line, without the user and password in any of its addresses."""
    return _USER.sub(r"\1", text)
