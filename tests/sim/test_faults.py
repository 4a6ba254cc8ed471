"""One fault at one message of a scenario, for some of all messages; `ZMESH_FAULTS=all` tries each.

`ZMESH_FAULTS=300` tries so many of each scenario. A failure names what to hand to `run` to see it again.
"""

import os
import random
from collections.abc import Callable

import pytest

from tests.sim import guest_scenarios, scenarios, store_scenarios
from tests.sim.faults import Fault, Faulty, events_of, faults_of, run

WANTED = os.environ.get("ZMESH_FAULTS", "40")
EACH_SEED = 8  # faults tried in the runs of one seed
EVENTS_SHARE = 4  # of events so many times fewer are tried
SEEDS = max(1, int(WANTED) // EACH_SEED // EVENTS_SHARE) if WANTED != "all" else 1  # of events
LATE_SHARE = 2  # of scenarios with guests or small stores as well, which take long
SCENARIOS = scenarios.SCENARIOS | guest_scenarios.SCENARIOS | store_scenarios.SCENARIOS


def chosen(name: str, kinds: Callable[[Faulty], list[Fault]], share: int = 1) -> list[tuple[int, Fault]]:
    """Return (seed, fault) of each run."""
    scenario = SCENARIOS[name]
    if WANTED == "all":
        return [(0, fault) for fault in kinds(run(scenario, 0, None))]
    found = []
    for seed in range(max(1, int(WANTED) // EACH_SEED // share)):
        faults = kinds(run(scenario, seed, None))
        found += [(seed, fault) for fault in random.Random(f"{name} {seed}").sample(faults, EACH_SEED)]
    return found


def tried(name: str, seed: int, fault: Fault) -> Faulty:
    """Return what came of a scenario with a fault."""
    try:
        return run(SCENARIOS[name], seed, fault)
    except Exception as error:
        raise AssertionError(f"run(SCENARIOS[{name!r}], {seed}, {fault})") from error


@pytest.mark.parametrize("name", SCENARIOS)
def test_whatever_goes_wrong_once_every_result_comes_and_nothing_is_left(name: str) -> None:
    for seed, fault in chosen(name, faults_of, 1 if name in scenarios.SCENARIOS else LATE_SHARE):
        tried(name, seed, fault)


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.hosts > 1])
def test_whoever_comes_or_goes_at_any_moment_every_result_comes_and_nothing_is_left(name: str) -> None:
    """Nor does anything run again because a host left: what lay there is elsewhere."""
    again = {seed: run(SCENARIOS[name], seed, None).again for seed in range(SEEDS)}
    for seed, fault in chosen(name, events_of, EVENTS_SHARE):
        sim = tried(name, seed, fault)
        assert sim.again <= again[seed] or sim.struck, f"run(SCENARIOS[{name!r}], {seed}, {fault})"
