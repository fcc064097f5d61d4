"""Vector and residual quantization against brute force, closed forms and slow textbook versions."""

import copy
import pickle
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.nn.quantize.base import Quantizer, random_rows
from codec.nn.quantize.fsq import FSQ
from codec.nn.quantize.mixture import Mixture
from codec.nn.quantize.residual import TILE, ResidualVQ
from codec.nn.quantize.vq import VectorQuantizer, lowest

Lookup = Literal["l2", "cosine"]
lookups = pytest.mark.parametrize("distance", ["l2", "cosine"])
DIM = 4


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(latents: Tensor) -> Tensor:
    """[batch * frames, dim]"""
    return latents.transpose(1, 2).flatten(0, 1)


def squares(x: Tensor, y: Tensor) -> float:
    return (x - y).square().mean().item()


def initialized(
    num_codebooks: int = 4, size: int = 8, *, distance: Lookup = "l2", codebook_dim: int | None = None
) -> ResidualVQ:
    """A residual quantizer after k-means on noise."""
    torch.manual_seed(0)
    quantizer = ResidualVQ(DIM, num_codebooks, size, distance=distance, codebook_dim=codebook_dim)
    quantizer.init_from_data(noise(4, DIM, 100))
    return quantizer


def codes_then_update(quantizer: Quantizer, latents: Tensor, num_codebooks: Tensor | None = None) -> Tensor:
    """Codes of a forward pass, after the update of the codebooks."""
    quantized = quantizer(latents, num_codebooks)
    quantizer.update_codebook([quantized])
    codes: Tensor = quantized.codes
    return codes


# nearest entries


@lookups
@pytest.mark.parametrize("codebook_dim", [None, 2])
def test_nearest_entries_equal_brute_force(distance: Lookup, codebook_dim: int | None) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(DIM, 30, distance=distance, codebook_dim=codebook_dim)
    latents = noise(2, DIM, 50)
    x = quantizer.project_in(rows_of(latents)).detach().double().numpy()
    table = quantizer.codebook.double().numpy()
    if distance == "cosine":
        expected = [max(range(30), key=lambda k: (row @ table[k]) / np.linalg.norm(table[k])) for row in x]
    else:
        expected = [min(range(30), key=lambda k: np.linalg.norm(row - table[k])) for row in x]
    codes = quantizer.encode(latents)
    assert codes.flatten().tolist() == expected
    assert codes.shape == (2, 1, 50)
    entry = table[codes[1, 0, 7]]
    entry = entry / np.linalg.norm(entry) if distance == "cosine" else entry
    decoded = quantizer.project_out(torch.tensor(entry).float())
    torch.testing.assert_close(quantizer.decode(codes)[1, :, 7], decoded)


def test_the_lowest_index_wins_a_tie() -> None:
    quantizer = VectorQuantizer(DIM, 6)
    quantizer.codebook.copy_(torch.ones(6, DIM))
    assert set(quantizer.encode(noise(1, DIM, 20)).flatten().tolist()) == {0}


def test_the_example_of_the_docstring() -> None:
    quantizer = ResidualVQ(1, 2, 2)
    for stage, entries in zip(quantizer.stages, ([-4.0, 4.0], [-1.0, 1.0]), strict=True):
        stage.codebook.copy_(torch.tensor(entries)[:, None])
    codes = quantizer.encode(torch.tensor([[[5.3]]]))
    assert codes.flatten().tolist() == [1, 1]
    assert quantizer.decode(codes).item() == 5
    assert quantizer.decode(codes[:, :1]).item() == 4


# residual codebooks


def test_every_codebook_lowers_the_error() -> None:
    quantizer, latents = initialized(), noise(4, DIM, 100)
    codes = quantizer.encode(latents)
    errors = [squares(quantizer.decode(codes[:, :num_codebooks]), latents) for num_codebooks in (1, 2, 3, 4)]
    ratios = [after / before for before, after in zip([float(latents.square().mean()), *errors], errors, strict=False)]
    assert max(ratios) < 0.7


@lookups
@pytest.mark.parametrize("codebook_dim", [None, 2])
def test_fewer_codebooks_are_a_prefix_of_all_codebooks(distance: Lookup, codebook_dim: int | None) -> None:
    quantizer, latents = initialized(distance=distance, codebook_dim=codebook_dim), noise(2, DIM, 30, seed=1)
    codes = quantizer.encode(latents)
    left = latents
    for codebook, stage in enumerate(quantizer.stages):  # one stage after the other, by hand
        assert torch.equal(quantizer.encode(latents, codebook + 1), codes[:, : codebook + 1])
        assert torch.equal(stage.encode(left), codes[:, codebook : codebook + 1])
        left = left - stage.decode(codes[:, codebook : codebook + 1])
    torch.testing.assert_close(quantizer.decode(codes), latents - left)


@lookups
@pytest.mark.parametrize("codebook_dim", [None, 2])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_number_of_codebooks_that_is_a_tensor(distance: Lookup, codebook_dim: int | None, beam_size: int) -> None:
    """The forms for exporters equal `encode` and `decode` for each number of codebooks."""
    quantizer, latents = initialized(distance=distance, codebook_dim=codebook_dim), noise(2, DIM, 30, seed=1)
    quantizer.beam_size = beam_size
    for num_codebooks in range(1, 5):
        codes = quantizer.encode(latents, num_codebooks)
        prefix = quantizer.encode_prefix(latents, torch.tensor(num_codebooks))
        assert torch.equal(prefix, F.pad(codes, (0, 0, 0, 4 - num_codebooks), value=-1))
        torch.testing.assert_close(quantizer.decode_prefix(prefix), quantizer.decode(codes))


def test_the_example_of_beam_search() -> None:
    for beam_size, found in ((1, [1, 0]), (2, [0, 1])):
        quantizer = ResidualVQ(1, 2, 2, beam_size=beam_size)
        for stage, entries in zip(quantizer.stages, ([0.0, 4.0], [-3.0, 3.0]), strict=True):
            stage.codebook.copy_(torch.tensor(entries)[:, None])
        assert quantizer.encode(torch.tensor([[[3.0]]])).flatten().tolist() == found


@lookups
@pytest.mark.parametrize("codebook_dim", [None, 2])
def test_exhaustive_beam_search_finds_the_best_codes(distance: Lookup, codebook_dim: int | None) -> None:
    quantizer, latents = initialized(3, 5, distance=distance, codebook_dim=codebook_dim), noise(2, DIM, 20, seed=1)
    every = torch.cartesian_prod(*[torch.arange(5)] * 3)  # [125, codebooks]
    sums = quantizer.decode(every.T[None])[0].T  # [125, dim]
    best = every[torch.cdist(rows_of(latents), sums).argmin(dim=-1)]
    quantizer.beam_size = 25
    torch.testing.assert_close(quantizer.encode(latents).transpose(1, 2).flatten(0, 1), best)
    errors = []
    for beam_size in (1, 2, 4, 25):
        quantizer.beam_size = beam_size
        errors.append(squares(quantizer.decode(quantizer.encode(latents)), latents))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.97 * errors[0]
    assert quantizer.encode(latents, 2).shape == (2, 2, 20)


# beam search


def slow_beam_search(quantizer: ResidualVQ, latents: Tensor, num_codebooks: int) -> Tensor:
    """Codes [batch, codebooks, frames] in float64: candidates of all beams sorted by error, then beam, then entry."""
    codes = []
    for row in rows_of(latents).double().numpy():
        beams: list[tuple[float, list[int]]] = [(0.0, [])]
        for codebook in range(num_codebooks):
            candidates = []
            for _, path in beams:
                left = row - sum(quantizer.stages[k].codebook[code].double().numpy() for k, code in enumerate(path))
                errors = np.square(left - quantizer.stages[codebook].codebook.double().numpy()).sum(axis=1)
                candidates += [(error, [*path, code]) for code, error in enumerate(errors.tolist())]
            beams = sorted(candidates, key=lambda candidate: candidate[0])[: quantizer.beam_size]  # a stable sort
        codes.append(beams[0][1])
    return torch.tensor(codes).view(len(latents), -1, num_codebooks).transpose(1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("beam_size", [1, 2, 4, 9])
@pytest.mark.parametrize("size", [6, 128])
def test_beam_search_equals_brute_force(beam_size: int, size: int) -> None:
    quantizer, latents = initialized(size=size), noise(2, DIM, 90, seed=1)
    assert 90 < TILE < 180, "frames of both tiles should be of both items"
    quantizer.beam_size = beam_size
    for num_codebooks in (1, 2, 4):
        assert torch.equal(
            quantizer.encode(latents, num_codebooks), slow_beam_search(quantizer, latents, num_codebooks)
        )


@pytest.mark.slow
@pytest.mark.parametrize("beam_size", [1, 2, 3, 4])
def test_beam_search_with_ties(beam_size: int) -> None:
    """With every entry twice, tied candidates have equal residuals, so the decoded sums do not depend on ties."""
    quantizer, latents = initialized(size=128), noise(1, DIM, 150, seed=1)
    for stage in quantizer.stages:
        stage.codebook[64:] = stage.codebook[:64]
    quantizer.beam_size = beam_size
    codes = quantizer.encode(latents)
    expected = slow_beam_search(quantizer, latents, 4)
    assert torch.equal(quantizer.decode(codes), quantizer.decode(expected))
    if beam_size == 1:
        assert torch.equal(codes, expected)
        assert codes.max() < 64
    frame_by_frame = torch.cat([quantizer.encode(frame) for frame in torch.split(latents, 1, dim=2)], dim=2)
    assert torch.equal(codes, frame_by_frame)


def test_beam_search_of_no_frames() -> None:
    for beam_size in (1, 4):
        quantizer = ResidualVQ(DIM, 3, 128, beam_size=beam_size)
        assert quantizer.encode(noise(2, DIM, 0)).shape == (2, 3, 0)


@pytest.mark.parametrize("width", [5, 48, 64, 100, 512])
@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_lowest_equals_a_sort(width: int, count: int) -> None:
    values = noise(300, width)
    indices = lowest(values, count)
    assert np.array_equal(indices.numpy(), np.argsort(values.numpy(), axis=1)[:, :count])
    tied = (values * 3).round()
    indices = lowest(tied, count)
    assert all(len(set(row)) == count for row in indices.tolist())
    assert np.array_equal(tied.gather(1, indices).numpy(), np.sort(tied.numpy(), axis=1)[:, :count])
    if count == 1:
        assert np.array_equal(indices[:, 0].numpy(), tied.numpy().argmin(axis=1))  # the first of equals
    assert torch.equal(indices, torch.cat([lowest(row, count) for row in torch.split(tied, 1)]))
    assert lowest(values[:0], count).shape == (0, count)


def scaled(quantizer: ResidualVQ) -> ResidualVQ:
    for stage in quantizer.stages:
        stage.codebook.mul_(-0.5)
    return quantizer


def scaled_while_inferring(quantizer: ResidualVQ) -> ResidualVQ:
    with torch.inference_mode():
        return scaled(quantizer)


def loaded(quantizer: ResidualVQ) -> ResidualVQ:
    quantizer.load_state_dict({name: -0.5 * value for name, value in quantizer.state_dict().items()})
    return quantizer


def assigned(quantizer: ResidualVQ) -> ResidualVQ:
    state = {name: value.clone().mul_(-0.5) for name, value in quantizer.state_dict().items()}  # each changed once
    quantizer.load_state_dict(state, assign=True)
    return quantizer


def replaced(quantizer: ResidualVQ) -> ResidualVQ:
    for stage in quantizer.stages:
        stage.codebook.data = -0.5 * stage.codebook
    return quantizer


def codebook_update(quantizer: ResidualVQ) -> ResidualVQ:
    codes_then_update(quantizer, 1 + noise(4, DIM, 100, seed=2))
    return quantizer


def rounded(quantizer: ResidualVQ) -> ResidualVQ:
    return quantizer.half().float()


def copied(quantizer: ResidualVQ) -> ResidualVQ:
    return scaled(copy.deepcopy(quantizer))


def pickled(quantizer: ResidualVQ) -> ResidualVQ:
    other: ResidualVQ = pickle.loads(pickle.dumps(quantizer))
    return scaled(other)


@pytest.mark.slow
@pytest.mark.parametrize("counted", [1, 3])
@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize(
    "change", [scaled, scaled_while_inferring, loaded, assigned, replaced, codebook_update, rounded, copied, pickled]
)
def test_the_distance_table_follows_the_codebooks(
    beam_size: int, counted: int, change: Callable[[ResidualVQ], ResidualVQ]
) -> None:
    quantizer, latents = ResidualVQ(DIM, 4, 8, beam_size=beam_size), noise(2, DIM, 200, seed=1)
    for _ in range(counted):
        quantizer.load_state_dict(initialized().state_dict())
    names, before = list(quantizer.state_dict()), quantizer.encode(latents)
    with torch.inference_mode():
        assert torch.equal(quantizer.encode(latents), before)
    changed = change(quantizer)
    fresh = ResidualVQ(DIM, 4, 8, beam_size=beam_size)
    fresh.load_state_dict(changed.state_dict())
    codes = changed.encode(latents)
    assert torch.equal(codes, fresh.encode(latents))
    assert change is rounded or not torch.equal(codes, before)
    assert list(changed.state_dict()) == names


@pytest.mark.slow
def test_the_distance_table_follows_an_optimizer() -> None:
    quantizer, latents = ResidualVQ(DIM, 3, 8, codebook_update="gradient", beam_size=2), noise(2, DIM, 50)
    before = quantizer.encode(latents)
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=0.5)
    quantizer(latents).codebook.backward()
    optimizer.step()
    fresh = ResidualVQ(DIM, 3, 8, codebook_update="gradient", beam_size=2)
    fresh.load_state_dict(quantizer.state_dict())
    codes = quantizer.encode(latents)
    assert torch.equal(codes, fresh.encode(latents))
    assert not torch.equal(codes, before)


def test_a_quantizer_created_in_inference_mode_encodes() -> None:
    """Torch does not count changes of its codebooks."""
    with torch.inference_mode():
        quantizer, latents = initialized(), noise(2, DIM, 20, seed=1)
        quantizer.encode(latents)
        codes = scaled(quantizer).encode(latents)
    fresh = ResidualVQ(DIM, 4, 8)
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(codes, fresh.encode(latents))


# training


@lookups
def test_training_latents_equal_decoded_latents(distance: Lookup) -> None:
    quantizer, latents = initialized(distance=distance).eval(), noise(3, DIM, 20, seed=1)
    quantized = quantizer(latents)
    assert torch.equal(quantized.codes, quantizer.encode(latents))
    torch.testing.assert_close(quantized.latents, quantizer.decode(quantized.codes))


@lookups
@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_the_straight_through_gradient_is_the_identity(distance: Lookup, num_codebooks: int) -> None:
    latents, gradient = noise(2, DIM, 9).requires_grad_(), noise(2, DIM, 9, seed=1)
    for quantizer in (ResidualVQ(DIM, num_codebooks, 8, distance=distance), VectorQuantizer(DIM, 8, distance=distance)):
        latents.grad = None
        quantizer(latents).latents.backward(gradient)
        assert latents.grad is not None
        assert torch.equal(latents.grad, gradient)


def test_the_commitment_gradient_reaches_every_stage() -> None:
    """The gradient in closed form: residuals summed over the stages.

    Were residuals taken from straight-through outputs, those of stage 1 on would not depend on the latents.
    """
    quantizer, latents = initialized().eval(), noise(2, DIM, 20, seed=1).requires_grad_()
    quantized = quantizer(latents)
    quantized.commitment.backward()
    with torch.no_grad():
        left = [latents - quantizer.decode(quantized.codes[:, : num_codebooks + 1]) for num_codebooks in range(4)]
    expected_loss = torch.stack([rest.square().mean() for rest in left]).sum()
    torch.testing.assert_close(quantized.commitment, expected_loss)
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, torch.stack(left).sum(dim=0) * 2 / latents.numel())


def test_the_codebook_loss_trains_every_stage() -> None:
    """Closed form for one entry: 2 (count entry - sum of rows) / numbers; nothing flows back to the latents."""
    torch.manual_seed(0)
    quantizer = ResidualVQ(DIM, 3, 5, codebook_update="gradient")
    latents = noise(2, DIM, 20, seed=1).requires_grad_()
    quantized = quantizer(latents)
    torch.testing.assert_close(quantized.codebook, quantized.commitment)  # the same distance
    quantized.commitment.backward()
    assert all(parameter.grad is None for parameter in quantizer.parameters())
    latents.grad = None
    quantized.codebook.backward()
    assert latents.grad is None or not latents.grad.any()
    left = rows_of(latents.detach())
    for codebook, stage in enumerate(quantizer.stages):
        chosen = F.one_hot(quantized.codes[:, codebook].flatten(), 5).float()  # [rows, entries]
        expected = 2 * (chosen.sum(dim=0)[:, None] * stage.codebook - chosen.T @ left) / left.numel()
        assert stage.codebook.grad is not None
        torch.testing.assert_close(stage.codebook.grad, expected)
        left = left - chosen @ stage.codebook.detach()


@lookups
def test_projections_of_every_stage_get_gradients(distance: Lookup) -> None:
    quantizer, latents = initialized(distance=distance, codebook_dim=2), noise(2, DIM, 20, seed=1)
    for loss in ("commitment", "latents"):
        quantizer.zero_grad()
        getattr(quantizer(latents), loss).square().mean().backward()
        for stage in quantizer.stages:
            assert isinstance(stage.project_in.weight, Tensor)
            assert stage.project_in.weight.grad is not None
            assert stage.project_in.weight.grad.abs().max() > 1e-6


@lookups
def test_ema_updates_equal_the_paper(distance: Lookup) -> None:
    """van den Oord et al. 2017, appendix A.1, with its two tables: counts and sums."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(DIM, 6, distance=distance, decay=0.9, dead_code_threshold=0.0)
    counts, sums = np.ones(6), quantizer.codebook.double().numpy().copy()
    for step in range(20):
        latents = noise(2, DIM, 10, seed=step)
        rows = rows_of(latents).double().numpy()
        if distance == "cosine":
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        codes = codes_then_update(quantizer, latents).flatten().numpy()
        for entry in range(6):
            counts[entry] = 0.9 * counts[entry] + 0.1 * (codes == entry).sum()
            sums[entry] = 0.9 * sums[entry] + 0.1 * rows[codes == entry].sum(axis=0)
    np.testing.assert_allclose(quantizer.cluster_size.numpy(), counts, rtol=1e-4)
    np.testing.assert_allclose(quantizer.codebook.numpy(), sums / counts[:, None], rtol=1e-4, atol=1e-5)


def test_forward_does_not_change_the_codebooks() -> None:
    quantizer = initialized()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(noise(2, DIM, 20))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_a_collapsed_codebook_recovers() -> None:
    torch.manual_seed(0)
    latents = noise(4, DIM, 100)
    quantizer = VectorQuantizer(DIM, 16, decay=0.8)
    quantizer.codebook.fill_(50.0)
    quantizer.codebook[0] = 0
    assert set(codes_then_update(quantizer, latents).flatten().tolist()) == {0}
    before = squares(quantizer.decode(quantizer.encode(latents)), latents)
    for _ in range(60):
        codes_then_update(quantizer, latents)
    codes = quantizer.encode(latents)
    share = torch.bincount(codes.flatten(), minlength=16) / codes.numel()
    assert share.min() > 0.1 / 16
    assert squares(quantizer.decode(codes), latents) < 0.5 * before


def test_dead_code_is_replaced_with_its_statistics() -> None:
    quantizer = VectorQuantizer(DIM, 4, decay=0.9)
    quantizer.codebook.copy_(torch.tensor([0.0, 9.0, 20.0, 30.0])[:, None].expand(4, DIM))
    quantizer.cluster_size.copy_(torch.tensor([10.0, 10.0, 0.1, 0.1]))
    latents = noise(1, DIM, 20) * 0.1
    codes_then_update(quantizer, latents)
    assert quantizer.codebook[1].tolist() == pytest.approx([9.0] * DIM)  # alive though unused this time
    for entry in (2, 3):
        assert (rows_of(latents) == quantizer.codebook[entry]).all(dim=1).any()
        cluster_size = [0.9 * 10 + 0.1 * 20, 0.9 * 10, 0.09, 0.09]
        assert quantizer.cluster_size[entry].item() == pytest.approx(sum(cluster_size) / 4)
    again = quantizer.codebook.clone()
    codes_then_update(quantizer, latents + 9)  # all choose entry 1; the restarted ones are given time
    torch.testing.assert_close(quantizer.codebook[2:], again[2:])


def test_dead_codes_are_replaced_by_different_rows() -> None:
    assert random_rows(40, 40).sort().values.tolist() == list(range(40))
    assert len(set(random_rows(40, 7).tolist())) == 7
    assert torch.bincount(random_rows(3, 8), minlength=3).sort().values.tolist() == [2, 3, 3]
    quantizer = VectorQuantizer(DIM, 16)
    quantizer.cluster_size[:15] = 0.0
    quantizer.codebook[:15] = 50.0
    latents = noise(1, DIM, 15)
    codes_then_update(quantizer, latents)
    rows = {tuple(row) for row in rows_of(latents).tolist()}
    assert {tuple(entry) for entry in quantizer.codebook[:15].tolist()} == rows


def test_updates_from_parts_equal_the_update_from_the_batch() -> None:
    whole, parted, latents = initialized(), initialized(), noise(4, DIM, 20, seed=1)
    num_codebooks = torch.tensor([4, 1, 2, 3])
    for quantizer in (whole, parted):
        quantizer.stages[1].cluster_size[2:5] = 0.0  # dead, so that rows are drawn
    torch.manual_seed(5)
    codes_then_update(whole, latents, num_codebooks)
    torch.manual_seed(5)
    parted.update_codebook([parted(latents[:3], num_codebooks[:3]), parted(latents[3:], num_codebooks[3:])])
    for (name, ours), theirs in zip(whole.state_dict().items(), parted.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


# k-means


def slow_lloyd(rows: np.ndarray, entries: np.ndarray, iterations: int) -> np.ndarray:
    for _ in range(iterations):
        nearest = [int(np.argmin([np.sum((row - entry) ** 2) for entry in entries])) for row in rows]
        assert set(nearest) == set(range(len(entries))), "choose another seed"
        entries = np.stack(
            [np.mean([row for row, n in zip(rows, nearest, strict=True) if n == k], axis=0) for k in set(nearest)]
        )
    return entries


def test_initialization_equals_lloyds_algorithm() -> None:
    latents = noise(2, 2, 20)
    rows = rows_of(latents)
    torch.manual_seed(3)
    picked = torch.randperm(40)[:5]
    quantizer = VectorQuantizer(2, 5)
    torch.manual_seed(3)
    quantizer.init_from_data(latents, iterations=4)
    expected = slow_lloyd(rows.double().numpy(), rows[picked].double().numpy(), iterations=4)
    np.testing.assert_allclose(quantizer.codebook.numpy(), expected, rtol=1e-5, atol=1e-5)


@lookups
def test_initialization_beats_random_entries(distance: Lookup) -> None:
    torch.manual_seed(0)
    latents = noise(4, DIM, 100)
    if distance == "cosine":
        latents = F.normalize(latents, dim=1)
    quantizer = VectorQuantizer(DIM, 16, distance=distance)
    quantizer.codebook.copy_(rows_of(latents)[:16])
    random = squares(quantizer.decode(quantizer.encode(latents)), latents)
    quantizer.init_from_data(latents)
    assert squares(quantizer.decode(quantizer.encode(latents)), latents) < 0.85 * random


def test_initialization_from_fewer_frames_than_entries() -> None:
    quantizer, latents = VectorQuantizer(DIM, 16), noise(1, DIM, 5)
    quantizer.init_from_data(latents)
    assert torch.equal(quantizer.decode(quantizer.encode(latents)), latents)


def test_initialization_leaves_no_entry_without_data() -> None:
    """Equal frames are sampled twice, and only one of two equal entries is chosen."""
    torch.manual_seed(0)
    latents = (10 + noise(1, DIM, 10)).repeat(1, 1, 10)
    quantizer = VectorQuantizer(DIM, 10)
    quantizer.init_from_data(latents)
    assert (quantizer.codebook > 5).all()


# quantizer dropout


@pytest.mark.parametrize("codebook_dim", [None, 2])
def test_an_item_with_fewer_codebooks_decodes_its_codes(codebook_dim: int | None) -> None:
    quantizer, latents = initialized(codebook_dim=codebook_dim).eval(), noise(4, DIM, 20, seed=1)
    quantized = quantizer(latents, torch.tensor([1, 2, 3, 4]))
    for item in range(4):
        codes = quantized.codes[item : item + 1]
        assert torch.equal(codes[:, : item + 1], quantizer.encode(latents[item : item + 1], item + 1))
        assert (codes[:, item + 1 :] == -1).all()
        torch.testing.assert_close(quantized.latents[item], quantizer.decode(codes[:, : item + 1])[0])


def test_unused_codebooks_add_no_loss() -> None:
    """Commitment in closed form: squared residuals of all used codebooks, divided by the size of the batch."""
    quantizer, latents = initialized().eval(), noise(4, DIM, 20, seed=1)
    quantized = quantizer(latents, torch.tensor([1, 2, 3, 4]))
    left = [
        latents[item] - quantizer.decode(quantized.codes[item : item + 1, :num_codebooks])[0]
        for item in range(4)
        for num_codebooks in range(1, item + 2)
    ]
    torch.testing.assert_close(quantized.commitment, torch.stack(left).square().sum() / latents.numel())


def test_unused_codebooks_are_not_updated_by_an_item() -> None:
    latents = noise(2, DIM, 20, seed=1)
    both, first = initialized(), initialized()
    codes_then_update(both, latents, torch.tensor([4, 2]))
    codes_then_update(first, latents[:1], torch.tensor([4]))
    for codebook in (2, 3):  # used by the first item only
        torch.testing.assert_close(both.stages[codebook].cluster_size, first.stages[codebook].cluster_size)
        torch.testing.assert_close(both.stages[codebook].codebook, first.stages[codebook].codebook)
    assert not torch.allclose(both.stages[1].cluster_size, first.stages[1].cluster_size)
    before = {name: value.clone() for name, value in both.stages[3].state_dict().items()}
    codes_then_update(both, latents, torch.tensor([3, 1]))  # used by none
    assert all(torch.equal(before[name], value) for name, value in both.stages[3].state_dict().items())


# precision


@pytest.mark.parametrize(
    "quantizer",
    [
        initialized(),
        initialized(distance="cosine"),
        initialized(codebook_dim=2),
        VectorQuantizer(DIM, 200),
        Mixture(DIM, 200),
        FSQ([9] * 4),
    ],
    ids=["residual", "cosine", "projected", "vector", "mixture", "scalar"],
)
def test_codebooks_are_float32_under_autocast(quantizer: Quantizer) -> None:
    latents = noise(2, DIM, 200, seed=1)
    quantizer.eval()
    exact = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(latents)
        assert torch.equal(quantizer.encode(latents), exact.codes)
    assert len(quantized.stage_inputs) == len(exact.stage_inputs)
    for mixed, full in zip([*quantized[:4], *quantized.stage_inputs], [*exact[:4], *exact.stage_inputs], strict=True):
        assert mixed.dtype == full.dtype
        assert torch.equal(mixed, full)
    with torch.autocast("cpu", torch.bfloat16):
        codes_then_update(quantizer, latents.bfloat16())
    assert all(tensor.dtype == torch.float32 for tensor in quantizer.state_dict().values())
