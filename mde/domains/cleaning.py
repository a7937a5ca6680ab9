"""Raw files and markup into plain text: encoding, control characters, licence headers, wiki markup."""

import re

# Everything in Unicode's class Cc except newline and tab.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TRAILING_SPACE = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{4,}")

# A header is looked for in this many first characters only: further down, a comment on licences belongs to the code.
_HEADER_CHARACTERS = 10_000
_COMMENT_BLOCKS = {
    "python": re.compile(r"(?:^[ \t]*#.*\n)+", re.MULTILINE),
    "cpp": re.compile(r"/\*[\s\S]*?\*/[ \t]*\n?|(?:^[ \t]*//.*\n)+", re.MULTILINE),
}
_LEGAL = re.compile(
    r"copyright|licen[cs]e|spdx|all rights reserved|warrant(?:y|ies)|permission (?:is hereby|to use)", re.IGNORECASE
)

_RULE = re.compile(r"^[ \t]*([-=*#~_])\1{19,}[ \t]*$", re.MULTILINE)

_WIKI_HEADING = re.compile(r"^(=+)[ \t]*(.*?)[ \t]*\1[ \t]*$", re.MULTILINE)
_WIKI_LIST = re.compile(r"^[*#:;]+[ \t]*", re.MULTILINE)
_WIKI_EMPHASIS = re.compile(r"'{2,}")
_WIKI_LEFTOVER_LINE = re.compile(r"^(?:[|!{}].*|__[A-Z]+__|(?:File|Image):.*)$", re.MULTILINE)
# A heading followed by one of its own level, or by the end: what stood below it was a table or a template.
_WIKI_EMPTY_SECTION = re.compile(r"^(=+)[^=\n]+\1[ \t]*\n+(?=\1[^=]|\Z)", re.MULTILINE)
_WIKI_EMPTY_PARENTHESES = re.compile(r" ?\([ ,;]*\)")
_WIKI_SPACE_BEFORE_POINT = re.compile(r"[ \t]+([,.;)])(?=\s|$)")
_SPACES = re.compile(r"[ \t]{2,}")


def plain(text: str) -> str:
    """Normalise newlines, drop control characters and trailing space; at most two blank lines in a row stay."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\ufeff", "")
    text = _TRAILING_SPACE.sub("", _CONTROL.sub("", text))
    return _BLANK_LINES.sub("\n\n\n", text).strip("\n")


def without_license_header(text: str, language: str) -> str:
    """Drop the comment blocks near the top that speak of copyright or licences.

    Kept, they would bring the domain of licences into every domain of code, and make unlike files look alike.

    Args:
        text: a source file, its newlines already normalised.
        language: `python` or `cpp`.
    """
    head, tail = text[:_HEADER_CHARACTERS], text[_HEADER_CHARACTERS:]
    return _COMMENT_BLOCKS[language].sub(lambda block: "" if _LEGAL.search(block[0]) else block[0], head) + tail


def looks_like_data(code: str) -> bool:
    """Whether a source file is mostly a table: a fifth of it digits, or lines of over 200 characters on average."""
    digits = sum(map(code.count, "0123456789"))
    return digits > 0.2 * len(code) or len(code) > 200 * (code.count("\n") + 1)


def sections(text: str, shortest: int) -> list[str]:
    """Cut a bundle of licences at its long rules (`-----`); a piece below `shortest` characters joins the next one.

    A short piece between two rules is nearly always the name of the project whose licence follows.
    """
    pieces, waiting = [], ""
    # The rule's character is a group of the pattern, so `split` returns it between the pieces.
    for piece in _RULE.split(text)[::2]:
        waiting += piece
        if len(waiting.strip()) >= shortest:
            pieces.append(waiting.strip())
            waiting = ""
    return [*pieces, waiting.strip()] if waiting.strip() else pieces


def wiki_prose(wikitext: str) -> str:
    """The prose of an article: templates, tables, references and links' addresses gone, headings as plain lines."""
    from gensim.corpora.wikicorpus import filter_wiki  # imports SciPy: a second that other domains need not wait

    text = filter_wiki(wikitext, promote_remaining=True, simplify_links=True)
    text = _WIKI_LEFTOVER_LINE.sub("", _WIKI_LIST.sub("", _WIKI_EMPHASIS.sub("", text)))
    text = _WIKI_HEADING.sub(r"\2", _WIKI_EMPTY_SECTION.sub("", text))
    text = _WIKI_SPACE_BEFORE_POINT.sub(r"\1", _WIKI_EMPTY_PARENTHESES.sub("", text))
    text = "\n".join(line.strip() for line in _SPACES.sub(" ", text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text)
