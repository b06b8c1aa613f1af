import threading

import pytest

from scripts.write_behind import WriteBehind


def test_all_is_written_at_the_end():
    written = []
    with WriteBehind(threads=3, waiting=2) as write_behind:
        for number in range(20):
            write_behind(written.append, number)
    assert sorted(written) == list(range(20))


def test_calls_go_on_while_one_is_written():
    going_on = threading.Event()
    with WriteBehind(threads=1) as write_behind:
        write_behind(lambda: going_on.wait(timeout=10) or pytest.fail("the call waited for its end"))
        going_on.set()


def test_no_more_calls_wait_than_are_allowed():
    release, begun = threading.Event(), []
    with WriteBehind(threads=1, waiting=1) as write_behind:
        write_behind(release.wait, 10)
        threading.Timer(0.1, release.set).start()
        write_behind(begun.append, 1)  # comes back when the first has ended
        assert release.is_set()


def test_an_error_is_raised_at_the_end():
    with pytest.raises(OSError, match="no space left"):
        with WriteBehind() as write_behind:
            write_behind(_fail)


def test_an_error_of_the_work_itself_is_not_hidden():
    with pytest.raises(KeyError, match="work"):
        with WriteBehind() as write_behind:
            write_behind(_fail)
            raise KeyError("work")


def _fail():
    raise OSError("no space left")
