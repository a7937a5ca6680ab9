"""What cleaning takes out of a file, and what it must leave in."""

from mde.domains import cleaning


def test_plain_keeps_text_and_drops_control_characters():
    raw = "\ufeffone\r\ntwo \t\n\x00\x1bthree\ttab\x85\n\n\n\n\n\nfour é 😀\n"
    assert cleaning.plain(raw) == "one\ntwo\nthree\ttab\n\n\nfour é 😀"


def test_license_header_goes_and_other_comments_stay():
    code = "#!/usr/bin/env python\n# Copyright 2020 Somebody.\n# All rights reserved.\n\n# what this does\nx = 1\n"
    assert cleaning.without_license_header(code, "python") == "\n# what this does\nx = 1\n"
    header = "/* Copyright Somebody\n * License: MIT */\n// SPDX-License-Identifier: MIT\n\n// A queue.\nclass Queue;\n"
    assert cleaning.without_license_header(header, "cpp") == "\n// A queue.\nclass Queue;\n"


def test_license_far_from_the_top_stays():
    code = "x = 1\n" * 3000 + "# checks the licence key\n"
    assert cleaning.without_license_header(code, "python") == code


def test_tables_look_like_data_and_code_does_not():
    assert cleaning.looks_like_data("{0x1f, 0x2e, 0x3d, 0x4c, 0x5b},\n" * 50)
    assert cleaning.looks_like_data("a" * 500)
    assert not cleaning.looks_like_data("def add(a, b):\n    return a + b\n" * 50)


def test_sections_cut_at_rules_and_join_short_titles():
    body = "Permission is granted. " * 10
    bundle = f"first\n{'-' * 40}\n{body}\n{'=' * 40}\nsecond\n{'=' * 40}\n{body}"
    pieces = cleaning.sections(bundle, shortest=200)
    assert len(pieces) == 2
    assert pieces[0].startswith("first")
    assert pieces[1].startswith("second")
    assert cleaning.sections("short", shortest=200) == ["short"]
    assert cleaning.sections("", shortest=200) == []


def test_wiki_prose():
    article = (
        "{{Infobox|a=1}}'''Alan''' was a [[logic|logician]] ({{lang|el}}) .<ref>book</ref>\n\n"
        "==Life==\n* born in [[London]]\n\n==References==\n{{reflist}}\n"
    )
    text = cleaning.wiki_prose(article)
    assert text.split() == ["Alan", "was", "a", "logician.", "Life", "born", "in", "London"]
    assert "\n\n\n" not in text
