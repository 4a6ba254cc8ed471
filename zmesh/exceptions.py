"""Every error zmesh raises, in one tree; the text says what happened, to what, and what to do.

    MeshError
      you     ConfigError > ArgumentError, NotRunningError, LocalProtocolError, SerializationError,
              TaskUnschedulableError, PlacementGroupUnschedulableError
      they    TaskError (also an instance of the user's own class), TaskCancelledError, TaskTimeoutError,
              WorkerDiedError > OutOfMemoryError, NodeDiedError, GetTimeoutError,
              ObjectLostError > OwnerDiedError, StoreFullError > SpillError,
              RemoteProtocolError > UnknownWordError,
              StreamReplayError, TaskPlacementGroupRemovedError, RuntimeEnvError,
              ActorError > ActorDiedError > ActorPlacementGroupRemovedError, ActorError > ActorUnavailableError,
              ActorNotFoundError, ActorAlreadyExistsError, PendingCallsLimitExceededError
      us      InternalError

    RemoteTraceback is the `__cause__` of a TaskError.

Attributes hold the facts of the text. All of them pickle: `__reduce__` keeps the class and the attributes.
"""

from typing import Any


class MeshError(Exception):
    """The root of everything zmesh raises by itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def bare(cls: type["MeshError"]) -> "MeshError":
    """Make an error without running its __init__, by the __new__ of the built-in exception whose layout it has."""
    builtin: Any = cls
    while builtin.__module__ != "builtins":
        builtin = builtin.__base__
    made: MeshError = builtin.__new__(cls)
    return made


def _rebuild(cls: type[MeshError], args: tuple[Any, ...], attributes: dict[str, Any]) -> MeshError:
    """Make an error without running its __init__, whose signature may ask for more than `args`."""
    error = bare(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


# You: the program asked for something that cannot be.


class ConfigError(MeshError, ValueError):
    """A setting, an option or a command line makes no sense; the text names the valid ones."""


class ArgumentError(ConfigError, TypeError):
    """What was given to a function is nothing it takes, such as no ref; a TypeError and a ValueError, as Ray's vary."""


class NotRunningError(MeshError, ConnectionError):
    """The call needs a running node and there is none."""


class LocalProtocolError(MeshError, RuntimeError):
    """This program used zmesh in a way that the rules of the API exclude."""


class SerializationError(MeshError, TypeError):
    """A value cannot be pickled; `path` names the attribute that stops it.

    Attributes:
        path: where in the value, e.g. `args[0].model.lock`.
    """

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        self.path = path


class TaskUnschedulableError(MeshError, RuntimeError):
    """No node can ever run this task; the text says which resource is missing."""


class PlacementGroupUnschedulableError(MeshError, RuntimeError):
    """No nodes of the mesh could ever hold the bundles of this placement group; the text says what is missing."""


# They: the task, a worker, a node or an object failed.


class TaskError(MeshError):
    """The user's code raised in a worker. What `get` raises is an instance of this and of the user's own class.

    Attributes:
        cause: the user's exception as the worker raised it, or None if it could not be pickled.
        function: name of the remote function.
        traceback_text: the worker's traceback.
        pid: process id of the worker.
    """

    cause: BaseException | None = None
    function: str = ""
    traceback_text: str = ""
    pid: int = 0


class RemoteTraceback(MeshError):
    """The worker's traceback as text; the `__cause__` of a TaskError."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class TaskCancelledError(MeshError):
    """The task was cancelled before it gave a result."""


class TaskPlacementGroupRemovedError(MeshError):
    """The placement group the task was for is no more: it was removed, or its program or its node is gone."""


class RuntimeEnvError(MeshError):
    """A worker could not make the runtime_env= of a task, which never ran; the text has the last of what pip wrote."""


class WorkerDiedError(MeshError):
    """The process that ran the task ended, and no retries are left.

    Attributes:
        exit_code: what it passed to exit, or None if a signal ended it.
        signal_name: e.g. "SIGSEGV", or None if it exited.
        stderr_tail: the last it wrote to stderr, 4 KiB at most.
        attempts: how often the task was started.
        pid: process id of the last worker.
    """

    def __init__(
        self,
        text: str,
        exit_code: int | None = None,
        signal_name: str | None = None,
        stderr_tail: str = "",
        attempts: int = 0,
        pid: int = 0,
    ) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.signal_name = signal_name
        self.stderr_tail = stderr_tail
        self.attempts = attempts
        self.pid = pid


class OutOfMemoryError(WorkerDiedError):
    """Memory ran out, and the task's worker was killed, by its node or by the kernel; the text says who used what."""


class TaskTimeoutError(WorkerDiedError, TimeoutError):
    """The task ran longer than its `timeout=`; its worker was killed."""


class NodeDiedError(MeshError, ConnectionError):
    """The node this program was connected to is gone; what it had running is lost."""


class ActorError(MeshError):
    """Something is wrong with an actor rather than with what it was to do.

    Attributes:
        actor_id: hexadecimal.
    """

    actor_id: str = ""


class ActorDiedError(ActorError):
    """The actor is dead and will not come back; the text says why.

    Attributes:
        class_name: of the actor.
        actor_init_failed: its `__init__` raised; the text has the traceback.
        exit_code, signal_name, stderr_tail, pid, attempts: of its process, as in WorkerDiedError, if that died.
    """

    class_name: str = ""
    actor_init_failed: bool = False
    exit_code: int | None = None
    signal_name: str | None = None
    stderr_tail: str = ""
    pid: int = 0
    attempts: int = 0


class ActorPlacementGroupRemovedError(ActorDiedError):
    """The placement group the actor was in is no more: it was removed, or its program or its node is gone."""


class ActorNotFoundError(MeshError, ValueError):
    """No actor has that name."""


class ActorAlreadyExistsError(MeshError, ValueError):
    """Another actor has that name in that namespace."""


class ActorUnavailableError(ActorError):
    """The actor's process died while it had this call, and is started again; the call may or may not have run."""


class PendingCallsLimitExceededError(MeshError):
    """`max_pending_calls` calls of this process have no result yet; the call was not made."""


class GetTimeoutError(MeshError, TimeoutError):
    """`get` waited for its whole timeout; the text says what the object waits for. The task goes on."""


class ObjectLostError(MeshError):
    """The object's bytes are gone; the text says which link is missing."""


class OwnerDiedError(ObjectLostError):
    """The process that owned the object died before the object was there."""


class StoreFullError(MeshError, MemoryError):
    """Shared memory is used up; the text has the numbers."""


class SpillError(StoreFullError):
    """Shared memory is used up, and what lies there cannot be written to disk: that is full, or its quota is used."""


class RemoteProtocolError(MeshError):
    """A message of another process broke the rules of the protocol, and was dropped."""


class UnknownWordError(RemoteProtocolError):
    """A message is none that this process hears; a newer version may send such."""


# Us.


class InternalError(MeshError, AssertionError):
    """A promise that zmesh made to itself is broken: please report it."""


class StreamReplayError(MeshError):
    """A retried generator gave another number of items than the attempt before it."""


# What programs written for Ray call some of these: the same classes.

RayError = MeshError
RayTaskError = UserCodeException = TaskError
WorkerCrashedError = WorkerDiedError
LocalRayletDiedError = NodeDiedError
RaySystemError = InternalError
RayActorError = ActorError
ActorHandleNotFoundError = ActorNotFoundError
ActorPlacementGroupRemoved = ActorPlacementGroupRemovedError
TaskPlacementGroupRemoved = TaskPlacementGroupRemovedError
ActorUnschedulableError = TaskUnschedulableError
PendingCallsLimitExceeded = PendingCallsLimitExceededError
ObjectStoreFullError = StoreFullError
OutOfDiskError = SpillError
ObjectReconstructionFailedError = ObjectLostError
RuntimeEnvSetupError = RuntimeEnvError
StreamingGeneratorReplayInconsistentError = StreamReplayError
