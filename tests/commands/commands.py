"""The command line, run as a user runs it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def mde(*arguments: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mde.cli", *arguments]


def demo(study: Path) -> list[str]:
    return ["demo", "--gin_file=configs/demo_tiny.gin", f"--study={study}"]
