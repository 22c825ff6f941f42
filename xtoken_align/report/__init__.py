"""A mapping's report as one HTML page that needs nothing but a browser."""

from .page import render_html, write_html

__all__ = ["render_html", "write_html"]
