"""A hub on the loopback: enough of the Hugging Face hub's protocol for huggingface_hub to fetch files from it."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REVISION = "a" * 40


class Hub:
    """Serves the files of `folder/OWNER/NAME`, and remembers what was asked; `gated` repositories are refused."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.asked: list[str] = []
        self.gated: set[str] = set()

    def run(self, code: str, home: Path) -> list[str]:
        """Run Python in a fresh process whose hub this is, and return the lines it prints."""
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment = {**os.environ, **switches, "HF_ENDPOINT": self.address, "HF_HOME": str(home)}
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout.splitlines()


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Serve until the block is left."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(whole=False)

        def do_GET(self) -> None:
            self._answer(whole=True)

        def _answer(self, *, whole: bool) -> None:
            repository, _, rest = self.path.strip("/").partition("/resolve/")
            hub.asked.append(f"{self.command} {self.path}")
            path = folder / repository / rest.rpartition("/")[2]
            if repository in hub.gated:
                return self._say(403, {"X-Error-Code": "GatedRepo"})
            if not path.is_file():
                return self._say(404, {"X-Error-Code": "EntryNotFound"})
            content = path.read_bytes()
            tags = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": REVISION}
            return self._say(200, tags, content, whole=whole)

        def _say(self, status: int, headers: dict[str, str], content: bytes = b"", *, whole: bool = False) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if whole:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(folder, f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fill_cache(home: Path, repository: str, folder: Path) -> None:
    """Lay the files of a folder out as huggingface_hub's cache has them."""
    at = home / "hub" / f"models--{repository.replace('/', '--')}"
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text(REVISION)
    (at / "snapshots").mkdir()
    (at / "snapshots" / REVISION).symlink_to(folder, target_is_directory=True)
