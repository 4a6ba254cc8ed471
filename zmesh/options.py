"""The options of a remote function: their names, defaults and limits. Values are checked where they are given."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zmesh import label_selectors
from zmesh import runtime_env as envs
from zmesh.exceptions import ConfigError
from zmesh.limits import AMOUNT_MAX, WHOLE_MAX, check_whole, is_amount, is_text, is_whole
from zmesh.wire.marks import SPREAD, is_mark

UNIT = 10_000  # resources are counted in units of 1/10,000
STREAMING = -1
ACCELERATOR = "accelerator_type:"  # and the name of its GPUs: a resource of which a node has 1
_SHARE_OF_ACCELERATOR = 0.001  # so that a thousand tasks may run beside each other: as in Ray
_SHARE_WITHOUT_RESOURCES = (
    16  # of the 1,000 a bundle has: some 60 tasks without resources at once, as outside of groups
)

_STRATEGIES = ("DEFAULT", "SPREAD")
_IN_GROUP = "use scheduling_strategy=PlacementGroupSchedulingStrategy(group, index, capture)"
_INSTEAD = {  # {option that others have and we do not: what to do}
    "allow_out_of_order_execution": "calls of async and threaded actors start when they can; leave it out",
    "enable_task_events": "no events of tasks are kept; leave it out",
    "enable_tensor_transport": "arrays travel through shared memory; leave it out",
    "object_store_memory": "the store is shared by all; leave it out",
    "placement_group": _IN_GROUP,
    "placement_group_bundle_index": _IN_GROUP,
    "placement_group_capture_child_tasks": _IN_GROUP,
    "tensor_transport": "arrays travel through shared memory; leave it out",
    "_actor_generator_backpressure_num_objects": "set generator_backpressure= of each method",
    "_labels": "no events of tasks are kept; leave it out",
    "_num_objects_per_yield": "yield lists",
}


@dataclass(slots=True)
class TaskOptions:
    """What `@zmesh.remote(...)` and `.options(...)` may set: as in Ray, and timeout and priority besides.

    Attributes:
        num_returns: how many refs `.remote()` gives: 0 (None), 1 (a ref), n (a list), "streaming"; None: 1, or
            streaming if the function is a generator.
        num_cpus: CPUs the task books while it runs; fractions of 1/10,000; 0: no limit. 1 by default.
        num_gpus: GPUs it books; CUDA_VISIBLE_DEVICES names them. Above 1 only whole ones.
        memory: bytes it books. If memory runs out, tasks that use more than that are killed first.
        resources: {name: amount} of custom resources.
        max_retries: how often it is run again if its worker dies; -1: without end.
        oom_retries: how often it is run again if it is killed for want of memory; -1: without end. With max_retries=0
            it is not.
        retry_exceptions: True, or a list of exception classes: it is also run again when it raises (one of) them.
        max_calls: the worker ends after so many calls of the function; 0: never.
        name: what logs and errors call it.
        scheduling_strategy: "DEFAULT", "SPREAD", or a strategy of zmesh.util.scheduling_strategies. None: "DEFAULT",
            but in the placement group of the task that submits, if that captures what it submits.
        label_selector: {label: "a", "!a", "in(a,b)" or "!in(a,b)"}: what the labels of its node must be, besides what
            the strategy says.
        fallback_strategy: [{"label_selector": {...}}, ...]: what it is content with instead if no node fits, in order.
        accelerator_type: what GPUs its node must have, e.g. "A100": the name in its resource "accelerator_type:A100".
        timeout: seconds it may run; then its worker is killed and it counts as died.
        priority: higher ones start first; 0 by default.
        generator_backpressure: items a stream may be ahead of its reader; None: without limit.
        runtime_env: variables, files and packages the task finds, laid over those of the program: zmesh.runtime_env.
    """

    num_returns: int | str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    memory: int = 0
    resources: Mapping[str, float] | None = None
    max_retries: int = 3
    oom_retries: int = 1
    retry_exceptions: bool | list[type[BaseException]] | tuple[type[BaseException], ...] = False
    max_calls: int = 0
    name: str = ""
    scheduling_strategy: Any = None
    label_selector: Mapping[str, str] | None = None
    fallback_strategy: Sequence[Mapping[str, Mapping[str, str]]] | None = None
    accelerator_type: str | None = None
    timeout: float | None = None
    priority: int = 0
    generator_backpressure: int | None = None
    runtime_env: Mapping[str, Any] | None = None


ALIASES = {"_generator_backpressure_num_objects": "generator_backpressure"}
VALID = tuple(TaskOptions.__dataclass_fields__)
DEFAULTS: dict[str, Any] = {name: field.default for name, field in TaskOptions.__dataclass_fields__.items()}


def parse(given: Mapping[str, Any], base: TaskOptions | None = None) -> TaskOptions:
    """Return options with `given` laid over `base`.

    Raises:
        ConfigError: an unknown name, or a value outside its limits; the text lists what is valid.
    """
    values = {name: getattr(base, name) for name in VALID} if base is not None else {}
    for given_name, value in given.items():
        name = ALIASES.get(given_name, given_name)
        if name not in VALID:
            raise unknown_option(given_name, "", VALID)
        values[name] = DEFAULTS[name] if value is None else value
    values["runtime_env"] = envs.check(values.get("runtime_env"))
    options = TaskOptions(**values)
    _check(options)
    return options


def unknown_option(name: str, of: str, valid: Iterable[str]) -> ConfigError:
    """Return the error of an option that does not exist, with what to do instead, if that is known."""
    instead = _INSTEAD.get(name)
    if instead is not None:
        return ConfigError(f"there is no option {name!r}: {instead}")
    return ConfigError(f"unknown option {name!r}{of}; valid options are: {', '.join(valid)}")


def _check(options: TaskOptions) -> None:
    returns = options.num_returns
    if returns is not None and returns != "streaming" and not is_whole(returns, 0):
        raise ConfigError(f"num_returns must be a whole number from 0, or 'streaming', not {returns!r}")
    for name in ("num_cpus", "num_gpus", "memory"):
        amount = getattr(options, name)
        if not is_amount(amount):
            raise ConfigError(f"{name} must be a number from 0 to {AMOUNT_MAX:.0e}, not {amount!r}")
    if options.num_gpus > 1 and options.num_gpus != int(options.num_gpus):
        raise ConfigError(f"num_gpus above 1 must be a whole number, not {options.num_gpus!r}")
    if options.resources is not None and not isinstance(options.resources, Mapping):
        raise ConfigError(f'resources must be a dict such as {{"disk": 1}}, not {options.resources!r}')
    for name, amount in (options.resources or {}).items():
        if isinstance(name, str) and is_mark(name):
            raise ConfigError(f"{name!r} is no resource: use scheduling_strategy=")
        if isinstance(name, str) and "@" in name:
            raise ConfigError(f"the name of a resource must not hold '@', as {name!r} does")
        if name in ("CPU", "GPU", "memory"):
            option = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}[name]
            raise ConfigError(f"resources must not hold {name!r}: use {option}=")
        if not is_text(name) or not is_amount(amount):
            raise ConfigError(f"resources must map names to numbers from 0, not {name!r} to {amount!r}")
    if not is_whole(options.max_retries, -1):
        raise ConfigError(f"max_retries must be a whole number from -1 (without end), not {options.max_retries!r}")
    if not is_whole(options.oom_retries, -1):
        raise ConfigError(f"oom_retries must be a whole number from -1 (without end), not {options.oom_retries!r}")
    check_whole("max_calls", options.max_calls, 0)
    if not is_whole(options.priority, -WHOLE_MAX):
        raise ConfigError(f"priority must be a whole number, not {options.priority!r}")
    if options.timeout is not None and not (isinstance(options.timeout, int | float) and options.timeout > 0):
        raise ConfigError(f"timeout must be seconds above 0, or None, not {options.timeout!r}")
    ahead = options.generator_backpressure
    if ahead is not None and (not is_whole(ahead, 1) and ahead != -1):
        raise ConfigError(f"generator_backpressure must be a whole number from 1, or None, not {ahead!r}")
    _check_types(options)


def _check_types(options: TaskOptions) -> None:
    if not isinstance(options.retry_exceptions, bool):
        classes = options.retry_exceptions
        if not isinstance(classes, list | tuple) or not all(
            isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes
        ):
            raise ConfigError(f"retry_exceptions must be True, False or a list of exception classes, not {classes!r}")
    kind = options.accelerator_type
    if kind is not None and (not is_text(kind) or not kind or "@" in kind):
        raise ConfigError(f'accelerator_type must be a name such as "A100", not {kind!r}')
    if not is_text(options.name):
        raise ConfigError(f"name must be a text, not {options.name!r}")
    strategy = options.scheduling_strategy
    if isinstance(strategy, str):
        if strategy not in _STRATEGIES:
            raise ConfigError(f"scheduling_strategy must be one of {', '.join(_STRATEGIES)}, not {strategy!r}")
    elif strategy is not None and (isinstance(strategy, type) or not hasattr(strategy, "hard_marks")):
        raise ConfigError(f"scheduling_strategy must be a string or a strategy of zmesh.util, not {strategy!r}")
    _check_labels(options)
    placed(options)  # a task that does not fit into its bundle is refused here


def _check_labels(options: TaskOptions) -> None:
    label_selectors.marks(options.label_selector)
    label_selectors.fallbacks(options.fallback_strategy)
    if getattr(options.scheduling_strategy, "group", None) is not None and _wants_labels(options):
        raise ConfigError("label_selector has no effect in a placement group, whose bundles lie where they lie")


def shape(options: TaskOptions) -> dict[str, int]:
    """Return the resources a task of these options books, in units of 1/10,000."""
    amounts: dict[str, float] = {"CPU": options.num_cpus, "GPU": options.num_gpus, "memory": options.memory}
    amounts.update(options.resources or {})
    if options.accelerator_type is not None:
        amounts[f"{ACCELERATOR}{options.accelerator_type}"] = _SHARE_OF_ACCELERATOR
    return {name: max(1, round(amount * UNIT)) for name, amount in amounts.items() if amount}


def placed(options: TaskOptions, captured: Mapping[str, Any] | None = None) -> list[dict[str, int]]:
    """Return what a task books, with marks for where it should run; first as it is wished for, then what will do too.

    A mark is a resource of which each node that is meant has plenty: "node:<id>", "label:<key>=<value>", "spread".
    What a task takes from a bundle of a placement group has names of its own: "CPU@<group>:<index>", "CPU@<group>".

    Args:
        captured: the placement group whose task this one is submitted from, if that captures its children.

    Raises:
        ConfigError: it does not fit into its bundle.
    """
    plain = shape(options)
    strategy = options.scheduling_strategy
    if captured is not None and is_captured(options):
        return [in_bundle(plain, captured["id"], captured["bundles"], -1)]
    if hasattr(strategy, "within"):
        plain = strategy.within(plain)
    shapes = []
    labels = label_selectors.marks(options.label_selector), *label_selectors.fallbacks(options.fallback_strategy)
    for marks in labels:
        wished = plain | dict.fromkeys(marks, 1)
        if strategy == "SPREAD":
            wished[SPREAD] = 1
        elif strategy is not None and not isinstance(strategy, str):
            wished |= dict.fromkeys(strategy.hard_marks(), 1)
            shapes.append(wished | dict.fromkeys(strategy.soft_marks(), 1))
        shapes.append(wished)
    return [one for index, one in enumerate(shapes) if one not in shapes[:index]]


def is_captured(options: TaskOptions) -> bool:
    """Whether a task runs in the placement group of the one that submits it, if that captures its children."""
    return options.scheduling_strategy is None and not _wants_labels(options)


def _wants_labels(options: TaskOptions) -> bool:
    return options.label_selector is not None or options.fallback_strategy is not None


def group_of(options: TaskOptions, captured: Mapping[str, Any] | None) -> Any:
    """Return the placement group a task runs in, as the task is to know of it; None if in none."""
    return captured if is_captured(options) else getattr(options.scheduling_strategy, "group", None)


def in_bundle(plain: dict[str, int], group: str, bundles: Any, index: int) -> dict[str, int]:
    """Return a shape as a task of a placement group books it: from bundle `index`, or from any for -1.

    Raises:
        ConfigError: it does not fit into that bundle, or, for -1, into none.
    """
    candidates = bundles if index < 0 else [bundles[index]]
    if not any(all(amount <= round(one.get(name, 0) * UNIT) for name, amount in plain.items()) for one in candidates):
        wants = ", ".join(f"{name} {amount / UNIT:g}" for name, amount in plain.items())
        has = f"bundle {index}, which has {bundles[index]}" if index >= 0 else f"any of the bundles {list(bundles)}"
        raise ConfigError(f"a task that needs {wants} does not fit into {has}: change num_cpus=, or the bundles")
    place = group if index < 0 else f"{group}:{index}"
    share = 1 if plain else _SHARE_WITHOUT_RESOURCES
    return {f"{name}@{place}": amount for name, amount in plain.items()} | {f"bundle@{place}": share}


def key(options: TaskOptions) -> Any:
    """Return what two equal sets of options have in common, hashable; but for the runtime_env."""
    return tuple(_frozen(getattr(options, name)) for name in VALID if name != "runtime_env")


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((name, _frozen(value[name])) for name in sorted(value))
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
