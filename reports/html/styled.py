"""Data frames as tables of the page, by pandas' Styler and a template of our own with scopes and without styles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup, escape
from pandas.io.formats.style import Styler

TEMPLATES = Path(__file__).parent / "templates"


class _Styler(Styler.from_custom_template(TEMPLATES, html_table="table.html.j2", html_style="no_style.html.j2")):  # type: ignore[misc]
    """A Styler whose tables are the page's."""


def styled_table(
    frame: pd.DataFrame,
    caption: str,
    shown: Callable[[Any], Markup | str],
    classes: pd.DataFrame,
    row_head: Callable[[Any], Markup | str] = str,
) -> Markup:
    """A data frame as a table.

    Args:
        frame: its index has names, which are the heads of the first columns; neighbours that are equal become one.
        caption: of the table, as text.
        shown: what a value is shown as; what is no markup is escaped.
        classes: class names of each value, spaces between them, in the frame's shape.
        row_head: the same for the index.
    """
    # By their places: two columns may have one name, as a suite may have that of a figure.
    heads, places = list(frame.columns), range(len(frame.columns))
    styler = _Styler(frame.set_axis(places, axis="columns"))
    styler.format(lambda value: str(escape(shown(value))))
    styler.format_index(lambda value: str(escape(row_head(value))), axis="index")
    styler.format_index(lambda place: str(escape(str(heads[place]))), axis="columns")
    styler.set_td_classes(classes.set_axis(places, axis="columns")).set_caption(str(escape(caption)))
    return Markup(styler.to_html(table_uuid="", sparse_index=True))
