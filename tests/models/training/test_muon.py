from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.training.muon import ITERATIONS, MOMENTUM, QUINTIC, Muon, orthogonalised


def slowly_orthogonalised(matrix: Tensor) -> Tensor:
    """The same, by the singular values themselves: an odd polynomial of a matrix is one of its singular values."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    a, b, c = QUINTIC
    values = values / values.norm()
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.parametrize("shape", [(6, 6), (4, 40), (40, 4), (1, 7)])
def test_a_matrix_keeps_its_directions_and_its_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 1e-3
    found = orthogonalised(matrix)
    torch.testing.assert_close(found.double(), slowly_orthogonalised(matrix), atol=1e-4, rtol=1e-4)
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.3
    assert values[: min(shape) // 2 + 1].min() > 0.6  # small ones need more rounds


def test_a_zero_matrix_stays_zero_and_the_type_is_kept() -> None:
    assert orthogonalised(torch.zeros(3, 5)).abs().max() == 0
    assert orthogonalised(torch.eye(3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def stepped(parameters: list[nn.Parameter], gradients: list[list[Tensor]], optimizer: Muon) -> None:
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_steps_over_matrices_and_kernels_are_those_of_a_plain_loop(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    starts = [torch.randn(5, 3), torch.randn(4, 2, 3, 3), torch.randn(30, 2, 1, 1)]
    gradients = [[torch.randn_like(start) for start in starts] for _ in range(3)]
    given = [start.to(memory_format=memory_format) if start.ndim == 4 else start for start in starts]
    parameters = [nn.Parameter(start.clone()) for start in given]
    stepped(parameters, gradients, Muon([{"params": parameters, "weight_decay": 0.1}], lr=0.02))
    for at, start in enumerate(starts):
        weight, momentum = start.double().flatten(1), torch.zeros_like(start).double().flatten(1)
        for step in gradients:
            gradient = step[at].double().flatten(1)
            momentum = MOMENTUM * momentum + gradient
            update = slowly_orthogonalised(gradient + MOMENTUM * momentum)
            scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
            weight = weight * (1 - 0.02 * 0.1) - 0.02 * scale * update
        torch.testing.assert_close(parameters[at].double().flatten(1), weight, atol=1e-5, rtol=1e-5)


def test_a_parameter_without_gradient_stays_and_vectors_are_refused() -> None:
    still = nn.Parameter(torch.ones(2, 2))
    Muon([{"params": [still]}], lr=1.0, weight_decay=0.5).step()
    assert still.tolist() == [[1, 1], [1, 1]]
    with pytest.raises(ValueError, match="vectors and scalars"):
        Muon([{"params": [nn.Parameter(torch.ones(2))]}], lr=1.0)


def test_a_loaded_state_goes_on_with_the_same_momentum() -> None:
    torch.manual_seed(0)
    gradients = [[torch.randn(3, 4)] for _ in range(4)]
    unbroken, broken = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    stepped([unbroken], gradients, Muon([{"params": [unbroken]}], lr=0.1))
    before = Muon([{"params": [broken]}], lr=0.1)
    stepped([broken], gradients[:2], before)
    after = Muon([{"params": [broken]}], lr=0.1)
    after.load_state_dict(before.state_dict())
    stepped([broken], gradients[2:], after)
    assert torch.equal(unbroken, broken)
