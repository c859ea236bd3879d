"""A page as tests look at it: its elements, its texts, and the cells that its script lists."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

# Elements that have no end.
_VOID = ("meta", "link", "input", "br", "img", "hr")


@dataclass
class Element:
    """An element and what is in it.

    Attributes:
        name: of its tag.
        attributes: of its tag; None for one without a value.
        parent: that it is in; None of the whole page.
        content: texts and elements in it, in their order.
    """

    name: str
    attributes: dict[str, str | None]
    parent: Element | None
    content: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, with one space between words."""
        return " ".join(self.raw.split())

    @property
    def raw(self) -> str:
        """All text in it, as it is."""
        return "".join(part if isinstance(part, str) else part.raw for part in self.content)

    @property
    def children(self) -> list[Element]:
        """The elements in it."""
        return [part for part in self.content if isinstance(part, Element)]

    def all(self, name: str = "", **attributes: str) -> list[Element]:
        """Every element in it of a name and with some attributes; `css` is one of its classes."""
        css = attributes.pop("css", None)
        found = []
        for child in self.children:
            classes = (child.attributes.get("class") or "").split()
            fits = (not name or child.name == name) and (css is None or css in classes)
            if fits and all(child.attributes.get(key) == value for key, value in attributes.items()):
                found.append(child)
            found += child.all(name, **attributes, **({"css": css} if css else {}))
        return found

    def one(self, name: str = "", **attributes: str) -> Element:
        """The only such element."""
        found = self.all(name, **attributes)
        assert len(found) == 1, f"{len(found)} elements <{name}> with {attributes}; there must be one"
        return found[0]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.place = self.page = Element("page", {}, None)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        element = Element(tag, dict(attrs), self.place)
        self.place.content.append(element)
        if tag not in _VOID:
            self.place = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.place.content.append(Element(tag, dict(attrs), self.place))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.place.name, f"</{tag}> ends <{self.place.name}>"
        assert self.place.parent is not None
        self.place = self.place.parent

    def handle_data(self, data: str) -> None:
        self.place.content.append(data)


def parsed(page: str) -> Element:
    """Reads a page, in which every element must end where it should."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.place is reader.page, f"<{reader.place.name}> never ends"
    return reader.page


def data_of(page: Element) -> dict[str, Any]:
    """What the page's script reads, as it does."""
    return unpacked(page.one("script", id="data").raw)


def unpacked(script: str) -> dict[str, Any]:
    """The data of a page with a value for each cell in every column, and words in place of their numbers."""
    data: dict[str, Any] = json.loads(script)
    tables, columns = data["tables"], data["columns"]
    for name, column in columns.items():
        if isinstance(column, dict):
            pairs = zip(column["runs"][::2], column["runs"][1::2], strict=True)
            columns[name] = [value for value, times in pairs for _ in range(times)]
    tables["checks"] = [[tables["words"][word] for word in check] for check in tables["checks"]]
    columns["digest"] = [tables["digests"][digest] for digest in columns.get("digest", [])]
    why = data["rare"].get("why", {})
    data["rare"]["why"] = {place: [tables["lines"][line] for line in lines] for place, lines in why.items()}
    return data


def listed_cells(page: Element) -> dict[str, dict[str, Any]]:
    """The cells that the page's script lists, by their ids, as it puts them together."""
    data = data_of(page)
    tables, columns, rare = data["tables"], data["columns"], data["rare"]
    found = {}
    for place in range(data["count"]):
        label, version, *_ = tables["kernels"][columns["kernel"][place]]
        suite, relation, case, *_ = tables["checks"][columns["check"][place]]
        mark, state, *_ = tables["outcomes"][columns["outcome"][place]]
        dtype = tables["dtypes"][columns["dtype"][place]]
        seed = rare.get("seed", {}).get(str(place))
        usual = ":".join([label, relation, case, dtype, *([f"seed{seed}"] if seed else [])])
        found[rare.get("id", {}).get(str(place), usual)] = {
            "label": label,
            "version": version,
            "suite": suite,
            "mark": data["marks"][mark][0],
            "state": state,
            "reasons": tables["reasons"][columns["reasons"][place]],
            "digest": columns["digest"][place],
            "budget": columns["budget"][place],
            "ulp": columns["ulp"][place],
        }
    return found
