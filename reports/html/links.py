"""Addresses within the page: of a cell, of the cells that filters leave, of an implementation."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from samebits.reports import text


def cell_link(cell_id: str) -> str:
    """Opens one cell."""
    return f"#cell={quote(text.plain(cell_id), safe='')}"


def cells_link(**filters: str) -> str:
    """Lists the cells that some filters leave: the page's script reads it, and without one a place has that name.

    Args:
        filters: values of the form's fields, by name.
    """
    return f"#{urlencode({name: text.plain(value) for name, value in filters.items()}, quote_via=quote, safe='')}"


def implementation_place(label: str) -> str:
    """The `id` of an implementation's section, which is the same for the same label on every page."""
    return f"of-{quote(text.plain(label), safe='')}"
