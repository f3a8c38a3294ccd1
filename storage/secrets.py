"""Keeps passwords, tokens and keys out of all that is printed, logged or written."""

import os
import re
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus, unquote

USER = re.compile(
    r"(?<!abfs)(?<!abfss)(?<!wasb)(?<!wasbs)://([^\s/]*@|[^\s/:]*:(?!\d+(?:[/\s]|$))[^\s'\"]*@)", re.IGNORECASE
)
"""The user and password of an address; a password may hold @ and /, and Azure has a container there."""
VALUE = re.compile(
    r"\b((?:[\w.-]*(?:passw(?:or)?d|secret|token)|pwd|sig|signature|key|(?:account|api|access)_?key)=)[^\s&;'\"]+", re.I
)
"""A secret by its name, in an address' query or a connection string."""
NAMES = re.compile(r"(^|_)(PASSWORD|PASSWD|PASS|SECRET|TOKEN|API_?KEY|ACCESS_KEY)$", re.I)
"""Variables whose value is a secret."""
LEAST = 4
"""Shorter secrets are left where they stand alone: every other word would hold them."""
TOKEN = 16
"""Letters of a login without a password, from which on it is taken for a token."""


def hidden(text: str) -> str:
    """The text without the user and password of an address, and without the secrets of the environment and of flags."""
    text = VALUE.sub(r"\1***", USER.sub("://", text))
    for secret in secrets():
        text = text.replace(secret, "***")
    return text


def secrets() -> list[str]:
    """Those of the environment and of addresses among the flags, in all the forms in which a message may show them,
    longest first."""
    found = {value for name, value in os.environ.items() if NAMES.search(name)}
    for value in (*os.environ.values(), *sys.argv):
        if "://" in value and (user := USER.search(value)):
            login = user[1].removesuffix("@")
            _, colon, password = login.partition(":")
            if colon or len(login) >= TOKEN:  # else it is a name, which paths may hold as well
                found |= {password or login, b64encode(unquote(login).encode()).decode()}
    forms = {form(each) for each in found for form in (str, unquote, quote, quote_plus)}
    return sorted((form for form in forms if len(form) >= LEAST), key=len, reverse=True)


@contextmanager
def discreet() -> Iterator[None]:
    """Nothing that is printed in the block shows a secret, whoever prints it; no letter that the terminal cannot show
    is an error."""
    out, err = (cast(TextIO, _Discreet(stream)) if stream else None for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):  # a closed one is None
        yield


class _Discreet:
    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(hidden(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
