"""The secret of a mesh on disk, and the keys derived from it. Whoever has it has a shell on every node.

    $XDG_CONFIG_HOME/zmesh/<mesh>/keyring.json, or ~/.config/...     0600 in a directory of 0700

One secret of 32 bytes a key; the newest is used to dial, all of them (KEYS_MAX at most) are accepted, so that a mesh
can change its key node by node. Everything else is derived by HKDF-SHA256. A file that others could read, or that is
not what we wrote, is refused: there is never a fallback. Secrets go through files and pipes, never through argv, the
environment or logs.

Source: HKDF, RFC 5869.
"""

import base64
import contextlib
import datetime
import errno
import hashlib
import hmac
import json
import os
import secrets
import shlex
import stat
from dataclasses import dataclass, field
from typing import Any

from zmesh.exceptions import ConfigError

SECRET_BYTES = 32
CLUSTER_BYTES = 8
KEYS_MAX = 3
FILE_BYTES_MAX = 64 * 1024

_TEXT = "zmesh-key-1:"
_CHECKSUM_BYTES = 4


class Secret:
    """Bytes that do not show: not in a repr, not in a pickle, not in a traceback."""

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]  # a dict of secrets would compare them in the open

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the bytes."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> Any:
        raise TypeError("a secret is not pickled")


def hkdf(secret: bytes, info: bytes, nbytes: int, salt: bytes = b"") -> bytes:
    """Return `nbytes` derived from a secret for one use. Source: RFC 5869, 2.2 and 2.3."""
    pseudo_random = hmac.digest(salt or bytes(32), secret, "sha256")
    block, output, count = b"", b"", 1
    while len(output) < nbytes:
        block = hmac.digest(pseudo_random, block + info + bytes([count]), "sha256")
        output += block
        count += 1
    return output[:nbytes]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a mesh. `id` names it in public; `created` is when, in ISO 8601."""

    secret: Secret
    created: str

    @property
    def id(self) -> str:
        """A name that tells nothing of the secret."""
        return hkdf(self.secret.reveal(), b"zmesh key id", 4).hex()

    @property
    def server_secret(self) -> Secret:
        """The CURVE secret by which every node is known."""
        return self.derive("curve server", 32)

    @property
    def client_secret(self) -> Secret:
        """The CURVE secret with which every peer dials."""
        return self.derive("curve client", 32)

    def derive(self, label: str, nbytes: int) -> Secret:
        """Return a secret for one use."""
        return Secret(hkdf(self.secret.reveal(), b"zmesh " + label.encode(), nbytes))

    @classmethod
    def new(cls) -> "Key":
        """Make one."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        return cls(Secret(secrets.token_bytes(SECRET_BYTES)), now)


def keyring_path(mesh: str = "default", key_file: str | None = None) -> str:
    """Return where the keyring of a mesh lies."""
    if key_file:
        return os.path.abspath(os.path.expanduser(key_file))
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(config, "zmesh", mesh, "keyring.json")


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of one mesh, newest first. `cluster` names the mesh for all its life, whatever its keys."""

    path: str
    cluster: bytes
    keys: tuple[Key, ...] = field(repr=False)

    # Files.

    @classmethod
    def load(cls, path: str) -> "Keyring":
        """Read a keyring.

        Raises:
            ConfigError: there is none, others could read or replace it, or it is not what we wrote.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            there = "" if path == keyring_path() else f" --key-file {shlex.quote(path)}"
            make = f"`zmesh key create{there}` makes one, `zmesh key import{there}` takes another's"
            raise ConfigError(f"there is no key of a mesh at {path}: {make}") from None
        except OSError as error:
            why = "is a symbolic link: name the file itself" if error.errno == errno.ELOOP else f"({error.strerror})"
            raise ConfigError(f"{path} cannot be opened as a key file: it {why}") from None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
                raise ConfigError(f"{path} must be a plain file of yours")
            if found.st_mode & 0o077:
                raise ConfigError(f"{path} can be read by others (mode {found.st_mode & 0o777:04o}): chmod 600 {path}")
            data = os.read(fd, FILE_BYTES_MAX)
        finally:
            os.close(fd)
        return cls._parse(path, data)

    @classmethod
    def _parse(cls, path: str, data: bytes) -> "Keyring":
        try:
            content = json.loads(data)
            assert content["version"] == 1
            cluster = bytes.fromhex(content["cluster"])
            keys = tuple(Key(Secret(bytes.fromhex(one["secret"])), str(one["created"])) for one in content["keys"])
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
            text = f"{path} is no keyring of zmesh: import the key again, with --force, or remove it for a new mesh"
            raise ConfigError(text) from None
        return cls(path, cluster, keys)._checked()

    def _checked(self) -> "Keyring":
        """Return this keyring if it makes sense."""
        if len(self.cluster) != CLUSTER_BYTES or not 1 <= len(self.keys) <= KEYS_MAX:
            raise ConfigError(f"{self.path} must name a mesh and hold 1 to {KEYS_MAX} keys: import the key again")
        if any(len(key.secret.reveal()) != SECRET_BYTES for key in self.keys):
            raise ConfigError(f"{self.path} holds a key that is not {SECRET_BYTES} bytes long: import the key again")
        if len({key.id for key in self.keys}) != len(self.keys):
            raise ConfigError(f"{self.path} holds a key twice: import the key again")
        return self

    @classmethod
    def create(cls, path: str) -> "Keyring":
        """Make a new mesh's keyring.

        Raises:
            ConfigError: there is one already, or the directory is not ours alone.
        """
        ring = cls(path, secrets.token_bytes(CLUSTER_BYTES), (Key.new(),))
        ring._write(replace=False)
        return ring

    @classmethod
    def load_or_create(cls, path: str) -> "Keyring":
        """Read the keyring, or make it if there is none; of two who make it at once, one wins and both use that."""
        if not os.path.lexists(path):
            try:
                return cls.create(path)
            except ConfigError:
                if not os.path.lexists(path):
                    raise
        return cls.load(path)

    def save(self) -> None:
        """Replace the file: it appears whole or not at all."""
        self._write(replace=True)

    def _write(self, *, replace: bool) -> None:
        try:
            self._write_file(replace=replace)
        except OSError as error:
            text = f"cannot write the key to {self.path}: {error.strerror}. Say another place with --key-file"
            raise ConfigError(text) from None

    def _write_file(self, *, replace: bool) -> None:
        directory = os.path.dirname(self.path)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        keys = [{"id": key.id, "secret": key.secret.reveal().hex(), "created": key.created} for key in self.keys]
        content = json.dumps({"version": 1, "cluster": self.cluster.hex(), "keys": keys}, indent=1)
        temporary = os.path.join(directory, f".{os.path.basename(self.path)}.{secrets.token_hex(4)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            if replace:
                os.rename(temporary, self.path)
            else:
                os.link(temporary, self.path)
        except FileExistsError:
            raise ConfigError(f"{self.path} exists: a mesh has one key; `zmesh key rotate` makes a new one") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    # Changes.

    def rotated(self) -> "Keyring":
        """Return it with a new key in front; the oldest beyond KEYS_MAX goes."""
        return Keyring(self.path, self.cluster, (Key.new(), *self.keys)[:KEYS_MAX])

    def finished(self) -> "Keyring":
        """Return it with the newest key alone: whoever has only older ones is out."""
        return Keyring(self.path, self.cluster, self.keys[:1])

    def merged(self, other: "Keyring") -> "Keyring":
        """Return it with the keys of another state of the same mesh: newest first.

        Raises:
            ConfigError: that is another mesh.
        """
        if other.cluster != self.cluster:
            text = f"{self.path} holds the key of another mesh ({self.cluster.hex()}, not {other.cluster.hex()})"
            raise ConfigError(f"{text}: --force replaces it")
        known = {key.id: key for key in (*self.keys, *other.keys)}
        newest = sorted(known.values(), key=lambda key: key.created, reverse=True)
        return Keyring(self.path, self.cluster, tuple(newest[:KEYS_MAX]))

    # Text.

    def export(self) -> str:
        """Return the keys as one line, to be carried to another host."""
        keys = [[key.secret.reveal().hex(), key.created] for key in self.keys]
        data = json.dumps([self.cluster.hex(), keys], separators=(",", ":")).encode()
        return _TEXT + base64.urlsafe_b64encode(data + hashlib.sha256(data).digest()[:_CHECKSUM_BYTES]).decode()

    @classmethod
    def from_text(cls, path: str, text: str) -> "Keyring":
        """Return the keyring that `export` wrote.

        Raises:
            ConfigError: it is not that, or was cut off.
        """
        try:
            prefix, coded = text.strip()[: len(_TEXT)], text.strip()[len(_TEXT) :]
            raw = base64.b64decode(coded, altchars=b"-_", validate=True)
            data, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
            if prefix != _TEXT or hashlib.sha256(data).digest()[:_CHECKSUM_BYTES] != checksum:
                raise ValueError
            cluster, keys = json.loads(data)
            found = tuple(Key(Secret(bytes.fromhex(secret)), str(created)) for secret, created in keys)
            return cls(path, bytes.fromhex(cluster), found)._checked()
        except (ValueError, TypeError, RecursionError):
            text = f"that is no key: it is one line beginning with {_TEXT}, as `zmesh key export` prints it"
            raise ConfigError(text) from None
