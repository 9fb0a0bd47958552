"""Addresses of MLflow stores: their user and password are used, but never shown or stored."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from urllib.parse import unquote, urlparse

from siclip.errors import UserError


@dataclass(frozen=True)
class Address:
    """A store's URI without user and password, and these two."""

    uri: str
    user: str = ""
    password: str = ""

    @property
    def authorization(self) -> dict[str, str]:
        """The HTTP header that logs in; empty without a user."""
        if not self.user:
            return {}
        both = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Authorization": f"Basic {both}"}


def read_address(uri: str) -> Address:
    """Split a URI; user and password may be percent-encoded.

    Raises:
        UserError: an http(s) URI has no valid server and port, for example because its password has a ``/``.
    """
    if not uri.startswith(("http://", "https://")):
        return Address(uri)
    try:
        parts = urlparse(uri)
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(
            f"tracking URI {without_password(uri)!r} has no valid server and port: write "
            "http(s)://[USER:PASSWORD@]SERVER[:PORT]; in a password write / as %2F, ? as %3F, # as %23 and @ as %40"
        )
    if "@" not in parts.netloc:
        return Address(uri)
    login, _, server = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    return Address(parts._replace(netloc=server).geturl(), unquote(user), unquote(password))


def without_password(uri: str) -> str:
    """The URI of a store without user and password, as it may be shown and written to files."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "sqlite" or "@" not in rest:
        return uri
    server, slash, path = rest.partition("/")
    if "@" in server:
        return f"{scheme}://{server.rpartition('@')[2]}{slash}{path}"
    port = server.rpartition(":")[2]
    if ":" in server and not port.isdigit():  # a password that has a slash
        return f"{scheme}://{rest.rpartition('@')[2]}"
    return uri
