import pytest
from finished_study import finish


@pytest.fixture
def study(tmp_path):
    return finish(tmp_path / "demo")
