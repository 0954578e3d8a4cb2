"""A bucket in this process: for etils.epath through fsspec, and for TensorStore over HTTP.

It is an object store as far as this project relies on one: objects appear whole when they are
written, folders are the beginnings of names, and nothing can be renamed.
"""

import contextlib
import io
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec
import pytest
from etils.epath import backend
from fsspec.spec import AbstractFileSystem

# By name, with the bucket's in front.
OBJECTS: dict[str, bytes] = {}
# Called with every write and removal before it is done.
WATCH: list[Callable[[str, str], None]] = []


def _tell(what: str, name: str) -> None:
    for watch in WATCH:
        watch(what, name)


def put(name: str, content: bytes) -> None:
    """Writes an object."""
    _tell("put", name)
    OBJECTS[name] = content


def drop(name: str) -> None:
    """Removes one."""
    if name not in OBJECTS:
        raise FileNotFoundError(name)
    _tell("drop", name)
    del OBJECTS[name]


class _Upload(io.BytesIO):
    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def close(self) -> None:
        if not self.closed:
            put(self.name, self.getvalue())
        super().close()


class FakeGcs(AbstractFileSystem):
    """What gcsfs does, as far as it is used."""

    protocol = ("gcs", "gs")
    cachable = False

    def _open(self, path: str, mode: str = "rb", **named: Any) -> Any:
        name = str(self._strip_protocol(path))
        if "w" in mode:
            return _Upload(name)
        if name not in OBJECTS:
            raise FileNotFoundError(path)
        return io.BytesIO(OBJECTS[name])

    def info(self, path: str, **named: Any) -> dict[str, Any]:
        """Size and kind."""
        name = str(self._strip_protocol(path))
        if name in OBJECTS:
            return {"name": name, "size": len(OBJECTS[name]), "type": "file"}
        if any(other.startswith(f"{name}/") for other in OBJECTS):
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **named: Any) -> list[Any]:
        """What is in a folder."""
        name = str(self._strip_protocol(path))
        start = f"{name}/"
        below = {start + o[len(start) :].split("/")[0] for o in OBJECTS if o.startswith(start)}
        if not below and name not in OBJECTS:
            raise FileNotFoundError(path)
        found = sorted(below) or [name]
        return [self.info(one) for one in found] if detail else found

    def mkdir(self, path: str, create_parents: bool = True, **named: Any) -> None:
        """Does nothing."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Does nothing."""

    def rm_file(self, path: str) -> None:
        """Removes an object."""
        drop(str(self._strip_protocol(path)))

    def mv(self, *arguments: Any, **named: Any) -> None:
        """Is not possible."""
        raise AssertionError("nothing is renamed in a bucket")

    rename = mv


class _Handler(BaseHTTPRequestHandler):
    """The few requests that TensorStore makes of Google Cloud Storage."""

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _place(self) -> tuple[str, str, dict[str, list[str]]]:
        url = urllib.parse.urlparse(self.path)
        parts = url.path.split("/b/", 1)[1].split("/o", 1)
        return (
            parts[0],
            urllib.parse.unquote(parts[1].lstrip("/")),
            urllib.parse.parse_qs(url.query),
        )

    def do_GET(self) -> None:
        """Reads an object, or lists names."""
        bucket, name, query = self._place()
        if not name:
            prefix = f"{bucket}/{query.get('prefix', [''])[0]}"
            items = [
                {"name": o[len(bucket) + 1 :]} for o in sorted(OBJECTS) if o.startswith(prefix)
            ]
            self._answer(200, json.dumps({"items": items}).encode())
            return
        content = OBJECTS.get(f"{bucket}/{name}")
        if content is None:
            self._answer(404)
            return
        self._answer(200, content, x_goog_generation="1")

    def do_POST(self) -> None:
        """Writes an object."""
        bucket, _, query = self._place()
        name = query["name"][0]
        content = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            put(f"{bucket}/{name}", content)
        except OSError:
            self._answer(403)  # Others are tried again.
            return
        self._answer(200, json.dumps({"name": name, "generation": "1"}).encode())


@contextlib.contextmanager
def serve(patch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """The bucket, empty, while the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fsspec.register_implementation("gcs", FakeGcs, clobber=True)
    fsspec.register_implementation("gs", FakeGcs, clobber=True)
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
    patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    OBJECTS.clear()
    WATCH.clear()
    try:
        yield OBJECTS
    finally:
        WATCH.clear()
        server.shutdown()
