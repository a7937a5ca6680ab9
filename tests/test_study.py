"""Files of a study that cannot be read or written just now: one line, whoever runs it (root may read everything)."""

import os
from pathlib import Path

import pytest

from mde.errors import UserError
from mde.study import Study

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs Linux's files that always fail")


@pytest.mark.parametrize("reader", ["read_json", "read_table", "read_arrays", "read_object"])
def test_a_file_that_cannot_be_read_is_said_not_to_be_readable(reader, tmp_path):
    (tmp_path / "file").symlink_to("/proc/self/mem")  # whose first byte is an input/output error
    with pytest.raises(UserError, match=r"/file: cannot be read \(.*Input/output error.*; nothing was deleted"):
        getattr(Study(tmp_path), reader)("file", "fit")


def test_a_full_disk_leaves_what_was_there(tmp_path):
    study = Study(tmp_path)
    study.write_text("file", "before")
    (tmp_path / "file.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"/file: cannot write \(.*No space left on device.*the same command goes on"):
        study.write_text("file", "after")
    assert Path(tmp_path / "file").read_text() == "before"


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "stages").touch()
    with pytest.raises(UserError, match=r"stages/fit\.json: cannot write \(.*(exists|Not a directory)"):
        Study(tmp_path).write_json("stages/fit.json", {})


@pytest.mark.parametrize("reader", ["read_json", "read_table", "read_arrays", "read_object"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04\xff\xfe", b"a,b\n1,2,3\n4,5,6,7,8\n", b"\x78\x9cabc"])
def test_a_broken_file_names_the_stage_that_makes_it_anew(reader, content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=r"/file: damaged \(.*\); run `mde fit --force` again"):
        getattr(Study(tmp_path), reader)("file", "fit")
