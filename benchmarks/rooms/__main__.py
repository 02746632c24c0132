"""`python -m benchmarks.rooms`."""

import json
from pathlib import Path

import click

from benchmarks.errors import BenchmarkError
from benchmarks.rooms import text
from benchmarks.rooms.inside import traced
from benchmarks.rooms.report import details, parts, report, without_functions

_REPOSITORY = Path(__file__).parents[2]


@click.command()
@click.option(
    "--tree",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=_REPOSITORY,
    help="Another checkout to count.  [default: this one]",
)
@click.option("--files", is_flag=True, help="Also list the files and functions passed, and names.")
@click.option(
    "--json", "to", type=click.Path(dir_okay=False, path_type=Path), help="Write the counts here."
)
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Show the counts of this file, which --json wrote, as those of before.",
)
def main(tree: Path, files: bool, to: Path | None, against: Path | None) -> None:
    """Count the files and functions that an operation passes, and the source."""
    try:
        counted = report(tree, traced(tree), text.count(tree))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None
    before = parts(json.loads(against.read_text())) if against else {}
    for part, figures in parts(counted).items():
        click.echo(f"\n{part}")
        for name, figure in figures.items():
            click.echo(f"  {name:42} {figure}")
            earlier = before.get(part, {}).get(name, figure)
            if earlier != figure:
                click.echo(f"  {'':42} before: {earlier}")
    if files:
        for line in details(counted):
            click.echo(line)
    if to is not None:
        to.write_text(json.dumps(without_functions(counted), indent=1) + "\n")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.rooms")
