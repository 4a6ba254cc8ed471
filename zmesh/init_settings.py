"""Settings of init() that need a look: those of Ray's that are none here, the level of logs, labels."""

from collections.abc import Mapping
from typing import Any

from zmesh.exceptions import ConfigError
from zmesh.limits import is_text

_OTHERS = {  # {setting of Ray's: (what asks for nothing, what to do instead)}
    "configure_logging": ((True,), "configure the logger named zmesh yourself"),
    "dashboard_host": ((None, "127.0.0.1", "localhost"), "there is no dashboard: `zmesh status`"),
    "dashboard_port": ((None,), "there is no dashboard: `zmesh status`"),
    "enable_resource_isolation": ((False,), "leave it out"),
    "include_dashboard": ((None, False), "there is no dashboard: `zmesh status`"),
    "local_mode": ((False,), "use local=True"),
    "logging_config": ((None,), "configure the logger named zmesh"),
    "logging_format": ((None,), "configure the logger named zmesh"),
}


def check_others(others: Mapping[str, Any]) -> None:
    """Refuse settings that init() does not have, unless they only ask for nothing.

    Raises:
        ConfigError: the text says what to do instead.
    """
    for name, value in others.items():
        if name not in _OTHERS:
            raise ConfigError(f"init() has no setting {name!r}; docs/api.md lists them")
        nothing, instead = _OTHERS[name]
        if value not in nothing:
            raise ConfigError(f"init() has no setting {name!r}: {instead}")


def set_logging_level(level: int | str | None) -> None:
    """Set the level of our loggers in this process; None leaves it.

    Raises:
        ConfigError: that is no level.
    """
    if level is None:
        return
    import logging

    try:
        logging.getLogger("zmesh").setLevel(level.upper() if isinstance(level, str) else level)
    except (TypeError, ValueError):
        raise ConfigError(f"logging_level must be a level of the logging module, not {level!r}") from None


def check_texts(**texts: Any) -> None:
    """Check settings that are a text or None.

    Raises:
        ConfigError: one is something else.
    """
    for name, text in texts.items():
        if text is not None and not is_text(text):
            raise ConfigError(f"{name} must be a text, or None, not {text!r}")


def check_offer(resources: Any, labels: Any) -> dict[str, Any]:
    """Return the custom resources and the labels of a private node, as settings.

    Raises:
        ConfigError: they are no dicts, or what they hold is no name or no text.
    """
    amounts, texts = ({} if given is None else given for given in (resources, labels))
    if not isinstance(amounts, Mapping) or not all(is_text(name) and name for name in amounts):
        raise ConfigError(f'resources must be a dict such as {{"disk": 1}}, not {resources!r}')
    if not isinstance(texts, Mapping) or not all(is_text(one) and one for pair in texts.items() for one in pair):
        raise ConfigError(f'labels must be a dict of strings such as {{"zone": "a"}}, not {labels!r}')
    return {"resources": dict(amounts), "labels": dict(texts)}
