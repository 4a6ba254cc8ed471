"""Errors as they travel, and as they are raised."""

from typing import Any

from zmesh import exceptions


def build_error(failure: Any) -> exceptions.MeshError:
    """Return the exception of an ERROR value: (class in zmesh.exceptions, text, attributes)."""
    name, text, attributes = failure
    cls = getattr(exceptions, name, exceptions.MeshError)
    error = exceptions.bare(cls)
    error.args = (text,)
    error.__dict__.update(attributes)
    return error
