"""Hypothesis in the place of fate: it chooses what is submitted, killed, stopped, cancelled, and shrinks what fails."""

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.sim.programs import program
from tests.sim.simulator import Simulation
from zmesh.core.records import Inputs, Task
from zmesh.wire import messages as m

LEAVES = [program("work", value=1, seconds=0.001), program("work", value=2, seconds=0.02)]


class Host(RuleBasedStateMachine):
    """One host with two drivers; whatever happens, each task gets exactly one outcome and nothing is left."""

    def __init__(self) -> None:
        super().__init__()
        self.sim = Simulation(0)
        self.drivers = [self.sim.driver("a"), self.sim.driver("b")]
        self.specs = [self.sim.spec(driver, max_retries=-1) for driver in self.drivers]
        self.once = [self.sim.spec(driver, max_retries=0) for driver in self.drivers]
        self.apart = [self.sim.spec(driver, max_retries=-1, environment="env:a") for driver in self.drivers]
        self.tasks: list[list[Task]] = [[], []]
        self.final: dict[int, tuple[int, object]] = {}  # {id of a task: its outcome, when first seen}

    @rule(who=st.integers(0, 1), kind=st.sampled_from(["short", "long", "die", "big", "nest"]), once=st.booleans())
    def submit(self, who: int, kind: str, once: bool) -> None:
        code = {
            "short": LEAVES[0],
            "long": LEAVES[1],
            "die": program("die", times=1, value=3, seconds=0.001),
            "big": program("big", value=4, seconds=0.001),
            "nest": program("nest", children=LEAVES),
        }[kind]
        spec = (self.once if once else self.specs)[who]
        self.tasks[who].append(self.sim.submit(self.drivers[who], spec, code))

    @rule(who=st.integers(0, 1))
    def submit_in_an_environment(self, who: int) -> None:
        self.tasks[who].append(self.sim.submit(self.drivers[who], self.apart[who], LEAVES[0]))

    @rule(who=st.integers(0, 1))
    @precondition(lambda self: any(self.tasks))
    def submit_a_dependent(self, who: int) -> None:
        if self.tasks[who]:
            inputs = Inputs([self.tasks[who][-1]])
            self.tasks[who].append(self.sim.submit(self.drivers[who], self.specs[who], LEAVES[0], inputs))

    @rule(pick=st.randoms(use_true_random=False))
    def kill_a_worker(self, pick: random.Random) -> None:
        if self.sim.ready_workers():
            self.sim.kill(pick.choice(self.sim.ready_workers()))

    @rule(pick=st.randoms(use_true_random=False), seconds=st.floats(0.001, 0.2))
    def stop_somebody(self, pick: random.Random, seconds: float) -> None:
        self.sim.stop(pick.choice([*self.sim.ready_workers(), *self.drivers]), seconds)

    @rule(who=st.integers(0, 1), pick=st.randoms(use_true_random=False))
    def cancel_one(self, who: int, pick: random.Random) -> None:
        if self.tasks[who]:
            self.drivers[who].core.cancel(pick.choice(self.tasks[who]), self.sim.now)
            self.sim.settle(self.drivers[who])

    @rule(seconds=st.floats(0.0001, 0.3))
    def let_time_pass(self, seconds: float) -> None:
        self.sim.run(self.sim.now + seconds)

    @invariant()
    def an_outcome_never_changes(self) -> None:
        for task in (*self.tasks[0], *self.tasks[1]):
            if task.status != m.PENDING:
                assert self.final.setdefault(id(task), (task.status, task.value)) == (task.status, task.value)

    @invariant()
    def a_task_without_retries_starts_once(self) -> None:
        for driver, spec, tasks in zip(self.drivers, self.once, self.tasks, strict=True):
            for task in tasks:
                assert task.spec is not spec or self.sim.started.get((driver.peer, task.seq), 0) <= 1

    def teardown(self) -> None:
        everything = [*self.tasks[0], *self.tasks[1]]
        self.sim.run_until(lambda: all(task.status != m.PENDING for task in everything), 300.0)
        self.an_outcome_never_changes()
        for driver, tasks in zip(self.drivers, self.tasks, strict=True):
            for task in tasks:
                self.sim.drop(driver, task)
        self.sim.run(self.sim.now + 100.0)
        assert self.sim.node.resources.available == self.sim.node.resources.total
        assert not self.sim.live_workers()
        assert len(self.sim.node.directory) == 0


TestHost = Host.TestCase
TestHost.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
