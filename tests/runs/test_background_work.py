import threading

import pytest

from scripts.runs.background_work import BackgroundWork


def test_all_work_is_done_when_the_block_ends():
    done = []
    with BackgroundWork() as work:
        for number in range(100):
            work.submit(done.append, number)
    assert sorted(done) == list(range(100))


def test_no_more_is_waiting_than_the_threads_will_soon_do():
    gate, most = threading.Event(), []
    with BackgroundWork() as work:
        threading.Timer(0.2, gate.set).start()
        for _ in range(10 * work.threads):
            work.submit(gate.wait)
            most.append(len(work._pending))
    assert max(most) <= 2 * work.threads + 1


def test_an_error_is_raised_where_work_is_given_or_at_the_end():
    with pytest.raises(ZeroDivisionError):
        with BackgroundWork() as work:
            work.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        with BackgroundWork() as work:
            work.submit(lambda: 1 / 0)
            for _ in range(20 * work.threads):
                work.submit(int)
            raise AssertionError("not reached")


def test_an_error_of_the_block_itself_is_not_hidden():
    with pytest.raises(KeyError):
        with BackgroundWork() as work:
            work.submit(lambda: 1 / 0)
            raise KeyError
