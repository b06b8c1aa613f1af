"""A CUDA graph's stand-in on CPUs: records the operations of some work, and does them again on the same tensors.

What Python decided while it was recorded stays as it was, as in a CUDA graph: a number that was read from a tensor, or
passed as a number, is not read again.
"""

import copy

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, outputs))
        return outputs

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, recorded in self.operations:
            outputs = func(*args, **kwargs)
            for new, old in zip(tree_flatten(outputs)[0], tree_flatten(recorded)[0], strict=True):
                if isinstance(old, torch.Tensor) and new.data_ptr() != old.data_ptr():
                    old.detach().copy_(new)


def capture_for(network):
    """What takes the place of ``training_step.capture`` for work that changes ``network``; counts its calls."""

    def capture(work):
        capture.calls += 1
        state, random_state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
        with _Recorder() as recorder:
            outputs = work()
        network.load_state_dict(state)  # a capture does nothing of what it records
        torch.set_rng_state(random_state)
        return recorder.replay, outputs

    capture.calls = 0
    return capture
