"""What all matrix analyses share: one decomposition of the same weights, and the cores."""

import gc
import weakref
from threading import Barrier

import pytest
import torch

from analysis.maths import subspace
from analysis.maths.decomposition import decompose, singular_vectors
from analysis.maths.layers import in_each_layer, turned
from analysis.maths.together import together
from condlora.errors import UserError


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gaussian(*shape, seed=0):
    return subspace.gaussian(shape, torch.Generator().manual_seed(seed))


def test_jobs_run_at_the_same_time_on_one_thread_each(threads):
    met = Barrier(2, timeout=30)  # which one job alone never passes

    def job():
        met.wait()
        return torch.get_num_threads()

    assert together({"first": job, "second": job}) == {"first": 1, "second": 1}
    assert torch.get_num_threads() == 2


def test_the_error_of_a_job_is_raised_and_the_threads_come_back(threads):
    def job():
        raise UserError("i = 9 is above the rank.")

    with pytest.raises(UserError, match="i = 9"):
        together({"good": int, "bad": job})
    assert torch.get_num_threads() == 2


def test_weights_are_decomposed_once_and_forgotten_with_them(monkeypatch):
    W = gaussian(2, 6, 6)
    first = decompose(W)
    monkeypatch.setattr(torch.linalg, "svd", None)
    assert decompose(W).U is first.U and singular_vectors(W)[1] is first.sigma
    known = weakref.ref(first.U)
    del W, first
    gc.collect()
    assert known() is None


def test_phi_of_turned_bases_is_right_to_a_millionth():
    frames = torch.linalg.qr(gaussian(3, 40, 40)).Q
    Q = subspace.left_basis(gaussian(5, 3, 40, 4, seed=1), 4)
    ours, theirs = turned(frames, Q), in_each_layer(frames, Q)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(
        subspace.phi_map(ours, ours, 4, 4),
        subspace.phi_map(theirs, theirs, 4, 4),
        atol=1e-6,
        rtol=0,
    )
