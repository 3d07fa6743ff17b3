"""Made movements: physics of the turns, and that an episode's classes can be told apart."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from armlet_train.fewshot import synthetic_motion as movements


def test_rotations_and_back() -> None:
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(50, 3), dim=1) * torch.rand(50, 1) * 3
    matrices = movements.rotations(vectors)
    torch.testing.assert_close(matrices, torch.linalg.matrix_exp(_cross(vectors)), rtol=0, atol=1e-5)
    torch.testing.assert_close(movements.rotation_vectors(matrices), vectors, rtol=0, atol=1e-3)
    torch.testing.assert_close(movements.rotations(torch.zeros(1, 3))[0], torch.eye(3))


def _cross(vectors: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros(len(vectors))
    x, y, z = vectors.unbind(1)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)


def test_turned_gravity_and_gyroscope_agree() -> None:
    # In a turning frame d(gravity)/dt = -rate x gravity; two turns one after the other, 1 kHz so that differences do.
    time = torch.arange(4000) / 1000
    acc = torch.tensor([0.1, -0.2, 0.97])[None, :, None].expand(2, 3, 4000)
    gyro = torch.zeros(2, 3, 4000)
    for middle, vector in ((1.2, [[0.9, 0.1, -0.3], [0.0, 1.5, 0.2]]), (2.4, [[0.2, -1.1, 0.0], [1.0, 0.0, 0.4]])):
        step, rate = movements.smooth_step(time, torch.full((2,), middle), torch.full((2,), 1.6))
        acc, gyro = movements.turn(acc, gyro, torch.tensor(vector), step, rate)
    derivative = acc.diff(dim=2) * 1000
    expected = -torch.linalg.cross(gyro, acc, dim=1)[:, :, :-1]
    torch.testing.assert_close(derivative, expected, rtol=0, atol=0.01)
    assert gyro.abs().max() > 1
    torch.testing.assert_close(acc.norm(dim=1), acc[:, :, :1].norm(dim=1).expand(-1, 4000))


def test_smooth_step_goes_from_0_to_1() -> None:
    time = torch.arange(500) / 100
    step, rate = movements.smooth_step(time, torch.tensor([2.0]), torch.tensor([1.0]))
    assert step[0, 0] == 0 and step[0, -1] == 1
    assert abs(step[0, 200] - 0.5) < 1e-6
    torch.testing.assert_close((rate / 100).cumsum(1)[0], step[0], rtol=0, atol=0.01)


def test_classes_of_an_episode_differ_and_people_resemble_each_other() -> None:
    torch.manual_seed(1)
    episodes, ways, each = 20, 5, 3
    count = episodes * ways * each
    # People at rest, their wearables askew by up to 90 degrees.
    acc = F.normalize(torch.randn(count, 3, 1), dim=1) * 0.3 + torch.tensor([0.0, 0.0, 1.0])[:, None]
    acc = F.normalize(acc, dim=1).expand(-1, -1, 256) + 0.01 * torch.randn(count, 3, 256)
    made, gyro = movements.made_episodes(acc, 0.01 * torch.randn(count, 3, 256), episodes, ways, 50.0)
    assert made.shape == gyro.shape == (count, 3, 256)
    assert math.isclose(float(made.norm(dim=1).mean()), 1.0, abs_tol=0.02)
    ends = torch.cat([made[:, :, :13].mean(2), made[:, :, -13:].mean(2)], dim=1).reshape(episodes, ways, each, 6)
    distance = torch.cdist(ends[:, :, 1], ends[:, :, 0])
    right = (distance.argmin(dim=2) == torch.arange(ways)).float().mean()
    assert 0.5 < right < 1  # chance is 0.2; yet it is not for free
