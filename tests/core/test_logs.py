"""Workers' output: whole lines, named, at a bounded rate, and never lost silently."""

from zmesh.core.logs import BURST_BYTES, LABEL, LINE_BYTES_MAX, RATE_BYTES_S, LogStream, Text


def test_lines_come_out_whole_and_under_the_name_of_their_function() -> None:
    stream = LogStream()
    assert stream.feed(LABEL + b"f\nhel", 0.0) == []
    assert stream.feed(b"lo\nworld\n" + LABEL + b"g\nbye\n", 0.0) == [Text("f", "hello\nworld\n"), Text("g", "bye\n")]


def test_an_unfinished_line_comes_with_the_end() -> None:
    stream = LogStream()
    stream.feed(b"no newline", 0.0)
    assert stream.end(0.0) == [Text("", "no newline\n")]
    assert stream.end(0.0) == []


def test_a_line_without_an_end_is_cut() -> None:
    stream = LogStream()
    (text,) = stream.feed(b"x" * (LINE_BYTES_MAX + 1), 0.0)
    assert len(text.text) == LINE_BYTES_MAX + 2


def test_what_is_over_the_rate_is_dropped_counted_and_told() -> None:
    stream = LogStream()
    line = b"x" * 999 + b"\n"
    shown = sum(text.text.count("\n") for text in stream.feed(line * (BURST_BYTES // 500), 0.0))
    assert shown <= BURST_BYTES // 1000
    dropped = BURST_BYTES // 500 - shown
    assert stream.dropped == dropped
    told, after = stream.feed(line, 1.0)[0].text.split("\n", 1)
    assert told.startswith(f"[{dropped} lines dropped")
    assert after.startswith("xxx")
    assert stream.dropped == 0


def test_the_allowance_fills_up_with_time_but_not_beyond_a_burst() -> None:
    stream = LogStream()
    line = b"x" * 9_999 + b"\n"
    stream.feed(line * (BURST_BYTES // 10_000), 0.0)
    assert stream.feed(line, 0.0) == []
    assert len(stream.feed(line * 200, 1000.0)[-1].text) <= BURST_BYTES
    assert RATE_BYTES_S > 0


def test_the_tail_is_the_last_of_it_without_labels() -> None:
    stream = LogStream()
    stream.feed(LABEL + b"f\n" + b"early\n" * 2000 + b"Traceback\nboom", 0.0)
    assert stream.tail().endswith("early\nTraceback\nboom")
    assert len(stream.tail()) <= 4096
    stream.feed(b"\n" + LABEL + b"g", 0.0)
    assert stream.tail().endswith("boom")


def test_bytes_that_are_no_text_are_shown_all_the_same() -> None:
    assert LogStream().feed(b"\xff\xfe\n", 0.0)[0].text == "\ufffd\ufffd\n"
