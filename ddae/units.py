"""Numbers as a person says them."""

import re


def rounded(number: float, digits: int = 2) -> str:
    """With so many digits, and no powers of ten where it is large: 0.047, 9.5, 47, 2,830."""
    said = f"{number:.{digits}g}"
    return f"{number:,.0f}" if "e+" in said else said


def counted(number: int, one: str, more: str) -> str:
    """The number with the words that go with it: 1 image has, 2 images have."""
    return f"{number:,} {one if number == 1 else more}"


def duration(seconds: float) -> str:
    """40 seconds, 12 minutes, 47 hours or 3 days."""
    return _in_units(seconds, {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}, at_least=2)


def size(num_bytes: float) -> str:
    """2.4 MB, 31 GB or 1.2 TB."""
    return _in_units(num_bytes, {"MB": 1e6, "GB": 1e9, "TB": 1e12}, at_least=1)


def parse_size(text: str) -> int:
    """Bytes, from 4GB, 1.5 TB or 500mb. Raises ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MGT]B)\s*", text, re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no size; give a number with MB, GB or TB, such as 4GB")
    return round(float(found[1]) * {"MB": 1e6, "GB": 1e9, "TB": 1e12}[found[2].upper()])


def _in_units(number: float, units: dict[str, float], at_least: float) -> str:
    """In the largest unit of which there are at_least, or the smallest."""
    unit = [name for name, worth in units.items() if number >= at_least * worth] or list(units)[:1]
    said = rounded(number / units[unit[-1]])
    return f"{said} {unit[-1].removesuffix('s') if said == '1' else unit[-1]}"
