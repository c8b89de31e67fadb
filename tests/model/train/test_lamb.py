"""LAMB, against steps worked in float64 numpy from the paper's formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.train.lamb import Lamb

SHAPES = [(4, 3), (5,), (2, 3, 2)]


class PaperLamb:
    """arXiv 1904.00962v3, Algorithm 2, for one tensor, without bias correction, with phi(z) = min(z, 10)."""

    def __init__(self, x: np.ndarray, lr: float, betas: tuple[float, float], eps: float, decay: float) -> None:
        self.x, self.lr, self.betas, self.eps, self.decay = x.astype(np.float64), lr, betas, eps, decay
        self.m, self.v = np.zeros_like(self.x), np.zeros_like(self.x)

    def step(self, g: np.ndarray) -> None:
        beta1, beta2 = self.betas
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        r = self.m / (np.sqrt(self.v) + self.eps)
        update = r + self.decay * self.x
        weight_norm = min(np.sqrt((self.x**2).sum()), 10.0)
        update_norm = np.sqrt((update**2).sum())
        ratio = weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
        self.x = self.x - self.lr * ratio * update


def made_up(seed: int, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [scale * rng.standard_normal(shape) for shape in SHAPES]


def as_parameters(arrays: list[np.ndarray], dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.from_numpy(array.copy()).to(dtype)) for array in arrays]


def set_gradients(parameters: list[torch.nn.Parameter], gradients: list[np.ndarray]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.from_numpy(gradient.copy()).to(parameter.dtype)


@pytest.mark.parametrize(
    ("lr", "betas", "eps", "decay", "scale"),
    [
        (1e-2, (0.9, 0.999), 1e-6, 0.0, 1.0),
        (0.3, (0.8, 0.95), 1e-8, 0.1, 1.0),
        (1e-2, (0.9, 0.999), 1e-6, 0.01, 100.0),  # weight norms far above 10
    ],
)
def test_steps_are_the_paper_s(lr: float, betas: tuple[float, float], eps: float, decay: float, scale: float) -> None:
    weights = made_up(0, scale)
    assert scale == 1.0 or all(np.linalg.norm(array) > 10 for array in weights)
    parameters = as_parameters(weights)
    optimizer = Lamb(parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay)
    papers = [PaperLamb(array, lr, betas, eps, decay) for array in weights]
    for step in range(6):
        gradients = made_up(10 + step, 0.1 ** (step % 3))
        set_gradients(parameters, gradients)
        optimizer.step()
        for paper, gradient, parameter in zip(papers, gradients, parameters, strict=True):
            paper.step(gradient)
            np.testing.assert_allclose(parameter.detach().numpy(), paper.x, rtol=1e-12, atol=1e-14)


def test_float32_stays_close_to_float64() -> None:
    weights = made_up(1)
    parameters = as_parameters(weights, torch.float32)
    optimizer = Lamb(parameters, lr=0.01, weight_decay=0.01)
    papers = [PaperLamb(array, 0.01, (0.9, 0.999), 1e-6, 0.01) for array in weights]
    for step in range(20):
        gradients = made_up(30 + step)
        set_gradients(parameters, gradients)
        optimizer.step()
        for paper, gradient in zip(papers, gradients, strict=True):
            paper.step(gradient)
    for paper, parameter in zip(papers, parameters, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), paper.x, rtol=1e-4, atol=1e-6)


def test_zero_weights_and_zero_gradients_have_a_trust_ratio_of_one() -> None:
    weights = [np.zeros((2, 2)), np.array([3.0, 4.0]), np.array([3.0, 4.0])]
    gradients = [np.array([[1.0, -2.0], [0.5, 0.0]]), np.zeros(2), np.zeros(2)]
    parameters = as_parameters(weights)
    optimizer = Lamb([{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.1}], lr=0.1)
    set_gradients(parameters, gradients)
    optimizer.step()
    # Weights of 0: a step of lr * m / (sqrt(v) + eps), where m = 0.1 g and v = 0.001 g².
    expected = -0.1 * 0.1 * gradients[0] / (np.sqrt(0.001) * abs(gradients[0]) + 1e-6)
    np.testing.assert_allclose(parameters[0].detach().numpy(), expected, rtol=1e-9)
    assert parameters[1].tolist() == [3.0, 4.0]
    # Weight decay alone: the update is the weights' direction, of the weights' norm after the ratio.
    np.testing.assert_allclose(parameters[2].detach().numpy(), [2.7, 3.6], rtol=1e-12)
    for parameter in parameters:
        assert torch.isfinite(parameter).all()


def test_groups_have_their_own_settings_and_parameters_without_gradient_stay() -> None:
    weights = made_up(3)
    parameters = as_parameters(weights)
    groups = [{"params": parameters[:1], "lr": 0.5, "weight_decay": 0.2}, {"params": parameters[1:]}]
    optimizer = Lamb(groups, lr=0.01)
    gradients = made_up(4)
    set_gradients(parameters, gradients)
    parameters[2].grad = None
    optimizer.step()
    for i, (lr, decay) in enumerate([(0.5, 0.2), (0.01, 0.0)]):
        paper = PaperLamb(weights[i], lr, (0.9, 0.999), 1e-6, decay)
        paper.step(gradients[i])
        np.testing.assert_allclose(parameters[i].detach().numpy(), paper.x, rtol=1e-12)
    assert np.array_equal(parameters[2].detach().numpy(), weights[2])


def test_a_step_returns_the_closure_s_loss() -> None:
    (parameter,) = as_parameters([np.ones(2)])
    optimizer = Lamb([parameter], lr=0.1)

    def closure() -> torch.Tensor:
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        assert float(optimizer.step(lambda: torch.tensor(2.5))) == 2.5
        parameter.grad = None
        loss = closure()
    optimizer.step()
    assert float(loss.detach()) == 2.0 and parameter.tolist() != [1.0, 1.0]


def test_a_stored_state_goes_on_identically(tmp_path: Path) -> None:
    def train(optimizer: Lamb, parameters: list[torch.nn.Parameter], steps: range) -> None:
        for step in steps:
            set_gradients(parameters, made_up(50 + step))
            optimizer.step()

    whole = as_parameters(made_up(5), torch.float32)
    optimizer = Lamb(whole, lr=0.05, weight_decay=0.01)
    train(optimizer, whole, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = [torch.nn.Parameter(parameter.detach().clone()) for parameter in whole]
    train(optimizer, whole, range(3, 6))
    again = Lamb(resumed, lr=1.0)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(again, resumed, range(3, 6))
    for first, second in zip(whole, resumed, strict=True):
        assert torch.equal(first, second)
