"""The graph of an exported program, let through piece by piece.

torch turns the strings of a graph into Python: names into source code, shape expressions and
guards into ``eval`` and ``exec``, operators into attributes of ``torch``. `vetted_graph`
copies the JSON and lets a string pass only where it fits its place:

- a name is made of letters, digits and underscores (dots where it names a parameter);
- text for an operator (``"bilinear"``, ``"bchw,bchw->bc"``) is one line without backslashes;
- an operator is in one of torch's own namespaces of tensor operators and opens no file;
- a shape expression is arithmetic on symbols and numbers;
- a structure of inputs or outputs is made of tuples, lists and dicts.

What is not known is refused, so that a new kind of entry in a later torch is a clear error.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch

__all__ = ["Guard", "Refused", "vetted_graph", "vetted_guard"]

_NAME = re.compile(r"\w*", re.ASCII)
_DOTTED = re.compile(r"[\w.@-]*", re.ASCII)
_TEXT = re.compile(r"[ -\[\]-~]*")
_DOTTED_KEYS = {"buffer_name", "fqn", "parameter_name", "tensor_constant_name"}
_TEXT_KEYS = {"as_string", "as_strings", "torch_version"}
_DROPPED: dict[str, Any] = {"guards_code": [], "metadata": {}, "treespec_namedtuple_fields": {}}
_UNSAFE = {"as_custom_obj", "as_string_to_argument", "custom_obj"}
_NUMBERS = {"Infinity", "-Infinity", "NaN"}

_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", re.ASCII)
_NAMESPACES = {"aten", "prims", "quantized", "quantized_decomposed", "torchvision"}
_OTHER_OPERATORS = re.compile(
    r"torch\._?sym_[a-z_]+|math\.[a-z]\w*"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|getitem|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.ops\.higher_order\."
    r"(cond|map_impl|scan|while_loop|wrap_with_autocast|wrap_with_set_grad_enabled)",
    re.ASCII,
)

_TREES = {None, "builtins.dict", "builtins.list", "builtins.tuple"}

_SIZE = re.compile(r"L(?:\['\w+'\]|\[\d\])+\.size\(\)\[(\d)\]", re.ASCII)
_SYMBOL = re.compile(r"[a-z]+\d+|int_oo|oo", re.ASCII)
_FUNCTION = re.compile(
    r"Abs|Add|And|CeilDiv|CeilToInt|CleanDiv|Eq|Equality|Float|FloatPow|FloatTrueDiv|FloorDiv"
    r"|FloorToInt|Ge|GreaterThan|Gt|Identity|IntTrueDiv|Integer|LShift|Le|LessThan|Lt|Max|Min|Mod"
    r"|ModularIndexing|Mul|Ne|Not|Or|Pow|PowByNatural|PythonMod|RShift|Rational|RoundDecimal"
    r"|RoundToInt|StrictGreaterThan|StrictLessThan|Symbol|ToFloat|TruncToFloat|TruncToInt"
    r"|Unequality|Where|abs|max|min"
)
_POWERS = {"FloatPow", "LShift", "Pow", "PowByNatural"}
_MOST_POWER = 64
_GUARD_FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, "max": max, "min": min}
_ARITHMETIC = (
    ast.Expression,
    ast.BinOp,
    ast.BoolOp,
    ast.UnaryOp,
    ast.Compare,
    ast.operator,
    ast.boolop,
    ast.unaryop,
    ast.cmpop,
    ast.Load,
)


class Refused(Exception):
    """The archive is not taken; the message is a clause that says why."""


def vetted_graph(value: Any, device: torch.device, key: str = "") -> Any:
    """A copy of a part of a program's JSON, moved to a device.

    Args:
        value: the part.
        device: where its tensors shall be.
        key: what it is called in the dict that it (or its list) comes from.

    Raises:
        Refused: a string does not fit its place.
    """
    if isinstance(value, str):
        _check_text(key, value)
        return value
    if isinstance(value, list):
        return [vetted_graph(item, device, key) for item in value]
    if isinstance(value, dict):
        if set(value) == {"type", "index"}:
            return {"type": device.type, "index": device.index}
        return {name: _entry(name, item, device, key) for name, item in value.items()}
    return value


def _entry(name: str, item: Any, device: torch.device, key: str) -> Any:
    _fits(_DOTTED if key == "config" else _NAME, name)
    if name in _UNSAFE:
        raise Refused("it holds custom objects")
    if name in _DROPPED:
        return _DROPPED[name]
    return vetted_graph(item, device, name)


def _check_text(key: str, text: str) -> None:
    check = _CHECKS.get(key)
    if check is not None:
        check(text)
    elif key in _TEXT_KEYS:
        _fits(_TEXT, text)
    elif text not in _NUMBERS:
        _fits(_DOTTED if key in _DOTTED_KEYS else _NAME, text)


def _fits(pattern: re.Pattern[str], text: str) -> None:
    if not pattern.fullmatch(text):
        raise Refused(f"{text[:60]!r} is not a name or text that torch.export writes")


def _check_operator(target: str) -> None:
    if _OTHER_OPERATORS.fullmatch(target):
        return
    match = _OPERATOR.fullmatch(target)
    if match is None or match[1] not in _NAMESPACES:
        raise Refused(f"its operator {target[:60]!r} is not one of torch's tensor operators")
    operator: object = torch.ops
    for name in match.groups():
        operator = getattr(operator, name, None)
    if not isinstance(operator, torch._ops.OpOverload):
        raise Refused(f"the installed torch {torch.__version__} lacks the operator {target}")
    if any(argument.name == "filename" for argument in operator._schema.arguments):
        raise Refused(f"its operator {target} opens files")


def _check_expression(text: str) -> ast.Expression:
    """The expression, parsed, if it is arithmetic.

    Attributes, subscripts, strings (but for a symbol's name) and unknown functions are what
    an attack needs; none of them is arithmetic.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise Refused(f"its expression {text[:60]!r} cannot be read") from error
    for node in ast.walk(tree):
        if not _is_arithmetic(node):
            raise Refused(f"its expression {text[:60]!r} is more than arithmetic")
        if _grows(node):
            raise Refused(f"its expression {text[:60]!r} may have any number of digits")
    return tree


def _grows(node: ast.AST) -> bool:
    """Whether this raises, or shifts left, by more than a few, or what was raised before:
    ``9**9**9`` is short, and keeps a processor busy for ever."""
    if not (factors := _raised(node)):
        return False
    base, exponent = factors
    return not _small(exponent) or any(map(_raised, ast.walk(base)))


def _small(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="Integer" | "Float"), args=[inner]):
            return _small(inner)
        case ast.UnaryOp(operand=inner):
            return _small(inner)
        case ast.Constant(value=int() | float() as value):
            return abs(value) <= _MOST_POWER
        case _:
            return False


def _raised(node: ast.AST) -> tuple[ast.AST, ast.AST] | None:
    """Base and exponent of a power, or of a shift to the left."""
    match node:
        case ast.BinOp(left=base, op=ast.Pow() | ast.LShift(), right=exponent):
            return base, exponent
        case ast.Call(func=ast.Name(id=name), args=[base, exponent]) if name in _POWERS:
            return base, exponent
        case ast.Call(func=ast.Name(id=name)) if name in _POWERS:
            return node, node
        case _:
            return None


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return _FUNCTION.fullmatch(name) is not None
        case ast.Name(id=name):
            return (_FUNCTION.fullmatch(name) or _SYMBOL.fullmatch(name)) is not None
        case ast.Constant(value=str(name)):
            return _SYMBOL.fullmatch(name) is not None
        case ast.Constant(value=value):
            return isinstance(value, bool | int | float)
        case ast.keyword(arg=name):
            return name in {"integer", "nonnegative", "positive", "real"}
        case _:
            return isinstance(node, _ARITHMETIC)


def _check_tree(text: str) -> None:
    _protocol, tree = json.loads(text)
    _check_branch(tree)


def _check_branch(tree: Any) -> None:
    if tree["type"] not in _TREES:
        raise Refused(f"it takes or returns a {tree['type']}")
    keys = json.loads(tree["context"] or "null")
    # torch makes objects of other modules from entries that are dicts.
    if not isinstance(keys, list | None) or not all(isinstance(k, str | int) for k in keys or ()):
        raise Refused("it takes or returns a dict whose keys are objects")
    for branch in tree["children_spec"]:
        _check_branch(branch)


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition that an input must meet; `text` names the input's sizes d0, d1, d2 and d3."""

    text: str
    code: CodeType

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether input of that shape meets it."""
        sizes = {f"d{i}": size for i, size in enumerate(shape)}
        return bool(eval(self.code, {"__builtins__": {}, **_GUARD_FUNCTIONS}, sizes))


def vetted_guard(text: str) -> Guard:
    """A guard of a program, compiled.

    Raises:
        Refused: it is more than arithmetic on sizes.
    """
    text = _SIZE.sub(r"d\1", text)
    code = compile(_check_expression(text), "<guard>", "eval")
    if not set(code.co_names) <= {"d0", "d1", "d2", "d3", *_GUARD_FUNCTIONS}:
        raise Refused(f"its guard {text[:60]!r} is not about the input's size")
    return Guard(text, code)


_CHECKS: dict[str, Callable[[str], object]] = {
    "as_operator": _check_operator,
    "expr_str": _check_expression,
    "in_spec": _check_tree,
    "out_spec": _check_tree,
    "target": _check_operator,
}
