"""Archives of torch.export: they give the model's results, and nothing hidden in them runs."""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from streamwsi.errors import CannotProcess, ConfigError
from streamwsi.processors import TorchModule
from streamwsi.processors.exported_graphs import Refused, vetted_graph, vetted_guard
from streamwsi.processors.exported_programs import load_exported

Array = npt.NDArray[Any]
CPU = torch.device("cpu")
PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Network(nn.Module):
    """Convolution, normalisation, interpolation, a subgraph, a constant, symbolic sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.gelu(self.norm(self.conv(x)), approximate="tanh")
        half = nn.functional.avg_pool2d(y, 2)
        whole = nn.functional.interpolate(half, scale_factor=2.0, mode="bilinear")
        with torch.no_grad():
            mixed = torch.einsum("bchw,bchw->bc", y, whole) / (x.shape[2] * x.shape[3])
        shifted: Tensor = self.drop(mixed) * self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return shifted


def exported(path: Path, model: nn.Module, dynamic: dict[int, Any] | None) -> Path:
    shapes = None if dynamic is None else (dynamic,)
    program = torch.export.export(model.eval(), (torch.rand(4, 3, 16, 24),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="session")
def archive(folder: Path) -> Path:
    """A program for any number of windows."""
    return exported(folder / "network.pt2", Network(), {0: torch.export.Dim.DYNAMIC})


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What must not exist at the end."""
    return tmp_path / "touched"


Change = bytes | Callable[[Any], None]


def edited(old: Path, new: Path, changes: dict[str, Change]) -> Path:
    """A copy of an archive with records replaced, or with their JSON changed in place."""
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w") as target:
        records = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
        for name, change in changes.items():
            if callable(change):
                content = json.loads(records[name])
                change(content)
                records[name] = json.dumps(content).encode()
            else:
                records[name] = change
        for name, content in records.items():
            target.writestr(f"{new.stem}/{name}", content)
    return new


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_exported(path, CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def images_of(windows: Array) -> Tensor:
    return torch.from_numpy(windows).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("batch_size", [1, 4, 7])
async def test_results_are_the_models(
    run_processor: Any, windows: Array, archive: Path, batch_size: int
) -> None:
    processor = TorchModule(archive, batch_size=batch_size, device="cpu")
    values, config = await run_processor(processor, windows)
    with torch.no_grad():
        expected = Network().eval()(images_of(windows))
    np.testing.assert_allclose(values, expected.numpy(), atol=1e-5)
    assert config["model"]["kind"] == "torch.export"


async def test_other_sizes_are_refused(run_processor: Any, windows: Array, archive: Path) -> None:
    """The size is a constant inside the program: it would give wrong numbers."""
    with pytest.raises(CannotProcess, match=r"shape \(10, 3, 12, 24\): .*to be equal to 16"):
        await run_processor(TorchModule(archive, device="cpu"), windows[:, :12])


async def test_a_fixed_batch_is_filled_up(run_processor: Any, windows: Array, folder: Path) -> None:
    path = exported(folder / "fixed.pt2", Network(), None)
    values, _ = await run_processor(TorchModule(path, batch_size=4, device="cpu"), windows)
    with torch.no_grad():
        expected = Network().eval()(images_of(windows))
    np.testing.assert_allclose(values, expected.numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match=r"exactly 4: set batch_size to that, or export it with"):
        await run_processor(TorchModule(path, batch_size=8, device="cpu"), windows)


async def test_guards_are_kept(run_processor: Any, windows: Array, folder: Path) -> None:
    class Symmetric(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + x.transpose(2, 3)).mean((2, 3)) if x.shape[2] == x.shape[3] else x

    model = Symmetric()
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model, (torch.rand(4, 3, 16, 16),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    path = folder / "symmetric.pt2"
    torch.export.save(program, path)
    processor = TorchModule(path, device="cpu")
    values, _ = await run_processor(processor, windows[:, :12, :12])
    expected = 2 * windows[:, :12, :12].mean((1, 2)) / 255
    np.testing.assert_allclose(values, expected, atol=1e-5)
    with pytest.raises(
        CannotProcess, match=r"with (d3 == d2|d2 == d3); this input has .*\(10, 3, 16, 24\)"
    ):
        await run_processor(processor, windows)


async def test_more_than_one_input(folder: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    path = folder / "two.pt2"
    one = torch.rand(2, 3)
    torch.export.save(torch.export.export(Two(), (one, one)), path)
    assert "it takes 2 inputs, not one tensor" in refusal(path)


def test_the_device_is_changed_everywhere() -> None:
    cpu, cuda = {"type": "cpu", "index": None}, {"type": "cuda", "index": 3}
    part = {"as_device": cuda, "x": [{"device": cpu}]}
    assert vetted_graph(part, torch.device("meta")) == {
        "as_device": {"type": "meta", "index": None},
        "x": [{"device": {"type": "meta", "index": None}}],
    }


def test_pickled_sample_inputs_are_not_read(tmp_path: Path, archive: Path, marker: Path) -> None:
    evil = pickle.dumps(Touch(marker), protocol=2)
    path = edited(archive, tmp_path / "evil.pt2", {"data/sample_inputs/model.pt": evil})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("torch.export"), "disabled", True)
        with pytest.raises(Exception, match=r"error when deserializing|expected tuple or dict"):
            torch.export.load(path)
    marker.unlink()  # the attack works where torch reads the file
    assert load_exported(path, CPU)(torch.rand(2, 3, 16, 24)).shape == (2, 4)
    assert not marker.exists()


def first_weight(config: Any) -> Any:
    return next(iter(config["config"].values()))


@pytest.mark.parametrize(
    ("record", "entry"),
    [
        (WEIGHTS, {"path_name": "weight_9", "use_pickle": True}),
        (WEIGHTS, {"path_name": "weight_9", "use_pickle": 1}),
        (CONSTANTS, {"path_name": "tensor_9", "use_pickle": True}),
        (CONSTANTS, {"path_name": "custom_obj_9", "use_pickle": False}),
        (CONSTANTS, {"path_name": "opaque_obj_9", "use_pickle": False}),
    ],
)
def test_pickled_tensors_are_refused(
    tmp_path: Path, archive: Path, marker: Path, record: str, entry: dict[str, Any]
) -> None:
    evil = pickle.dumps(Touch(marker), protocol=2)
    payload = f"{record.rpartition('/')[0]}/{entry['path_name']}"
    path = edited(
        archive,
        tmp_path / "evil.pt2",
        {record: lambda config: first_weight(config).update(entry), payload: evil},
    )
    assert "one of its tensors or constants is pickled" in refusal(path)
    assert not marker.exists()


def test_a_path_out_of_the_archive_is_refused(tmp_path: Path, archive: Path) -> None:
    entry = {"path_name": "../../models/model.json"}
    change: dict[str, Change] = {WEIGHTS: lambda config: first_weight(config).update(entry)}
    assert "is not a name" in refusal(edited(archive, tmp_path / "evil.pt2", change))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("data/weights/model.pt", "its weights are pickled"),
        ("data/constants/model.pt", "its weights are pickled"),
        ("data/aotinductor/model/model.so", "it holds compiled machine code"),
        ("models/other.json", "it holds a program that is not named model"),
    ],
)
def test_unwanted_records_are_refused(
    tmp_path: Path, archive: Path, marker: Path, record: str, message: str
) -> None:
    evil = pickle.dumps(Touch(marker), protocol=2)
    assert message in refusal(edited(archive, tmp_path / "evil.pt2", {record: evil}))
    assert not marker.exists()


def test_tensors_without_bytes_are_not_allocated(tmp_path: Path, archive: Path) -> None:
    path = edited(archive, tmp_path / "evil.pt2", {"data/weights/weight_0": b""})
    assert "the bytes of data/weights/weight_0 are missing" in refusal(path)


def in_every_string(value: Any, key: str, text: str) -> None:
    """Put `text` into every string that is called `key`, in place."""
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        if name == key and isinstance(item, str):
            value[name] = text
        elif isinstance(item, dict | list):
            in_every_string(item, key, text)


TREE = '[1, {"type": "%s", "context": %s, "children_spec": []}]'
KEYS = json.dumps(json.dumps({"__enum__": True, "fqn": "evil_module:E", "name": "A"}))
ENUM = json.dumps(json.dumps([{"__enum__": True, "fqn": "evil_module:E", "name": "A"}]))
FACTORY = json.dumps({"default_factory_module": "evil_module", "default_factory_name": "A"})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("expr_str", "__import__('os').system('touch MARKER')"),
        ("expr_str", "Symbol('s0').__class__.__base__.__subclasses__()"),
        ("expr_str", 'Symbol(\'__import__("os").system("touch MARKER")\')'),
        ("expr_str", "[Max for Max in Symbol('s0')]"),
        ("expr_str", "(lambda: Symbol('s0'))()"),
        ("expr_str", "open('MARKER', 'w')"),
        ("expr_str", "Max(*Symbol('s0'))"),
        ("expr_str", "f'{Symbol}'"),
        ("target", "torch.os.system"),
        ("target", "torch.ops.load_library"),
        ("target", "torch.ops.aten.from_file.default"),
        ("target", "torch.ops.aten.add.__class__"),
        ("target", "torch.ops.evil.op.default"),
        ("target", "torch.ops.higher_order.call_torchbind"),
        ("target", "torch.load"),
        ("target", "_operator.attrgetter"),
        ("target", "math.__loader__.load_module"),
        ("target", "#evil:op"),
        ("target", "torch.ops.aten.add.Tensor\n"),
        ("name", "x = __import__('os').system('touch MARKER')"),
        ("name", "x\n    __import__('os')"),
        ("name", "torch.nn.Module.forward"),
        ("parameter_name", "a('b')"),
        ("fqn", "a'b"),
        ("as_string", "bilinear\\"),
        ("as_string", "two\nlines"),
        ("in_spec", TREE % ("collections.defaultdict", FACTORY)),
        ("out_spec", TREE % ("builtins.dict", ENUM)),
        (
            "out_spec",
            TREE % ("builtins.dict", KEYS),
        ),
    ],
)
def test_strings_that_would_run_are_refused(
    tmp_path: Path, archive: Path, marker: Path, key: str, text: str
) -> None:
    (tmp_path / "evil_module.py").write_text(
        f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    )
    text = text.replace("MARKER", str(marker))
    path = edited(
        archive,
        tmp_path / "evil.pt2",
        {PROGRAM: lambda program: in_every_string(program, key, text)},
    )
    sys.path.insert(0, str(tmp_path))
    try:
        message = refusal(path)
    finally:
        sys.path.remove(str(tmp_path))
    assert "is not taken" in message
    assert "cannot load it" not in message
    assert not marker.exists()


@pytest.mark.parametrize(
    "guard",
    [
        "__import__('os').system('touch MARKER')",
        "L['x'].size()[0].__class__",
        "L['x'].item() == 1",
        "s0 == 3",
        "Symbol('s0') == 3",
        "d0 == 3) or print(3",
        "9**9**9**9 > d0",
        "((((9**64)**64)**64)**64)**64 > d0",
        "2**d0 > 3",
        "1 << 10**10 > d0",
        "(1 << d0) > 3",
    ],
)
def test_guards_that_would_run_are_refused(tmp_path: Path, archive: Path, guard: str) -> None:
    def change(program: Any) -> None:
        program["guards_code"] = [guard]

    with pytest.raises(Refused):
        vetted_guard(guard)
    refusal(edited(archive, tmp_path / "evil.pt2", {PROGRAM: change}))


def test_guards_are_conditions_on_sizes() -> None:
    guard = vetted_guard("max(1, L['x'].size()[3] // 2)*L['args'][0].size()[2] != 1")
    assert guard.text == "max(1, d3 // 2)*d2 != 1"
    assert guard.holds((4, 3, 16, 16))
    assert not guard.holds((4, 3, 1, 3))
    assert vetted_guard("(d2 + 1)**2 < 17").holds((4, 3, 3, 3))
    for wrong in ("Pow(9, Pow(9, 9))", "Pow(Pow(s0, 64), 64)", "LShift(1, s0)", "Pow(9)"):
        with pytest.raises(Refused, match="any number of digits"):
            vetted_graph({"expr_str": wrong}, CPU)
    assert vetted_graph({"expr_str": "Pow(s0 + 1, 2) - 3**2"}, CPU)


@pytest.mark.parametrize("key", ["as_custom_obj", "as_string_to_argument", "custom_obj"])
def test_custom_objects_are_refused(key: str) -> None:
    with pytest.raises(Refused, match="custom objects"):
        vetted_graph({"arg": {key: {}}}, CPU)


def test_notes_are_dropped() -> None:
    evil = {"metadata": {"from_node": "evil"}, "guards_code": ["evil()"], "a": 1}
    assert vetted_graph(evil, CPU) == {"metadata": {}, "guards_code": [], "a": 1}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"graph_module": 3}', b"[" * 100_000, b"\xff"]
)
def test_damaged_programs(tmp_path: Path, archive: Path, content: bytes) -> None:
    message = refusal(edited(archive, tmp_path / "bad.pt2", {PROGRAM: content}))
    assert "export the model again, or give package.module:factory" in message


def test_a_newer_torch_is_named(
    tmp_path: Path, archive: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def change(program: Any) -> None:
        program["schema_version"] = {"major": 99, "minor": 0}
        program["torch_version"] = "9.1"

    message = refusal(edited(archive, tmp_path / "new.pt2", {PROGRAM: change}))
    assert f"made by torch 9.1, and torch {torch.__version__} cannot load it" in message
    assert capfd.readouterr().err == ""


def test_a_compressed_archive_is_refused(tmp_path: Path, archive: Path) -> None:
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "it is compressed" in refusal(path)
