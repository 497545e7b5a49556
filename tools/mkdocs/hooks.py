"""mkdocs hook: roles that the docstrings use, such as :class:`NTK`, become plain code."""

import re

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):(<code[^>]*>)~?")


def on_page_content(html: str, **_: object) -> str:
    """Drop the role's name in front of the code that Markdown made of the rest."""
    return ROLE.sub(r"\1", html)
