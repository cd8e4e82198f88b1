"""Loading models by name, from factories and from TorchScript files; refusing the rest."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from streamwsi.errors import CannotProcess, ConfigError
from streamwsi.processors import TorchModule
from streamwsi.processors.models import load_model

Array = npt.NDArray[Any]
CPU = torch.device("cpu")


class Network(nn.Module):
    """Small, with a layer that behaves otherwise in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(torch.relu(self.conv(x))).mean((2, 3))
        return y


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What must not exist at the end; the attack itself is shown to work first."""
    path = tmp_path / "touched"
    pickle.loads(pickle.dumps(Touch(path)))
    assert path.exists()
    path.unlink()
    return path


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "network.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Network()).save(str(path))  # type: ignore[no-untyped-call]
    return path


def edited(old: Path, new: Path, changes: dict[str, bytes]) -> Path:
    """A copy of an archive with some of its records replaced or added."""
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w") as target:
        root = source.namelist()[0].partition("/")[0]
        records = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
        for name, content in {**records, **changes}.items():
            target.writestr(f"{root}/{name}", content)
    return new


def refusal(model: Any) -> str:
    """The one sentence with which a model is refused."""
    with pytest.raises(ConfigError) as caught:
        load_model(model, CPU)
    message = str(caught.value)
    assert "\n" not in message
    return message


async def test_torchscript(run_processor: Any, windows: Array, script: Path) -> None:
    values, config = await run_processor(TorchModule(script, batch_size=4, device="cpu"), windows)
    images = torch.from_numpy(windows).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = Network().eval()(images)
    np.testing.assert_allclose(values, expected.numpy(), atol=1e-5)
    assert config["model"]["kind"] == "torchscript"
    assert config["model"]["name"] == "network.pt"
    assert len(config["model"]["sha256"]) == 64


async def test_a_loaded_script_or_program_is_a_module(
    run_processor: Any, windows: Array, script: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loaded: nn.Module = torch.jit.load(str(script))  # type: ignore[no-untyped-call]
    program = torch.export.export(Network().eval(), (torch.rand(10, 3, 16, 24),)).module()
    images = torch.from_numpy(windows).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = Network().eval()(images)
    for model in (loaded, program):
        values, _ = await run_processor(TorchModule(model, device="cpu"), windows)
        np.testing.assert_allclose(values, expected.numpy(), atol=1e-5)


def test_a_module_that_is_not_ready() -> None:
    lazy = nn.LazyConv2d(3, 1)
    assert "the model torch.nn.modules.conv.LazyConv2d cannot be made ready" in refusal(lazy)
    assert lazy.training


async def test_a_script_that_fails(run_processor: Any, windows: Array, script: Path) -> None:
    with pytest.raises(CannotProcess, match=r"failed on input of shape \(10, 2, 16, 24\): [^\n]+$"):
        await run_processor(TorchModule(str(script)), windows[..., :2])


def pickled(path: Path, how: str, content: object) -> Path:
    """A file with a pickle, in one of the forms that occur."""
    if how == "torch.save":
        torch.save(content, path)
    elif how == "old torch.save":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(how)))
    return path


@pytest.mark.parametrize("how", ["torch.save", "old torch.save", "2", "3", "4", "5"])
def test_pickles_are_refused_unread(tmp_path: Path, marker: Path, how: str) -> None:
    for name in ("model.pt", "model.pt2", "model.bin"):
        message = refusal(pickled(tmp_path / name, how, {"weight": Touch(marker)}))
        assert "not safe to read" in message
        assert name in message
        for way in ("torch.jit.script", "torch.export.save", "package.module:factory"):
            assert way in message
    assert not marker.exists()


def test_a_pickle_of_the_first_protocols_is_no_model(tmp_path: Path, marker: Path) -> None:
    for protocol in ("0", "1"):
        path = pickled(tmp_path / "model.pt", protocol, Touch(marker))
        assert "is not a TorchScript or torch.export file" in refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize("record", ["data.pkl", "constants.pkl"])
def test_torchscript_does_not_run_pickles(
    tmp_path: Path, marker: Path, script: Path, record: str
) -> None:
    for protocol in (2, 4):
        evil = pickle.dumps(Touch(marker), protocol=protocol)
        path = edited(script, tmp_path / "evil.pt", {record: evil})
        assert "the TorchScript file" in refusal(path)
    assert not marker.exists()


def test_an_archive_that_claims_to_unpack_to_gigabytes(
    tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamwsi.processors.model_files._LARGEST_UNPACKED", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("m/code/__torch__.py", bytes(2000), zipfile.ZIP_DEFLATED)
    assert "unpacks to far more than its size" in refusal(tmp_path / "bomb.pt")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"just text", bytes(600), b"\x89HDF\r\n\x1a\n", b"\x80", b"PK\x03\x05"):
        path.write_bytes(content)
        assert "is not a TorchScript or torch.export file" in refusal(path)
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "holds weights (safetensors) but no model" in refusal(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "is a damaged archive" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    assert "is an archive, but not" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    assert "was exported by an old torch" in refusal(path)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    assert "is a folder, not a file" in refusal(str(tmp_path))
    assert "there is no model 'missing.pt'" in refusal("missing.pt")
    assert "there is no model '/nowhere/model.pt2'" in refusal("/nowhere/model.pt2")
    assert "there is no model 'hematoxilin'" in refusal("hematoxilin")
    assert "a model is an nn.Module or text, not a int" in refusal(3)


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on ``sys.path``."""
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Conv2d(3, 2, 1)\n"
        "module = nn.Flatten()\n"
        "Class = nn.Flatten\n"
        "class Nested: make = staticmethod(nn.Flatten)\n"
        "number = 3\n"
        "def fails(): raise OSError('no weights\\nhere')\n"
        "def wants(size): return nn.Flatten()\n"
        "def returns_dict(): return {}\n"
        "def late(): import own_late_part; return nn.Flatten()\n"
    )
    (tmp_path / "own_late_part.py").write_text("")
    (tmp_path / "own_broken.py").write_text("1 / 0")
    (tmp_path / "own_needs.py").write_text("import not_installed_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("own_networks", "own_broken", "own_needs", "own_late_part"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "own_networks"


def test_factories(factories: str) -> None:
    before = list(sys.path)
    for name in ("make", "module", "Class", "Nested.make", "late"):
        loaded = load_model(f"{factories}:{name}", CPU)
        assert isinstance(loaded.call, nn.Module)
        assert not loaded.call.training
    assert loaded.description["name"] == "torch.nn.modules.flatten.Flatten"
    assert sys.path == before


def test_a_file_comes_before_a_factory(factories: str) -> None:
    Path(f"{factories}:make").write_text("text")
    assert "is not a TorchScript" in refusal(f"{factories}:make")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("own_networks:missing", "own_networks has no missing"),
        ("own_networks:number", "neither an nn.Module nor a function"),
        ("own_networks:fails", "failed: OSError: no weights"),
        ("own_networks:wants", "failed: TypeError: wants() missing 1 required"),
        ("own_networks:returns_dict", "returned a dict instead of an nn.Module"),
        ("own_nothing:make", "there is no module own_nothing"),
        ("own_needs:make", "there is no module not_installed_anywhere"),
        ("own_broken:make", "importing own_broken failed: ZeroDivisionError: division by zero"),
        ("own_networks:", "there is no model 'own_networks:'"),
        ("own networks:make", "there is no model 'own networks:make'"),
    ],
)
@pytest.mark.usefixtures("factories")
def test_factories_that_fail(model: str, message: str) -> None:
    assert message in refusal(model)


async def test_a_factory_as_a_processor(run_processor: Any, windows: Array, factories: str) -> None:
    values, config = await run_processor(TorchModule(f"{factories}:make"), windows)
    assert values.shape == (10, 2, 16, 24)
    assert config["model"]["kind"] == "module"
