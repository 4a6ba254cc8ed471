"""What workers write, on its way to the user: whole lines, under the function's name, at a bounded rate.

A line that starts with LABEL names the function whose text follows (runtime/worker_main.py writes it). What is over
the rate is dropped, counted and said: never lost silently. The last bytes of stderr are kept for a death notice.
"""

from dataclasses import dataclass

LABEL = b"\x1d"
LINE_BYTES_MAX = 16 * 1024  # a longer line is cut into pieces of this size
TAIL_BYTES_MAX = 4 * 1024
RATE_BYTES_S = 1024 * 1024  # per worker and stream; a terminal shows less, a log file holds more than enough
BURST_BYTES = 1024 * 1024


@dataclass(slots=True)
class Text:
    """Whole lines one function wrote."""

    name: str
    text: str


class LogStream:
    """One output stream of one worker."""

    def __init__(self) -> None:
        self._name = ""
        self._rest = b""  # the last line, not yet ended
        self._tail = b""
        self._allowance = float(BURST_BYTES)
        self._filled_s = 0.0  # when the allowance was last brought up to date
        self._dropped = 0  # lines over the rate that were not yet told

    def feed(self, data: bytes, now: float) -> list[Text]:
        """Take what was read; returns the lines to show, grouped by function."""
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > LINE_BYTES_MAX and not rest.startswith(LABEL):
            lines.append(rest)
            rest = b""
        self._rest = rest
        return self._show(lines, now)

    def end(self, now: float) -> list[Text]:
        """The stream was closed: returns what is left, an unfinished line included."""
        rest, self._rest = self._rest, b""
        self._allowance = max(self._allowance, float(LINE_BYTES_MAX))
        return self._show([rest] if rest else [], now)

    def _show(self, lines: list[bytes], now: float) -> list[Text]:
        self._allowance = min(float(BURST_BYTES), self._allowance + (now - self._filled_s) * RATE_BYTES_S)
        self._filled_s = now
        shown: list[Text] = []
        for line in lines:
            if line.startswith(LABEL):
                self._name = line[1:].decode(errors="replace")
                continue
            self._tail = (self._tail + line + b"\n")[-TAIL_BYTES_MAX:]
            if self._allowance < len(line):
                self._dropped += 1
                continue
            self._allowance -= len(line) + 1
            if self._dropped:
                text = f"[{self._dropped} lines dropped: more than {RATE_BYTES_S} bytes a second]\n"
                self._dropped = 0
                shown.append(Text(self._name, text))
            text = line.decode(errors="replace") + "\n"
            if shown and shown[-1].name == self._name:
                shown[-1].text += text
            else:
                shown.append(Text(self._name, text))
        return shown

    @property
    def dropped(self) -> int:
        """Lines dropped and not yet told."""
        return self._dropped

    def tail(self) -> str:
        """The last that was written, an unfinished line included."""
        rest = b"" if self._rest.startswith(LABEL) else self._rest
        return (self._tail + rest)[-TAIL_BYTES_MAX:].decode(errors="replace").rstrip("\n")
