"""The socket that the gateway listens on, and who can reach it there."""

import errno
import ipaddress
import socket

from ..bus.errors import PortBusy
from ..settings import BadSettings
from ..settings.gateway import HttpSettings

BACKLOG = 1024


def listening(settings: HttpSettings) -> socket.socket:
    """A listening socket; whoever connects waits until the gateway runs.

    Raises BadSettings for an address that is none or that others reach, unless that was allowed, and PortBusy.
    """
    host, port = _parsed(settings.listen)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise BadSettings(f"http.listen: {host!r} is no address of this machine: {error}") from None
    if not (settings.insecure or ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback):
        raise BadSettings(
            f"http.listen: other machines reach {settings.listen}, and anybody there may then ask what a client may: "
            "listen on 127.0.0.1, or say that this is meant with --insecure"
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortBusy(settings.listen, "--listen") from None
        raise BadSettings(f"http.listen: {settings.listen} cannot be listened on: {error.strerror}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where it can be reached from this machine."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _parsed(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise BadSettings(f"http.listen: {listen!r} is not HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return host, int(port)
