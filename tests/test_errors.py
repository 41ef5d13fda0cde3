"""One line of an error that somebody else raises."""

from __future__ import annotations

import pytest

from gradiend_hub.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("too long\nfor a line"), "too long"),
        (ValueError(), "ValueError"),
        (OSError("\n  \n  no space left \n"), "no space left"),
        (StopIteration(), "StopIteration"),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
