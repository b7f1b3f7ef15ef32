"""Tests of the site of the documentation: the links of its pages, its checks, and in the second tier a whole build."""

import importlib.util
import json
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.checks.errors import UserError

ROOT = Path(__file__).parents[2]
MAKE = ROOT / "docs" / "make"


@pytest.fixture(scope="module")
def make():
    """Return the module ``docs/make/site.py``. Its name differs here from the module ``site`` of Python."""
    spec = importlib.util.spec_from_file_location("make_site", MAKE / "site.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


@pytest.fixture
def small(tmp_path):
    """Return a small repository with two pages, a picture and two files, and the look of the real site."""
    root = tmp_path / "small"
    look = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    before, after = look.partition("\nnav:")[0], look.partition("\ntheme:")[2]
    for name, text in {
        "docs/index.md": "# Home\n\n[a](models/vae.md#the-loss), [a line](../zoo/vae.py#L2)\n\n![](pictures/a.png)\n",
        "docs/pictures/a.png": "",
        "zoo/vae.py": 'import torch\n\nTEXT = """# no heading\n```\n*<b>*"""\n',
        "zoo/weights/vae.png": "",
        "mkdocs.yml": f"{before}\nnav: [index.md, {{Models: models/}}]\ntheme:{after}",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "assets", root / "docs" / "assets")
    return root


VAE = """# VAE

[the line](repo:zoo/vae.py#L5), [home](../index.md), <a href="../index.md">home</a>, [paper](https://arxiv.org/abs/1312.6114)

![samples](picture:vae)

## The loss

Text $f[x](y)$ and `[code](nowhere.md)`.

$$E[f](x)$$
"""


def notebooks():
    """Return the text of each notebook as a page. The real pages have code and outputs, and take minutes."""
    pages = {"notebooks/index.md": "# Notebooks"} if (ROOT / "notebooks").is_dir() else {}
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        pages[f"notebooks/{file.stem}.md"] = "\n\n".join(texts)
    return pages


def test_every_link_of_the_pages_leads_somewhere(make):
    """All links and anchors of the Markdown pages of the site exist, and the navigation has every page."""
    settings = make.yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages, files = make.generated([name for name in make.GENERATORS if name != "notebook_pages"])
    stage = make.Stage(ROOT, pages | notebooks(), files)
    assert "index.md" in stage.pages and "contributing.md" in stage.pages
    stage.navigation(settings["nav"])


def test_links_become_links_of_the_site(make, small):
    stage = make.Stage(small, {"models/vae.md": VAE})
    assert "[the line](../source/zoo/vae.py.md#L5)" in stage.pages["models/vae.md"]
    assert "![samples](../zoo/weights/vae.png)" in stage.pages["models/vae.md"]
    for kept in (
        "[home](../index.md)",
        "(https://arxiv.org/abs/1312.6114)",
        "`[code](nowhere.md)`",
        "$f[x](y)$",
        "$$E[",
    ):
        assert kept in stage.pages["models/vae.md"]
    assert '<a href="../index.html">' in stage.pages["models/vae.md"]
    assert "[a line](source/zoo/vae.py.md#L2)" in stage.pages["index.md"]
    assert stage.pictures.keys() == {"pictures/a.png", "zoo/weights/vae.png"}
    assert stage.shown == {"zoo/vae.py": {"models/vae.md": "VAE", "index.md": "Home"}}
    files = {"notebooks/a-1.png": b"", "notebooks/a.ipynb": b""}
    notebook = make.Stage(small, {"models/vae.md": VAE, "notebooks/a.md": "# A\n\n![](a-1.png) [x](a.ipynb)"}, files)
    assert notebook.pages["notebooks/a.md"] == "# A\n\n![](a-1.png) [x](a.ipynb)"
    assert stage.navigation(["index.md", {"Models": "models/"}]) == ["index.md", {"Models": ["models/vae.md"]}]


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("[x](cvae.md)", r"^models/vae\.md: cvae\.md is no page, no file and no picture"),
        ("[x](repo:zoo/cvae.py)", r"repo:zoo/cvae\.py is no page"),
        ("[x](repo:zoo)", r"repo:zoo is no page"),
        ("[x](repo:../outside.py)", r"repo:\.\./outside\.py is no page"),
        ("![x](picture:cvae)", r"picture:cvae is no page"),
        ('<img alt="x" src="picture:cvae">', r"picture:cvae is no page"),
        ("![x](../pictures/b.png)", r"or draw the picture with python docs/make/pictures\.py b\.$"),
        ("[x](repo:zoo/vae.py#L6)", r"zoo/vae\.py\.md#L6 names an anchor that source/zoo/vae\.py\.md lacks"),
        ("[x](#the-gain)", r"#the-gain names an anchor that models/vae\.md lacks"),
        ("[x](../index.md#nowhere)", r"\.\./index\.md#nowhere names an anchor that index\.md lacks"),
    ],
)
def test_a_wrong_link_of_a_page_is_found(make, small, added, message):
    make.Stage(small, {"models/vae.md": VAE})
    with pytest.raises(UserError, match=message):
        make.Stage(small, {"models/vae.md": f"{VAE}\n{added}\n"})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["index.md"], "the navigation lacks models/vae.md"),
        (["index.md", {"Models": "models/"}, "tour.md"], "names tour.md, which is no page"),
        (["index.md", {"Models": "models/"}, "estimators/"], "names estimators/, which is no page"),
    ],
)
def test_the_navigation_has_each_page_and_no_others(make, small, entries, message):
    with pytest.raises(UserError, match=message):
        make.Stage(small, {"models/vae.md": VAE}).navigation(entries)


def test_anchors_are_those_of_the_headings(make):
    text = "# `zoo` and [links](a.md)\n## Weights & Biases\n## Weights & Biases\n## Named {#here}\n```\n# code\n```\n"
    text += '<span id="L1"></span>\n'
    wanted = {"zoo-and-links", "weights--biases", "weights--biases_1", "here", "L1"}
    assert wanted <= make.links.anchors(text) and "code" not in make.links.anchors(text)


def test_each_line_of_a_file_has_its_number(make, small):
    page = make.source_pages.page(small, "zoo/vae.py", {"models/vae.md": "VAE"})
    assert [f'<span id="L{n}">' in page for n in range(7)] == [False, True, True, True, True, True, False]
    assert "[VAE](../../models/vae.md)" in page and "&lt;b&gt;" in page
    (small / "zoo" / "vae.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"zoo/vae\.py is not a text file"):
        make.source_pages.page(small, "zoo/vae.py", {})


def test_a_folder_with_files_of_others_stays(make, small):
    with pytest.raises(UserError, match="has files that the site would replace"):
        make.build(small, small, {"models/vae.md": VAE})
    assert (small / "docs" / "index.md").is_file()


def built(make, monkeypatch, zensical):
    """Let the function ``zensical`` of the staged folder take the place of the program, and leave MathJax out."""

    def ran(command, **_):
        zensical(Path(command[-1]).parent)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(make.subprocess, "run", ran)
    monkeypatch.setattr(make, "copy_mathjax", lambda folder: None)


def test_only_a_whole_site_replaces_the_old_one(make, small, tmp_path, monkeypatch, capsys):
    def writes(text, then=lambda: None):
        def program(stage):
            (stage / "site").mkdir()
            (stage / "site" / "index.html").write_text(text, encoding="utf-8")
            then()

        built(make, monkeypatch, program)

    def stopped():
        raise KeyboardInterrupt

    folder, pages = tmp_path / "built", {"models/vae.md": VAE}
    index, names = folder / "site" / "index.html", {"mkdocs.yml", "docs", "site"}
    monkeypatch.setattr(make, "ROOT", small)
    monkeypatch.setattr(make, "check_installed", lambda: None)
    monkeypatch.setattr(make, "generated", lambda: (pages, {}))
    writes("half of it", stopped)
    assert make.main(["--out", str(folder)]) == 130
    assert capsys.readouterr().err == "\nstopped: no site was built\n" and not list(folder.iterdir())
    for text in ("first", "second"):
        writes(text)
        assert make.build(small, folder, pages) == []
        assert index.read_text(encoding="utf-8") == text and {path.name for path in folder.iterdir()} == names
    writes("half of it", stopped)
    assert make.main(["--out", str(folder)]) == 130
    assert f"stopped: {folder / 'site'} is the site of an earlier build" in capsys.readouterr().err
    writes('<img src="lost.png">')
    assert make.build(small, folder, pages) == ["index.html: loads lost.png, which does not exist"]
    assert index.read_text(encoding="utf-8") == "second" and {path.name for path in folder.iterdir()} == names


def test_a_folder_that_cannot_be_written_is_told_before_the_build(make, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make, "check_installed", lambda: None)
    (tmp_path / "file").touch()
    assert make.main(["--out", str(tmp_path / "file")]) == 1
    assert (
        capsys.readouterr().err
        == f"{tmp_path / 'file'} cannot be written: File exists. Name another folder with --out.\n"
    )


def test_a_port_in_use_is_told_before_the_build(make, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make, "check_installed", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert make.main(["--out", str(tmp_path), "--serve", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"--serve cannot use port {port}: ") and error.endswith("Choose another port.\n")


def test_all_missing_packages_are_named_before_the_build(make, tmp_path, monkeypatch, capsys):
    installed = make.distribution

    def lacking(name):
        if name in ("zensical", "nbclient"):
            raise make.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(make, "distribution", lacking)
    monkeypatch.setattr(make, "ROOT", tmp_path)
    docs = 'docs = ["zensical>=0.0.73", "pytest", "nbclient; python_version > \'3\'"]'
    (tmp_path / "pyproject.toml").write_text(f"[project.optional-dependencies]\n{docs}\n", encoding="utf-8")
    assert make.main(["--out", str(tmp_path / "built")]) == 1
    assert capsys.readouterr().err.startswith("zensical, nbclient are not installed: install the packages of the site")
    assert not (tmp_path / "built").exists()


PAGE = '<html><head><link rel="stylesheet" href="a.css"></head><body><h1 id="top">x</h1>{}</body></html>'


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        (
            '<a href="#top">x</a> <a href="b.html#top">x</a> <a href="https://arxiv.org">paper</a> <img src="a.png">',
            None,
        ),
        ('<img src="data:image/png;base64,AAAA"> <svg><use href="#top"></use></svg>', None),
        ('<a href="c.html">x</a>', "index.html: the link c.html leads to no page"),
        ('<a href="../outside.html">x</a>', "index.html: the link ../outside.html leads to no page"),
        ('<a href="#bottom">x</a>', "index.html: the link #bottom names an anchor that its page does not have"),
        ('<a href="b.html#L3">x</a>', "index.html: the link b.html#L3 names an anchor that its page does not have"),
        ('<img src="b.png">', "index.html: loads b.png, which does not exist"),
        ('<img srcset="a.png 1x, c.png 2x">', "index.html: loads c.png, which does not exist"),
        (
            '<script src="https://cdn.example.org/x.js"></script>',
            "index.html: loads https://cdn.example.org/x.js from another host",
        ),
        ('<img src="//cdn.example.org/x.png">', "index.html: loads //cdn.example.org/x.png from another host"),
        (
            '<link rel="preconnect" href="https://fonts.example.org">',
            "index.html: loads https://fonts.example.org from another host",
        ),
        (
            "<style>@import 'https://example.org/a.css';</style>",
            "index.html: loads https://example.org/a.css from another host",
        ),
        (
            '<p style="background: url(https://example.org/a.png)">',
            "index.html: loads https://example.org/a.png from another host",
        ),
        ('<pre class="mermaid">x</pre>', "index.html: loads https://unpkg.com/mermaid from another host"),
    ],
)
def test_the_checks_of_a_built_site(make, tmp_path, html, problem):
    for name, text in {"index.html": PAGE.format(html), "b.html": PAGE.format(""), "a.png": "", "a.css": ""}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert make.check(tmp_path) == ([problem] if problem else [])


def test_style_sheets_are_checked(make, tmp_path):
    css = "@font-face { src: url('a.woff') url(https://example.org/b.woff) }"
    (tmp_path / "a.css").write_text(css, encoding="utf-8")
    (tmp_path / "index.html").write_text(PAGE.format(""), encoding="utf-8")
    (first, second) = make.check(tmp_path)
    assert first == "a.css: loads a.woff, which does not exist" and second.endswith("b.woff from another host")
    assert make.check(tmp_path / "empty") == [f"{tmp_path / 'empty'} has no pages"]


def test_a_mistake_is_told_in_one_sentence(make, monkeypatch, capsys, tmp_path):
    def wrong(*_):
        raise UserError("models/vae.md: cvae.md is no page")

    monkeypatch.setattr(make, "check_installed", lambda: None)
    monkeypatch.setattr(make, "generated", lambda: ({}, {}))  # the real one executes the notebooks
    monkeypatch.setattr(make, "build", wrong)
    assert make.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "models/vae.md: cvae.md is no page\n"
    monkeypatch.setattr(make, "build", lambda *_: ["a.html: loads b.png, which does not exist"])
    assert make.main(["--out", str(tmp_path)]) == 1
    assert "the site has 1 problem" in capsys.readouterr().err


def test_a_mistake_of_a_generator_is_told_with_its_file(make, monkeypatch):
    def wrong():
        raise ValueError("zoo/vae.py has no function bound")

    monkeypatch.setattr(make.links, "pages", wrong, raising=False)
    with pytest.raises(UserError, match=r"^docs/make/links\.py: zoo/vae\.py has no function bound$"):
        make.generated(["links"])


@pytest.mark.slow
def test_the_whole_site_is_built_and_has_no_problems(make, tmp_path):
    pytest.importorskip("zensical")
    assert make.build(ROOT, tmp_path / "built", *make.generated()) == []
    assert (tmp_path / "built" / "site" / "search.json").is_file()


@pytest.mark.slow
def test_a_small_site_with_mistakes_fails(make, small, tmp_path):
    pytest.importorskip("zensical")
    assert make.build(small, tmp_path / "built", {"models/vae.md": VAE}) == []
    html = (tmp_path / "built" / "site" / "models" / "vae.html").read_text(encoding="utf-8")
    assert (
        r"\(f[x](y)\)" in html
        and html.count('href="../index.html">home<') == 2
        and 'href="../source/zoo/vae.py.html#L5"' in html
    )
    shown = (tmp_path / "built" / "site" / "source" / "zoo" / "vae.py.html").read_text(encoding="utf-8")
    assert shown.count('<span id="L') == 5 and "*&lt;b&gt;*" in shown
    for added, problem in {
        "![x](https://example.org/x.png)": "loads https://example.org/x.png from another host",
        '<script src="https://example.org/x.js"></script>': "loads https://example.org/x.js from another host",
    }.items():
        assert make.build(small, tmp_path / "built", {"models/vae.md": VAE + added}) == [f"models/vae.html: {problem}"]
    (small / "zoo" / "weights" / "vae.png").unlink()
    with pytest.raises(UserError, match="picture:vae is no page, no file and no picture"):
        make.build(small, tmp_path / "built", {"models/vae.md": VAE})
