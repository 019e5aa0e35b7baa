"""Block-wise quantisation: what each method minimises, and that engines read the packed form as it was meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.artifact import Artifact
from stages.onnx_model import read_graph, signature_of, write_model
from stages.quantise.block_operators import BlockOperators
from stages.quantise.blocks.awq import awq_clip
from stages.quantise.blocks.form import BlockFormat, BlockMatrix, in_blocks
from stages.quantise.blocks.gptq import gptq
from stages.quantise.blocks.hqq import NORM, hqq
from stages.quantise.blocks.packing import packed
from stages.quantise.blocks.ranges import full_range, rtn
from stages.quantise.operators import operators
from stages.runtime import RuntimeOptions, open_session

Matrix = NDArray[np.float32]

FORMATS = [BlockFormat(4, 32), BlockFormat(4, 32, symmetric=True), BlockFormat(8, 64), BlockFormat(8, 64, True)]


@pytest.fixture(scope="module")
def weight() -> Matrix:
    """[150, 24]: weights with heavy tails, as trained ones have; 150 is no multiple of a block."""
    return (np.random.default_rng(0).standard_t(4, (150, 24)) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> Matrix:
    """[2000, 150]: activations that hang together, some channels far larger than others."""
    generator = np.random.default_rng(1)
    mixing = generator.standard_normal((150, 150)) * np.exp(generator.standard_normal(150)) / 10
    return (generator.standard_normal((2000, 150)) @ mixing).astype(np.float32)


def output_error(vectors: Matrix, weight: Matrix, matrix: BlockMatrix) -> float:
    return float(np.square(vectors @ (weight - matrix.restored())).mean())


# Plain rounding


@pytest.mark.parametrize("format", FORMATS)
def test_rounding_errs_by_half_a_step_at_the_most(format: BlockFormat, weight: Matrix) -> None:
    matrix = rtn(weight, format)
    assert matrix.integers.shape == matrix.restored().shape == weight.shape
    assert (matrix.integers.dtype, int(matrix.integers.max())) == (np.uint8, format.largest)
    steps = np.repeat(np.abs(matrix.scales), format.block_size, axis=0)[: len(weight)]
    # A symmetric range lacks one integer on the side away from its largest value.
    assert (np.abs(matrix.restored() - weight) <= steps * (1.001 if format.symmetric else 0.501)).all()


@pytest.mark.parametrize("format", FORMATS)
def test_zero_stays_zero(format: BlockFormat) -> None:
    weight = np.zeros((64, 3), np.float32)
    weight[::2, 1] = 0.7
    weight[::2, 2] = -0.7
    assert (rtn(weight, format).restored()[1::2] == 0).all()
    assert (rtn(weight, format).restored()[:, 0] == 0).all()
    assert np.allclose(rtn(weight, format).restored(), weight)


def test_only_a_symmetric_matrix_needs_no_zero_points(weight: Matrix) -> None:
    assert set(rtn(weight, BlockFormat(4, 32, True)).zero_points.flat) == {8}
    assert len(set(rtn(weight, BlockFormat(4, 32)).zero_points.flat)) > 3


# HQQ


def test_hqq_lowers_the_norm_that_it_is_made_for_in_every_block(weight: Matrix) -> None:
    def cost(matrix: BlockMatrix) -> NDArray[np.float64]:
        error = in_blocks(weight - matrix.restored(), matrix.format.block_size)
        return (np.abs(error.astype(np.float64)) ** NORM).sum(axis=1)

    format = BlockFormat(4, 32)
    fitted, plain = cost(hqq(weight, format)), cost(rtn(weight, format))
    assert (fitted <= plain * (1 + 1e-5)).all()
    assert fitted.sum() < 0.97 * plain.sum()


def test_hqq_needs_zero_points(weight: Matrix) -> None:
    with pytest.raises(ValueError, match="symmetric format has none"):
        hqq(weight, BlockFormat(4, 32, symmetric=True))


# AWQ's clipping


@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_lowers_the_error_of_every_block_in_the_outputs(
    symmetric: bool, weight: Matrix, vectors: Matrix
) -> None:
    format = BlockFormat(4, 32, symmetric)

    def shares(matrix: BlockMatrix) -> NDArray[np.float64]:
        error = in_blocks(weight - matrix.restored(), 32)
        each = in_blocks(np.ascontiguousarray(vectors.T), 32)
        return np.square(np.einsum("bic,bio->bco", each, error, dtype=np.float64)).sum(axis=1)

    clipped, plain = shares(awq_clip(weight, format, vectors)), shares(rtn(weight, format))
    assert (clipped <= plain * (1 + 1e-4)).all()
    assert clipped.sum() < 0.9 * plain.sum()


# GPTQ


@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq_halves_the_error_of_the_outputs(symmetric: bool, weight: Matrix, vectors: Matrix) -> None:
    format = BlockFormat(4, 32, symmetric)
    moments = vectors[:1000].T @ vectors[:1000] / 1000
    unseen = vectors[1000:]
    plain = output_error(unseen, weight, rtn(weight, format))
    ordered = output_error(unseen, weight, gptq(weight, format, moments))
    assert ordered < 0.5 * plain
    assert ordered < output_error(unseen, weight, gptq(weight, format, moments, act_order=False)) < plain


def test_gptq_rounds_as_the_paper_does(weight: Matrix, vectors: Matrix) -> None:
    """Section 3.2, literally: each input's error, weighed by its row of the inverse, is taken from those behind it."""
    inputs, damping = len(weight), 0.05
    moments = vectors.T @ vectors / len(vectors)
    matrix = gptq(weight, BlockFormat(8, 64, symmetric=True), moments, damping=damping, act_order=False)

    hessian = moments.astype(np.float64)
    hessian += damping * np.trace(hessian) / inputs * np.eye(inputs)
    inverse = np.linalg.inv(hessian)
    scales, zero = full_range(in_blocks(weight, 64), matrix.format)
    remaining = weight.astype(np.float64)
    levels = np.empty(weight.shape)
    for row in range(inputs):
        scale = scales[row // 64]
        levels[row] = np.rint(remaining[row] / scale + zero[0]).clip(0, 255)
        error = (remaining[row] - (levels[row] - zero[0]) * scale) / inverse[row, row]
        remaining -= np.outer(inverse[:, row], error)
        inverse -= np.outer(inverse[:, row], inverse[row]) / inverse[row, row]
    assert (matrix.integers == levels).mean() > 0.98  # ties fall otherwise in single precision


def test_no_other_scales_would_suit_the_integers_of_gptq_better(weight: Matrix, vectors: Matrix) -> None:
    moments = (vectors.T @ vectors / len(vectors)).astype(np.float64)
    matrix = gptq(weight, BlockFormat(4, 32), moments.astype(np.float32), damping=0.01)
    moments += 0.01 * np.trace(moments) / len(moments) * np.eye(len(moments))

    def error(scales: Matrix) -> float:
        lost = weight - BlockMatrix(matrix.format, matrix.integers, scales, matrix.zero_points).restored()
        return float(np.trace(lost.T @ moments @ lost))

    least = error(matrix.scales)
    for block, output in ((0, 0), (2, 7), (4, 23)):
        for factor in (0.97, 1.03):
            changed = matrix.scales.copy()
            changed[block, output] *= factor
            assert error(changed) > least


def test_gptq_takes_what_says_nothing_of_some_inputs_or_of_all(weight: Matrix, vectors: Matrix) -> None:
    format = BlockFormat(4, 32)
    silent = gptq(weight, format, np.zeros((150, 150), np.float32))
    assert np.abs(silent.restored() - weight).mean() <= np.abs(rtn(weight, format).restored() - weight).mean()
    partly = vectors.copy()
    partly[:, 40:90] = 0
    dead = gptq(weight, format, partly.T @ partly / len(partly))
    assert np.isfinite(dead.restored()).all()
    assert np.abs(dead.restored()[40:90] - weight[40:90]).max() < 0.2 * np.abs(weight).max()


# Packing


def test_the_first_integer_is_in_the_lowest_bits() -> None:
    assert packed(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03]]
    assert packed(np.array([[1, 2, 3]], np.uint8), 8).tolist() == [[1, 2, 3]]


def answers(graph: Any, folder: Path, batch: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """What ONNX Runtime and OpenVINO answer."""
    written = write_model(graph, folder, signature=signature_of(graph))
    found = []
    for runtime in ("onnxruntime", "openvino"):
        with open_session(written, RuntimeOptions(name=runtime)) as session:
            found.append(session(batch)["y"])
    return found


@pytest.mark.parametrize("inputs", [64, 96, 50])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_engines_multiply_by_what_was_packed(
    bits: Any, block_size: int, symmetric: bool, inputs: int, graph_of: Callable[..., Artifact], tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((inputs, 24)).astype(np.float32)
    graph = read_graph(
        graph_of(f"g (float[batch, {inputs}] x) => (float[batch, 24] y) {{ y = MatMul(x, w) }}", w=weight)
    )
    matrix = rtn(weight, BlockFormat(bits, block_size, symmetric))
    BlockOperators(graph, accuracy_level=1).products(operators(graph), matrix, [None])
    x = generator.standard_normal((5, inputs)).astype(np.float32)
    exact = x @ matrix.restored()
    ours, openvino = answers(graph, tmp_path, {"x": x})
    assert np.allclose(ours, exact, atol=1e-4)
    assert np.abs(openvino - exact).max() < 0.02 * np.abs(exact).max()  # it may round x to 8 bits


def test_engines_take_zero_points_between_integers(graph_of: Callable[..., Artifact], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((96, 24)).astype(np.float32)
    graph = read_graph(graph_of("g (float[batch, 96] x) => (float[batch, 24] y) { y = MatMul(x, w) }", w=weight))
    matrix = hqq(weight, BlockFormat(4, 32))
    assert matrix.zero_points.dtype == np.float32
    BlockOperators(graph, accuracy_level=1).products(operators(graph), matrix, [None])
    x = generator.standard_normal((5, 96)).astype(np.float32)
    for answer in answers(graph, tmp_path, {"x": x}):
        assert np.allclose(answer, x @ matrix.restored(), atol=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "block_size", "width"), [(4, 16, 64), (4, 32, 128), (8, 32, 64), (8, 64, 192)])
def test_engines_look_up_what_was_packed(
    bits: Any, block_size: int, width: int, symmetric: bool, graph_of: Callable[..., Artifact], tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    table = generator.standard_normal((2**16 // width + 1, width)).astype(np.float32)
    model = graph_of(f"g (int64[batch, n] ids) => (float[batch, n, {width}] y) {{ y = Gather(t, ids) }}", t=table)
    graph = read_graph(model)
    matrix = rtn(np.ascontiguousarray(table.T), BlockFormat(bits, block_size, symmetric))
    BlockOperators(graph, accuracy_level=1).embeddings(operators(graph), matrix)
    ids = generator.integers(0, len(table), (2, 7))
    for answer in answers(graph, tmp_path, {"ids": ids}):
        assert np.allclose(answer, matrix.restored().T[ids], atol=1e-5)
