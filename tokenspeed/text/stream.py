"""Token ids in, text out, up to the first stop string."""

import dataclasses
from collections.abc import Iterable, Sequence

from tokenspeed.text.detokenizer import Detokenizer
from tokenspeed.text.stop_strings import StopStrings
from tokenspeed.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDelta:
    """What a few tokens added to the text.

    Attributes:
        text: the new text, which may be empty.
        stopped_by: the stop string that ended the stream, or None.
        tokens_used: how many of the ids of this call belong to the output: all of them, or those up to the one with
            which the stop string was certain to be complete.
    """

    text: str
    stopped_by: str | None
    tokens_used: int


class TextStream:
    """A `Detokenizer` and `StopStrings` in one."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        include_in_output: bool = False,
        skip_special_tokens: bool = True,
    ):
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens)
        self._stops = StopStrings(stops, include_in_output)

    def add(self, ids: Iterable[int]) -> TextDelta:
        """Returns what `ids` add. After a stop string nothing is added any more, and no token used."""
        texts = []
        used = 0
        for id in ids:
            if self._stops.matched is not None:
                break
            text, _ = self._stops.add(self._detokenizer.add([id]))
            texts.append(text)
            used += 1
        return TextDelta(text="".join(texts), stopped_by=self._stops.matched, tokens_used=used)

    def finish(self) -> TextDelta:
        """Returns the rest of the text, in which a stop string may still be found; called once, at the end."""
        if self._stops.matched is not None:
            return TextDelta(text="", stopped_by=self._stops.matched, tokens_used=0)
        text, matched = self._stops.add(self._detokenizer.finish())
        return TextDelta(text=text + self._stops.finish(), stopped_by=matched, tokens_used=0)
