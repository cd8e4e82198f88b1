"""What a model file is, told from its bytes; nothing is unpickled to find out.

A pickle runs what its author wanted while it is read, and model files come from strangers. So
only two formats are taken: TorchScript archives, which torch reads with its own unpickler in
C++ that knows tensors, containers and the classes of the archive and calls nothing of Python,
and ``torch.export`` archives, see `exported_programs`. Everything that would need Python's
unpickler (``torch.save`` of a module or of a state dict) is refused, with the way to convert
it; so are bare weights, which are no model.

The code inside a TorchScript file is run by the TorchScript interpreter when the model is
loaded and called. It cannot reach Python or a shell, but it is code: it can compute for ever,
and some of torch's operators write files. That is inherent in taking a model from somebody.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Literal

from ..errors import ConfigError

__all__ = ["kind_of", "sha256_of"]

_CONVERT = (
    "convert it where its model is defined, with torch.jit.script(model).save(…) or "
    "torch.export.save(torch.export.export(model, …), …), or give package.module:factory, a "
    "function that builds the model and loads the weights"
)
_LARGEST_UNPACKED = 256 * 2**20
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_SAFETENSORS = re.compile(rb".{8}\{\s*\"", re.DOTALL)


def kind_of(path: Path) -> Literal["torchscript", "torch.export"]:
    """Which of the two formats a file is.

    Raises:
        ConfigError: it is neither, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except IsADirectoryError as error:
        raise ConfigError(f"the model {path} is a folder, not a file") from error
    except OSError as error:
        raise ConfigError(f"the model {path} cannot be read: {error.strerror}") from error
    if _PICKLE.match(head):
        raise ConfigError(f"the model {path} is a pickle, which is not safe to read; {_CONVERT}")
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_archive(path)
    if _SAFETENSORS.match(head) and int.from_bytes(head[:8], "little") < path.stat().st_size:
        raise ConfigError(f"{path} holds weights (safetensors) but no model; {_CONVERT}")
    raise ConfigError(f"{path} is not a TorchScript or torch.export file")


def _kind_of_archive(path: Path) -> Literal["torchscript", "torch.export"]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ConfigError(f"the model {path} is a damaged archive: {error}") from error
    # torch puts everything into one folder, named after the file.
    names = {member.filename.partition("/")[2] for member in members}
    if "archive_format" in names:
        return "torch.export"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        _check_sizes(path, members)
        return "torchscript"
    plain = {member.filename for member in members}
    if "serialized_exported_program.json" in plain:
        raise ConfigError(
            f"{path} was exported by an old torch, whose format holds pickles, which are not "
            "safe to read; export the model again with torch 2.9 or newer"
        )
    if any(name.endswith(".pkl") for name in names | plain):
        raise ConfigError(
            f"the model {path} is a pickle (made by torch.save), which is not safe to read; "
            + _CONVERT
        )
    raise ConfigError(f"{path} is an archive, but not a TorchScript or torch.export file")


def _check_sizes(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Tensors are stored as they are; only source code is packed, and that is never large."""
    packed = [member for member in members if member.compress_type != zipfile.ZIP_STORED]
    if sum(member.file_size for member in packed) > _LARGEST_UNPACKED:
        raise ConfigError(f"the model {path} unpacks to far more than its size; it is damaged")


def sha256_of(path: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
