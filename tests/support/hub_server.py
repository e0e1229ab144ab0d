"""A small Hugging Face Hub over folders: the routes that huggingface_hub uses, and switches for what can go wrong."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".onnx", ".onnx_data", ".bin")
"""Files that the Hub would keep in git LFS: listed with their SHA-256."""


@dataclass
class Hub:
    """What the server has, how it misbehaves, and what it was asked.

    token: what a request must carry. gated: files are refused though they are listed. rate_limited: everything is
    refused with 429. cut: file -> bytes after which its next transfer breaks. wrong: file -> what is sent in its place.
    """

    url: str = ""
    revisions: dict[tuple[str, str], tuple[str, Path]] = field(default_factory=dict)
    licence: str | None = None
    token: str | None = None
    gated: bool = False
    rate_limited: bool = False
    cut: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def add(self, repository: str, folder: Path, revision: str = "main") -> str:
        """Publish a folder as a branch -> the commit, which stays when the branch moves on."""
        listing = json.dumps([[name, _digest(folder / name)] for name in _names(folder)])
        commit = hashlib.sha1(f"{repository} {listing}".encode()).hexdigest()
        for name in (revision, commit):
            self.revisions[repository, name] = (commit, folder)
        return commit

    def asked(self, name: str) -> list[str | None]:
        """The Range headers of the requests that fetched a file."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(f"/{name}")]


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A Hub on a free port of loopback."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Refusal(Exception):
    """An answer that is none: a status, and the code that huggingface_hub reads."""

    def __init__(self, status: int, code: str | None = None, **headers: str) -> None:
        self.status = status
        self.headers = {**({"X-Error-Code": code} if code else {}), **headers}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers["Range"]))
        try:
            self._route(path)
        except _Refusal as refusal:
            self._send(b"{}", refusal.status, refusal.headers)

    def _route(self, path: str) -> None:
        if self.hub.rate_limited:
            raise _Refusal(429, **{"Retry-After": "7"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._send_json(self._info(found[1], found[2] or "main"))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            self._send_json(self._tree(found[1], found[2]))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._send_file(*found.groups())
        else:
            raise _Refusal(404)

    def _find(self, repository: str, revision: str) -> tuple[str, Path]:
        if all(repository != known for known, _ in self.hub.revisions):
            raise _Refusal(401, "RepoNotFound")
        if self.hub.token is not None and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            raise _Refusal(401, "RepoNotFound")
        if (repository, revision) not in self.hub.revisions:
            raise _Refusal(404, "RevisionNotFound")
        return self.hub.revisions[repository, revision]

    def _info(self, repository: str, revision: str) -> dict[str, Any]:
        commit, folder = self._find(repository, revision)
        siblings = [
            {"rfilename": name, "size": size, "blobId": _git_sha1(folder / name)}
            | ({"lfs": {"size": size, "sha256": _digest(folder / name), "pointerSize": 100}} if _large(name) else {})
            for name, size in _sizes(folder)
        ]
        card = {"cardData": {"license": self.hub.licence}} if self.hub.licence else {}
        return {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings, "tags": [], **card}

    def _tree(self, repository: str, revision: str) -> list[dict[str, Any]]:
        _, folder = self._find(repository, revision)
        return [
            {"type": "file", "path": name, "size": size, "oid": _git_sha1(folder / name)}
            | ({"lfs": {"size": size, "oid": _digest(folder / name), "pointerSize": 100}} if _large(name) else {})
            for name, size in _sizes(folder)
        ]

    def _send_file(self, repository: str, revision: str, name: str) -> None:
        commit, folder = self._find(repository, revision)
        if self.hub.gated:
            raise _Refusal(403, "GatedRepo")
        if not (folder / name).is_file():
            raise _Refusal(404, "EntryNotFound")
        content = self.hub.wrong.get(name) or (folder / name).read_bytes()
        etag = _digest(folder / name) if _large(name) else _git_sha1(folder / name)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if _large(name):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        start = int((self.headers["Range"] or "bytes=0-")[len("bytes=") :].rstrip("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.hub.cut.pop(name, None) if self.command == "GET" else None
        self._send(content[start:], 206 if start else 200, headers, cut)

    def _send_json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def _send(self, content: bytes, status: int, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _sizes(folder: Path) -> list[tuple[str, int]]:
    return [(name, (folder / name).stat().st_size) for name in _names(folder)]


def _large(name: str) -> bool:
    return name.endswith(LARGE)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
