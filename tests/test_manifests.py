"""Lists, folders and patterns of slides, and what is said where they are wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi import manifests
from streamwsi.errors import ConfigError
from streamwsi.manifests import find_slides
from streamwsi.slides import SlideRef


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Slides by name, and things that are none."""
    for name in ("b.svs", "a.tif", "notes.md", ".hidden.svs", "c.dcm", "deep/d.svs"):
        (tmp_path / "slides" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "slides" / name).touch()
    return tmp_path / "slides"


def found(*places: str | Path) -> list[tuple[str, str]]:
    return [(listed.ref.id, listed.ref.uri) for listed in find_slides(places)]


def problem(*places: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        find_slides(places)
    return str(caught.value)


def test_what_is_named_directly_is_not_looked_at(folder: Path) -> None:
    missing = folder / "missing.svs"
    assert found(missing, folder / "b.svs") == [
        ("missing", str(missing)),
        ("b", str(folder / "b.svs")),
    ]
    long = "x" * 5000
    assert found(long) == [(long, long)]


def test_a_folder_gives_the_slides_in_it(folder: Path) -> None:
    assert found(folder) == [("a", str(folder / "a.tif")), ("b", str(folder / "b.svs"))]
    listed = find_slides([folder], lambda ref: ref.uri.endswith(".dcm"))
    assert [each.ref.id for each in listed] == ["a", "b", "c"]


def test_a_folder_that_is_a_slide_or_has_none_stays_one(folder: Path, tmp_path: Path) -> None:
    listed = find_slides([folder], lambda ref: ref.uri == str(folder))
    assert [each.ref for each in listed] == [SlideRef("slides", str(folder))]
    (tmp_path / "empty.svs").mkdir()
    assert found(tmp_path / "empty.svs") == [("empty", str(tmp_path / "empty.svs"))]


def test_patterns(folder: Path) -> None:
    assert found(folder / "*.svs") == [("b", str(folder / "b.svs"))]
    every = [("b", str(folder / "b.svs")), ("d", str(folder / "deep" / "d.svs"))]
    assert found(folder / "**" / "*.svs") == every
    assert problem(folder / "*.ndpi") == f"{folder / '*.ndpi'} matches no file; check the pattern"
    (folder / "[x].svs").touch()
    (folder / "x.svs").touch()
    assert [uri for _, uri in found(folder / "[x].svs")] == [str(folder / "[x].svs")]


def test_a_text_list(folder: Path) -> None:
    path = folder.parent / "list.TXT"
    path.write_text(f"\ufeffslides/b.svs\r\n\n  # slides/none.svs\n {folder / 'a.tif'} \n#\n")
    assert found(path) == [("b", str(folder / "b.svs")), ("a", str(folder / "a.tif"))]


def test_a_csv_list(folder: Path) -> None:
    path = folder.parent / "list.csv"
    path.write_text('path, id\nslides/b.svs,one\n"slides/a.tif", \n,\n\n')
    assert found(path) == [("one", str(folder / "b.svs")), ("a", str(folder / "a.tif"))]
    path.write_text("path\nslides/b.svs\n")
    assert found(path, folder / "a.tif") == [
        ("b", str(folder / "b.svs")),
        ("a", str(folder / "a.tif")),
    ]


names = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="/\0") | st.sampled_from(' ,"'),
    min_size=1,
    max_size=12,
).filter(lambda name: name == name.strip() and name[0] != ".")


@given(st.lists(st.tuples(names, names), min_size=1, max_size=6, unique_by=lambda row: row[0]))
@settings(deadline=None, max_examples=40)
def test_csv_round_trip(
    tmp_path_factory: pytest.TempPathFactory, slides: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    for _, name in slides:
        (folder / name).touch()
    path = folder.parent / f"{folder.name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "path"])
        rows.writerows((id_, f"{folder.name}/{name}") for id_, name in slides)
    assert found(path) == [(id_, str(folder / name)) for id_, name in slides]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,path,colour\na,slides/b.svs,0.5\n",
            "'colour' is there and is unknown; .* of id, path",
        ),
        ("path,path\n", "the column 'path' is there twice"),
        ("id\na\n", "there is no column path"),
        ("0, 0, 10\n", "the column '0' is there and is unknown"),
        ("path\n", "lists no slides"),
        ("", "there is no column path"),
        ("id,path\na\n", "line 2: there are 1 fields for 2 columns"),
        ("id,path\na,\n", "line 2: there is no path"),
        ("id,path\na/b,slides/b.svs\n", "line 2: 'a/b' cannot be a slide id"),
        ("id,path\n../b,slides/b.svs\n", "line 2: '../b' cannot be a slide id"),
        ('path\n"slides/b.svs\n', "line 2: unexpected end of data"),
        ("path\n" + "x" * 300 + "\n", "line 2: there is no file 'x+…'"),
        ("path\nb.svs\n", "line 2: there is no file 'b.svs'; paths are relative to the list"),
        ("path\nb\x1b[2J.svs\n", r"line 2: there is no file 'b\\x1b\[2J.svs'"),
        ("path\n\xff\n", "is not a text file in UTF-8"),
    ],
)
def test_a_csv_list_that_is_wrong(folder: Path, text: str, message: str) -> None:
    path = folder.parent / "list.csv"
    path.write_bytes(text.encode("latin-1" if "\xff" in text else "utf-8"))
    with pytest.raises(ConfigError, match=message) as caught:
        find_slides([path])
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_lists_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "none.txt cannot be read: No such file" in problem(tmp_path / "none.txt")
    (tmp_path / "folder.csv").mkdir()
    assert "folder.csv cannot be read: Is a directory" in problem(tmp_path / "folder.csv")
    (tmp_path / "heat.csv").write_text("path\nheat.csv\n")
    monkeypatch.setattr(manifests, "_LARGEST_LIST", 9)
    assert "heat.csv is too large for a list" in problem(tmp_path / "heat.csv")


def test_everything_wrong_is_told_at_once(folder: Path) -> None:
    first, second = folder.parent / "one.txt", folder.parent / "two.csv"
    first.write_text("slides/b.svs\nslides/lost.svs\n")
    second.write_text("id,path\nb,slides/a.tif\n.,slides/a.tif\nx\n")
    lines = problem(first, folder / "*.none", second).split("\n  ")
    assert lines[0] == "the slides have 5 problems:"
    assert lines[1].startswith(f"{first}, line 2: there is no file 'slides/lost.svs'")
    assert lines[2].startswith(f"{folder / '*.none'} matches no file")
    assert lines[3].startswith(f"{second}, line 3: '.' cannot be a slide id")
    assert lines[4] == f"{second}, line 4: there are 1 fields for 2 columns"
    assert lines[5].startswith("2 slides have the id 'b'")
    assert f"{folder / 'b.svs'}, {folder / 'a.tif'}" in lines[5]
    assert len(lines) == 6


def test_many_problems_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{n}.svs\n" for n in range(1234)))
    lines = problem(path).split("\n  ")
    assert len(lines) == 22
    assert lines[0] == "the slides have 1,234 problems:"
    assert lines[-1] == "and 1,214 more"


def test_columns_for_single_slides(tmp_path: Path) -> None:
    for name in ("a.svs", "b.svs", "roi.geojson"):
        (tmp_path / name).touch()
    path = tmp_path / "list.csv"
    path.write_text(
        "path,level,mpp,power,assume_mpp,roi\na.svs,1,,,0.5,roi.geojson\nb.svs,,0.25,,,\n"
    )
    found = find_slides([path])
    assert [dict(each.options) for each in found] == [
        {"level": 1, "assume_mpp": 0.5, "roi": tmp_path / "roi.geojson"},
        {"mpp": 0.25},
    ]


def test_all_that_is_wrong_with_single_slides_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    path = tmp_path / "list.csv"
    path.write_text(
        "id,path,level,mpp,roi\n1,a.svs,-1,,\n2,a.svs,0,0.5,\n3,b.svs,,none,none.geojson\n"
    )
    with pytest.raises(ConfigError) as caught:
        find_slides([path])
    told = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[0].split(", ")[-1] for line in told] == [
        *("line 2", "line 3", "line 4", "line 4", "line 4")
    ]
    for words in ("whole number", "exclude", "b.svs", "not a positive", "none.geojson"):
        assert sum(words in line for line in told) == 1, words
