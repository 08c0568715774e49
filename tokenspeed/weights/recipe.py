"""What a conversion makes of each projection: a scheme for all, another for the head, and names that are left out."""

import dataclasses
import math
import re

from tokenspeed.arguments import MAX_INT, integer, one_of
from tokenspeed.messages import listed, shown
from tokenspeed.models.config import ModelConfig
from tokenspeed.models.quantisation import FLOATS, HEAD, PACKED, PATTERN, Quantisation, Scheme

WEIGHTS, HEADS = ("int4", "int8", "fp8"), ("int8", "fp8", "none", "same")
GROUP = 128
"""Of int4, where nothing else is said."""
GROUPS = (128, 64, 32, 16)
"""Those that other engines have kernels for come first where one is proposed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a checkpoint is quantised.

    Attributes:
        weights: one of `WEIGHTS`.
        group_size: inputs that share a scale; None: 128 of int4, all of an output's otherwise.
        symmetric: about 0, without zero points.
        head: one of `HEADS`; None: int8 with int4, as long as the head is not the embedding table, or else none.
        ignore: names of projections that stay as they are, or 're:' and an expression that matches from their
            beginning.
    """

    weights: str
    group_size: int | None = None
    symmetric: bool = True
    head: str | None = None
    ignore: tuple[str, ...] = ()


def quantisation_of(config: ModelConfig, recipe: Recipe) -> Quantisation:
    """The schemes of a model's projections.

    Raises:
        ValueError, TypeError: a field of the recipe is wrong, or does not fit the model; the message names it.
    """
    scheme = _scheme(recipe)
    head = _head(config, recipe, scheme)
    sizes = {name: inputs for name, _, inputs in config.projections()}
    ignored = _ignored([*sizes, HEAD], recipe)
    if HEAD in ignored and recipe.head not in (None, "none"):
        raise ValueError(f"head: expected none, since ignore names {HEAD}; got {recipe.head}")
    if head is None:
        ignored |= {HEAD}
    rest = {name: inputs for name, inputs in sizes.items() if name not in ignored}
    if not rest:
        raise ValueError("ignore: expected some projection that is left, got names of all")
    if scheme.group is not None:
        _check_group(scheme.group, {name: x for name, x in rest.items() if name != HEAD or head == scheme})
    schemes = [(("Linear",), scheme)]
    if head not in (None, scheme) and HEAD not in ignored:
        schemes.append(((HEAD,), head))
    order = [name for name in (*(name for name in sizes if name != HEAD), HEAD) if name in ignored]
    return Quantisation(schemes=tuple(schemes), ignored=tuple(order), head=True)


def _scheme(recipe: Recipe) -> Scheme:
    format, group = one_of("weights", recipe.weights, WEIGHTS), recipe.group_size
    if format == "fp8":
        if group is not None:
            raise ValueError(f"group_size: expected none with fp8, which has a scale an output; got {shown(group)}")
        if not recipe.symmetric:
            raise ValueError("symmetric: expected int4 or int8 for zero points, got fp8")
        return Scheme(layout=FLOATS, format=format)
    if group is None:
        group = GROUP if format == "int4" else None
    else:
        integer("group_size", group, 1, MAX_INT)
    return Scheme(layout=PACKED, format=format, group=group, zeros=not recipe.symmetric)


def _head(config: ModelConfig, recipe: Recipe, scheme: Scheme) -> Scheme | None:
    kind = recipe.head
    if kind is None:
        kind = "int8" if recipe.weights == "int4" and not config.tied else "none"
    one_of("head", kind, HEADS)
    if config.tied and kind != "none":
        raise ValueError(f"head: expected none, since the model's head is its embedding table, got {kind}")
    return {
        "none": None,
        "same": scheme,
        "int8": Scheme(layout=PACKED, format="int8"),
        "fp8": Scheme(layout=FLOATS, format="fp8"),
    }[kind]


def _ignored(names: list[str], recipe: Recipe) -> set[str]:
    found = set()
    for target in recipe.ignore:
        try:
            fits = re.compile(target.removeprefix(PATTERN) if target.startswith(PATTERN) else re.escape(target) + "$")
        except re.error as error:
            raise ValueError(
                f"ignore: expected a regular expression after {PATTERN}, got {shown(target)} ({error})"
            ) from None
        matched = {name for name in names if fits.match(name)}
        if not matched:
            raise ValueError(f"ignore: {listed([target])} is no projection; they are named as {names[0]} is")
        found |= matched
    return found


def _check_group(group: int, sizes: dict[str, int]) -> None:
    """Raises unless groups of that many inputs divide those of each projection."""
    wrong = next((name for name, inputs in sizes.items() if inputs % group), None)
    if wrong is None:
        return
    common = math.gcd(*sizes.values())
    fits = next((one for one in GROUPS if common % one == 0), None)
    if fits is None:
        fits = max(one for one in range(1, GROUP + 1) if common % one == 0)
    raise ValueError(
        f"group_size: expected a divisor of all inputs, as {fits} is; {wrong} has {sizes[wrong]}, got {group}"
    )
