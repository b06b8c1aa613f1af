"""Many annotators at once."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from test_label_server import NAME, PATCHES


def test_fifty_requests_at_the_same_time_are_all_answered_rightly(server):
    paths = [f"/infer/{NAME}?image={name}&output=image" for name in PATCHES]
    alone = {path: server.post(path).content for path in paths}
    asked = [paths[number % len(paths)] for number in range(40)]
    asked += ["/datastore/", "/info/"] * 4 + ["/activelearning/entropy", "/activelearning/random"]

    def ask(path):
        return server.request("post" if path in paths or "activelearning" in path else "get", path)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, asked))
    assert Counter(answer.status_code for answer in answers) == {200: 50}
    assert all(answer.content == alone[path] for path, answer in zip(asked, answers) if path in paths)
    assert server.request("get", "/info/").status_code == 200
