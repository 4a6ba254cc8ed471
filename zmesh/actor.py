"""`@zmesh.remote` on a class: `.remote()` makes an actor, a worker with state; its methods run there, one by one."""

import functools
import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from zmesh import actor_options, signatures
from zmesh import options as opts
from zmesh.actor_options import ASYNC_CONCURRENCY, ActorOptions, MethodOptions
from zmesh.exceptions import (
    ActorAlreadyExistsError,
    ActorNotFoundError,
    ArgumentError,
    ConfigError,
    LocalProtocolError,
)
from zmesh.limits import is_text
from zmesh.object_ref import ActorExit, ObjectRef, ObjectRefGenerator
from zmesh.options import STREAMING, UNIT
from zmesh.signatures import Takes
from zmesh.wire.marks import ENVIRONMENT

if TYPE_CHECKING:
    from zmesh.runtime.session import Session

_MARK = "__zmesh_method__"  # what `method` leaves on a function
# Methods every actor has; Ray's names mean the same.
_BUILT_IN = ("__zmesh_ready__", "__zmesh_call__", "__zmesh_terminate__")
_ALIASES = {name.replace("zmesh", "ray"): name for name in _BUILT_IN}


@dataclass(slots=True, frozen=True)
class Description:
    """What a handle knows of its actor: enough to call it. Travels with each handle.

    Attributes:
        name: of the class.
        methods: {name: (options, whether it is a generator, what it takes)}.
        ordered: it runs one call at a time.
        max_task_retries, max_pending_calls: of its options.
        groups: its concurrency groups.
    """

    name: str
    methods: dict[str, tuple[MethodOptions, bool, Takes]]
    ordered: bool
    max_task_retries: int
    max_pending_calls: int
    groups: tuple[str, ...]


def method(*args: Any, **given: Any) -> Any:
    """Set options of a method: `@zmesh.method(num_returns=2)`; see zmesh.actor_options.MethodOptions.

    Raises:
        ConfigError: an unknown option, or a value that makes no sense.
        TypeError: a positional argument that is not the method itself.
    """
    if args:
        if given or len(args) > 1 or not callable(args[0]):
            raise TypeError("@zmesh.method takes keyword options only, e.g. @zmesh.method(num_returns=2)")
        return args[0]
    options = actor_options.parse_method(given)

    def mark(function: Any) -> Any:
        setattr(function, _MARK, options)
        return function

    return mark


class ActorClass:
    """A class whose instances are actors. Any thread.

    Example:
        >>> @zmesh.remote
        ... class Counter:
        ...     def __init__(self):
        ...         self.count = 0
        ...     def add(self, n):
        ...         self.count += n
        ...         return self.count
        >>> counter = Counter.remote()
        >>> zmesh.get([counter.add.remote(1), counter.add.remote(2)])
        [1, 3]
    """

    def __init__(
        self, cls: type[Any], options: ActorOptions, described: "tuple[bool, Description] | None" = None
    ) -> None:
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__
        self.__doc__ = cls.__doc__
        self._cls = cls
        self._options = options
        self._session: Session | None = None  # the one _spec belongs to
        self._spec: Any = None
        self._captured: list[Any] = []  # refs that the class captured: held as long as actors can be made of it
        self._group: Any = None  # the placement group _spec was captured by
        # One that arrives inside its own class, whose methods name it, comes before that has any: it must be told.
        self._is_async, self._description = _describe(cls, options) if described is None else described

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: the instances of this class are actors."""
        name = self._cls.__name__
        raise TypeError(f"actor class {name} cannot be instantiated directly: use {name}.remote()")

    def __getattr__(self, name: str) -> Any:
        """Give a constant, a static or a class method of the class: they need no actor."""
        found = inspect.getattr_static(self.__dict__.get("_cls"), name, None)
        if name.startswith("__") or found is None:
            raise AttributeError(f"actor class {self.__dict__.get('__name__')} has no attribute {name!r}")
        if inspect.isroutine(found) and not isinstance(found, staticmethod | classmethod):
            raise AttributeError(
                f"{name} is a method of actors: make one, actor = {self.__name__}.remote(), and call it"
            )
        return getattr(self._cls, name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        """Refuse: an actor class has no subclasses."""
        name = self._cls.__name__
        raise TypeError(
            f"actor class {name} cannot be subclassed: keep the plain class, and use zmesh.remote() on both"
        )

    def options(self, **given: Any) -> "ActorClass":
        """Return a copy with other options; see zmesh.actor_options.ActorOptions.

        Raises:
            ConfigError: an unknown option, or a value that makes no sense.
        """
        if "concurrency_groups" in given:
            raise ConfigError(
                "concurrency_groups can only be set in the decorator: @zmesh.remote(concurrency_groups=...)"
            )
        return ActorClass(self._cls, actor_options.parse(given, self._options))

    def remote(self, *args: Any, **kwargs: Any) -> "ActorHandle":
        """Make an actor and return its handle at once; it lives as long as anybody has a handle, or until it is killed.

        If `__init__` raises, the calls of its methods raise ActorDiedError with the traceback.

        With a name= it waits until it is sure that no other actor has that name.

        Raises:
            ActorAlreadyExistsError: one has.
            ConfigError: a detached actor has no name.
            SerializationError: the class or an argument cannot be pickled.
            TypeError: `__init__` takes no such arguments.
        """
        takes = self._takes
        if kwargs or not takes.least <= len(args) <= takes.most:
            takes.check(self.__name__, args, kwargs)
        session = self._session
        told, options = self._description, self._options
        detached = options.lifetime == "detached"
        if detached and options.name is None:
            raise ConfigError("a detached actor needs a name=: nobody could find it when its handles are gone")
        if session is None or session.closed or session.group is not self._group:
            from zmesh import api

            session = api.auto_init()
            self._register(session)
        if options.name is None:
            first = session.actors.create(self._spec, args, kwargs, name=told.name, ordered=told.ordered)
            return ActorHandle(first, session, told)
        called = (options.namespace or session.actors.namespace, options.name)
        entry, told, made = session.actors.create_named(
            self._spec, args, kwargs, name=told.name, ordered=told.ordered, called=called, description=told,
            detached=detached, here=options.scheduling_strategy in ("DEFAULT", None),
        )  # fmt: skip
        handle = ActorHandle(entry, session, told)
        if not made and not options.get_if_exists:
            raise ActorAlreadyExistsError(
                f"an actor {options.name!r} exists in namespace {called[0]!r}: zmesh.get_actor() finds it, "
                "get_if_exists=True uses it"
            )
        return handle

    @functools.cached_property
    def _takes(self) -> Takes:
        """What arguments an instance is made of."""
        return signatures.of_function(self._cls)

    def _register(self, session: "Session") -> None:
        options = self._options
        task = actor_options.as_task(options)
        captured = session.group
        shapes = opts.placed(task, captured)
        at_once = options.max_concurrency or (ASYNC_CONCURRENCY if self._is_async else 1)
        cpu = [name for name in shapes[0] if name.partition("@")[0] == "CPU"]  # also as a placement group calls it
        lent = dict.fromkeys(cpu, UNIT) if options.num_cpus is None else {}
        environment = session.environment(options.runtime_env)
        sent: dict[str, Any] = {"max_calls": 1}
        group = opts.group_of(task, captured)
        if group is not None:
            sent["group"] = group
        if environment is not None:
            sent["env"] = environment
            mark = {f"{ENVIRONMENT}{environment['id']}": 1}
            shapes = [shape | mark for shape in shapes]
        plan = {
            "places": {"": at_once, **(options.concurrency_groups or {})},
            "async": self._is_async,
            "lent": lent,
            "name": options.name or "",
        }
        self._spec = session.spec(
            (self._cls, self._description),
            self._description.name,
            shapes[0],
            STREAMING,
            {
                "fallbacks": shapes[1:],
                "options": sent | {"actor": plan},
                "max_retries": options.max_restarts,
                "retry_classes": (),
                "priority": options.priority,
            },
            (
                "actor",
                opts.key(task),
                options.max_restarts,
                str(plan),
                captured and captured["id"],
                environment and environment["id"],
            ),
        )
        self._captured = session.captured(self._spec)
        self._session = session
        self._group = captured

    def __reduce__(self) -> tuple[Any, ...]:
        options = self._options
        if options.runtime_env:
            # Its paths are of this machine: elsewhere only what they hold makes sense.
            from zmesh import api

            options = replace(options, runtime_env=api.auto_init().packed_environment(options.runtime_env))
        return ActorClass, (self._cls, options, (self._is_async, self._description))

    def __repr__(self) -> str:
        return f"ActorClass({self._cls.__qualname__})"


def _describe(cls: type[Any], options: ActorOptions) -> tuple[bool, Description]:
    """Return whether the actor is async, and what handles must know."""
    methods = {name: (MethodOptions(), False, signatures.ANY) for name in _BUILT_IN}
    is_async = False
    groups = tuple(options.concurrency_groups or ())
    for name in dir(cls):
        function = getattr(cls, name, None)
        if not callable(function) or (name.startswith("__") and name in vars(object)) or inspect.isclass(function):
            continue
        is_async = is_async or inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        streams = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        given: MethodOptions = getattr(function, _MARK, MethodOptions())
        _check_group(given, groups, f"{cls.__name__}.{name}")
        methods[name] = (given, streams, signatures.of_method(cls, name))
    at_once = options.max_concurrency or (ASYNC_CONCURRENCY if is_async else 1)
    ordered = at_once == 1 and not groups
    description = Description(
        cls.__qualname__, methods, ordered, options.max_task_retries, options.max_pending_calls, groups
    )
    return is_async, description


def _check_group(options: MethodOptions, groups: tuple[str, ...], name: str) -> None:
    if options.concurrency_group and options.concurrency_group not in groups:
        has = ", ".join(groups) or "none"
        raise ConfigError(f"{name}: no concurrency group {options.concurrency_group!r}; the class has: {has}")


class ActorHandle:
    """A handle of an actor: `handle.method.remote(...)` calls it. Any thread.

    It may be passed to tasks and other actors, returned and stored; the actor lives as long as there is a handle.
    Handles of the same actor are equal. It can only be pickled inside zmesh calls.
    """

    def __init__(self, entry: Any, session: "Session", description: Description) -> None:
        # One reference of the entry is ours already: the maker counted it.
        self._entry = entry
        self._session = session
        self._description = description

    def __getattr__(self, name: str) -> "ActorMethod":
        known = self._description.methods.get(_ALIASES.get(name, name))
        if known is None:
            if name.startswith("__"):
                raise AttributeError(name)
            methods = ", ".join(sorted(m for m in self._description.methods if not m.startswith("__")))
            raise AttributeError(
                f"actor {self._description.name} has no method {name!r} (attributes can only be read by its methods); "
                f"it has: {methods}"
            )
        return ActorMethod(self, _ALIASES.get(name, name), *known)

    def __del__(self) -> None:
        # May run in any thread, inside a garbage collection, inside our own lock: append, and nothing that waits.
        if "_session" in self.__dict__:
            self._session.dropped.append(self._entry)
            self._session.nudge()

    @property
    def _actor_id(self) -> bytes:
        return self._session.object_id(self._entry)

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActorHandle):
            return NotImplemented
        return self._entry is other._entry or self._actor_id == other._actor_id

    def __copy__(self) -> "ActorHandle":
        return self

    def __deepcopy__(self, memo: Any) -> "ActorHandle":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _borrow, (self._session.note(self), self._description)  # type: ignore[arg-type]  # it is as good as a ref

    __getstate__ = __reduce__  # as of a ref

    def __repr__(self) -> str:
        return f"ActorHandle({self._description.name}, {self._actor_id.hex()})"


def _borrow(oid: bytes, description: Description) -> ActorHandle:
    """Make the handle that arrived inside a value."""
    from zmesh.runtime import session

    current = session.current()
    return ActorHandle(current.borrow(oid), current, description)


class ActorMethod:
    """A method of an actor: `.remote()` calls it. Any thread."""

    def __init__(self, handle: ActorHandle, name: str, options: MethodOptions, streams: bool, takes: Takes) -> None:
        self._handle = handle
        self._name = name
        self._options = options
        self._streams = streams
        self._takes = takes

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: the method runs in the actor."""
        raise TypeError(f"actor method {self._name} cannot be called directly: use .{self._name}.remote()")

    def options(self, **given: Any) -> "ActorMethod":
        """Return the method with other options; see zmesh.actor_options.MethodOptions.

        Raises:
            ConfigError: an unknown option, or a value that makes no sense.
        """
        options = actor_options.parse_method(given, self._options)
        told = self._handle._description
        _check_group(options, told.groups, f"{told.name}.{self._name}")
        return ActorMethod(self._handle, self._name, options, self._streams, self._takes)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method and return at once. Calls of one process to one actor start in the order they were made.

        Arguments are treated as those of tasks: top-level refs arrive as values.

        Returns:
            An ObjectRef; a list of them for num_returns=n; None for 0; an ObjectRefGenerator for a stream.

        Raises:
            MeshError: zmesh was shut down, or this is a fork of the process that has the handle.
            PendingCallsLimitExceededError: max_pending_calls calls have no result yet.
            SerializationError: an argument cannot be pickled.
            TypeError: the method takes no such arguments.
        """
        handle, takes = self._handle, self._takes
        session, told = handle._session, handle._description
        if kwargs or not takes.least <= len(args) <= takes.most:
            takes.check(f"{told.name}.{self._name}", args, kwargs)
        returns = _number_of_returns(self._options, self._streams)
        spec = _specs(session).get((told.name, self._name, self._options, told.max_task_retries, returns))
        if spec is None:
            spec = self._register(session, told, returns)
        task = session.actors.call(
            handle._entry, told.name, spec, args, kwargs, ordered=told.ordered, pending_max=told.max_pending_calls
        )
        if returns == 1:
            return ObjectRef(task, session)
        if returns == STREAMING:
            return ObjectRefGenerator(task, session)
        return [ObjectRef(output, session) for output in task.outputs or ()] if returns else None

    def _register(self, session: "Session", told: Description, returns: int) -> Any:
        options = self._options
        retries = told.max_task_retries if options.max_task_retries is None else options.max_task_retries
        retry = options.retry_exceptions
        sent: dict[str, Any] = {"method": self._name}
        if options.concurrency_group:
            sent["group"] = options.concurrency_group
        if options.generator_backpressure and options.generator_backpressure > 0:
            sent["backpressure"] = options.generator_backpressure
        if retry:
            sent["retry"] = True
        classes = () if isinstance(retry, bool) else retry
        key = (told.name, self._name, options, told.max_task_retries, returns)
        spec = session.spec(
            None,
            options.name or f"{told.name}.{self._name}",
            {},
            returns,
            {"options": sent, "max_retries": retries, "retry_classes": classes},
            key,
        )
        _specs(session)[key] = spec
        return spec

    def __repr__(self) -> str:
        return f"ActorMethod({self._handle._description.name}.{self._name})"


def _specs(session: "Session") -> dict[Any, Any]:
    """Return {how a method is called: what its session calls that}."""
    return session.actors.specs


def _number_of_returns(options: MethodOptions, streams: bool) -> int:
    returns = options.num_returns
    if returns == "streaming" or (returns is None and streams):
        return STREAMING
    if returns is None:
        return 1
    assert isinstance(returns, int)
    return returns


def make(cls: type[Any], given: dict[str, Any]) -> ActorClass:
    """Turn a class into an ActorClass: what `@zmesh.remote` does with classes.

    Raises:
        ConfigError: an unknown option, or a value that makes no sense.
    """
    return ActorClass(cls, actor_options.parse(given))


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """Return a handle of the actor with that name, wherever in the mesh it is.

    Args:
        name: as given by name=.
        namespace: of the name; that of this program by default.

    Raises:
        ActorNotFoundError: there is none; also a ValueError.
    """
    from zmesh import api

    if not is_text(name) or not (namespace is None or is_text(namespace)):
        raise ArgumentError(
            f"get_actor() takes a name and a namespace, which are texts, not {name!r} and {namespace!r}"
        )
    session = api.auto_init()
    where = namespace or session.actors.namespace
    found = session.actors.find(where, name)
    if found is None:
        raise ActorNotFoundError(
            f"no actor {name!r} in namespace {where!r}: it was not made yet, is dead, or nobody had a handle of it"
        )
    return ActorHandle(found[0], session, found[1])


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor at once, whatever it does; what it has to do fails with ActorDiedError. Does not wait.

    Args:
        actor: its handle.
        no_restart: for good; else it counts as a death, and max_restarts may make it anew.
    """
    if not isinstance(actor, ActorHandle):
        raise ArgumentError(
            f"kill() takes an ActorHandle, not {type(actor).__name__}; for tasks there is zmesh.cancel()"
        )
    told = actor._description
    actor._session.actors.kill(actor._entry, told.name, ordered=told.ordered, no_restart=no_restart)


def exit_actor() -> NoReturn:
    """End the actor whose method runs now, in good order; this call, others that run, and those to come raise
    ActorDiedError.

    Raises:
        LocalProtocolError: no actor's method runs here.
    """
    from zmesh import api

    if api.require_running().in_actor() is None:
        raise LocalProtocolError("exit_actor() is for methods of actors: no actor runs in this process")
    raise ActorExit
