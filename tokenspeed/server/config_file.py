"""The YAML file of `serve --config`: options by their names."""

import functools
import os
from pathlib import Path
from typing import Any

import yaml

from tokenspeed.messages import listed, one_line, shown
from tokenspeed.server.options import OPTIONS


def read(file: str | os.PathLike) -> dict[str, Any]:
    """The values of the options in a file, by their fields.

    Raises:
        ValueError, TypeError: the file cannot be read or is no mapping, or a key or its value is wrong: one line with
            the file and the key.
    """
    by_field, found = {option.field: option for option in OPTIONS}, {}
    for key, value in _pairs(file):
        option = by_field.get(key.replace("-", "_")) if isinstance(key, str) else None
        if option is None:
            known = ", ".join(option.name for option in OPTIONS)
            name = listed([key]) if isinstance(key, str) else shown(key)
            raise ValueError(f"{file}: {name}: is not known; expected one of {known}")
        if option.field in found:
            raise ValueError(f"{file}: {option.name}: expected once, got it twice")
        found[option.field] = option.check(f"{file}: {option.name}", value)
    return found


def _pairs(file: str | os.PathLike) -> list[tuple[Any, Any]]:
    """Keys and values as they stand there, also those that stand there twice, of which a dictionary has the last."""
    try:
        loader = yaml.SafeLoader(Path(file).read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            value_of = functools.partial(loader.construct_object, deep=True)
            return [(value_of(key), value_of(value)) for key, value in root.value]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {file}: {one_line(error)}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # the last of what is no date
        raise ValueError(f"{file}: expected YAML: {one_line(error)}") from error
    found = "nothing" if root is None else root.tag.rpartition(":")[2]
    raise ValueError(f"{file}: expected a YAML mapping of options, got {found}")
