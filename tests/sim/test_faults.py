"""One fault at one message of a scenario, for some of all messages; `ZMESH_FAULTS=all` tries each.

`ZMESH_FAULTS=300` tries so many of each scenario. A failure names what to hand to `run` to see it again.
"""

import os
import random

import pytest

from tests.sim.faults import Fault, faults_of, run
from tests.sim.scenarios import SCENARIOS

WANTED = os.environ.get("ZMESH_FAULTS", "40")
EACH_SEED = 8  # faults tried in the runs of one seed


def chosen(name: str) -> list[tuple[int, Fault]]:
    """Return (seed, fault) of each run."""
    scenario = SCENARIOS[name]
    if WANTED == "all":
        return [(0, fault) for fault in faults_of(run(scenario, 0, None))]
    found = []
    for seed in range(max(1, int(WANTED) // EACH_SEED)):
        faults = faults_of(run(scenario, seed, None))
        found += [(seed, fault) for fault in random.Random(f"{name} {seed}").sample(faults, EACH_SEED)]
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_whatever_goes_wrong_once_every_result_comes_and_nothing_is_left(name: str) -> None:
    for seed, fault in chosen(name):
        try:
            run(SCENARIOS[name], seed, fault)
        except Exception as error:
            raise AssertionError(f"run(SCENARIOS[{name!r}], {seed}, {fault})") from error
