"""runtime/memory.py: what it says of this machine, and of cgroups it is shown."""

import mmap
import os
from pathlib import Path

import pytest

from zmesh.runtime import memory
from zmesh.runtime.memory import MemoryGauge, anonymous_bytes


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hierarchy of one cgroup with a limit of 1000 bytes around one without."""
    monkeypatch.setattr(memory, "_CGROUP", str(tmp_path))
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100\n")
    return tmp_path


def test_a_cgroups_share_leaves_out_what_can_be_dropped(cgroup: Path) -> None:
    assert MemoryGauge().read(0) == 0.8
    (cgroup / "memory.current").write_text("1000\n")
    assert MemoryGauge().read(0) == 0.9


def test_a_cgroup_without_a_limit_or_without_sense_does_not_count(cgroup: Path) -> None:
    gauge = MemoryGauge()
    (cgroup / "memory.current").write_text("nonsense")
    assert 0 < gauge.read(0) < 0.8
    (cgroup / "memory.max").write_text("max\n")
    assert 0 < gauge.read(0) < 0.8
    assert 0 < MemoryGauge().read(0) < 0.8


def test_a_limit_of_the_node_counts_what_its_workers_use() -> None:
    assert MemoryGauge(1000).read(2000) == 2.0


def test_shared_memory_is_nobodys_own() -> None:
    before = anonymous_bytes(os.getpid())
    shared = mmap.mmap(-1, 50_000_000)
    shared[:] = b"x" * len(shared)
    assert anonymous_bytes(os.getpid()) - before < 60_000_000  # the bytes written, which are gone again, at most
    own = bytearray(os.urandom(1) * 100_000_000)
    assert anonymous_bytes(os.getpid()) - before >= 90_000_000
    del own
    assert anonymous_bytes(2**22 + 1) == 0
