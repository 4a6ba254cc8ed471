"""What runs keepers in a node: their log."""

import pathlib

from zmesh.runtime.keepers import DetachedLog


def test_the_log_keeps_the_last_lines_in_two_files(tmp_path: pathlib.Path) -> None:
    log = DetachedLog(str(tmp_path), bytes_max=100)
    for index in range(50):
        log.write(f"line {index}\n")
    new, old = tmp_path / "detached.log", tmp_path / "detached.log.old"
    lines = (old.read_text() + (new.read_text() if new.exists() else "")).splitlines()
    assert lines == [f"line {index}" for index in range(50 - len(lines), 50)]
    assert 100 <= old.stat().st_size < 120


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: pathlib.Path) -> None:
    DetachedLog(str(tmp_path / "nowhere")).write("line\n")
    assert list(tmp_path.iterdir()) == []
