"""The command `build`: from a recipe to a training set."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tokmill.cli.command import REPORTING, Argument, command, named, root
from tokmill.core.options import OUTPUT, Option

if TYPE_CHECKING:
    from tokmill.cli.console import Console


@command(
    root,
    "build",
    Argument("recipe", "RECIPE", "The recipe, a TOML file; --example prints one.", required=False),
    Option(name="out", short="-o", group=OUTPUT, metavar="DIR", help="Output directory."),
    Option(
        name="work", group=OUTPUT, metavar="DIR", usual="the output with .work at its end", help="Where tokenized sources stay."
    ),
    Option(
        name="no_keep",
        kind=bool,
        default=False,
        group=OUTPUT,
        help="Remove the tokenized sources at the end.",
    ),
    Option(name="plan", kind=bool, default=False, group=OUTPUT, has_variable=False, help="Print what it will take; make nothing."),
    Option(name="example", kind=bool, default=False, group=OUTPUT, has_variable=False, help="Print a recipe with comments."),
    *named("memory", "threads", "fresh", "force"),
    *REPORTING,
    short_help="Make the training set that a recipe describes: tokenize, dedup, mix, shuffle.",
)
def build(
    console: Console,
    *,
    recipe: str | None,
    out: str | None,
    work: str | None,
    no_keep: bool,
    plan: bool,
    example: bool,
    **options: Any,
) -> int | None:
    """Make the training set that RECIPE describes: each source is tokenized, then all are mixed by weight, in random order.

    What did not change is not done again: another weight tokenizes nothing. The same command continues. Exit code 14 with --plan:
    it will not fit on the disk.
    """
    from tokmill import recipe as recipes
    from tokmill.core.errors import DiskFullError, UsageError

    if example:
        console.print_result(recipes.EXAMPLE.rstrip())
        return None
    if recipe is None or out is None:
        missing = "RECIPE" if recipe is None else "--out DIR"
        raise UsageError(
            f"{missing} is missing",
            where="tokmill build",
            allowed="a recipe and an output directory",
            next_step="tokmill build recipe.toml --out data; tokmill build --example prints a recipe",
        )
    if not plan:
        from tokmill.cli.event_log import carry_out

        make = partial(recipes.build, recipe, out, work=work, keep=not no_keep)
        carry_out(console, "building", make, options, outputs=[out], inputs=[recipe], made_of="source")
        return None
    from tokmill.cli import render

    made = recipes.plan_build(recipe, out, work=work, memory=options["memory"], threads=options["threads"])
    rows = render.rows_of("tokmill: plan", recipes.plan_text(made))
    console.print_result(render.json_line(made) if options["json"] else "" if options["quiet"] else rows)
    try:
        made.raise_for_disk()
    except DiskFullError as error:
        if not options["force"]:
            console.print_error(error)
            return error.exit_code
    return 0
