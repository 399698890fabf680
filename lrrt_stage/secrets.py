"""What must not be shown or stored: passwords, tokens, and where they are found."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

__all__ = ["HIDDEN", "hide_passwords", "is_hidden", "is_reference", "masked", "remember_secrets"]

HIDDEN = "***"
"""What stands in the place of a secret."""

REFERENCE = re.compile(r"env:[A-Za-z_]\w*")
"""A value that is taken from a variable of the environment."""

WORDS = (
    r"(?:passw(?:or)?d|passphrase|pwd|secret|credential|token(?!i[sz]|s|_?ids?\b)|api[_-]?key"
    r"|access[_-]?key|private[_-]?key|(?<![a-z])(?:auth|authorization|bearer)(?![a-z]))"
)
SECRET_KEY = re.compile(WORDS)
NAME = rf"(?<![\w-])[\w-]*{WORDS}[\w-]*"
VALUE = r"(?!env:|\*\*\*|null\b|none\b|true\b|false\b)"
SECRETS = (
    # In a web address, the password in front of the host, or a token that stands there alone.
    (re.compile(r"(https?://[^:/@\s]*):[^/\s]*@"), r"\1:***@"),
    (re.compile(r"(https?://)[^:/@\s]+@"), r"\1***@"),
    # In a database address, where a password may contain any character.
    (re.compile(r"((?<!http)(?<!https)://[^:/@\s]*):\S*@"), r"\1:***@"),
    # As a parameter of an address, or an option of a driver, where quotation marks may hold spaces.
    (re.compile(rf"(?i)({NAME}=(\\?['\"])){VALUE}(?:(?!\2)(?:\\.|.))+(?=\2)"), r"\1***"),
    (re.compile(rf"(?i)({NAME}=(?:\\?['\"])?){VALUE}(?!\\['\"])[^&;,\s'\"]+"), r"\1***"),
    # In JSON: a text, and what stands without quotation marks, also where it is not well formed.
    (re.compile(rf"(?i)({NAME}\\?['\"]?\s*:\s*(\\?['\"])){VALUE}(?:(?!\2).)+"), r"\1***"),
    (
        re.compile(rf"(?i)([{{,]\s*\\?['\"]?{NAME}\\?['\"]?\s*:\s*){VALUE}[^\s'\",\[\]{{}}\\]+"),
        r"\1***",
    ),
)
HIDDEN_PART = re.compile(r"^\*\*\*$|(?<=[/:=\"'])\*\*\*(?=$|[@&;,\s}\"'\\])")
PASSWORD = re.compile(r"://[^:/@\s]*:(\S*)@")
"""In an address."""
ADDRESS = re.compile(r"(?!https?:)[\w+.-]+://[^:/@\s]*:(.*)@")
"""A value that is the address of a database, in which a password may have spaces."""
SHORTEST = 4
"""A shorter value is part of too many words to be searched for."""
PARTS = re.compile(r"[@/:?#]")
"""Where a driver may end a password that has such a character: it then takes the rest for a host, a
port or a path, and names that in an error."""

_seen: set[str] = set()


def hide_passwords(text: str) -> str:
    """Return a text with ``***`` in place of the passwords and tokens in it.

    These are the ones in addresses, those beside a name such as ``password``, and, wherever they
    stand, the values that :func:`remember_secrets` has met: code that gets a password may repeat
    it in an error.
    """
    text = _without_passwords(text)
    for secret in sorted(_seen, key=len, reverse=True):
        if secret in text:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text


def masked(value: Any, key: str = "", *, references: bool = False) -> Any:
    """Return a value, under this key, without the secrets in it, also inside lists and dicts.

    A value is secret whose key, or a key around it, looks like that of a secret: ``password``,
    ``hf_token``, ``API-KEY``. ``env:NAME`` is none, but with ``references`` it is hidden as well:
    two values that are equal in this form differ in nothing but secrets.
    """
    return _masked(value, _is_secret(key), references)


def remember_secrets(value: Any, *, secret: bool = False) -> None:
    """Have :func:`hide_passwords` know the secrets inside a value; ``secret``: all of it is one."""
    if isinstance(value, dict):
        for key, item in value.items():
            remember_secrets(item, secret=secret or _is_secret(str(key)))
    elif isinstance(value, (list, tuple)):
        for item in value:
            remember_secrets(item, secret=secret)
    elif isinstance(value, int) and value.bit_length() > 64:
        pass  # which is refused, and Python may not be able to write
    elif not _is_harmless(value):
        secrets = [str(value)] if secret else _in_addresses(str(value))
        _seen.update(each for each in secrets if len(each) >= SHORTEST and each != HIDDEN)


def is_reference(value: Any) -> bool:
    """Return whether a value is ``env:NAME``."""
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def is_hidden(value: Any) -> bool:
    """Return whether a text had a secret, which was hidden."""
    return isinstance(value, str) and HIDDEN_PART.search(value) is not None


def _in_addresses(text: str) -> list[str]:
    """Return the passwords in the addresses of a text, as drivers may repeat them."""
    found: list[str] = []
    whole = ADDRESS.match(text)
    for password in [*PASSWORD.findall(text), *(whole.groups() if whole else ())]:
        rests = (password[end.end() :] for end in PARTS.finditer(password))
        found += [password, unquote(password), *rests, *PARTS.split(password)]
    return found


def _without_passwords(text: str) -> str:
    for secret, shown in SECRETS:
        text = secret.sub(shown, text)
    return text


def _masked(value: Any, secret: bool, references: bool) -> Any:
    if isinstance(value, dict):
        return {
            key: _masked(item, secret or _is_secret(str(key)), references)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_masked(item, secret, references) for item in value]
    if secret and not (_is_harmless(value) and not (references and is_reference(value))):
        return HIDDEN
    return _without_passwords(value) if isinstance(value, str) else value


def _is_harmless(value: Any) -> bool:
    return value is None or isinstance(value, bool) or value in ("", HIDDEN) or is_reference(value)


def _is_secret(key: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    return SECRET_KEY.search(re.sub(r"[\s.-]", "_", words)) is not None
