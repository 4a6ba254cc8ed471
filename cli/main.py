"""The command `zmesh`: start and stop this host's node, look at it, run shell commands on it.

Exit codes: 0 done; 1 it did not work, the reason is on stderr; 2 the command line makes no sense; `map` ends with the
number of failed jobs, 101 at most, with 130 after Ctrl-C, with 141 if nobody reads its output.
Don't import anything heavy here: every command pays for it.
"""

import json
import sys
from typing import Any

import click

from zmesh._version import __version__
from zmesh.exceptions import ConfigError, MeshError

from .keys import key


class Commands(click.Group):
    """Commands whose errors are one line on stderr, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a MeshError becomes exit code 1, a ConfigError exit code 2."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            click.echo(f"zmesh: {error}", err=True)
            ctx.exit(2)
        except MeshError as error:
            click.echo(f"zmesh: {error}", err=True)
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="zmesh")
def main() -> None:
    """Make this host a compute mesh, and run work on it."""


def _size(text: str | None) -> int | None:
    """Return bytes of '500M', '2G' or a plain number."""
    if text is None:
        return None
    factors = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, factor = (text[:-1], factors[text[-1].upper()]) if text[-1:].upper() in factors else (text, 1)
    try:
        return int(float(number) * factor)
    except (ValueError, OverflowError):
        raise ConfigError(f"{text!r} is not a size: use e.g. 500M or 2G") from None


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError(f"--label must be KEY=VALUE, not {text!r}")
    return key, value


@main.command(short_help="Start this host's node, or join a mesh.")
@click.option("--host", metavar="ADDR", help="Address of this machine to listen on; 127.0.0.1 by default.")
@click.option(
    "--port", type=click.IntRange(1, 65533), help="Base port P: P, P+1, P+2 are used; 27700, or the next free."
)
@click.option("--advertise", metavar="ADDR", help="Address by which others find this node, if not --host.")
@click.option("--join", multiple=True, metavar="ADDR[:PORT]", help="Any living member of the mesh to join; repeatable.")
@click.option("--key-file", metavar="FILE", help="Keyring that is there; see zmesh key.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label tasks can ask for; repeatable.")
@click.option("--name", default="default", show_default=True, envvar="ZMESH_NODE", help="What to call it.")
@click.option("--num-cpus", type=click.FloatRange(min=0), help="CPUs it has; all by default.")
@click.option("--num-gpus", type=click.IntRange(min=0), help="GPUs it has; all by default.")
@click.option("--resources", default="{}", metavar="JSON", help="Custom resources, e.g. '{\"disk\": 2}'.")
@click.option("--store-memory", metavar="SIZE", help="Shared memory for objects, e.g. 2G; 30 % of memory by default.")
@click.option("--spill-dir", metavar="DIR", help="Where cold objects go when that is full; in ~/.cache by default.")
@click.option("--spill-max", metavar="SIZE", help="How much may lie there; 0: nothing is spilled.")
@click.option("--spill-compression", type=click.Choice(["none", "lz4"]), default="none", show_default=True)
@click.option("--memory-limit", metavar="SIZE", help="Memory its tasks may use together; what there is by default.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground, until Ctrl-C.")
def up(
    host: str | None,
    port: int | None,
    advertise: str | None,
    join: tuple[str, ...],
    key_file: str | None,
    labels: tuple[str, ...],
    name: str,
    num_cpus: float | None,
    num_gpus: int | None,
    resources: str,
    store_memory: str | None,
    spill_dir: str | None,
    spill_max: str | None,
    spill_compression: str,
    memory_limit: str | None,
    foreground: bool,
) -> None:
    """Start this host's node: a mesh of one, or, with --join, a member of one that is there."""
    from zmesh import lifecycle

    try:
        custom = json.loads(resources)
    except ValueError as error:
        raise ConfigError(f"--resources is not JSON: {error}") from None
    if not isinstance(custom, dict):
        raise ConfigError('--resources must be a JSON object, e.g. {"disk": 2}')
    settings = {
        "host": host,
        "port": port,
        "advertise": advertise,
        "join": [lifecycle.parse_address(seed) for seed in join],
        "key_file": key_file,
        "labels": dict(_label(text) for text in labels),
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "resources": custom,
        "store_bytes": _size(store_memory),
        "spill_directory": spill_dir,
        "spill_bytes_max": _size(spill_max),
        "spill_compression": spill_compression,
        "memory_limit": _size(memory_limit),
    }

    def announce(node: lifecycle.RunningNode) -> None:
        named = "" if name == "default" else f" --node {name}"
        click.echo(f"node {name} is up: id {node.id}, pid {node.pid}, address {node.address}.")
        if join:
            click.echo(f"It is a member of the mesh of {', '.join(join)}.")
        click.echo(f"Stop it with: zmesh down{named}")

    if foreground:
        _tell_end(lifecycle.run(name, settings, announce))
    else:
        announce(lifecycle.start(name, settings))


main.add_command(key)


def _tell_end(node: Any) -> None:
    """Say what a node left behind; what is lost goes to stderr."""
    click.echo(f"node {node.name} is down")
    if node.moved:
        click.echo(f"{node.moved} object(s) that lay there alone were copied to other hosts")
    if node.lost:
        click.echo(f"zmesh: {node.lost} object(s) are lost", err=True)
    for note in node.notes:
        click.echo(f"zmesh: {note}", err=True)


@main.command()
@click.option("--node", "--name", "name", default="default", show_default=True, envvar="ZMESH_NODE", help="Which node.")
@click.option("--all", "everything", is_flag=True, help="All nodes this user started here.")
def down(name: str, everything: bool) -> None:
    """Stop the node this user started, and all it runs."""
    from zmesh import lifecycle

    stopped = lifecycle.stop_all() if everything else [lifecycle.stop(name)]
    for one in stopped:
        _tell_end(one)
    if everything and not stopped:
        click.echo("no node of this user runs here")


@main.command(short_help="Show the node, and the members of its mesh.")
@click.option("--node", "--name", "name", default="default", show_default=True, envvar="ZMESH_NODE", help="Which node.")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known, as JSON.")
def status(name: str, as_json: bool) -> None:
    """Show the node: workers, resources, queue, store, and the members of its mesh."""
    from zmesh import lifecycle

    told = lifecycle.status(name)
    if as_json:
        json.dump(told, sys.stdout, indent=2)
        click.echo()
        return
    from .report import describe

    click.echo(describe(name, told))


@main.command(short_help="List what takes memory, and who made it.")
@click.option("--node", "--name", "name", default="default", show_default=True, envvar="ZMESH_NODE", help="Which node.")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known, as JSON.")
def objects(name: str, as_json: bool) -> None:
    """List what takes memory: objects of the mesh, who owns and reads them, and the line that made them."""
    from zmesh import lifecycle

    from .report import list_objects

    rows = lifecycle.objects(name)
    click.echo(json.dumps(rows, indent=2) if as_json else list_objects(rows))


@main.command(short_help="Say which members reach each other.")
@click.option("--node", "--name", "name", default="default", show_default=True, envvar="ZMESH_NODE", help="Which node.")
def doctor(name: str) -> None:
    """Say which members of the mesh reach each other, and why the others do not. Exit code 1 if any do not."""
    from zmesh import lifecycle

    from .report import diagnose

    text, sound = diagnose(lifecycle.ask_all(name, 3.0))
    click.echo(text)
    sys.exit(0 if sound else 1)


@main.command(
    "map",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run a command for each line of input.",
)
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Jobs at once; one a CPU by default.")
@click.option("-k", "--keep-order", is_flag=True, help="Output in the order of the input.")
@click.option("--tag", is_flag=True, help="Start each line of output with the job's argument and a tab.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def map_command(jobs: int | None, keep_order: bool, tag: bool, command: tuple[str, ...]) -> None:
    """Run COMMAND once for each line of standard input, or for each argument after `:::`.

    In COMMAND {} stands for the argument, {.} for it without its extension, {/} for its file name, {//} for its
    directory, {/.} for its file name without extension, {#} for the number of the job. Without any of them the
    argument is appended. Arguments are quoted for the shell. A job's output appears whole, when it ends.

    Exit code: the number of failed jobs, 101 at most, 130 after Ctrl-C, 141 if nobody reads its output.

    \b
    ls *.gz | zmesh map 'zcat {} | wc -l'
    zmesh map -k --tag 'sleep {}; echo done' ::: 3 1 2
    """
    from .shell_map import run

    sys.exit(run(command, jobs=jobs, keep_order=keep_order, tag=tag))


if __name__ == "__main__":
    main()
