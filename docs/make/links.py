"""Links of Markdown pages: find them, replace them, and list the anchors of a page."""

import posixpath
import re
from collections.abc import Callable
from urllib.parse import urlsplit

# Code, comments and mathematics contain no links.
_LITERAL = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,}).*?(?:^(?P=indent)(?P=fence)[ \t]*$|\Z)"
    r"|<!--.*?-->"
    r"|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
    r"|\$\$.+?\$\$"
    r"|(?<!\\)\$[^$\n]+\$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(
    r"(?P<before>\]\(|^ {0,3}\[[^\]]+\]: +|<[^<>]*?\b(?:href|src)=[\"'])(?P<target>[^\s)\"'>]+)", re.MULTILINE
)
_HEADING = re.compile(r"^#{1,6} +(.*?)(?: +#+)?$", re.MULTILINE)
_LISTED = re.compile(r"\{[^{}\n]*#([\w.:-]+)[^{}\n]*\}|\b(?:id|name)=[\"']([^\"']+)[\"']")


def replace(text: str, new: Callable[[str], str]) -> str:
    """Return a Markdown text in which each target of a link or a picture is replaced by ``new(target)``.

    Links are ``[text](target)``, ``[key]: target``, and the attributes ``href`` and ``src`` of HTML. In HTML, a target
    that is a Markdown page becomes its HTML page.
    """

    def link(found: re.Match) -> str:
        target = new(found["target"])
        in_html = found["before"].startswith("<") and not outside(target)
        return found["before"] + (re.sub(r"\.md(?=#|$)", ".html", target) if in_html else target)

    def changed(part: str) -> str:
        return _LINK.sub(link, part)

    pieces, end = [], 0
    for literal in _LITERAL.finditer(text):
        pieces += [changed(text[end : literal.start()]), literal.group()]
        end = literal.end()
    return "".join([*pieces, changed(text[end:])])


def targets(text: str) -> list[str]:
    """Return the targets of all links and pictures of a Markdown text, in order."""
    found: list[str] = []
    replace(text, lambda target: found.append(target) or target)
    return found


def outside(target: str) -> bool:
    """Return whether a target is an address, such as a paper on the web, or a picture inside the page."""
    return urlsplit(target).scheme in ("http", "https", "mailto", "data")


def relative(path: str, page: str) -> str:
    """Return the path of a file of the site, relative to a page of the site."""
    return posixpath.relpath(path, posixpath.dirname(page) or ".")


def anchors(text: str) -> set[str]:
    """Return the anchors of a Markdown page: its headings, and each ``id``, ``name`` and ``{#anchor}``."""
    literal = re.compile(r"^([ \t]*)(`{3,}|~{3,}).*?^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
    text = literal.sub("", text)
    found: set[str] = {anchor for pair in _LISTED.findall(text) for anchor in pair if anchor}
    for heading in _HEADING.findall(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)|<[^>]+>|\{[^{}]*\}$", r"\1", heading).strip()
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number, anchor = 0, slug
        while anchor in found:
            number += 1
            anchor = f"{slug}_{number}"
        found.add(anchor)
    return found
