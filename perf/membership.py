"""How fast a mesh agrees, what its gossip costs, and how often it is wrong: the simulator at 10 to 10,000 nodes.

    .venv/bin/python -m perf.membership [--large]

Virtual time: the real cores of zmesh/core/membership.py, delays of 0.2-1 ms, no loss unless said. Prints the table of
docs/membership.md.
"""

import argparse
import time
from typing import Any

from tests.sim.mesh import Mesh

QUIET_S = 100.0


def known_by_all(mesh: Mesh, victim: Any) -> bool:
    """Whether nobody takes the victim for alive any more."""
    return all(not node.core.members[victim.name].alive for node in mesh.living() if victim.name in node.core.members)


def measure(size: int, *, seed: int, quick: bool) -> dict[str, str]:
    """Return one column of the table."""
    mesh = Mesh(seed)
    mesh.full(size)
    mesh.run(5)
    before = [node.sent_bytes for node in mesh.nodes]
    quiet_s = 10.0 if quick else QUIET_S
    mesh.run(quiet_s)
    rate = sum(node.sent_bytes for node in mesh.nodes) - sum(before)
    newcomer = mesh.add([mesh.nodes[0]])
    join_s = mesh.until(
        lambda: all(newcomer.name in node.core.members for node in mesh.living() if node is not newcomer), 30
    )
    mesh.run(5)
    crashed = mesh.nodes[size // 2]
    mesh.crash(crashed, closed_port=True)
    kill_s = mesh.until(lambda: known_by_all(mesh, crashed), 60)
    found = {
        "gossip out, idle, kB/s a node": f"{rate / quiet_s / size / 1000:.1f}",
        "a join known to all, s": f"{join_s:.2f}",
        "kill -9 known to all, s": f"{kill_s:.2f}",
    }
    silent = mesh.nodes[size // 3]
    mesh.crash(silent)
    found["a silent host known to all, s"] = f"{mesh.until(lambda: known_by_all(mesh, silent), 60):.1f}"
    if not quick:
        blackout = mesh.nodes[1]
        for _ in range(5):
            mesh.block([blackout], [node for node in mesh.living() if node is not blackout])
            mesh.run(5.0)
            mesh.heal()
            mesh.run(15.0)
        mesh.loss = 0.05
        mesh.run(60.0 if size >= 1000 else 600.0)
    found["false deaths"] = str(len(mesh.false_deaths()))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also 10,000 nodes, without blackouts and loss: minutes")
    sizes = [10, 100, 1000, *([10_000] if parser.parse_args().large else [])]
    columns = []
    for size in sizes:
        started = time.monotonic()
        columns.append(measure(size, seed=1, quick=size > 1000))
        print(f"{size} nodes took {time.monotonic() - started:.0f} s", flush=True)
    print("| | " + " | ".join(f"N = {size:,}" for size in sizes) + " |")
    print("|---|" + "---:|" * len(sizes))
    for row in columns[0]:
        print(f"| {row} | " + " | ".join(column.get(row, "") for column in columns) + " |")


if __name__ == "__main__":
    main()
