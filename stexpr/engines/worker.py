"""A worker process of the local engine: tasks come in as lines of JSON, outcomes go out the same way.

Started as `python -m stexpr.engines.worker FD`. When its standard input closes, because the engine wants no more or is dead,
the task that runs is asked to save and end.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from typing import Final

from stexpr.engines.tasks import Task, as_plain, perform

GRACE_S: Final = 60.0


def main() -> None:
    """Perform tasks until standard input closes."""
    tasks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(tasks, busy), daemon=True).start()
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8", buffering=1) as results:
        while (line := tasks.get()) is not None:
            busy.set()
            outcome = perform(Task(**json.loads(line)))
            busy.clear()
            try:
                results.write(json.dumps(as_plain(outcome)) + "\n")
            except BrokenPipeError:  # the engine is dead; what matters is on the disk
                return


def _read(tasks: "queue.SimpleQueue[str | None]", busy: threading.Event) -> None:
    for line in sys.stdin:
        tasks.put(line)
    tasks.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the engine's to hear
    main()
