"""Whether to ask once more, and after how long."""

import pytest

from sr_edge.remote.retry import MAX_PAUSE, pause, seconds_to_wait

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
NOW = 1445412480.0 - 30  # half a minute before


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("3", 3.0),
        ("1.5", 1.5),
        (" 7 ", 7.0),
        ("119", 119.0),
        ("86400", 120.0),
        ("1e35", 120.0),
        ("inf", 120.0),
        ("-10", None),
        ("-inf", None),
        ("nan", None),
        ("", None),
        ("junk", None),
        ("soon, please", None),
        (DATE, 30.0),
        (DATE.replace("GMT", "+0000"), 30.0),
        (DATE.replace("GMT", "-0000"), 30.0),
        (DATE.replace("07:28:00 GMT", "09:28:00 +0200"), 30.0),
        (DATE.replace("07:28", "07:27"), 0.0),
        (DATE.replace("2015", "1970"), 0.0),
        (DATE.replace("2015", "2016"), 120.0),
        (DATE.replace("2015", "100000"), 120.0),
        (DATE.replace("2015", "9" * 30), 120.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
    ],
)
def test_what_a_server_asks_for(value, seconds):
    assert seconds_to_wait({"retry-after": value}, NOW) == seconds


def test_milliseconds_come_first_where_they_make_sense():
    assert seconds_to_wait({"retry-after-ms": "250", "retry-after": "3"}, NOW) == 0.25
    assert seconds_to_wait({"retry-after-ms": "soon", "retry-after": "3"}, NOW) == 3.0
    assert seconds_to_wait({"retry-after-ms": "-1"}, NOW) is None
    assert seconds_to_wait({}, NOW) is None


def test_a_long_pause_is_none():
    assert pause(2.0, 0.5, remaining=30.0) == MAX_PAUSE == 2.0
    assert pause(2.1, 0.5, remaining=30.0) is None


@pytest.mark.parametrize("demanded", [None, 0.0])
def test_without_a_demand_the_pause_is_short_and_never_the_same(demanded):
    assert pause(demanded, 0.0, remaining=30.0) == pytest.approx(0.1)
    assert pause(demanded, 1.0, remaining=30.0) == pytest.approx(0.5)


def test_a_pause_leaves_as_much_time_for_the_answer():
    assert pause(1.5, 0.5, remaining=3.0) == 1.5
    assert pause(1.6, 0.5, remaining=3.0) is None
    assert pause(None, 0.5, remaining=0.2) is None
    assert pause(None, 0.0, remaining=-1.0) is None
