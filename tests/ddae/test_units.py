import pytest

from ddae.units import duration, rounded, size


@pytest.mark.parametrize(
    ("number", "digits", "said"),
    [
        (0.0469, 2, "0.047"),
        (9.51, 2, "9.5"),
        (99.6, 2, "100"),
        (2830.4, 3, "2,830"),
        (348, 2, "348"),
        (1e5, 3, "100,000"),
    ],
)
def test_large_numbers_have_no_powers_of_ten(number, digits, said):
    assert rounded(number, digits) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.5, "0.5 seconds"), (1, "1 second"), (119, "119 seconds"), (120, "2 minutes"), (60 * 2830, "47 hours"),
        (2.5 * 3600, "2.5 hours"), (86400 * 365, "365 days"),
    ],
)  # fmt: skip
def test_durations_are_in_the_unit_that_a_person_would_take(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(("num_bytes", "said"), [(2.4e6, "2.4 MB"), (0, "0 MB"), (3.1e10, "31 GB"), (1.2e12, "1.2 TB")])
def test_sizes(num_bytes, said):
    assert size(num_bytes) == said
