"""`@zmesh.remote` on a function: `.remote()` submits a call, `.options()` changes how."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zmesh import actor_options, signatures
from zmesh import options as opts
from zmesh.exceptions import ConfigError
from zmesh.object_ref import ObjectRef, ObjectRefGenerator
from zmesh.options import STREAMING, TaskOptions
from zmesh.wire.marks import ENVIRONMENT

if TYPE_CHECKING:
    from zmesh.runtime.session import Session


class RemoteFunction:
    """A function whose calls run in workers. Any thread.

    Example:
        >>> @zmesh.remote
        ... def double(x):
        ...     return 2 * x
        >>> zmesh.get(double.remote(21))
        42
    """

    def __init__(self, function: Callable[..., Any], options: TaskOptions) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._options = options
        self._returns = _number_of_returns(function, options)
        self._session: Session | None = None  # the one _spec belongs to
        self._spec: Any = None
        self._captured: list[ObjectRef[Any]] = []  # what calls find in the function: held as long as it can be called
        self._group: Any = None  # the placement group _spec was captured by

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a remote function runs in a worker."""
        name = self._function.__name__
        raise TypeError(f"remote function {name} cannot be called directly: use {name}.remote(), or {name}.function()")

    @property
    def function(self) -> Callable[..., Any]:
        """The plain function, to call it right here."""
        return self._function

    def options(self, **given: Any) -> "RemoteFunction":
        """Return a copy with other options; see zmesh.options.TaskOptions.

        Raises:
            ConfigError: an unknown option, or a value that makes no sense.
        """
        if "max_calls" in given:
            raise ConfigError("max_calls can only be set in the decorator: @zmesh.remote(max_calls=...)")
        return RemoteFunction(self._function, opts.parse(given, self._options))

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit one call and return at once.

        Top-level ObjectRefs in the arguments are replaced by their values, and the call waits for them; refs inside
        lists or objects arrive as refs. Arguments over 64 KiB travel through shared memory.

        Returns:
            An ObjectRef; a list of them for num_returns=n; None for 0; an ObjectRefGenerator for a stream.

        Raises:
            SerializationError: the function or an argument cannot be pickled.
            TaskUnschedulableError: the strategy names a node that is not there.
            TypeError: the function takes no such arguments.
        """
        takes = self._takes
        if kwargs or not takes.least <= len(args) <= takes.most:
            takes.check(getattr(self._function, "__qualname__", repr(self._function)), args, kwargs)
        session = self._session
        if session is None or session.closed or session.group is not self._group:
            from zmesh import api

            session = api.auto_init()
            self._register(session)
        task = session.submit(self._spec, args, kwargs)
        if self._returns == 1:
            return ObjectRef(task, session)
        if self._returns == STREAMING:
            return ObjectRefGenerator(task, session)
        return [ObjectRef(output, session) for output in task.outputs or ()] if self._returns else None

    @functools.cached_property
    def _takes(self) -> signatures.Takes:
        return signatures.of_function(self._function)

    def _register(self, session: "Session") -> None:
        options = self._options
        captured = session.group
        shapes = opts.placed(options, captured)
        environment = session.environment(options.runtime_env)
        name = options.name or getattr(self._function, "__qualname__", repr(self._function))
        retry = options.retry_exceptions
        sent: dict[str, Any] = {}  # what the worker needs to know
        if options.generator_backpressure and options.generator_backpressure > 0:
            sent["backpressure"] = options.generator_backpressure
        if options.max_calls:
            sent["max_calls"] = options.max_calls
        if retry:
            sent["retry"] = True
        group = opts.group_of(options, captured)
        if group is not None:
            sent["group"] = group
        if not options.max_retries or not options.oom_retries:
            sent["once"] = True
        if environment is not None:
            sent["env"] = environment
            mark = {f"{ENVIRONMENT}{environment['id']}": 1}  # a worker serves one environment only
            shapes = [shape | mark for shape in shapes]
        self._spec = session.spec(
            self._function,
            name,
            shapes[0],
            self._returns,
            {
                "fallbacks": shapes[1:],
                "options": sent,
                "max_retries": options.max_retries,
                "oom_retries": options.oom_retries,
                "timeout_s": options.timeout,
                "priority": options.priority,
                "retry_classes": () if isinstance(retry, bool) else tuple(retry),
            },
            (opts.key(options), captured and captured["id"], environment and environment["id"]),
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
        return RemoteFunction, (self._function, options)

    def __repr__(self) -> str:
        return f"RemoteFunction({self._function.__qualname__})"


def _number_of_returns(function: Callable[..., Any], options: TaskOptions) -> int:
    returns = options.num_returns
    if returns == "streaming":
        return STREAMING
    if returns is None:
        streams = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        return STREAMING if streams else 1
    assert isinstance(returns, int)
    return returns


def remote(*args: Any, **given: Any) -> Any:
    """Turn a function into a RemoteFunction, or a class into an ActorClass: `@remote`, `@remote(num_cpus=2)`.

    Raises:
        ConfigError: an unknown option, or a value that makes no sense.
        TypeError: neither a function nor a class.
    """
    if len(args) == 1 and not given:
        return _make(args[0], {})
    if args:
        raise TypeError("@zmesh.remote takes keyword options only, e.g. @zmesh.remote(num_cpus=2)")
    _check_names(given)
    return lambda target: _make(target, given)


def _check_names(given: dict[str, Any]) -> None:
    """Refuse at once what neither a function nor a class may have."""
    for name in given:
        if name not in (*opts.VALID, *opts.ALIASES, *actor_options.VALID):
            classes = "and for a class: " + ", ".join(actor_options.VALID)
            raise opts.unknown_option(name, "", (*opts.VALID, classes))
    if all(name in (*opts.VALID, *opts.ALIASES) for name in given):
        opts.parse(given)


def _make(target: Any, given: dict[str, Any]) -> Any:
    from zmesh import actor

    if inspect.isclass(target):
        return actor.make(target, given)
    if isinstance(target, RemoteFunction | actor.ActorClass):
        raise TypeError(f"{target!r} is remote already: use its .options() to change them")
    if not callable(target):
        raise TypeError(f"@zmesh.remote needs a function or a class, not {target!r}")
    if inspect.iscoroutinefunction(target):
        name = target.__qualname__
        raise ConfigError(f"{name} is an async function, which no task can be: use asyncio.run() in it, or an actor")
    return RemoteFunction(target, opts.parse(given))
