"""Runs chat templates in a process of limited time, memory and output (`template_worker`)."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from tokenspeed.messages import one_line
from tokenspeed.text.errors import TokenizerError

WORKER = Path(__file__).with_name("template_worker.py")


class Renderer:
    """One process for all templates, started when the first is rendered (0.1 s) and after each that broke a limit.

    A template that breaks none costs a fraction of a millisecond more than in this process. Thread-safe: requests take
    turns.
    """

    def __init__(self, *, cpu_seconds: float = 2.0, memory_bytes: int = 1 << 30, output_chars: int = 1 << 24):
        """Args: what a rendering may take: seconds of CPU time; bytes of memory, of the whole process and where the
        system limits it (macOS does not); characters of text.
        """
        self._limits = {
            "time": f"{cpu_seconds:g} seconds of CPU time",
            "memory": f"{memory_bytes >> 20} MiB of memory",
            "output": f"{output_chars} characters of output",
        }
        # -P: the worker's folder is no place to import from.
        arguments = (cpu_seconds, memory_bytes, output_chars)
        self._command = [sys.executable, "-P", str(WORKER), *map(str, arguments)]
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._end: Callable[[], object] = lambda: None

    def render(self, source: str, variables: dict) -> str:
        """The text of a Jinja template.

        Args:
            variables: by name; of what JSON has.

        Raises:
            TokenizerError: the template raised an error or broke a limit, or the variables are not of JSON.
        """
        try:
            request = json.dumps(dict(source=source, variables=variables)).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise TokenizerError(f"chat_template: expected variables that JSON has: {one_line(error)}") from error
        with self._lock:
            found = self._answer(request)
        if "text" in found:
            return found["text"]
        if "limit" in found:
            raise TokenizerError(f"chat_template: takes more than {self._limits[found['limit']]}")
        raise TokenizerError(f"chat_template: {found['error']}")

    def _answer(self, request: bytes) -> dict[str, str]:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:  # the answer to an interrupted request must not become that to the next
            self._end()
            raise
        if line.endswith(b"\n"):
            found = json.loads(line)
            if "limit" in found:
                process.wait()
            return found
        status = process.wait()
        if status == -signal.SIGPROF:
            return {"limit": "time"}
        return {"error": f"the process that renders it ended with status {status}"}

    def _started(self) -> subprocess.Popen:
        self._end()
        # In a session of its own, so that Control-C is for this process alone; it ends when its input does.
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _ended, process)
        assert process.stdout is not None
        if not process.stdout.readline():
            raise TokenizerError(
                f"chat_template: the process that renders it does not start: {' '.join(self._command)} "
                f"ends with status {process.wait()}"
            )
        return process


def _ended(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # of a request that it did not read
            pipe.close()
