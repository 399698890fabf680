"""Which options become parameters of a run: those that tell runs apart in the UI's table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lrrt_stage.files import write_text
from lrrt_stage.settings import masked, option_text
from mlflow_project.tracking.record import active_record
from pipeline import RangeTestPlan

__all__ = ["changed", "log_options", "log_params", "shown"]

ALWAYS_LOGGED = {
    *("setup", "dataset", "model", "optimizer", "batch_size", "init", "seed", "data_seed"),
    *("lr_start", "lr_end", "rule", "schedule", "epochs", "trials", "kind"),
}
"""Options that are always a parameter; any other is one where it is not the default."""

OPTIONS = "options.json"
FOLDER = re.compile(r"^(file://|(?:[\w+.-]+:)?(?:///(?=/))?)(?!//)[~/](?:.*/)?([^/]+)/*$")
"""An absolute path, alone, after a kind (``imagefolder:``), or in an address (``sqlite:///``): what
is before it, and its last part."""


def log_options(*options: Any, **more: Any) -> None:
    """Log options (dataclasses) and ``more`` as parameters, and all of them as ``options.json``.

    A default is left out of the parameters unless it is in ``ALWAYS_LOGGED`` or the recipe sets
    the option, so that a comparison of runs shows what differs. Parameters that ``mlflow run`` has
    logged already, as they were typed, stay. Folders and secrets are left out of what is shown.
    """
    values, logged = dict(more), ALWAYS_LOGGED.union(more)
    for part in options:
        values |= _flat(part)
        logged = logged.union(changed(part))
        if isinstance(part, RangeTestPlan):
            logged = logged.union(part.recipe.values)
    log_params({name: value for name, value in values.items() if name in logged})
    record = active_record()
    text = json.dumps(dict(sorted(masked(values).items())), indent=2)
    write_text(record.files / OPTIONS, text)
    record.log_file(OPTIONS)  # at once: an artifact store that cannot be used ends the stage here


def changed(options: Any) -> dict[str, Any]:
    """Return the options (a dataclass) that are not their defaults, by name."""
    defaults = _flat(type(options)())
    return {name: each for name, each in _flat(options).items() if each != defaults.get(name)}


def log_params(values: Mapping[str, Any]) -> None:
    """Log parameters of the active run, except those that it has already."""
    active_record().log_params({name: shown(each, name) for name, each in values.items()})


def _flat(options: Any) -> dict[str, Any]:
    return options.flat() if hasattr(options, "flat") else asdict(options)


def shown(value: Any, name: str = "") -> str:
    """Return an option as it was typed, without the folder of a path and without secrets."""
    return option_text(_without_folders(masked(value, name)))


def _without_folders(value: Any) -> Any:
    """Return a value with the folder left out of every path, also inside lists and dicts."""
    if isinstance(value, str):
        return FOLDER.sub(r"\1\2", value)
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(item) for item in value]
    return value
