"""Who am I: the running task, its worker, its node."""

import os
from typing import Any

from zmesh import api
from zmesh.actor import ActorHandle
from zmesh.exceptions import LocalProtocolError
from zmesh.options import UNIT
from zmesh.wire.marks import is_mark


class RuntimeContext:
    """What `get_runtime_context` returns; a snapshot is taken at each call."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def _worker(self) -> Any:
        return getattr(self._session, "worker", None)

    def get_node_id(self) -> str:
        """Return the node's ID, 16 hexadecimal digits."""
        node: str = self._session.information["node"]
        return node

    def get_job_id(self) -> str:
        """Return the ID of the program whose work this is."""
        job: bytes = self._session.job
        return job.hex()

    def get_worker_id(self) -> str:
        """Return the ID of this process."""
        me: bytes = self._session.core.me if hasattr(self._session, "core") else self._session.job
        return me.hex()

    def get_task_id(self) -> str | None:
        """Return the ID of the running task, or None in a driver. It stays the same when the task is retried."""
        running = self._running()
        return None if running is None else (running.victim + running.seq.to_bytes(8, "big")).hex()

    def get_task_name(self) -> str | None:
        """Return the name of the running task's function, or None in a driver."""
        running = self._running()
        return None if running is None else running.spec.name

    def get_attempt_number(self) -> int:
        """Return how often the running task was started before."""
        running = self._running()
        return 0 if running is None else running.attempt

    def get_assigned_resources(self) -> dict[str, float]:
        """Return what the running task has booked."""
        worker = self._worker()
        if worker is None:
            return {}
        shape = {name: amount for name, amount in worker.core.thief.shape.items() if not is_mark(name)}
        booked = {name.partition("@")[0]: amount / UNIT for name, amount in shape.items()}
        booked.pop("bundle", None)
        return booked

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Return {"GPU": [...]} of the running task."""
        return {"GPU": [str(gpu) for gpu in api.get_gpu_ids()]}

    def get_placement_group_id(self) -> str | None:
        """Return the ID of the placement group the running task is in, or None."""
        group = api.current_group()
        return None if group is None else group["id"]

    def get_actor_id(self) -> str | None:
        """Return the ID of the actor whose method runs, or None."""
        actor = self._session.in_actor()
        return None if actor is None else actor.id.hex()

    def get_actor_name(self) -> str | None:
        """Return the name of that actor, "" if it has none; None if no actor's method runs."""
        actor = self._session.in_actor()
        return None if actor is None else actor.called

    @property
    def namespace(self) -> str:
        """Return where this program looks for names of actors."""
        text: str = self._session.actors.namespace
        return text

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the actor whose method runs was made anew after its process died."""
        actor = self._session.in_actor()
        return actor is not None and actor.restarts > 0

    @property
    def current_actor(self) -> ActorHandle:
        """Return a handle of the actor whose method runs, e.g. to pass on. Kept, it keeps the actor alive.

        Raises:
            LocalProtocolError: no actor runs in this process.
        """
        actor = self._session.in_actor()
        if actor is None:
            raise LocalProtocolError("current_actor is for methods of actors: no actor runs in this process")
        return ActorHandle(self._session.own_handle(), self._session, actor.description)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """What is set up around the running task, with the paths of its host; in a driver, what init() was given."""
        return dict(self._session.runtime_env_here)

    def get_node_labels(self) -> dict[str, str]:
        """Return the labels of the node."""
        labels: dict[str, str] = api.nodes()[0]["Labels"]
        return labels

    def is_canceled(self) -> bool:
        """Whether somebody cancelled the actor's call that runs: nothing else interrupts one outside an event loop."""
        running = self._running()
        return running is not None and running.cancelled

    def get_pid(self) -> int:
        """Return the process ID."""
        return os.getpid()

    def _running(self) -> Any:
        worker = self._worker()
        return None if worker is None else worker.current()


def get_runtime_context() -> RuntimeContext:
    """Return the context of the running task, or of the driver."""
    return RuntimeContext(api.auto_init())
