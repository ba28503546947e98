"""`sr-edge train recipes`: what ships."""

from __future__ import annotations

from sr_edge.commands.listing import print_table


def recipes() -> None:
    """List the recipes that ship, and what each is meant for."""
    from sr_train.recipe import load_recipe, shipped_recipes

    rows = []
    for name in shipped_recipes():
        recipe = load_recipe(name)
        rows.append([name, recipe.model.base, recipe.hardware, recipe.about])
    print_table(["recipe", "begins with", "meant for", "what"], rows)
