"""Log lines: one per record, with a UTC time stamp."""

from __future__ import annotations

import logging
import re

from fs3.log import OneLine


def test_a_record_is_one_line_with_its_traceback() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        record = logging.LogRecord("fs3.x", logging.ERROR, "f", 1, "it %s", ("broke",), (type(error), error, None))
    record.created, record.msecs = 0.25, 250
    text = OneLine().format(record)
    assert text.startswith("1970-01-01T00:00:00.250Z ERROR fs3.x: it broke | ")
    assert re.search(r"ValueError: first \| second$", text)
    assert "\n" not in text
