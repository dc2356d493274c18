"""Runs the code blocks of README.md and the docs' pages, in order, in a copy of this checkout.

    python .ci/blocks.py                          # README.md and all pages of docs/
    python .ci/blocks.py docs/first-ten-minutes.md

What stands between ```console or ```sh fences is run by bash, ```python by Python; a block with a title is
written to the file that it names. Other fences are there to be read. RUN_ID stands for the newest finished
run of the copy, and for one that uses a plugin only in a block that names one. The copy shares `data/`, so
that nothing is generated twice.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')
LANGUAGES = {"console": "bash", "sh": "bash", "python": "python"}
SECONDS = 1200  # for one block, before it counts as hanging


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; `file` is where it is written instead of being run."""

    page: Path
    line: int
    language: str
    text: str
    file: str = ""


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page that are run or written, in order."""
    text, found = page.read_text(), []
    for fence in FENCE.finditer(text):
        language, rest, body = fence.groups()
        title = TITLE.search(rest)
        if title or language in LANGUAGES:
            line = text.count("\n", 0, fence.start()) + 1
            found.append(Block(page, line, language, body, title.group(1) if title else ""))
    return found


def commands_of(block: Block) -> str:
    """The commands of a console block: where lines begin with `$ `, those alone."""
    lines = block.text.splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return "\n".join(lines) + "\n"


def pages_of(root: Path) -> list[Path]:
    """README.md, then the docs' pages in the order of their navigation."""
    nav = re.findall(
        r"^ +- (?:.*: )?([\w/.-]+\.md)$", (root / "mkdocs.yml").read_text(), re.MULTILINE
    )
    return [root / "README.md", *(root / "docs" / name for name in nav)]


def copy_of(root: Path, target: Path) -> None:
    """What git tracks or would add, as it is now, with the same data."""
    listed = (
        "git",
        "-C",
        str(root),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    )
    names = subprocess.run(listed, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (root / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    (root / "data").mkdir(exist_ok=True)
    (target / "data").symlink_to(root / "data")


def newest_run(place: Path, plugins: bool) -> str:
    """The id of the newest finished run of the copy, of one that uses no plugin without `plugins`."""
    code = (
        "from pathlib import Path\n"
        "from sweeps.track.store import Store\n"
        "runs = [r for r in Store(Path.cwd()).runs() if r.status == 'FINISHED'\n"
        f"        and ({plugins} or not r.params.get('plugins'))]\n"
        "print(max(runs, key=lambda r: r.started).run_id if runs else '')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def run(block: Block, place: Path, environment: dict[str, str]) -> int:
    """Runs a block, or writes its file; returns the exit code."""
    if block.file:
        (place / block.file).parent.mkdir(parents=True, exist_ok=True)
        (place / block.file).write_text(block.text)
        return 0
    shell = LANGUAGES[block.language] == "bash"
    text = commands_of(block) if shell else block.text
    if "RUN_ID" in text:
        text = text.replace("RUN_ID", newest_run(place, "--plugin" in text))
    command = ["bash", "-euo", "pipefail", "-c", text] if shell else [sys.executable, "-c", text]
    return subprocess.run(command, cwd=place, env=environment, timeout=SECONDS).returncode


def main(pages: list[Path]) -> int:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="semidavil-docs-") as folder:
        place = Path(folder)
        copy_of(ROOT, place)
        environment = {**os.environ, "PATH": path, "PYTHONPATH": folder, "MPLBACKEND": "Agg"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        for page in pages:
            for block in blocks_of(page):
                where = f"{page.relative_to(ROOT)}:{block.line}"
                print(f"=== {where}", flush=True)
                began = time.monotonic()
                if code := run(block, place, environment):
                    print(f"{where} failed with exit code {code}:\n{block.text}", file=sys.stderr)
                    return 1
                print(f"=== {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(name).resolve() for name in sys.argv[1:]] or pages_of(ROOT)))
