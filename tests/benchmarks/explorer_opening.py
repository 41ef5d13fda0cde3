"""How long after the command the explorer's page is there, and how long a question takes.

    python -m tests.benchmarks.explorer_opening DIRECTION... [--times 3]

The command runs in a process of its own, as people start it; what counts is the first answer of its server. A question is
asked of the page's own address for programs. Wall time, since somebody waits; and CPU time of the command up to its page,
which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from statistics import median

import psutil


def opened(directions: Sequence[str]) -> tuple[float, float, float]:
    """Start the explorer and ask it something; seconds to its page, CPU seconds to there, and seconds of one question."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "gradiend_hub", "explore", *directions, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        with urllib.request.urlopen(url, timeout=30) as page:
            page.read()
        there, used = time.perf_counter() - start, psutil.Process(server.pid).cpu_times()
        from gradio_client import Client

        client = Client(url, verbose=False, analytics_enabled=False)
        strengths = [1.0] * len(directions)
        client.predict("The boys ran home because [MASK] felt ill.", *strengths, api_name="/ask")
        start = time.perf_counter()
        client.predict("The girls ran home because [MASK] felt ill.", *strengths, api_name="/ask")
        asked = time.perf_counter() - start
        client.close()
        return there, used.user + used.system, asked
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directions", nargs="+")
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    found = [opened(arguments.directions) for _ in range(arguments.times)]
    for name, values in zip(("page", "its CPU", "question"), zip(*found, strict=True), strict=True):
        print(f"{name:<9} {median(values):6.2f} s (median of {len(values)}; {min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
