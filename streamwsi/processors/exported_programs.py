"""``torch.export`` archives, loaded without running what is hidden in them.

`torch.export.load` trusts its file (torch 2.13): sample inputs, tensor subclasses and custom
objects are pickles (a failed safe read is repeated with ``weights_only=False``), shape
expressions go through sympy's ``eval``, guards through ``exec``, an operator is any attribute
path below ``torch``, and packages may carry shared libraries. So an archive is taken apart
first, and torch gets a new one in memory that holds only

- the weights and constants that are raw bytes; pickled ones are refused, sample inputs are
  left out;
- the graph, copied string by string: names must be names, operators must be known tensor
  operators, shape expressions must be arithmetic; notes (stack traces and the like) go.

The guards, conditions on the input's size beyond what the graph itself states, are checked
here: torch would leave them out with the sample inputs.

The new archive also says on which device the model lives: a program keeps the device that it
was exported on in every node. Loading takes twice the model's size in memory for a moment.
"""

from __future__ import annotations

import io
import json
import logging
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CannotProcess, ConfigError, first_line
from .exported_graphs import Guard, Refused, vetted_graph, vetted_guard

__all__ = ["ExportedModel", "load_exported"]

_HEADER = (".data/version", "archive_format", "archive_version", "byteorder")
_PROGRAM = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_PAYLOADS = {
    "data/weights/": ("data/weights/model_weights_config.json", re.compile(r"weight_\d+")),
    "data/constants/": ("data/constants/model_constants_config.json", re.compile(r"tensor_\d+")),
}
_AGAIN = "export the model again, or give package.module:factory"


class ExportedModel:
    """An exported program as a function of one tensor.

    Attributes:
        batch: the only number of windows that it takes; None where it takes any.
        nbytes: bytes of its parameters, buffers and constants.
    """

    def __init__(self, program: torch.export.ExportedProgram, guards: tuple[Guard, ...]) -> None:
        inputs = program.graph_signature.user_inputs
        nodes = [node for node in program.graph.nodes if node.name in inputs]
        if len(inputs) != 1 or len(nodes) != 1 or not isinstance(nodes[0].meta["val"], Tensor):
            raise Refused(f"it takes {len(inputs)} inputs, not one tensor")
        first = nodes[0].meta["val"].shape[:1]
        self.batch = first[0] if first and isinstance(first[0], int) else None
        held = (*program.state_dict.values(), *program.constants.values())
        self.nbytes = sum(value.nbytes for value in held if isinstance(value, Tensor))
        self._guards = guards
        self._module = program.module()

    def __call__(self, images: Tensor) -> Any:
        """What the program returns.

        Raises:
            CannotProcess: the program was not exported for input of that size.
        """
        for guard in self._guards:
            if not guard.holds(images.shape):
                raise CannotProcess(
                    f"the model was exported for input of the sizes (d0, d1, d2, d3) with "
                    f"{guard.text}; this input has the sizes {tuple(images.shape)}"
                )
        return self._module(images)


def load_exported(path: Path, device: torch.device) -> ExportedModel:
    """The program of a ``.pt2`` file, on a device.

    Raises:
        ConfigError: the file is damaged, holds something that is not safe, or does not fit
            the installed torch.
    """
    try:
        archive, guards, version = _rebuilt(path, device)
        return ExportedModel(_loaded(archive, version), guards)
    except Refused as error:
        raise ConfigError(f"the exported program {path} is not taken: {error}; {_AGAIN}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"the exported program {path} is damaged ({reason}); {_AGAIN}") from error


def _loaded(archive: io.BytesIO, version: object) -> torch.export.ExportedProgram:
    # torch prints a page about a failure and then raises an error that refers to it.
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return torch.export.load(archive)
    except Exception as error:
        raise Refused(
            f"it was made by torch {version}, and torch {torch.__version__} cannot load it"
        ) from error
    finally:
        logger.setLevel(level)


def _rebuilt(path: Path, device: torch.device) -> tuple[io.BytesIO, tuple[Guard, ...], object]:
    """A new archive with what is safe, the guards, and the torch version that made the file."""
    with zipfile.ZipFile(path) as old:
        records = {member.filename.partition("/")[2]: member for member in old.infolist()}
        _check_records(records)
        program = json.loads(old.read(records[_PROGRAM]))
        guards = tuple(vetted_guard(guard) for guard in program.get("guards_code") or [])
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as new:
            for name in _HEADER:
                if name in records:
                    new.writestr(f"model/{name}", old.read(records[name]))
            for folder, (config, payload) in _PAYLOADS.items():
                listing = vetted_graph(json.loads(old.read(records[config])), device)
                new.writestr(f"model/{config}", json.dumps(listing))
                for name in sorted(_payloads(listing, records, folder, payload)):
                    new.writestr(f"model/{name}", old.read(records[name]))
            new.writestr(f"model/{_PROGRAM}", json.dumps(vetted_graph(program, device)))
            new.writestr(f"model/{_SAMPLE_INPUTS}", b"")
    buffer.seek(0)
    return buffer, guards, program.get("torch_version")


def _check_records(records: Mapping[str, zipfile.ZipInfo]) -> None:
    for name, member in records.items():
        if name.startswith("data/aotinductor/"):
            raise Refused("it holds compiled machine code")
        if name.endswith(".pt") and not name.startswith("data/sample_inputs/"):
            raise Refused("its weights are pickled, which torch before 2.9 did")
        if name.startswith("models/") and name != _PROGRAM:
            raise Refused("it holds a program that is not named model")
        if member.compress_type != zipfile.ZIP_STORED:
            raise Refused("it is compressed, which torch.export.save does not do")


def _payloads(
    listing: Any, records: Mapping[str, zipfile.ZipInfo], folder: str, payload: re.Pattern[str]
) -> set[str]:
    """The records that hold the tensors of a listing."""
    names = set()
    for tensor in listing["config"].values():
        if tensor["use_pickle"] is not False or not payload.fullmatch(tensor["path_name"]):
            raise Refused("one of its tensors or constants is pickled")
        name = folder + tensor["path_name"]
        sizes = [size["as_int"] for size in tensor["tensor_meta"]["sizes"]]
        if records[name].file_size == 0 and 0 not in sizes:
            # torch would make a tensor of zeros, as large as the file says.
            raise Refused(f"the bytes of {name} are missing")
        names.add(name)
    return names
