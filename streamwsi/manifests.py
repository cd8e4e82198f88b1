"""Which slides a run works on: files, folders, patterns and lists of slides.

A place is one of

- a file, or a folder that a source takes for one slide (OME-Zarr, DICOM): that slide;
- any other folder: the slides that lie in it, by name, without its subfolders;
- a pattern such as ``slides/**/*.svs``: what it matches, by name (from both, heatmaps that a run
  has written there are left out);
- a ``.txt`` list: one path per line; blank lines and those that begin with ``#`` are left out;
- a ``.csv`` list: the first line names the columns: ``path``; where outputs are not to be named
  after the files, ``id``; and what holds for single slides: ``level``, ``mpp`` or ``power``,
  ``assume_mpp``, ``roi``. An empty field says nothing (`streamwsi.samplers.PerSlide` applies
  what the others say).

Paths in a list are relative to the list. What is wrong in all lists is told at once, before
anything is read: a cohort is put right in one go, not line by line in the middle of the night. A
file that is named directly is not looked at here: if it is missing, its lane says so, and the
other slides are done.
"""

from __future__ import annotations

import csv
import glob
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError
from .json_files import zarr_attributes
from .slides import SlideRef

__all__ = ["Listed", "find_slides", "raise_problems"]

T = TypeVar("T")

_SLIDE_ENDINGS = (
    *(".svs", ".tif", ".tiff", ".btf", ".qptiff", ".ndpi", ".zarr"),
    *(".bif", ".mrxs", ".scn", ".svslide", ".vms", ".vmu"),
)
_LARGEST_LIST = 64 << 20
_LONGEST_ID = 200
_PROBLEMS_SHOWN = 20
_FIELD_SHOWN = 60
_DIGITS = 6

_RESOLUTIONS = ("level", "mpp", "power")


@dataclass(frozen=True, slots=True)
class Listed:
    """A slide, and what a list says about it.

    Attributes:
        ref: the slide; its id is that of the list, or the file's name without the ending.
        options: values of the list's other columns, where they are not empty: ``level`` (int),
            ``mpp`` or ``power``, ``assume_mpp`` (float), ``roi`` (`Path`, which exists).
    """

    ref: SlideRef
    options: Mapping[str, object] = field(default_factory=dict)


def find_slides(
    places: Iterable[str | Path], accepts: Callable[[SlideRef], bool] | None = None
) -> list[Listed]:
    """The slides at some places, in the order of the places.

    Args:
        places: files, folders, patterns, ``.txt`` and ``.csv`` lists.
        accepts: whether a source takes a file or folder for a slide. In folders, files with
            the ending of a slide are taken in any case, so that a damaged one is reported and
            not passed over.

    Raises:
        ConfigError: what is wrong in the lists: slides that do not exist, lines that cannot be
            read, unknown columns; patterns that match nothing; ids that occur twice. All of it
            at once, twenty of them in words.
    """
    search = _Search(accepts or (lambda ref: False))
    for place in places:
        search.add(place)
    search.check_ids()
    raise_problems("the slides", search.problems)
    return search.found


def raise_problems(what: str, problems: list[str]) -> None:
    """Tell all of them at once, twenty in words; nothing where there are none.

    Raises:
        ConfigError: there are problems.
    """
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        shown = [*problems[:_PROBLEMS_SHOWN], *([f"and {more:,} more"] if more > 0 else [])]
        raise ConfigError("\n  ".join([f"{what} have {len(problems):,} problems:", *shown]))


@dataclass(slots=True)
class _Search:
    """Slides found so far, and what was wrong."""

    accepts: Callable[[SlideRef], bool]
    found: list[Listed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, place: str | Path) -> None:
        path, text = Path(place), str(place)
        if path.suffix.lower() in (".txt", ".csv"):
            self._add_list(path)
        elif _is(path.is_dir):
            # A folder without slides stays one: its lane says what was expected.
            inside = [] if self._accepted(path) else self._inside(path)
            self.found += [Listed(SlideRef.of(each)) for each in inside or [path]]
        elif glob.has_magic(text) and not os.path.lexists(text):
            # Not Path.glob, for a pattern may begin at the root.
            matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207
            matches = [each for each in matches if not _is_heatmap(Path(each))]
            self.found += [Listed(SlideRef.of(each)) for each in matches]
            if not matches:
                self.problems.append(f"{text} matches no file; check the pattern")
        else:
            self.found.append(Listed(SlideRef.of(path)))

    def _accepted(self, path: Path) -> bool:
        return self.accepts(SlideRef.of(path))

    def _inside(self, folder: Path) -> list[Path]:
        try:
            paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError:
            return []
        return [
            p
            for p in paths
            if (p.suffix.lower() in _SLIDE_ENDINGS or self._accepted(p)) and not _is_heatmap(p)
        ]

    def _add_list(self, path: Path) -> None:
        before = len(self.found), len(self.problems)
        try:
            if path.stat().st_size > _LARGEST_LIST:
                raise ConfigError(f"{path} is too large for a list of slides; check the path")
            text = path.read_text("utf-8-sig")
            read = self._rows if path.suffix.lower() == ".csv" else _lines
            for line, row in read(path, text):
                self._add_row(path, line, row)
        except OSError as error:
            self.problems.append(f"{path} cannot be read: {error.strerror or error}")
        except UnicodeDecodeError:
            self.problems.append(f"{path} is not a text file in UTF-8; save it as one")
        except ConfigError as error:
            self.problems.append(str(error))
        if before == (len(self.found), len(self.problems)):
            self.problems.append(f"{path} lists no slides; give at least one")

    def _rows(self, path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
        """The rows of a CSV list and the lines they end on; others become problems."""
        rows = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        try:
            header = [name.strip() for name in next(rows, [])]
            _check_columns(path, header)
            for row in rows:
                if len(row) == len(header):
                    yield rows.line_num, dict(zip(header, map(str.strip, row), strict=True))
                elif any(map(str.strip, row)):
                    self.problems.append(
                        f"{path}, line {rows.line_num}: there are {len(row)} fields for "
                        f"{len(header)} columns"
                    )
        except csv.Error as error:
            raise ConfigError(f"{path}, line {rows.line_num}: {error}") from error

    def _add_row(self, path: Path, line: int, row: dict[str, str]) -> None:
        """A row's slide; one with no text at all is left out."""
        if not any(row.values()):
            return
        wrong: list[str] = []
        ref = _tried(wrong, _ref, path.parent, row)
        options = {
            name: _tried(wrong, read, path.parent, row[name])
            for name, read in _OPTIONS.items()
            if row.get(name)
        }
        given = [name for name in _RESOLUTIONS if row.get(name)]
        if len(given) > 1:
            wrong.append(f"{' and '.join(given)} exclude each other; give one of them")
        self.problems += [f"{path}, line {line}: {problem}" for problem in wrong]
        if ref is not None and not wrong:
            self.found.append(Listed(ref, options))

    def check_ids(self) -> None:
        """Find ids that occur twice."""
        uris: dict[str, list[str]] = {}
        for listed in self.found:
            uris.setdefault(listed.ref.id, []).append(listed.ref.uri)
        for id_, same in uris.items():
            if len(same) > 1:
                self.problems.append(
                    f"{len(same)} slides have the id {_shown(id_)} and would write the same "
                    f"output: {', '.join(same[:3])}{', …' * (len(same) > 3)}; name each once, or "
                    "give them ids in a .csv list"
                )


def _lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.lstrip().startswith("#"):
            yield number, {"path": line.strip()}


def _check_columns(path: Path, header: list[str]) -> None:
    known = ["id", "path", *_OPTIONS]
    for name in header:
        if name not in known or header.count(name) > 1:
            what = "twice" if name in known else "and is unknown"
            raise ConfigError(
                f"{path}: the column {_shown(name)} is there {what}; the first line must name "
                f"columns out of {', '.join(known)}"
            )
    if "path" not in header:
        raise ConfigError(f"{path}: there is no column path; the first line must name the columns")


def _tried(wrong: list[str], read: Callable[..., T], *args: Any) -> T | None:
    """What it reads; None where it cannot, and the reason is added to what is wrong."""
    try:
        return read(*args)
    except ConfigError as error:
        wrong.append(str(error))
        return None


def _ref(folder: Path, row: Mapping[str, str]) -> SlideRef:
    """The slide of a row."""
    if not row["path"]:
        raise ConfigError("there is no path")
    place = _file(folder, row["path"])
    if len(row.get("id", "").encode()) > _LONGEST_ID:
        raise ConfigError(f"the id {_shown(row['id'])} is too long for a file's name")
    return SlideRef(row["id"], str(place)) if row.get("id") else SlideRef.of(place)


def _file(folder: Path, text: str) -> Path:
    place = folder / text
    if not _is(place.exists):
        raise ConfigError(f"there is no file {_shown(text)}; paths are relative to the list")
    return place


def _level(folder: Path, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < _DIGITS):
        raise ConfigError(f"level {_shown(text)} is not a whole number from 0 (the finest) on")
    return int(text)


def _positive(name: str) -> Callable[[Path, str], float]:
    def read(folder: Path, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} {_shown(text)} is not a positive number")
        return value

    return read


_OPTIONS: dict[str, Callable[[Path, str], object]] = {
    "level": _level,
    "mpp": _positive("mpp"),
    "power": _positive("power"),
    "assume_mpp": _positive("assume_mpp"),
    "roi": _file,
}
"""Columns besides id and path, with what reads their text (ConfigError: it is wrong)."""


def _is_heatmap(path: Path) -> bool:
    """Whether it is what a run has written among its slides."""
    return path.suffix.lower() == ".zarr" and _is(lambda: "streamwsi" in zarr_attributes(path))


def _is(question: Callable[[], bool]) -> bool:
    """The answer; no, where the system cannot even look (a name too long, a folder closed)."""
    try:
        return question()
    except OSError:
        return False


def _shown(text: str) -> str:
    """Text of a stranger's file in a message: short, and without control characters."""
    return repr(text if len(text) <= _FIELD_SHOWN else text[: _FIELD_SHOWN - 1] + "…")
