"""A loopback server that speaks as much of Weights & Biases as a run needs, and remembers what it was told.

What `wandb-core` asks was learned by listening to it; answers hold only the fields it reads. The server is an oracle of the
transport, not of the product: it draws nothing and checks no permission but the key's.
"""

import base64
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

KEY = "stub" + "0123456789" * 4
"""A key of the length wandb asks for; nothing else about it is real."""
ENTITY = "stub-user"


@dataclass
class StubRun:
    """What arrived of one run."""

    settings: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    complete: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, as it was given to `init`."""
        return {key: value["value"] for key, value in json.loads(self.settings["config"]).items() if key != "_wandb"}

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged, in order."""
        lines = self.lines.get("wandb-history.jsonl", {})
        return [json.loads(lines[place]) for place in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        """The last summary."""
        lines = self.lines.get("wandb-summary.json", {})
        return json.loads(lines[max(lines)]) if lines else {}

    def logged(self, key: str) -> list[Any]:
        """The values of one key, in order."""
        return [line[key] for line in self.history if key in line]


@dataclass
class StubArtifact:
    """What arrived of one artifact."""

    name: str
    type: str
    run: str
    id: str
    metadata: dict[str, Any]
    manifest: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False

    @property
    def entries(self) -> dict[str, Any]:
        """What the manifest lists, by path."""
        contents: dict[str, Any] = json.loads(self.manifest)["contents"]
        return contents


class WandbServer:
    """The server; use it in a `with` statement.

    Attributes:
        runs: What arrived, by run id.
        artifacts: What was created, in order.
        uses: Pairs of a run id and the name of an artifact it used.
        requests: Every operation and path asked for.
        trouble: None to answer, "silence" to accept and never answer, or an HTTP status to refuse with.
        refused: Requests whose name ends so are refused alone, such as "file_stream".
    """

    def __init__(self) -> None:
        self.runs: dict[str, StubRun] = {}
        self.artifacts: list[StubArtifact] = []
        self.uses: list[tuple[str, str]] = []
        self.requests: list[str] = []
        self.trouble: int | str | None = None
        self.refused: str | None = None
        self.closing = threading.Event()
        self.lock = threading.Lock()
        stub = self

        class Handler(_Handler):
            server_state = stub

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "WandbServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(timeout=5)

    def environment(self, home: Any) -> dict[str, str]:
        """Return the variables that lead wandb here, with all its own files below a folder."""
        folders = {"HOME": home, "WANDB_CACHE_DIR": home / "cache", "WANDB_CONFIG_DIR": home / "settings"}
        folders |= {"WANDB_DATA_DIR": home / "data", "WANDB_ARTIFACT_DIR": home / "artifacts"}
        return {
            **{name: str(folder) for name, folder in folders.items()},
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
        }

    def run(self, name: str) -> StubRun:
        """Return the one run of a display name."""
        (found,) = (run for run in self.runs.values() if run.settings.get("displayName") == name)
        return found

    def artifact(self, kind: str) -> StubArtifact:
        """Return the one artifact of a type."""
        (found,) = (artifact for artifact in self.artifacts if artifact.type == kind)
        return found

    def wait_for(self, condition: Any, seconds: float = 20.0) -> None:
        """Wait until something arrived."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"never arrived; asked for: {self.requests[-20:]}"
            time.sleep(0.05)

    def answer(self, operation: str, variables: dict[str, Any], query: str) -> dict[str, Any]:
        """Answer one GraphQL request."""
        found = getattr(self, f"_{re.sub(r'(?<!^)(?=[A-Z])', '_', operation).lower()}", None)
        return found(variables) if found else {}

    def _viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "VXNlcg==", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "flags": "{}"}
        return {"viewer": {**viewer, "email": "", "admin": False, "teams": {"edges": []}}}

    def _server_features_query(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _run_resume_status(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        if run is None:
            return {"model": {"id": "p", "name": given["project"], "entity": {"id": "e", "name": ENTITY}, "bucket": None}}
        lines = {name: len(lines) for name, lines in run.lines.items()}
        bucket = {
            "name": given["name"],
            "displayName": run.settings.get("displayName"),
            "id": given["name"],
            "summaryMetrics": json.dumps(run.summary),
            "config": run.settings["config"],
            "historyLineCount": lines.get("wandb-history.jsonl", 0),
            "eventsLineCount": lines.get("wandb-events.jsonl", 0),
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
            "eventsTail": "[]",
            "tags": run.settings.get("tags", []),
            "wandbConfig": "{}",
        }
        return {"model": {"id": "p", "name": given["project"], "entity": {"id": "e", "name": ENTITY}, "bucket": bucket}}

    def _upsert_bucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name") or given["id"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, StubRun())
        run.settings |= {key: value for key, value in given.items() if value is not None}
        project = {"id": "p", "name": run.settings.get("project"), "entity": {"id": "e", "name": ENTITY}}
        bucket = {
            "id": name,
            "name": name,
            "displayName": run.settings.get("displayName"),
            "description": None,
            "config": run.settings.get("config"),
            "sweepName": None,
            "project": project,
            "historyLineCount": 0,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _create_run_files(self, given: dict[str, Any]) -> dict[str, Any]:
        where = f"{self.url}/upload/run/{given['run']}"
        files = [{"name": name, "uploadUrl": f"{where}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _create_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables["input"]
        number = len(self.artifacts)
        metadata = json.loads(given.get("metadata") or "{}")
        name = given["artifactCollectionName"]
        self.artifacts.append(
            StubArtifact(name, given["artifactTypeName"], given.get("runName") or "", f"artifact-{number}", metadata)
        )
        sequence = {"id": f"sequence-{number}", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": f"artifact-{number}", "state": "PENDING", "artifactSequence": sequence}}}

    def _create_artifact_manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        number = given["artifactID"].removeprefix("artifact-")
        file = {
            "id": f"manifest-file-{number}",
            "name": given["name"],
            "displayName": given["name"],
            "uploadUrl": f"{self.url}/upload/manifest/{number}",
            "uploadHeaders": [],
        }
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{number}", "file": file}}}

    def _update_artifact_manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        number = given["artifactManifestID"].removeprefix("manifest-")
        file = {
            "id": f"manifest-file-{number}",
            "name": "wandb_manifest.json",
            "displayName": "wandb_manifest.json",
            "uploadUrl": f"{self.url}/upload/manifest/{number}",
            "uploadHeaders": [],
        }
        return {"updateArtifactManifest": {"artifactManifest": {"id": f"manifest-{number}", "file": file}}}

    def _create_artifact_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for file in variables["input"]["artifactFiles"]:
            number = file["artifactID"].removeprefix("artifact-")
            node = {
                "id": f"file-{number}-{file['name']}",
                "name": file["name"],
                "displayName": file["name"],
                "storagePath": f"stub/{number}/{file['name']}",
                "uploadUrl": f"{self.url}/upload/artifact/{number}/{file['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _commit_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        artifact = self._by_id(given["artifactID"])
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": ""}}}

    def _use_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables["input"]
        artifact = self._by_id(given["artifactID"])
        self.uses.append((given["runName"], artifact.name))
        return {"useArtifact": {"artifact": {"id": artifact.id}}}

    def _artifact_type(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _artifact_by_i_d(self, given: dict[str, Any]) -> dict[str, Any]:
        artifact = self._by_id(given["id"])
        project = {"id": "p", "internalId": "p", "name": "p", "entity": {"name": ENTITY}}
        sequence = {"__typename": "ArtifactSequence", "id": "s", "name": artifact.name, "project": project}
        return {
            "artifact": {
                "id": artifact.id,
                "artifactSequence": sequence,
                "versionIndex": 0,
                "artifactType": {"name": artifact.type},
                "description": None,
                "metadata": json.dumps(artifact.metadata),
                "tags": [],
                "state": "COMMITTED",
                "digestAlgorithm": None,
                "size": 0,
                "digest": "",
                "commitHash": "stub",
                "fileCount": 0,
                "createdAt": "2025-01-01T00:00:00",
                "updatedAt": None,
                "ttlDurationSeconds": -2,
                "ttlIsInherited": False,
                "historyStep": None,
            }
        }

    def _by_id(self, name: str) -> StubArtifact:
        return self.artifacts[int(name.removeprefix("artifact-"))]

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Take one message of a run's file stream."""
        run = self.runs.setdefault(run_id, StubRun())
        for name, chunk in (body.get("files") or {}).items():
            lines = run.lines.setdefault(name, {})
            for place, line in enumerate(chunk["content"], start=chunk["offset"]):
                lines[place] = line
        run.complete = run.complete or bool(body.get("complete"))

    def upload(self, path: str, body: bytes) -> None:
        """Take one uploaded file."""
        kind, _, rest = path.partition("/")
        owner, _, name = rest.partition("/")
        if kind == "run":
            self.runs[owner].files[name] = body
        elif kind == "manifest":
            self.artifacts[int(owner)].manifest = body
        else:
            self.artifacts[int(owner)].files[name] = body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: WandbServer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on stderr."""

    def do_POST(self) -> None:
        """Answer GraphQL and file streams."""
        state, path = self.server_state, urlsplit(self.path).path
        body = json.loads(self._body() or b"{}")
        operation = ""
        if path == "/graphql":
            named = re.search(r"(?:query|mutation|subscription)\s+(\w+)", body["query"])
            operation = body.get("operationName") or (named.group(1) if named else "")
        with state.lock:
            state.requests.append(operation or path)
        if self._refused(operation or path):
            return
        with state.lock:
            if path == "/graphql":
                answer = {"data": state.answer(operation, body.get("variables") or {}, body["query"])}
            else:
                state.stream(path.split("/")[-2], body)
                answer = {}
        self._answer(200, json.dumps(answer).encode())

    def do_PUT(self) -> None:
        """Take an upload."""
        state, path = self.server_state, unquote(urlsplit(self.path).path)
        body = self._body()
        with state.lock:
            state.requests.append(f"PUT {path}")
        if state.trouble is not None:  # an upload's address is signed: it carries no key
            self._refused(path)
            return
        with state.lock:
            state.upload(path.removeprefix("/upload/"), body)
        self._answer(200, b"")

    def do_GET(self) -> None:
        """There is nothing to read."""
        self.server_state.requests.append(f"GET {self.path}")
        self._answer(404, b"{}")

    def _refused(self, asked: str) -> bool:
        state = self.server_state
        if state.trouble == "silence":
            state.closing.wait(600)
            self.close_connection = True
            return True
        expected = base64.b64encode(f"api:{KEY}".encode()).decode()
        status = state.trouble if isinstance(state.trouble, int) else None
        if state.refused and asked.endswith(state.refused):
            status = 403
        if status is None and not self.headers.get("Authorization", "").endswith(expected):
            status = 401
        if status is not None:
            self._answer(status, json.dumps({"errors": [{"message": "refused by the stub"}]}).encode())
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

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
