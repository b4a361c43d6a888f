"""A server that speaks the Hugging Face hub's protocol, as far as pulling needs it; its repositories are in memory."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "c0ffee" + 34 * "0"
"""Of main."""


class FakeHub:
    """`files` of main by repository and name. What it was asked is in `requests`; its faults are set from outside."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.revisions: dict[str, dict[str, tuple[str, dict[str, bytes]]]] = {}
        """By repository, the branches and tags beside main: each a commit, and its files by name."""
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path, and the range that was asked for."""
        self.tokens: list[str | None] = []
        self.needs_token: str | None = None
        self.gated = False
        self.status: int | None = None
        """With which all is answered."""
        self.break_after: int | None = None
        """Bytes of a file after which the connection is cut."""
        self.corrupt = False
        """Send a file with one byte changed."""
        self.ignore_range = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._answer(self)

            def do_GET(self) -> None:
                hub._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ranges(self) -> list[str | None]:
        """The ranges of all files that were got."""
        return [range_ for method, path, range_ in self.requests if method == "GET" and "/resolve/" in path]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append((handler.command, handler.path, asked))
        self.tokens.append(handler.headers.get("Authorization"))
        if self.status is not None:
            self._refuse(handler, self.status)
        elif self.needs_token and handler.headers.get("Authorization") != f"Bearer {self.needs_token}":
            self._refuse(handler, 401, "RepoNotFound")
        elif match := re.fullmatch(r"/api/models/([^?]+?)(/revision/([^/?]+))?(\?.*)?", handler.path):
            self._tell(handler, match[1], unquote(match[3] or "main"))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", handler.path):
            self._give(handler, match[1], unquote(match[2]), match[3], asked)
        else:
            self._refuse(handler, 404)

    def _at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files of a branch, a tag or a commit."""
        known = {"main": (COMMIT, self.files.get(repo, {})), **self.revisions.get(repo, {})}
        return known.get(revision) or next((found for found in known.values() if found[0] == revision), None)

    def _tell(self, handler: BaseHTTPRequestHandler, repo: str, revision: str) -> None:
        if repo not in self.files:
            self._refuse(handler, 401, "RepoNotFound")  # as the hub does, which does not tell what is private
            return
        found = self._at(repo, revision)
        if found is None:
            self._refuse(handler, 404, "RevisionNotFound")
            return
        siblings = [{"rfilename": name, "size": len(data)} for name, data in found[1].items()]
        body = json.dumps({"id": repo, "modelId": repo, "sha": found[0], "siblings": siblings}).encode()
        self._send(handler, 200, {"Content-Type": "application/json"}, body)

    def _give(self, handler: BaseHTTPRequestHandler, repo: str, revision: str, name: str, asked: str | None) -> None:
        if self.gated:
            self._refuse(handler, 403, "GatedRepo")
            return
        commit, files = self._at(repo, revision) or (COMMIT, {})
        data = files.get(name)
        if data is None:
            self._refuse(handler, 404, "EntryNotFound")
            return
        digest = hashlib.sha256(data).hexdigest()
        headers: dict[str, Any] = {
            "ETag": f'"{digest}"',
            "X-Repo-Commit": commit,
            "X-Linked-Size": len(data),
            "X-Linked-Etag": f'"{digest}"',
            "Accept-Ranges": "bytes",
        }
        body, status = data, 200
        if asked and not self.ignore_range:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            body, status = data[start:], 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.corrupt and handler.command == "GET":
            body = bytes([body[0] ^ 1]) + body[1:]
        self._send(handler, status, headers, body)

    def _refuse(self, handler: BaseHTTPRequestHandler, status: int, code: str = "") -> None:
        self._send(handler, status, {"X-Error-Code": code} if code else {}, b"{}")

    def _send(self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, Any], body: bytes) -> None:
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if self.break_after is not None and "/resolve/" in handler.path:
            handler.wfile.write(body[: self.break_after])
            handler.close_connection = True
        else:
            handler.wfile.write(body)
