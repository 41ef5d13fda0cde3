"""How long the first hour takes: README's commands, line by line, in a new clone with a cache of its own.

    python -m tests.benchmarks.first_hour                 # the environment is made, too, as `make demo` makes it
    python -m tests.benchmarks.first_hour --with PYTHON   # with an environment that is there

Wall and CPU seconds of each command are printed as it ends; the first that fails ends it. What is timed are README's first
screen and its first Python block, `make demo`, and what that says to go on with.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def timed(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a line of a shell, print its seconds, and return what it printed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{wall:7.1f} s  {cpu:7.1f} CPU s  {command.splitlines()[0][:100]}", flush=True)
    if done.returncode:
        sys.exit(f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="python", type=Path, help="interpreter of an environment that is there")
    arguments = parser.parse_args()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.split("    #")[0] for line in re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)[0].splitlines()]
    block = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    with tempfile.TemporaryDirectory(prefix="first-hour-") as place:
        clone = Path(place, "gradiend_hub")
        environment = {**os.environ, "HF_HOME": f"{place}/cache", "PYTHONPATH": str(clone)}
        timed(f"git clone --quiet {ROOT} {clone}", Path(place), environment)
        if arguments.python is None:
            timed("make .venv/.installed", clone, environment)
            program = python = str(clone / ".venv/bin/python")
            hub = "make demo"
        else:
            program = python = str(arguments.python.absolute())
            hub = f"{python} -m tests.hub_server exec -- {python} -m gradiend_hub demo --repo-id alice/pronouns-3sg-3pl"
        program += " -m gradiend_hub"
        for line in lines:
            timed(re.sub(r"^gradiend-hub", program, line), clone, environment)
        Path(place, "block.py").write_text(block, encoding="utf-8")
        timed(f"{python} {place}/block.py", clone, environment)
        said = timed(hub, clone, environment).partition("\nGo on with\n")[2]
        for line in said.replace("\\\n", " ").strip().splitlines():
            timed(re.sub(r"^\s*(\S*python -m gradiend_hub|\S*gradiend-hub)", program, line), clone, environment)


if __name__ == "__main__":
    main()
