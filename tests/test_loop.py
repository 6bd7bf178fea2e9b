from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fewshot_ad.exceptions import MemoryWarning, OutOfMemoryError, TrainingError
from fewshot_ad.method.losses import cosine_distance
from fewshot_ad.method.student import Decoder, StudentNetwork
from fewshot_ad.method.weighting import LearnToWeight
from fewshot_ad.runtime import resolve_runtime
from fewshot_ad.training import loop as training
from fewshot_ad.training.episodes import Task, draw_episode

CHANNELS, SHAPES = (4, 6, 8, 10), ((8, 8), (4, 4), (2, 2), (1, 1))


def make_student(seed: int = 0, dtype: torch.dtype = torch.float32) -> StudentNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return StudentNetwork("decoder", Decoder(CHANNELS, SHAPES, (True,) * 4), LearnToWeight(CHANNELS[:3])).to(dtype)


def make_task(n: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32) -> Task:
    generator = torch.Generator().manual_seed(seed)
    maps = [
        torch.randn(1, c, *shape, generator=generator, dtype=dtype)
        + 0.3 * torch.randn(n, c, *shape, generator=generator, dtype=dtype)
        for c, shape in zip(CHANNELS, SHAPES, strict=True)
    ]
    return Task("toy", maps[:3], maps[3], np.arange(n))


def settings(**changes) -> dict:
    return {
        "n_steps": 20, "n_shots": 3, "batch_size": 4, "learning_rate": 1e-3, "lam": 1.0, "loss": "position", "tol": 0.0,
        "seed": 0, "runtime": resolve_runtime("cpu", "float32"), **changes,
    }  # fmt: skip


@pytest.mark.parametrize("form", ["position", "flattened"])
def test_episode_loss_follows_the_equation(form):
    runtime = resolve_runtime("cpu", "float64")
    student = make_student(dtype=torch.float64).eval()
    episode = draw_episode([make_task(dtype=torch.float64)], 3, 2, np.random.default_rng(0))
    loss = training.episode_loss(student, episode, 0.1, form, runtime)

    query, support = (student(x, SHAPES[:3]) for x in (episode.query_inputs, episode.support_inputs))
    ssd = tsd = 0.0
    for level in range(3):
        c = CHANNELS[level]
        phi = student.weighting.phi[level](support[level])
        for n in range(2):
            g = query[level][n]
            logits = torch.stack([(g.flatten() @ phi[k].flatten()) / c**0.5 for k in range(3)])
            w = torch.exp(logits - logits.max()) / torch.exp(logits - logits.max()).sum()
            r = sum(w[k] * support[level][k] for k in range(3))
            ssd += cosine_distance(g[None], r[None], form).mean() / 2
            tsd += cosine_distance(episode.query_targets[level][n][None], g[None], form).mean() / 2
    assert loss.item() == pytest.approx((ssd + 0.1 * tsd).item(), abs=1e-12)


def test_each_image_passes_through_the_student_once():
    student, seen = make_student(), []
    student.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    training.train(student, [make_task()], **settings(n_steps=2))
    assert seen == [4 + 3, 4 + 3]


def test_loss_falls_and_the_student_ends_in_eval_mode():
    student = make_student()
    curve = training.train(student, [make_task()], **settings(n_steps=60))
    assert np.mean(curve[-10:]) < 0.8 * np.mean(curve[:10])
    assert not student.training


def test_same_seed_same_bits():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, two, other = make_student(), make_student(), make_student()
    curves = [
        training.train(one, [make_task()], **settings()),
        training.train(two, [make_task()], **settings()),
        training.train(other, [make_task()], **settings(seed=1)),
    ]
    assert curves[0] == curves[1] != curves[2]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float64"])
def test_other_precisions_train(precision):
    runtime = resolve_runtime("cpu", precision)
    student = make_student().to(runtime.dtype)
    curve = training.train(student, [make_task()], **settings(n_steps=40, runtime=runtime))
    assert np.mean(curve[-5:]) < np.mean(curve[:5])
    assert all(torch.isfinite(p).all() for p in student.parameters())


def test_early_stopping():
    curve = training.train(make_student(), [make_task()], **settings(n_steps=1000, learning_rate=1e-9, tol=1e-3))
    assert 100 <= len(curve) < 1000
    assert len(curve) % 50 == 0


def test_loss_that_is_not_finite():
    task = make_task()
    task.targets[0][:] = torch.nan
    with pytest.raises(TrainingError, match=r"nan at step 1 of 20\. Lower learning_rate \(now 0\.001\)"):
        training.train(make_student(), [task], **settings())


def test_out_of_memory_halves_the_batch_once(monkeypatch):
    sizes, fail = [], [2]
    real = training.episode_loss

    def loss(student, episode, *rest):
        sizes.append(len(episode.query_inputs))
        if len(episode.query_inputs) > fail[0]:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            )
        return real(student, episode, *rest)

    monkeypatch.setattr(training, "episode_loss", loss)
    with pytest.warns(MemoryWarning, match="batch_size=2"):
        curve = training.train(make_student(), [make_task()], **settings(n_steps=3))
    assert sizes == [4, 2, 2, 2]
    assert len(curve) == 3
    fail[0] = 1
    with pytest.warns(MemoryWarning), pytest.raises(OutOfMemoryError, match=r"2 queries a step\. Lower batch_size"):
        training.train(make_student(), [make_task()], **settings(n_steps=3))


def test_other_runtime_errors_pass_through():
    task = make_task()
    task.targets[0] = task.targets[0][:, :2]
    with pytest.raises(RuntimeError, match="size"):
        training.train(make_student(), [task], **settings())


def test_progress_bar(capsys):
    training.train(make_student(), [make_task()], **settings(n_steps=2, verbose=1))
    assert "training: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["position", "flattened"])
@pytest.mark.parametrize("batch_size", [2, 7])
def test_workers_equal_one_process(form, batch_size, monkeypatch):
    options = settings(runtime=resolve_runtime("cpu", "float64"), loss=form, batch_size=batch_size)
    del options["tol"]
    together = []
    monkeypatch.setattr(torch.distributed, "all_reduce", together.append)
    for rank in range(3):  # with two queries, the third has none
        student = make_student(dtype=torch.float64)
        workers = training.Workers(rank, 3)
        training.Training(student, [make_task(dtype=torch.float64)], workers=workers, **options)._backward(0)
    student = make_student(dtype=torch.float64)
    loss = training.Training(student, [make_task(dtype=torch.float64)], **options)._backward(0)
    expected = torch.cat([torch.tensor([loss], dtype=torch.float64), *(w.grad.flatten() for w in student.parameters())])
    torch.testing.assert_close(sum(together), expected, rtol=0, atol=1e-12 * expected.abs().max().item())


def test_several_workers_do_not_halve_the_batch(monkeypatch):
    options = settings(workers=training.Workers(0, 2))
    del options["tol"]
    monkeypatch.setattr(training, "episode_loss", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(OutOfMemoryError, match="with 4 queries a step"):
        training.Training(make_student(), [make_task()], **options).step()


class Dropped(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, embedding: torch.Tensor, shapes) -> list[torch.Tensor]:
        return [torch.nn.functional.dropout(m, 0.3, self.training) for m in self.net(embedding, shapes)]


def test_trainings_in_threads_equal_serial_trainings():
    students = [make_student(i % 4) for i in range(16)]
    for student in students:
        student.net = Dropped(student.net)

    def run(i: int) -> list[float]:
        return training.train(students[i], [make_task()], **settings(seed=i % 4))

    alone = [run(i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4, 16))) == alone * 3


def test_autocast_of_the_caller_caches_no_weights():
    runtime = resolve_runtime("cpu", "bfloat16")
    expected = training.train(make_student(), [make_task()], **settings(runtime=runtime))
    with torch.autocast("cpu", torch.bfloat16):
        assert training.train(make_student(), [make_task()], **settings(runtime=runtime)) == expected
