"""Stop strings: a stream of text is cut at the first of them to be completed, and held back only while one may come."""

from collections.abc import Sequence


class StopStrings:
    """Cuts a stream of text at the first stop string to be completed.

    If several are in the text, the one whose last character comes first wins, whichever began first, so the result is
    that of looking after every character; of those that end on the same character, the first in `stops`. Both are as in
    vLLM. Text is held back only while it is the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str], include_in_output: bool = False):
        """Args:
            stops: the stop strings, in order of preference; none is fine.
            include_in_output: whether the stop string stays at the end of the text.

        Raises:
            ValueError: `stops` is not a sequence of non-empty strings.
        """
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError(f"stops: expected a sequence of non-empty strings, got {stops!r:.80}")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._include_in_output = include_in_output
        self._held = ""
        self.matched: str | None = None

    def add(self, text: str) -> tuple[str, str | None]:
        """Returns the text that can be given out, and the stop string once there is one; what follows it is dropped."""
        if self.matched is not None:
            return "", self.matched
        text = self._held + text
        ends = [(start + len(stop), stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            end, self.matched = min(ends, key=lambda found: found[0])  # the first in order, of equals
            self._held = ""
            return text[: end if self._include_in_output else end - len(self.matched)], self.matched
        certain = len(text) - self._unfinished(text)
        self._held = text[certain:]
        return text[:certain], None

    def finish(self) -> str:
        """Returns the text held back, which is no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _unfinished(self, text: str) -> int:
        """Returns how many characters at the end of `text` begin a stop string, at most."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
