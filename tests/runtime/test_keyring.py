"""The key of a mesh on disk: who may read it, what is refused, and that it never shows."""

import base64
import copy
import json
import os
import pathlib
import pickle
import stat
import threading
import traceback
from collections.abc import Callable

import pytest

from zmesh.exceptions import ConfigError
from zmesh.runtime.keyring import KEYS_MAX, Key, Keyring, Secret, hkdf, keyring_path


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "mesh" / "keyring.json")


def test_derivation_is_that_of_rfc_5869() -> None:
    """Test cases 1 and 3 of appendix A."""
    secret = bytes([0x0B] * 22)
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert hkdf(secret, bytes(range(0xF0, 0xFA)), 42, bytes(range(13))).hex() == expected
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert hkdf(secret, b"", 42).hex() == expected


def test_a_new_keyring_is_for_its_user_alone_and_reads_back(path: str) -> None:
    made = Keyring.create(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert os.listdir(os.path.dirname(path)) == ["keyring.json"]
    read = Keyring.load(path)
    assert (read.cluster, [key.id for key in read.keys]) == (made.cluster, [key.id for key in made.keys])
    key = read.keys[0]
    derived = [key.server_secret.reveal(), key.client_secret.reveal(), key.derive("http", 32).reveal()]
    assert len(set(derived)) == 3
    assert all(len(secret) == 32 for secret in derived)
    with pytest.raises(ConfigError, match="exists"):
        Keyring.create(path)


def test_of_two_who_create_at_once_one_wins_and_both_have_the_same(path: str) -> None:
    found: list[Keyring] = []
    threads = [threading.Thread(target=lambda: found.append(Keyring.load_or_create(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({ring.keys[0].id for ring in found}) == 1


@pytest.mark.parametrize("make", [Keyring.create, Keyring.load_or_create])
def test_a_key_that_cannot_be_written_is_an_error_that_says_where(make: Callable[[str], Keyring]) -> None:
    with pytest.raises(ConfigError, match=r"cannot write the key to /proc/none/keyring\.json: .* --key-file"):
        make("/proc/none/keyring.json")


def _spoil(path: str, how: str) -> None:
    content = json.loads(pathlib.Path(path).read_text())
    file = pathlib.Path(path)
    if how == "0644":
        os.chmod(path, 0o644)
    elif how == "symlink":
        os.rename(path, path + ".real")
        os.symlink(path + ".real", path)
    elif how == "directory":
        os.unlink(path)
        os.mkdir(path)
    elif how == "fifo":
        os.unlink(path)
        os.mkfifo(path, 0o600)
    elif how == "empty":
        file.write_text("")
    elif how == "garbage":
        file.write_text('{"version": 1, "keys"')
    elif how == "version":
        file.write_text(json.dumps(content | {"version": 2}))
    elif how == "no key":
        file.write_text(json.dumps(content | {"keys": []}))
    elif how == "31 bytes":
        file.write_text(json.dumps(content | {"keys": [{"secret": "ab" * 31, "created": ""}]}))
    elif how == "too many":
        keys = [{"secret": f"{index:02x}" * 32, "created": ""} for index in range(KEYS_MAX + 1)]
        file.write_text(json.dumps(content | {"keys": keys}))
    elif how == "twice":
        file.write_text(json.dumps(content | {"keys": content["keys"] * 2}))
    elif how == "a list":
        file.write_text("[1, 2]")


BAD = [
    "0644", "symlink", "directory", "fifo", "empty", "garbage", "version", "no key", "31 bytes", "too many", "twice",
    "a list",
]  # fmt: skip


@pytest.mark.parametrize("how", BAD)
def test_a_bad_keyring_is_refused_with_one_line_that_shows_no_secret(path: str, how: str) -> None:
    secret = Keyring.create(path).keys[0].secret.reveal()
    _spoil(path, how)
    with pytest.raises(ConfigError) as caught:
        Keyring.load(path)
    shown = "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    for text in (secret.hex(), base64.b64encode(secret).decode(), repr(secret)):
        assert text not in shown


def test_a_file_of_another_user_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Keyring.create(path)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ConfigError, match="of yours"):
        Keyring.load(path)


def test_none_is_an_error_that_says_what_to_do(path: str) -> None:
    with pytest.raises(ConfigError, match="zmesh key create"):
        Keyring.load(path)


def test_a_key_is_carried_as_one_line(path: str, tmp_path: pathlib.Path) -> None:
    made = Keyring.create(path).rotated()
    line = made.export()
    assert "\n" not in line
    taken = Keyring.from_text(str(tmp_path / "other.json"), f"  {line}\n")
    assert [key.id for key in taken.keys] == [key.id for key in made.keys]
    for bad in (
        line[:-4],
        line[:30] + "A" + line[31:],
        "",
        "zmesh-key-1:",
        "zmesh-key-2:" + line[12:],
        "x" * 5000,
        "ü",
    ):
        with pytest.raises(ConfigError, match="that is no key"):
            Keyring.from_text(path, bad)


def test_rotation_keeps_the_old_key_until_it_is_finished(path: str) -> None:
    first = Keyring.create(path)
    second = first.rotated()
    assert [key.id for key in second.keys][1:] == [first.keys[0].id]
    assert len(second.rotated().rotated().rotated().keys) == KEYS_MAX
    assert [key.id for key in second.finished().keys] == [second.keys[0].id]
    second.save()
    assert [key.id for key in Keyring.load(path).keys] == [key.id for key in second.keys]
    assert [key.id for key in first.merged(second).keys] == [key.id for key in second.keys]
    assert [key.id for key in second.merged(first).keys] == [key.id for key in second.keys]


def test_another_mesh_is_not_merged(path: str, tmp_path: pathlib.Path) -> None:
    one, other = Keyring.create(path), Keyring.create(str(tmp_path / "other" / "keyring.json"))
    with pytest.raises(ConfigError, match="another mesh"):
        one.merged(other)


def test_a_secret_does_not_show() -> None:
    secret = Secret(b"s" * 32)
    key = Key(secret, "now")
    assert "ssss" not in f"{secret!r} {secret} {key!r} {[secret]}"
    assert secret == Secret(b"s" * 32)
    assert secret != Secret(b"t" * 32)
    for take in (pickle.dumps, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            take(secret)


def test_where_the_keyring_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/x")
    assert keyring_path() == "/x/zmesh/default/keyring.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert keyring_path("other") == "/home/me/.config/zmesh/other/keyring.json"
    assert keyring_path(key_file="~/k.json") == "/home/me/k.json"
