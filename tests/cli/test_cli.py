"""The command `zmesh` as a user types it: in a shell, with pipes, wrong arguments and Ctrl-C."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cli.shell_map import fill

ZMESH = [sys.executable, "-m", "zmesh_cli.main"]


@pytest.fixture(autouse=True)
def private_runtime(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A runtime directory of the test's own, so that a user's running node is neither used nor stopped."""
    runtime = pathlib.Path(f"/tmp/zt-{os.getpid()}-{abs(hash(tmp_path)) % 10**6}")
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.delenv("ZMESH_NODE", raising=False)
    yield
    subprocess.run([*ZMESH, "down", "--all"], capture_output=True, timeout=20, check=False)
    left = [path for path in runtime.rglob("*") if path.is_socket() or path.name == "node.json"]
    subprocess.run(["rm", "-rf", str(runtime)], check=True)
    assert left == []


def zmesh(*words: str, stdin: str = "", timeout: float = 30) -> Any:
    return subprocess.run([*ZMESH, *words], input=stdin, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize(
    ("template", "argument", "expected"),
    [
        ("wc -l", "a b.txt", "wc -l 'a b.txt'"),
        ("cat {} {}", "x", "cat x x"),
        ("mv {} {.}.bak", "/d/a.txt", "mv /d/a.txt /d/a.bak"),
        ("echo {/} {//} {/.}", "/d/a.txt", "echo a.txt /d a"),
        ("echo {#}", "a", "echo 7"),
        ("echo {}", "{.}", "echo '{.}'"),
        ("echo {}", "$(rm -rf x)", "echo '$(rm -rf x)'"),
        ("echo {.}", "noext", "echo noext"),
    ],
)
def test_marks_are_replaced_and_arguments_quoted(template: str, argument: str, expected: str) -> None:
    assert fill(template, argument, 7) == expected


def test_map_runs_a_command_for_each_line_and_keeps_their_order() -> None:
    done = zmesh("map", "-k", "--tag", "sleep 0.{}; echo end {}", stdin="3\n1\n2\n")
    assert done.stdout == "3\tend 3\n1\tend 1\n2\tend 2\n"
    assert done.returncode == 0


def test_map_takes_arguments_after_three_colons_and_counts_failures() -> None:
    done = zmesh("map", "exit {}", ":::", "0", "1", "0", "7")
    assert done.returncode == 2
    assert zmesh("map", "true", ":::").returncode == 0


def test_map_ends_with_101_at_most() -> None:
    assert zmesh("map", "false", ":::", *map(str, range(120))).returncode == 101


def test_map_keeps_the_output_of_a_job_whole_also_if_it_is_much() -> None:
    command = "for i in $(seq 60000); do echo {}{}{}{}{}{}{}{}; done"
    lines = zmesh("map", "-j2", command, ":::", "a", "b").stdout.splitlines()
    assert len(lines) == 120_000
    assert lines[:60_000] == [lines[0]] * 60_000
    assert lines[60_000:] == [lines[-1]] * 60_000


def test_a_key_file_that_is_not_there_is_an_error_that_says_how_to_make_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a typo.json"
    up = zmesh("up", "--key-file", str(path))
    assert up.returncode == 2
    assert f"`zmesh key create --key-file '{path}'` makes one" in up.stderr
    assert not path.exists()
    assert zmesh("key", "create", "--key-file", str(path)).returncode == 0
    assert zmesh("up", "--key-file", str(path)).returncode == 0


def test_a_node_that_was_killed_is_told_from_one_that_never_was() -> None:
    assert zmesh("up").returncode == 0
    pid = json.loads(zmesh("status", "--json").stdout)["pid"]
    os.kill(pid, signal.SIGKILL)
    for words in (["status"], ["down"]):
        told = zmesh(*words)
        assert told.returncode == 1
        assert f"the last one (pid {pid}) was killed, or crashed; see " in told.stderr
    assert zmesh("up").returncode == 0
    assert zmesh("down").returncode == 0
    assert "killed" not in zmesh("status").stderr


@pytest.mark.slow
def test_a_node_that_does_not_answer_is_said_to_do_so() -> None:
    assert zmesh("up").returncode == 0
    pid = json.loads(zmesh("status", "--json").stdout)["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        told = zmesh("status")
        assert told.returncode == 1
        assert f"(pid {pid}) did not answer in 10 s" in told.stderr
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--name", "p-x"], "begin with neither a dot nor `p-`"),
        (["--memory-limit", "1"], "memory_limit must be at least 16,777,216 bytes"),
    ],
)
def test_settings_of_up_that_make_no_sense_say_what_would(words: list[str], text: str) -> None:
    up = zmesh("up", *words)
    assert up.returncode == 2
    assert text in up.stderr


def test_the_list_of_commands_fits_into_80_columns() -> None:
    for words in (["--help"], ["key", "--help"]):
        told = zmesh(*words).stdout
        assert "..." not in told.partition("Commands:")[2]
        assert max(map(len, told.splitlines())) <= 80


def test_map_shows_stderr_on_stderr() -> None:
    done = zmesh("map", "echo out; echo err >&2; : {}", ":::", "1")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_map_reads_its_input_as_it_goes() -> None:
    """`yes` never ends: neither does the input, yet the first outputs come and a closed pipe ends everything."""
    shell = f"yes x | {' '.join(ZMESH)} map 'echo {{}}' | head -3"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "x\nx\nx\n"
    assert "Traceback" not in done.stderr


def test_an_interrupt_ends_map_and_every_child(tmp_path: pathlib.Path) -> None:
    mark = f"{os.getpid()}.{time.monotonic_ns() % 10**9}"
    process = subprocess.Popen([*ZMESH, "map", f"sleep {mark[-6:]}00", ":::", "1", "2"], stdout=subprocess.PIPE)
    _until(lambda: len(_sleepers(mark)) >= 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert process.stdout is not None
    process.stdout.close()
    _until(lambda: not _sleepers(mark))


def _sleepers(mark: str) -> list[str]:
    found = subprocess.run(["pgrep", "-f", f"sleep {mark[-6:]}00"], capture_output=True, text=True, check=False)
    return [pid for pid in found.stdout.split() if _is_sleep(pid)]


def _is_sleep(pid: str) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"
    except OSError:
        return False


def _until(condition: Any, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_up_status_and_down_are_a_nodes_life() -> None:
    assert "no node named" in zmesh("status").stderr
    up = zmesh("up", "--num-cpus", "3", "--resources", '{"disk": 2}')
    assert up.returncode == 0
    assert "zmesh down" in up.stdout
    again = zmesh("up")
    assert again.returncode == 2
    assert "runs already" in again.stderr
    told = json.loads(zmesh("status", "--json").stdout)
    assert told["resources"]["total"]["CPU"] == 3
    assert told["resources"]["total"]["disk"] == 2
    assert "3 booked" in zmesh("status").stdout
    down = zmesh("down")
    assert (down.returncode, down.stdout) == (0, "node default is down\n")
    assert zmesh("down").returncode == 1


def test_two_nodes_of_one_user_do_not_meet() -> None:
    zmesh("up", "--name", "one", "--num-cpus", "1")
    zmesh("up", "--name", "two", "--num-cpus", "2")
    code = "import zmesh; zmesh.init(); print(zmesh.cluster_resources()['CPU'])"
    for name, cpus in (("one", "1.0"), ("two", "2.0")):
        env = os.environ | {"ZMESH_NODE": name}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == cpus
    assert sorted(zmesh("down", "--all").stdout.splitlines()) == ["node one is down", "node two is down"]


def _in_the_foreground() -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [*ZMESH, "up", "--foreground"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "is up" in process.stdout.readline()
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_in_the_foreground_ends_with_ctrl_c(number: int) -> None:
    process = _in_the_foreground()
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert out.endswith("node default is down\n")
    assert err == ""
    assert zmesh("status").returncode == 1


def test_a_node_in_the_foreground_ends_when_it_is_stopped_elsewhere_or_killed() -> None:
    process = _in_the_foreground()
    assert zmesh("down").returncode == 0
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out.splitlines()[-1]) == (0, "node default is down")
    process = _in_the_foreground()
    os.kill(json.loads(zmesh("status", "--json").stdout)["pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "was killed" in err
    process = _in_the_foreground()  # nothing is in its way
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["up", "--resources", "{oops"], 2, "not JSON"),
        (["up", "--resources", "[1]"], 2, "JSON object"),
        (["up", "--resources", '{"CPU": 1}'], 2, "option of its own"),
        (["up", "--store-memory", "lots"], 2, "not a size"),
        (["up", "--store-memory", "1K"], 2, "at least"),
        (["up", "--store-memory", "999T"], 2, "this machine has"),
        (["up", "--resources", '{"disk": true}'], 2, "disk must be a number"),
        (["up", "--port", "70000"], 2, "range"),
        (["up", "--host", "203.0.113.7"], 2, "that is no address of this machine"),
        (["up", "--host", "no such host"], 2, "must be an address of this machine"),
        (["up", "--host", "0.0.0" + ".0"], 2, "also say --advertise"),
        (["up", "--advertise", "300.1.1.1"], 2, "is no address: use HOST:PORT"),
        (["up", "--join", "a:b:c"], 2, "is no address: use HOST:PORT"),
        (["up", "--label", "zone"], 2, "KEY=VALUE"),
        (["up", "--name", "../x"], 2, "no name for a node"),
        (["up", "--num-cpus", "-1"], 2, "range"),
        (["down", "--name", "nobody"], 1, "no node named"),
        (["down", "--node", "127.0.0.1:27700"], 2, "stopped on its own host"),
        (["status", "--node", "nobody"], 1, "no node named"),
        (["doctor", "--node", "nobody"], 1, "no node named"),
        (["status", "--node", "127.0.0.1:9"], 1, "nobody listens there"),
        (["status", "--node", "no-such-host.invalid:9"], 1, "no address is known for the name"),
        (["map"], 2, "Missing argument"),
        (["map", ":::", "a"], 2, "no command"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_wrong_words_are_answered_in_one_line_that_says_what_to_do(words: list[str], code: int, text: str) -> None:
    done = zmesh(*words)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_objects_are_listed_as_a_table_and_as_json(tmp_path: pathlib.Path) -> None:
    zmesh("up", "--num-cpus", "1", "--store-memory", "64M", "--spill-dir", str(tmp_path), "--spill-compression", "lz4")
    program = (
        "import zmesh, time; zmesh.init('auto'); ref = zmesh.put(bytes(1_000_000)); print(1, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        table, rows = zmesh("objects"), json.loads(zmesh("objects", "--json").stdout)
        driver.kill()
    assert [(row["function"], row["made_at"], row["owner_pid"]) for row in rows] == [("put", "<string>:1", driver.pid)]
    lines = table.stdout.splitlines()
    assert lines[1].split()[-4:] == [str(driver.pid), "put", "at", "<string>:1"]
    assert lines[-1].startswith("1 object(s), 977 KiB")


def test_a_spill_directory_that_cannot_be_used_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    done = zmesh("up", "--spill-dir", str(tmp_path / "file"))
    assert done.returncode == 2
    assert "spill_directory" in done.stderr
