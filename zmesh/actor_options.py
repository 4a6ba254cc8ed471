"""The options of actors and of their methods: names, defaults and limits. Values are checked where they are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zmesh import options as opts
from zmesh import runtime_env as envs
from zmesh.exceptions import ConfigError
from zmesh.limits import check_whole, is_text, is_whole
from zmesh.options import TaskOptions

DEFAULT_NAMESPACE = "default"  # mesh-wide: programs that say nothing else see each other's actors
ASYNC_CONCURRENCY = 1000  # calls at once of an actor with async methods, unless it says otherwise


@dataclass(slots=True)
class ActorOptions:
    """What `@zmesh.remote(...)` on a class and `.options(...)` may set: as in Ray.

    Attributes:
        num_cpus: CPUs the actor holds for life. By default it needs 1 to start, and none afterwards.
        num_gpus: GPUs it holds for life; CUDA_VISIBLE_DEVICES names them.
        memory: bytes it books; never enforced.
        resources: {name: amount} of custom resources it holds for life.
        max_restarts: how often it is made anew, with the same arguments, when its process dies; -1: without end.
        max_task_retries: how often a call is sent again that its death interrupted; -1: without end.
        max_concurrency: calls that run at once. 1 by default, and 1,000 for an actor with `async def` methods.
        concurrency_groups: {name: calls that run at once} of methods that have places of their own. Decorator only.
        max_pending_calls: calls of one process that may be without a result; -1: any number.
        scheduling_strategy, label_selector, fallback_strategy, accelerator_type: where it should live; as for tasks.
        runtime_env: variables, files and packages it finds, laid over those of the program: zmesh.runtime_env.
        priority: actors with a higher one start first.
        name: by which anybody in the mesh finds it: zmesh.get_actor(name). No two actors of a namespace have the same.
        namespace: of its name; that of the program by default, see zmesh.init.
        get_if_exists: `.remote()` returns the actor that has the name, if there is one, instead of an error.
        lifetime: "detached": it outlives the program, and needs a name=; it ends by zmesh.kill or exit_actor, or with
            the node it was made on. None or "non_detached": it ends with the last handle, or the program.
    """

    num_cpus: float | None = None
    num_gpus: float = 0
    memory: int = 0
    resources: Mapping[str, float] | None = None
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int | None = None
    concurrency_groups: Mapping[str, int] | None = None
    max_pending_calls: int = -1
    scheduling_strategy: Any = None
    label_selector: Mapping[str, str] | None = None
    fallback_strategy: Sequence[Mapping[str, Mapping[str, str]]] | None = None
    accelerator_type: str | None = None
    runtime_env: Mapping[str, Any] | None = None
    priority: int = 0
    name: str | None = None
    namespace: str | None = None
    get_if_exists: bool = False
    lifetime: str | None = None


@dataclass(slots=True, frozen=True)
class MethodOptions:
    """What `@zmesh.method(...)` and `.options(...)` of a method may set; None: as the actor says.

    Attributes:
        num_returns: how many refs `.remote()` gives, as for tasks.
        concurrency_group: whose places its calls take; the default group by default.
        max_task_retries: as of the actor.
        retry_exceptions: True, or a list of exception classes: it is also run again when it raises (one of) them.
        generator_backpressure: items a stream may be ahead of its reader.
        name: what logs and errors call it.
    """

    num_returns: int | str | None = None
    concurrency_group: str | None = None
    max_task_retries: int | None = None
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    generator_backpressure: int | None = None
    name: str = ""


VALID = tuple(ActorOptions.__dataclass_fields__)
DEFAULTS: dict[str, Any] = {name: field.default for name, field in ActorOptions.__dataclass_fields__.items()}
VALID_OF_METHODS = tuple(MethodOptions.__dataclass_fields__)
_OF_TASKS = (
    "num_gpus", "memory", "resources", "accelerator_type", "scheduling_strategy", "label_selector", "fallback_strategy",
    "priority", "runtime_env",
)  # fmt: skip


def parse(given: Mapping[str, Any], base: ActorOptions | None = None) -> ActorOptions:
    """Return options of an actor with `given` laid over `base`.

    Raises:
        ConfigError: an unknown name, or a value outside its limits; the text lists what is valid.
    """
    values = {name: getattr(base, name) for name in VALID} if base is not None else {}
    for name, value in given.items():
        if name not in VALID:
            raise opts.unknown_option(name, " of an actor", VALID)
        values[name] = DEFAULTS[name] if value is None else value
    values["runtime_env"] = envs.check(values.get("runtime_env"))
    options = ActorOptions(**values)
    for name in ("max_restarts", "max_task_retries"):
        count = getattr(options, name)
        if not is_whole(count, -1):
            raise ConfigError(f"{name} must be a whole number from -1 (without end), not {count!r}")
    pending = options.max_pending_calls
    if not is_whole(pending, 1) and pending != -1:
        raise ConfigError(f"max_pending_calls must be a whole number from 1, or -1 for any number, not {pending!r}")
    at_once = options.max_concurrency
    if at_once is not None:
        check_whole("max_concurrency", at_once)
    for name, count in (options.concurrency_groups or {}).items():
        if not isinstance(name, str) or not name or not is_whole(count, 1):
            raise ConfigError(f"concurrency_groups must map names to whole numbers from 1, not {name!r} to {count!r}")
    for name in ("name", "namespace"):
        text = getattr(options, name)
        if text is not None and (not is_text(text) or not text):
            raise ConfigError(f"{name} must be a text that is not empty, not {text!r}")
    if options.get_if_exists and options.name is None:
        raise ConfigError("get_if_exists=True needs a name=")
    if options.lifetime not in (None, "non_detached", "detached"):
        raise ConfigError(f"lifetime must be None, 'non_detached' or 'detached', not {options.lifetime!r}")
    as_task(options)
    return options


def as_task(options: ActorOptions) -> TaskOptions:
    """Return the options of the task that an actor is."""
    given = {name: getattr(options, name) for name in _OF_TASKS}
    return opts.parse({**given, "num_cpus": 1 if options.num_cpus is None else options.num_cpus})


def parse_method(given: Mapping[str, Any], base: MethodOptions | None = None) -> MethodOptions:
    """Return options of a method with `given` laid over `base`.

    Raises:
        ConfigError: an unknown name, or a value outside its limits; the text lists what is valid.
    """
    values = {name: getattr(base, name) for name in VALID_OF_METHODS} if base is not None else {}
    for given_name, value in given.items():
        name = opts.ALIASES.get(given_name, given_name)
        if name not in VALID_OF_METHODS:
            raise opts.unknown_option(given_name, " of a method", VALID_OF_METHODS)
        values[name] = tuple(value) if isinstance(value, list) else value
    options = MethodOptions(**values)
    retries = options.max_task_retries
    if retries is not None and not is_whole(retries, -1):
        raise ConfigError(f"max_task_retries must be a whole number from -1 (without end), not {retries!r}")
    group = options.concurrency_group
    if group is not None and not isinstance(group, str):
        raise ConfigError(f"concurrency_group must be a name, not {group!r}")
    shared = ("num_returns", "retry_exceptions", "generator_backpressure", "name")
    opts.parse({name: getattr(options, name) for name in shared})
    return options
