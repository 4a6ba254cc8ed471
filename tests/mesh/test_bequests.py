"""What a program gave an actor outlives the program, however that ends: real processes, on one node and on two."""

import pathlib
import signal
from typing import Any

import pytest

import zmesh
from tests.mesh.test_detached import Programs, programs, until  # noqa: F401  # fixtures
from tests.mesh.test_hosts import Nodes, nodes  # noqa: F401  # a fixture
from zmesh import lifecycle

CALLER = """
made = numpy.ones(200_000)
kept = zmesh.get_actor("kept")
boxed = [zmesh.put(made), zmesh.put([zmesh.put(made)])]
call = kept.keep.remote([boxed[0], zmesh.get(boxed[1])[0]], {path!r}, {go_on!r})
{wait}
os.kill(os.getpid(), 9)
"""
RUNNING = "while not os.path.exists({path!r}):\n    time.sleep(0.001)"
ANSWERED = "open({go_on!r}, 'w').close()\nzmesh.get(call)"


def drivers(one: lifecycle.RunningNode) -> int:
    return [client["kind"] for client in lifecycle.status(one.name)["clients"]].count("driver")


@pytest.mark.parametrize(
    ("hosts", "wait"),
    [
        pytest.param(1, RUNNING, id="while it runs"),
        pytest.param(1, ANSWERED, id="as it is answered", marks=pytest.mark.slow),
        pytest.param(2, RUNNING, id="on another host, while it runs", marks=pytest.mark.slow),
        pytest.param(2, ANSWERED, id="on another host, as it is answered", marks=pytest.mark.slow),
    ],
)
def test_a_program_that_is_killed_with_its_call_leaves_the_actor_what_it_gave(
    nodes: Nodes,  # noqa: F811
    programs: Programs,  # noqa: F811
    tmp_path: pathlib.Path,
    hosts: int,
    wait: str,
) -> None:
    @zmesh.remote
    class Keeper:
        def keep(self, inside: list[Any], path: str, go_on: str) -> int:
            self.inside = inside
            pathlib.Path(path).touch()
            until(lambda: pathlib.Path(go_on).exists())
            return len(inside)

        def read(self) -> list[float]:
            return [float(zmesh.get(ref).sum()) for ref in self.inside]

    all_nodes: list[lifecycle.RunningNode] = [nodes.start(num_cpus=2) for _ in range(hosts)]
    nodes.await_members(all_nodes[0], hosts)
    zmesh.init(all_nodes[0].name)
    kept = Keeper.options(name="kept").remote()
    zmesh.get(kept.__ray_ready__.remote())
    fill = {"path": str(tmp_path / "called"), "go_on": str(tmp_path / "go on")}
    caller = programs.start(all_nodes[-1], CALLER.format(wait=wait.format(**fill), **fill))
    assert caller.wait(60) == -signal.SIGKILL, caller.communicate()
    (tmp_path / "go on").touch()
    until(lambda: drivers(all_nodes[-1]) == (1 if hosts == 1 else 0))
    assert zmesh.get(kept.read.remote(), timeout=30) == [200_000.0] * 2
    del kept
    until(lambda: all(lifecycle.status(one.name)["objects"] == 0 for one in all_nodes), 30.0)
