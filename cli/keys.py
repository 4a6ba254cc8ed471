"""The commands `zmesh key`: make, carry and change the key of a mesh. A key never stands on a command line."""

import sys
from typing import TextIO

import click

from zmesh import keys

_FILE = click.option("--key-file", metavar="FILE", help="Keyring, instead of the one `zmesh key path` prints.")
_WARNING = "zmesh: this line is a shell on every node of the mesh: send it as you would a password"


@click.group()
def key() -> None:
    """Make, carry and change the key of the mesh."""


@key.command()
@_FILE
def create(key_file: str | None) -> None:
    """Make the key of a new mesh. The first `zmesh up` does it too."""
    made = keys.create(key_file)
    click.echo(f"key {made.ids[0]} is in {made.path}")


@key.command()
@_FILE
def path(key_file: str | None) -> None:
    """Print where the keyring lies."""
    click.echo(keys.path(key_file))


@key.command("export", short_help="Print the key, for `zmesh key import` elsewhere.")
@_FILE
@click.option("--output", metavar="FILE", help="Write to a new file that only you can read.")
def export_command(key_file: str | None, output: str | None) -> None:
    """Print the key as one line, for `zmesh key import` on another host.

    \b
    zmesh key export | ssh other zmesh key import
    """
    line = keys.export(key_file)
    if output is None:
        click.echo(_WARNING, err=True)
        click.echo(line)
    else:
        keys.write_private(output, line)


@key.command("import", short_help="Take over the key of a mesh.")
@_FILE
@click.option("--force", is_flag=True, help="Replace the key of another mesh.")
@click.argument("file", type=click.File(), default="-")
def import_command(key_file: str | None, force: bool, file: TextIO) -> None:
    """Take over the key that `zmesh key export` printed, from standard input or FILE."""
    if file.name == "<stdin>" and sys.stdin.isatty():
        click.echo("paste the key, then press Ctrl-D", err=True)
    taken = keys.import_text(file.read(), key_file, force=force)
    click.echo(f"key {taken.ids[0]} is in {taken.path}")


@key.command()
@_FILE
@click.option("--finish", is_flag=True, help="Accept the newest key only: when all hosts have it.")
def rotate(key_file: str | None, finish: bool) -> None:
    """Make a new key, and go on accepting the old one until --finish."""
    changed = keys.rotate(key_file, finish=finish)
    click.echo(f"key {changed.ids[0]} is in {changed.path}; accepted: {', '.join(changed.ids)}")
    if finish:
        click.echo("nodes that run take it over within seconds; whoever has only older keys is out")
    else:
        click.echo("now carry it to each host (zmesh key export | ssh HOST zmesh key import), then: rotate --finish")
