"""Loading what `TorchModule` is given: a module, a name, a factory or a file.

==========================  ====================================================================
``"hematoxylin"``           the built-in model, see `hematoxylin`
``"package.module:name"``   an ``nn.Module``, or a function without arguments that returns one;
                            also found in the current folder
a path                      a TorchScript file or a ``torch.export`` archive
an ``nn.Module``            that module
==========================  ====================================================================

A file is never unpickled: see `model_files` for what is refused and why, `exported_programs`
for how archives of ``torch.export`` are made safe. A factory is Python code that the caller
names, and is trusted like any import.

The description of a model identifies its results for a resume: the digest of a file's content,
or of a module's classes, settings, parameters and buffers. What a module's code does beyond
these is not seen: after changing a ``forward``, start afresh.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, first_line
from ..functions import current_folder_importable
from .exported_programs import load_exported
from .hematoxylin import VERSION, Hematoxylin
from .model_files import kind_of, sha256_of

__all__ = ["LoadedModel", "compiled_model", "load_model", "named_module"]

_optimised: Any = vars(torch.jit)["optimized_execution"]  # missing from torch's type hints
_FACTORY = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


def _nothing() -> None:
    """There is nothing to restore."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to be called.

    Attributes:
        call: takes float32 ``(n, channels, h, w)``, returns whatever the model returns.
        description: what identifies it, JSON-able.
        channel_names: what its output's channels are called, where it says so.
        batch: the only number of windows that it takes; None where it takes any.
        nbytes: bytes of its parameters and buffers.
        close: puts a module of the caller's back as it was.
    """

    call: Callable[[Tensor], Any]
    description: Mapping[str, Any]
    channel_names: tuple[str, ...] | None = None
    batch: int | None = None
    nbytes: int = 0
    close: Callable[[], None] = _nothing


def load_model(model: nn.Module | str | Path, device: torch.device) -> LoadedModel:
    """Load a model onto a device, in evaluation mode.

    Raises:
        ConfigError: there is no such model, or it is not safe to load.
    """
    if isinstance(model, nn.Module):
        return _of_module(model, device)
    if model == "hematoxylin":
        module = Hematoxylin().eval()
        description = {"kind": "hematoxylin", "version": VERSION}
        return LoadedModel(module, description, Hematoxylin.channel_names)
    if not isinstance(model, str | Path):
        raise ConfigError(f"a model is an nn.Module or text, not a {type(model).__qualname__}")
    path = Path(model)
    if path.exists():
        return _of_file(path, device)
    named = named_module(model)
    if isinstance(named, nn.Module):
        return _of_module(named, device)
    raise ConfigError(
        f"there is no model {str(model)!r}: it is neither hematoxylin nor an existing file nor "
        "package.module:factory"
    )


def named_module(model: nn.Module | str | Path) -> nn.Module | str | Path:
    """The module that ``package.module:name`` stands for; anything else is returned.

    Raises:
        ConfigError: there is no such module.
    """
    if isinstance(model, nn.Module) or Path(model).exists():
        return model
    match = _FACTORY.fullmatch(str(model))
    return _made(str(model), match[1], match[2]) if match else model


def compiled_model(loaded: LoadedModel, batch: int) -> LoadedModel:
    """The model translated by ``torch.compile``, for batches of exactly `batch`.

    A fixed size, so that it is translated once; a shorter batch is filled up.

    Raises:
        ConfigError: the model is not Python code.
    """
    if not isinstance(loaded.call, nn.Module) or isinstance(loaded.call, torch.jit.ScriptModule):
        raise ConfigError(
            "only a model that is Python code can be compiled; TorchScript and torch.export files "
            "are compiled already: leave out --compile"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's modules warn about torch's own past
        translated: Callable[[Tensor], Any] = torch.compile(loaded.call, dynamic=False)
    lock, done = threading.Lock(), threading.Event()

    def call(images: Tensor) -> Any:
        if done.is_set():
            return translated(images)
        # The first call translates; torch's compiler is not made for two threads at once.
        with lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = translated(images)
            done.set()
            return output

    return replace(loaded, call=call, batch=batch)


def _of_file(path: Path, device: torch.device) -> LoadedModel:
    kind = kind_of(path)
    description = {"kind": kind, "name": path.name, "sha256": sha256_of(path)}
    if kind == "torch.export":
        program = load_exported(path, device)
        return LoadedModel(program, description, batch=program.batch, nbytes=program.nbytes)
    with warnings.catch_warnings():
        # torch would like everybody to move on to torch.export.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            script = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise ConfigError(
                f"the TorchScript file {path} cannot be loaded: {first_line(error)}"
            ) from error
    return LoadedModel(_unoptimised(script), description, nbytes=_nbytes(script))


def _unoptimised(script: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """The model without torch's optimiser, which works while the first batches run: they would
    go through other code than later ones, and a resumed run could differ in the last bits."""

    def call(images: Tensor) -> Any:
        with _optimised(False):
            return script(images)

    return call


def _of_module(module: nn.Module, device: torch.device) -> LoadedModel:
    training = [part for part in module.modules() if part.training]
    kernels: list[Tensor] = []
    homes = {value.device for value in (*module.parameters(), *module.buffers())}

    def restore() -> None:
        if len(homes) == 1 and device not in homes:
            module.to(next(iter(homes)))
        for part in training:
            part.training = True
        for kernel in kernels:
            kernel.data = kernel.data.contiguous()

    name = f"{type(module).__module__}.{type(module).__qualname__}"
    try:
        description = {"kind": "module", "name": name, "sha256": _digest(module)}
        module = module.to(device)
        kernels += filter(_is_plain_kernel, module.parameters())
        _in_channels_last(kernels)
        # A program of torch.export has no modes: it is what it was when it was exported.
        with suppress(NotImplementedError):
            module.eval()
    except Exception as error:
        restore()
        raise ConfigError(
            f"the model {name} cannot be made ready on {device}: {first_line(error)}"
        ) from error
    names = getattr(module, "channel_names", None)
    names = tuple(str(name) for name in names) if isinstance(names, list | tuple) else None
    scripted = isinstance(module, torch.jit.ScriptModule)
    return LoadedModel(
        _unoptimised(module) if scripted else module,
        description,
        names,
        nbytes=_nbytes(module),
        close=restore,
    )


def _nbytes(module: nn.Module) -> int:
    values = (*module.parameters(), *module.buffers())
    return sum(value.nbytes for value in values if value.layout is torch.strided)


def _is_plain_kernel(value: Tensor) -> bool:
    """Whether this is a convolution's kernel in the usual memory order."""
    return value.dim() == 4 and value.is_contiguous()


def _in_channels_last(kernels: list[Tensor]) -> None:
    """Lay kernels out as the input is, or each convolution would do so for each batch.

    A 1×1 convolution of 32 windows of 256×256 took 200 µs a window so, and takes 165.
    """
    for kernel in kernels:
        kernel.data = kernel.data.to(memory_format=torch.channels_last)


def _digest(module: nn.Module) -> str:
    """A digest of the classes, settings, parameters and buffers of a module."""
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        digest.update(_ADDRESS.sub("", f"{name} {kind}({part.extra_repr()})\n").encode())
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            digest.update(f"{name} {type(value).__qualname__}\n".encode())
            continue
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        if value.is_quantized:
            value = value.dequantize()
        flat = value.detach().cpu().to_dense().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _made(model: str, module_name: str, name: str) -> nn.Module:
    """The module that ``package.module:name`` names or makes."""
    with current_folder_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ConfigError(f"the model {model}: there is no module {error.name}") from error
        except Exception as error:
            raise ConfigError(
                f"the model {model}: importing {module_name} failed: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        for part in name.split("."):
            if not hasattr(found, part):
                raise ConfigError(f"the model {model}: {module_name} has no {name}")
            found = getattr(found, part)
        if isinstance(found, nn.Module):
            return found
        if not callable(found):
            raise ConfigError(f"the model {model} is neither an nn.Module nor a function")
        try:
            made = found()
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"the model {model} failed: {type(error).__name__}: {first_line(error)}"
            ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"the model {model} returned a {type(made).__qualname__} instead of an nn.Module"
        )
    return made
