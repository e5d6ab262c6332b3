"""Check of the Host header, with which a server refuses requests that a foreign web page sends to it (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import re
import socket

#: a Host header: a name or an address (IPv6 in brackets), optionally with a port; user@ is not allowed
HOST = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<address>[0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def allowed(header: str, bound: str) -> bool:
    """True if a Host header names this server: a loopback name or the address `bound`.

    A server bound to all addresses accepts any address, but only its own name, because DNS rebinding attacks use names.
    """
    match = HOST.fullmatch(header)
    if match is None:
        return False
    name = (match["name"] or match["address"]).lower()
    if name in (*LOOPBACK, bound.lower()):
        return True
    if bound not in ("0.0.0.0", "::", ""):
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == socket.gethostname().lower()
    return True
