"""A loopback server that speaks as much of the Hugging Face hub as a push and a download need, and remembers what it got.

What huggingface_hub asks was read in its source; answers hold only the fields it reads. Files that end in `.safetensors` go
the way of large files (LFS), the others into the commit, as on the hub.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stubStubStubStubStubStubStubStubSt"
"""A token that looks like one; nothing else about it is real."""


@dataclass
class StubRepository:
    """What arrived in one repository; commits are whole trees, `main` is the last."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=list)

    def revision(self, name: str) -> int:
        """Return the place of a commit, `main` or its own id."""
        if name == "main":
            return len(self.commits) - 1
        return next((i for i in range(len(self.commits)) if commit_id(i) == name), -1)


def commit_id(place: int) -> str:
    """Return a commit's id."""
    return hashlib.sha1(str(place).encode()).hexdigest()


class HubServer:
    """The server; use it as a context.

    Attributes:
        repositories: By name.
        requests: Every method and path asked for.
        refusal: An HTTP status to answer everything with, None to answer.
        refused: Requests whose path holds this are refused with 403.
        gated: Repositories whose access has to be asked for.
    """

    def __init__(self) -> None:
        self.gated: set[str] = set()
        self.repositories: dict[str, StubRepository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refusal: int | None = None
        self.refused: str | None = None
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            state = hub

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        """Serve for the duration of the block."""
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join(timeout=5)

    def hold(self, name: str, folder: Path) -> None:
        """Make a public repository of the files of a folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.repositories[name] = StubRepository(private=False, commits=[files])

    def run(self, code: str, home: Path) -> list[str]:
        """Run Python in a fresh process whose hub this is, and return the lines it prints."""
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment = {**os.environ, **switches, "HF_ENDPOINT": self.url, "HF_HOME": str(home)}
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout.splitlines()

    def files(self, name: str) -> dict[str, bytes]:
        """Return the latest files of a repository."""
        return self.repositories[name].commits[-1]

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """Make a repository."""
        name = f"{asked['organization']}/{asked['name']}"
        known = name in self.repositories
        self.repositories.setdefault(name, StubRepository(asked.get("visibility") == "private", [{}]))
        return (409 if known else 200), {"url": f"{self.url}/{name}", "error": "it exists" if known else None}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        """Add a commit."""
        repository = self.repositories[name]
        tree = dict(repository.commits[-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        repository.commits.append(tree)
        oid = commit_id(len(repository.commits) - 1)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}

    def about(self, name: str, revision: str) -> tuple[int, Any]:
        """Describe a repository."""
        place = self.repositories[name].revision(revision)
        return (404, None) if place < 0 else (200, {"id": name, "sha": commit_id(place), "siblings": []})

    def tree(self, name: str, revision: str) -> tuple[int, Any]:
        """List the files of a commit."""
        place = self.repositories[name].revision(revision)
        if place < 0:
            return 404, None
        files = self.repositories[name].commits[place].items()
        return 200, [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on stderr."""

    def do_POST(self) -> None:
        """Create, prepare an upload, commit."""
        path, body = self._asked()
        if self._turned_away(path, write=True):
            return
        with self.state.lock:
            self._json(*self._posted(path, body))

    def _posted(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            return self.state.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "lfs" if name.endswith(".safetensors") else "regular"} for name in names]
            return 200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]}
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            return 200, {
                "transfer": "basic",
                "objects": [
                    {**o, "actions": {"upload": {"href": f"{self.state.url}/objects/{o['oid']}?signature=secret"}}}
                    for o in objects
                ],
            }
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self.state.commit(found[1], [json.loads(line) for line in body.splitlines()])
        return 404, None

    def do_PUT(self) -> None:
        """Take a large file; its address is signed and carries no token."""
        path, body = self._asked()
        oid = path.removeprefix("/objects/")
        fits = hashlib.sha256(body).hexdigest() == oid
        with self.state.lock:
            if fits:
                self.state.objects[oid] = body
        self._json(200 if fits else 422, {})

    def do_GET(self) -> None:
        """Describe, list, or hand a file out."""
        path, _ = self._asked()
        if self._turned_away(path, write=False):
            return
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._json(*self.state.about(found[1], found[2] or "main"))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._json(*self.state.tree(found[1], found[2]))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._hand_out(self.state.repositories[found[1]], found[2], found[3])
        else:
            self._json(404, None)

    do_HEAD = do_GET  # noqa: N815  (the name http.server looks for)

    def _hand_out(self, repository: StubRepository, revision: str, name: str) -> None:
        place = repository.revision(revision)
        content = repository.commits[place].get(name) if place >= 0 else None
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        tag = hashlib.sha256(content).hexdigest()
        self._answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": commit_id(place)})

    def _asked(self) -> tuple[str, bytes]:
        path = unquote(urlsplit(self.path).path)
        assert "token" not in parse_qs(urlsplit(self.path).query)
        with self.state.lock:
            self.state.requests.append(f"{self.command} {path}")
        return path, self._body()

    def _turned_away(self, path: str, *, write: bool) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        named = re.match(r"/(?:api/models/)?([^/]+/[^/.]+)(?:/|\.git/|$)", path)
        if named and named[1] in self.state.gated:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return True
        status = self.state.refusal
        if status is None and self.state.refused and self.state.refused in path:
            status = 403
        elif status is None and path.startswith("/api/") and not path.startswith("/api/models/"):
            status = 401 if path == "/api/repos/create" and not known else None
        elif status is None:
            repository = self.state.repositories.get(named[1]) if named else None
            if repository is None:
                status = 404 if known else 401
            elif not known and (write or repository.private):
                status = 401
        if status is not None:
            self._json(status, {"error": "refused by the stub"})
        return status is not None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, status: int, value: Any) -> None:
        codes = {404: "RevisionNotFound" if "/revision/" in self.path else "RepoNotFound"}
        extra = {"X-Error-Code": codes[status]} if status in codes and value is None else {}
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **extra})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def fill_cache(home: Path, repository: str, folder: Path) -> None:
    """Lay the files of a folder out as huggingface_hub's cache has them."""
    at = home / "hub" / f"models--{repository.replace('/', '--')}"
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text(commit_id(0))
    (at / "snapshots").mkdir()
    (at / "snapshots" / commit_id(0)).symlink_to(folder, target_is_directory=True)
