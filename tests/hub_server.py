"""A Hub on loopback, as far as this library uses it: making a repository, a commit, files, and its refusals."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_good"


@dataclass
class Hub:
    """What the server holds, and how it behaves.

    Attributes:
        address: its URL.
        commits: repository -> commit -> file name -> content, in the order of commits.
        tags: repository -> name -> commit.
        asked: method and path of every request.
        mood: `well`, `portal` (answers every request with a page of HTML), or `broken` (answers 500).
    """

    address: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    mood: str = "well"

    def commit_of(self, repository: str, revision: str) -> str | None:
        commits = self.commits[repository]
        if revision == "main":
            return next(reversed(commits), None)
        return self.tags.get(repository, {}).get(revision, revision if revision in commits else None)


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _handle(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append((self.command, path))
        body = self._body()
        if hub.mood == "portal":
            return self._answer(200, b"<html>Log in to this network</html>", Content_Type="text/html")
        if hub.mood == "broken":
            return self._json({"error": "oh"}, 500)
        sent = self.headers.get("Authorization")
        if sent not in (None, f"Bearer {TOKEN}"):
            refusal = {"X_Error_Message": "Invalid credentials in Authorization header"}
            return self._answer(401, b'{"error": "Invalid credentials in Authorization header"}', **refusal)
        if "/resolve/" in path:
            return self._resolve(path, known=sent is not None)
        if sent is None:
            return self._json({"error": "no token"}, 401)
        return self._write(path, body)

    def __getattr__(self, name: str) -> Any:
        if name in ("do_GET", "do_HEAD", "do_POST"):
            return self._handle
        raise AttributeError(name)

    def _resolve(self, path: str, *, known: bool) -> None:
        hub = self.hub
        repository, _, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository not in hub.commits or (repository in hub.private and not known):
            return self._answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        commit = hub.commit_of(repository, revision)
        if commit is None:
            return self._answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        content = hub.commits[repository][commit].get(name)
        if content is None:
            return self._answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found",
                                X_Repo_Commit=commit)  # fmt: skip
        return self._answer(200, content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    def _write(self, path: str, body: bytes) -> None:
        hub = self.hub
        asked = json.loads(body.splitlines()[0]) if body else {}
        if path == "/api/repos/create":
            repository = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            known = repository in hub.commits
            hub.commits.setdefault(repository, {})
            if (asked.get("private") or asked.get("visibility") == "private") and not known:
                hub.private.add(repository)
            return self._json({"url": f"{hub.address}/{repository}", "name": repository}, 409 if known else 200)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        repository, _, action = path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")
        if action == "preupload":
            # Large files would go to another service, by a library of its own; here all files are small.
            mode = {"shouldIgnore": False, "uploadMode": "regular"}
            return self._json({"files": [{"path": entry["path"], **mode} for entry in asked["files"]]})
        if action == "commit":
            files = {}
            for line in map(json.loads, body.splitlines()[1:]):
                value = line["value"]
                files[value["path"]] = base64.b64decode(value["content"])
            commit = hashlib.sha1(body).hexdigest()
            hub.commits[repository][commit] = files
            url = f"{hub.address}/{repository}/commit/{commit}"
            return self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
        return self._json({"error": f"unknown {path}"}, 404)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Runs a Hub while the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
