"""Build the site of the documentation in ``build/site``, and check it. Nothing is loaded from another host.

    pip install -e ".[docs]"
    python docs/make/site.py
    python docs/make/site.py --serve 8000   # then open http://127.0.0.1:8000

The pages are the files ``docs/*.md``, CONTRIBUTING.md, CHANGELOG.md, and the pages of the modules in ``GENERATORS``. A
file of the repository has a page if another page links to it. ``mkdocs.yml`` has the navigation and the look.

The first build takes minutes, because it executes the notebooks. Executed notebooks are kept in ``build/notebooks``.
The new site replaces the old one only when it is complete and has no problems.
"""

import argparse
import functools
import http.server
import importlib
import os
import posixpath
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from html.parser import HTMLParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

MAKE = Path(__file__).resolve().parent
ROOT = MAKE.parents[1]
sys.path[:0] = [str(ROOT), str(MAKE)]

INSTALL = 'install the packages of the site with pip install -e ".[docs]"'
try:
    import links
    import source_pages
    import yaml

    from zoo.checks.errors import UserError
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed: {INSTALL}.")

GENERATORS = ("model_pages", "estimator_pages", "callback_pages", "data_pages", "notebook_pages")
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PICTURES = (".png", ".svg", ".jpg", ".gif", ".webp")
WRITTEN = "# Written by docs/make/site.py from mkdocs.yml.\n"  # first line of the staged configuration


class Stage:
    """The Markdown pages and pictures of the site, before HTML is made from them.

    Attributes:
        pages: Markdown texts by their path in the site, with links as the site needs them.
        pictures: files of the repository by their path in the site.
        shown: for each file that the site shows as text, the titles of the pages that link to it, by their path.
    """

    def __init__(self, root: Path, generated: dict[str, str], files: dict[str, bytes] | None = None):
        """Collect all pages, and replace their links.

        Args:
            root: the folder of the repository.
            generated: Markdown pages by their path in the site, such as ``models/vae.md``.
            files: other generated files by their path in the site, such as pictures of notebooks.

        Raises:
            UserError: if links lead nowhere. The message has a line for each of them.
        """
        self.root, self.generated, self.files = root, generated, files or {}
        self.pictures: dict[str, Path] = {}
        self.shown: dict[str, dict[str, str]] = {}
        self._problems: list[str] = []
        self._files = [f"docs/{file.name}" for file in sorted((root / "docs").glob("*.md"))]
        self._files += [name for name in ("CONTRIBUTING.md", "CHANGELOG.md") if (root / name).is_file()]
        written = {file: (root / file).read_text(encoding="utf-8") for file in self._files}
        self.pages = {self.place(file): text for file, text in written.items()} | generated
        for page, text in generated.items():
            self._replace_links(page, text, None)
        for file, text in written.items():
            self._replace_links(self.place(file), text, file)
        self._check_anchors()
        if self._problems:
            raise UserError("\n".join(self._problems))

    def place(self, file: str) -> str:
        """Return the path in the site of a file of the repository."""
        if file in MOVED:
            return MOVED[file]
        if file in self._files or file.endswith(PICTURES):
            return file.removeprefix("docs/")
        return source_pages.place(file)

    def _replace_links(self, page: str, text: str, file: str | None) -> None:
        """Replace the links of a page. ``file`` holds its text, or is None if a module generated the page."""

        def new(target: str) -> str:
            name, hash_, anchor = target.partition("#")
            if links.outside(target) or not name:
                return target
            if place := self._find(name, page, file):
                return links.relative(place, page) + hash_ + anchor
            stem = posixpath.basename(name.removeprefix("picture:")).removesuffix(".png")
            drawn = f", or draw the picture with python docs/make/pictures.py {stem}"
            remedy = f"Correct the link{drawn if name.startswith('picture:') or name.endswith('.png') else ''}."
            self._problems.append(f"{file or page}: {target} is no page, no file and no picture. {remedy}")
            return target

        self.pages[page] = links.replace(text, new)

    def _find(self, name: str, page: str, file: str | None) -> str | None:
        """Return the path in the site of what a link names, or None. Add pictures and files to the site."""
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page), name))
        if place in self.pages or place in self.files:
            return place
        if name.startswith("picture:"):
            stem = name.removeprefix("picture:")
            found = [f"docs/pictures/{stem}.png", f"zoo/weights/{stem}.png"]
        elif name.startswith("repo:"):
            found = [name.removeprefix("repo:")]
        else:
            found = [posixpath.normpath(posixpath.join(posixpath.dirname(file or f"docs/{page}"), name))]
        found = [path for path in found if not path.startswith(("..", "/")) and (self.root / path).is_file()]
        if not found:
            return None
        place = self.place(found[0])
        if place.endswith(PICTURES):
            self.pictures[place] = self.root / found[0]
        elif place == source_pages.place(found[0]):
            self.shown.setdefault(found[0], {})[page] = title(self.pages[page])
        return place

    def _check_anchors(self) -> None:
        """Note each link to an anchor that its page lacks."""
        anchors = {page: links.anchors(text) for page, text in self.pages.items()}
        for file in self.shown:
            number = len((self.root / file).read_bytes().splitlines())
            anchors[source_pages.place(file)] = {f"L{n}" for n in range(1, number + 1)}
        for page, text in self.pages.items():
            for target in links.targets(text):
                name, _, anchor = target.partition("#")
                place = posixpath.normpath(posixpath.join(posixpath.dirname(page), name)) if name else page
                if anchor and place in anchors and anchor not in anchors[place]:
                    self._problems.append(f"{page}: {target} names an anchor that {place} lacks. Correct the link.")

    def navigation(self, entries: list) -> list:
        """Return the navigation of ``mkdocs.yml``, in which ``models/`` stands for all generated pages of that folder.

        Raises:
            UserError: if an entry has no page, or a page has no entry.
        """
        named: set[str] = set()

        def expanded(entry: object) -> object:
            if isinstance(entry, dict):
                return {name: expanded(inner) for name, inner in entry.items()}
            if isinstance(entry, list):
                parts = [expanded(inner) for inner in entry]
                return [p for part in parts for p in (part if isinstance(part, list) else [part])]
            name = str(entry)
            found = [p for p in self.generated if p.startswith(name)] if name.endswith("/") else [name]
            if not found or not self.pages.keys() >= set(found):
                raise UserError(f"mkdocs.yml: the navigation names {name}, which is no page. Remove the entry.")
            named.update(found)
            return sorted(found, key=lambda p: p != f"{name}index.md") if name.endswith("/") else name

        nav = [expanded(entry) for entry in entries]
        lost = [page for page in self.pages if page not in named]
        if lost:
            raise UserError(f"mkdocs.yml: the navigation lacks {', '.join(lost)}. Add an entry for each.")
        return nav

    def write(self, folder: Path) -> None:
        """Write pages and pictures into ``folder/docs``, and the configuration into ``folder/mkdocs.yml``.

        Args:
            folder: an empty folder.

        Raises:
            UserError: if ``mkdocs.yml`` of the repository cannot be read, or its navigation is wrong.
        """
        try:
            settings = yaml.safe_load((self.root / "mkdocs.yml").read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"mkdocs.yml: {error}") from error
        settings |= {"docs_dir": "docs", "site_dir": "site", "nav": self.navigation(settings["nav"])}
        (folder / "mkdocs.yml").write_text(WRITTEN + yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        contents = {place: text.encode() for place, text in self.pages.items()} | self.files
        contents |= {place: file.read_bytes() for place, file in self.pictures.items()}
        for file, linked_by in self.shown.items():
            contents[source_pages.place(file)] = source_pages.page(self.root, file, linked_by).encode()
        for place, content in contents.items():
            (folder / "docs" / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / "docs" / place).write_bytes(content)
        shutil.copytree(self.root / "docs" / "assets", folder / "docs" / "assets")


def check_installed() -> None:
    """Raise UserError if packages of the docs extra are not installed. The message has all of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = []
    for requirement in project["optional-dependencies"]["docs"]:
        name = re.split(r"[^\w.-]", requirement)[0]
        try:
            distribution(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise UserError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: {INSTALL}.")


def check_port(port: int) -> None:
    """Raise UserError if this program cannot serve a site at ``port``."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise UserError(f"--serve cannot use port {port}: {error.strerror}. Choose another port.") from error


def check_folder(folder: Path) -> None:
    """Make ``folder``.

    Raises:
        UserError: if it holds files with the names of the site's that this script did not write, or is not writable.
    """
    config = folder / "mkdocs.yml"
    ours = config.is_file() and config.read_text(encoding="utf-8").startswith(WRITTEN)
    if not ours and any((folder / name).exists() for name in ("docs", "site", "mkdocs.yml")):
        raise UserError(f"{folder} has files that the site would replace. Name an empty folder with --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. Name another folder with --out.") from error


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Make a folder for a new site inside ``folder``, and remove it at the end."""
    part = folder / ".unfinished"
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def replace(part: Path, folder: Path) -> None:
    """Move a new site from ``part`` to ``folder``, and the old one to ``part``."""
    for name in ("mkdocs.yml", "docs", "site"):
        with suppress(FileNotFoundError):
            (folder / name).rename(part / f"old-{name}")
        (part / name).rename(folder / name)


def title(text: str) -> str:
    """Return the first heading of a Markdown page."""
    found = re.search(r"^# +(.+?)(?: *\{[^{}]*\})?$", text, re.MULTILINE)
    return found[1] if found else "a page without a title"


def generated(names: Iterable[str] = GENERATORS) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the pages and the other files of the generators ``names``, by their paths in the site.

    Raises:
        UserError: if a generator finds a mistake in its sources.
    """
    pages: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for name in names:
        if (MAKE / f"{name}.py").is_file():
            try:
                module = importlib.import_module(name)
                made = module.pages()
                files |= module.files() if hasattr(module, "files") else {}
            except ModuleNotFoundError as error:
                raise UserError(
                    f"docs/make/{name}.py needs {error.name}, which is not installed: {INSTALL}."
                ) from error
            except UserError:
                raise
            except (ValueError, yaml.YAMLError) as error:
                raise UserError(f"docs/make/{name}.py: {error}") from error
            print(f"{name}: {len(made)} pages", flush=True)
            pages |= made
    return pages, files


def copy_mathjax(folder: Path) -> None:
    """Copy the part of MathJax that draws TeX into ``folder``."""
    for file in distribution("sphinx-mathjax-offline").files or []:
        _, _, name = file.as_posix().partition("/static/mathjax/")
        if name.startswith(("tex-chtml.js", "input/tex/extensions/", "output/chtml/fonts/", "a11y/", "sre/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), folder / name)


def build(root: Path, folder: Path, pages: dict[str, str], files: dict[str, bytes] | None = None) -> list[str]:
    """Build the site in ``folder/site``, and return the problems of its HTML.

    With problems or errors, the old site stays as it is.

    Args:
        root: the folder of the repository.
        folder: the folder for the staged pages and the site.
        pages: generated Markdown pages by their path in the site.
        files: other generated files by their path in the site.

    Raises:
        UserError: if a link leads nowhere, zensical fails, or ``folder`` holds other files or is not writable.
    """
    check_folder(folder)
    stage = Stage(root, pages, files)
    with unfinished(folder) as part:
        stage.write(part)
        copy_mathjax(part / "docs" / "assets" / "mathjax")
        counts = f"{len(stage.pages)} pages, {len(stage.shown)} shown files and {len(stage.pictures)} pictures"
        print(f"the site has {counts}", flush=True)
        command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(part / "mkdocs.yml")]
        if subprocess.run(command, env={**os.environ, "NO_COLOR": "1"}).returncode:
            raise UserError("zensical has not built the site: correct what its messages above name.")
        if not (problems := check(part / "site")):
            replace(part, folder)
    return problems


class Html(HTMLParser):
    """The anchors of an HTML page, what it links to, and what it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []  # followed when a reader clicks
        self.loads: list[str] = []  # requested with the page
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the anchors and addresses of an element."""
        has = {name: value or "" for name, value in attrs}
        self.anchors |= {has[name] for name in ("id", "name") if has.get(name)}
        self._style = tag == "style"
        if tag in ("a", "area") or (tag == "link" and has.get("rel") in ("canonical", "next", "prev", "alternate")):
            self.links += [has["href"]] if "href" in has else []
        else:
            self.loads += [
                has[name] for name in ("src", "href", "poster", "data", "xlink:href", "action") if has.get(name)
            ]
        self.loads += [part.split()[0] for part in has.get("srcset", "").split(",") if part.strip()]
        self.loads += addresses(has.get("style", ""))
        if "mermaid" in has.get("class", "").split():  # the theme loads the program for these diagrams from a server
            self.loads.append("https://unpkg.com/mermaid")

    def handle_data(self, data: str) -> None:
        """Record the addresses in a style sheet of the page."""
        self.loads += addresses(data) if self._style else []


def addresses(css: str) -> list[str]:
    """Return what a style sheet loads: fonts, pictures and other style sheets."""
    found = re.findall(r"url\(\s*(\"[^\"]*\"|'[^']*'|[^)\s]*)\s*\)|@import\s+(\"[^\"]*\"|'[^']*')", css)
    return [(one or two).strip("\"'") for one, two in found]


def check(site: Path) -> list[str]:
    """Return a sentence for each broken link, missing file, and request to another host, in a built site."""
    pages = {file: Html(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    problems = [] if pages else [f"{site} has no pages"]
    for file, page in pages.items():
        name = file.relative_to(site).as_posix()
        for address in dict.fromkeys(page.loads):
            problems += _loaded(site, file, name, address)
        for address in dict.fromkeys(page.links):
            problems += _linked(site, file, name, address, pages)
    for file in sorted(site.rglob("*.css")):
        for address in dict.fromkeys(addresses(file.read_text(encoding="utf-8"))):
            problems += _loaded(site, file, file.relative_to(site).as_posix(), address)
    return problems


def _target(site: Path, file: Path, address: str) -> Path:
    """Return the file that a relative address names. An address that begins with ``/`` begins at the site."""
    path = unquote(urlsplit(address).path)
    found = Path(os.path.normpath(site / path.lstrip("/") if path.startswith("/") else file.parent / path))
    if not path:
        return file
    return found / "index.html" if found.is_dir() else found


def _loaded(site: Path, file: Path, name: str, address: str) -> list[str]:
    parts = urlsplit(address)
    if parts.scheme in ("data", "about", "javascript"):
        return []
    if parts.scheme or parts.netloc:
        return [f"{name}: loads {address} from another host"]
    return [] if _target(site, file, address).is_file() else [f"{name}: loads {address}, which does not exist"]


def _linked(site: Path, file: Path, name: str, address: str, pages: dict[Path, Html]) -> list[str]:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return []
    target = _target(site, file, address)
    if site not in target.parents or not target.is_file():
        return [f"{name}: the link {address} leads to no page"]
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return [f"{name}: the link {address} names an anchor that its page does not have"]
    return []


def serve(folder: Path, port: int) -> None:
    """Serve a folder at 127.0.0.1 until Ctrl-C."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"open http://127.0.0.1:{server.server_port}, and stop with Ctrl-C", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def main(arguments: list[str] | None = None) -> int:
    """Build, check and, if asked, serve the site. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "build",
        metavar="FOLDER",
        help="the site goes to FOLDER/site (default: build)",
    )
    parser.add_argument(
        "--serve", type=int, metavar="PORT", help="then serve the site at 127.0.0.1; 0 takes a free port"
    )
    options = parser.parse_args(arguments)
    if options.serve is not None and not 0 <= options.serve <= 65535:
        parser.error(f"--serve is {options.serve}; a port is an integer from 0 to 65535")
    folder = options.out.resolve()
    try:
        check_installed()  # before the notebooks are executed, which takes minutes
        check_folder(folder)
        if options.serve is not None:
            check_port(options.serve)
        problems = build(ROOT, folder, *generated())
        if problems:
            raise UserError("\n".join([*problems, f"the site has {len(problems)} problems: correct the lines above"]))
        print(f"the site is {options.out / 'site' / 'index.html'}", flush=True)
    except (UserError, OSError) as error:
        about = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        print(f"{about}{getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        site = folder / "site"
        kept = f"{site} is the site of an earlier build" if site.is_dir() else "no site was built"
        print(f"\nstopped: {kept}", file=sys.stderr)
        return 130
    if options.serve is not None:
        serve(folder / "site", options.serve)
    return 0


if __name__ == "__main__":
    sys.exit(main())
