"""The key of a mesh: what `zmesh key` does, also for scripts. Any thread.

Whoever has the key has a shell on every node of the mesh.
"""

import os
from dataclasses import dataclass

from zmesh.exceptions import ConfigError


@dataclass(frozen=True)
class KeyFile:
    """Where a keyring lies, and the public names of its keys, newest first."""

    path: str
    ids: tuple[str, ...]


def path(key_file: str | None = None) -> str:
    """Return where the keyring of this user's mesh lies."""
    from zmesh.runtime import keyring

    return keyring.keyring_path("default", key_file)


def create(key_file: str | None = None) -> KeyFile:
    """Make the key of a new mesh.

    Raises:
        ConfigError: there is one already.
    """
    from zmesh.runtime.keyring import Keyring

    return _shown(Keyring.create(path(key_file)))


def export(key_file: str | None = None) -> str:
    """Return the key as one line of text, for `import_text` on another host.

    Raises:
        ConfigError: there is none, or others could read it.
    """
    from zmesh.runtime.keyring import Keyring

    return Keyring.load(path(key_file)).export()


def import_text(text: str, key_file: str | None = None, *, force: bool = False) -> KeyFile:
    """Take over a key that `export` gave. The same key again, or a newer state of the same mesh's, is fine.

    Raises:
        ConfigError: that is no key, or there is another mesh's and `force` is not given.
    """
    from zmesh.runtime.keyring import Keyring

    where = path(key_file)
    given = Keyring.from_text(where, text)
    if os.path.lexists(where) and not force:
        given = Keyring.load(where).merged(given)
    given.save()
    return _shown(given)


def rotate(key_file: str | None = None, *, finish: bool = False) -> KeyFile:
    """Make a new key and accept the old one too; `finish`: accept the newest only.

    Raises:
        ConfigError: there is no key to rotate.
    """
    from zmesh.runtime.keyring import Keyring

    ring = Keyring.load(path(key_file))
    changed = ring.finished() if finish else ring.rotated()
    changed.save()
    return _shown(changed)


def write_private(target: str, text: str) -> None:
    """Write a line to a new file that only this user can read.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write the key to {target}: {error.strerror}") from None
    with os.fdopen(fd, "w") as file:
        file.write(text + "\n")


def _shown(ring: "object") -> KeyFile:
    from zmesh.runtime.keyring import Keyring

    assert isinstance(ring, Keyring)
    return KeyFile(ring.path, tuple(key.id for key in ring.keys))
