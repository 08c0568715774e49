"""The program of the process that chat templates run in: a line of JSON in, a line of JSON out.

A chat template is a program by whoever made the checkpoint. Jinja's sandbox keeps it from the interpreter but not from
growing: operators, filters, methods, loops, macros and the compiler itself can take any time and memory, in one step
that nothing in the same process can interrupt. The system's limits of a process hold for all of them.

It is run by its path and imports nothing of this package, so that it starts fast and stays small.
"""

import contextlib
import datetime
import functools
import json
import resource
import signal
import sys

from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Environment(ImmutableSandboxedEnvironment):
    # Jinja's own returns an undefined value, which prints as nothing.
    def unsafe_undefined(self, obj, attribute):
        raise SecurityError(f"access to {attribute!r} of {type(obj).__name__} is unsafe")


def raise_exception(message):
    raise TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Jinja's own escapes HTML, which a model has never seen in a prompt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format):
    return datetime.datetime.now().strftime(format)


@functools.lru_cache(maxsize=16)
def compiled(source: str):
    """The template in the environment that it was written for: that of the transformers library."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(source)


def answer(request: bytes, output_chars: int) -> dict[str, str]:
    """{"text": string} or {"error": string} of {"source": string, "variables": object}."""
    try:
        asked = json.loads(request)
        text = compiled(asked["source"]).render(asked["variables"])
    except MemoryError:
        return {"limit": "memory"}
    except Exception as error:  # a template can raise anything that its expressions can
        return {"error": " ".join(str(error).split())[:500] or type(error).__name__}
    return {"text": text} if len(text) <= output_chars else {"limit": "output"}


def main(cpu_seconds: float, memory_bytes: int, output_chars: int) -> None:
    # The system's default ends the process, in whatever it does, and is not what the parent's may be.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # not every system has it; a stricter one may be there already
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    print("{}", flush=True)
    for request in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        found = answer(request, output_chars)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(found), flush=True)
        if "limit" in found:
            return  # what is left of the memory is no place for the next


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
