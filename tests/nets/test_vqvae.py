"""The autoencoder: shapes, the nearest code, gradients straight through, codes that follow what they stand for."""

import pytest
import torch

from bids_dmrigen.nets.vqvae import COMMITMENT, FOLLOW, VQVAE, Codebook, VQVAESpec

TINY = VQVAESpec(widths=(8, 8), blocks=1, codes=16, code_width=4)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_encoding_and_decoding_keep_the_shape():
    net, volumes = VQVAE(TINY), torch.randn(2, 1, 8, 12, 16)
    assert net.encode(volumes).shape == (2, 4, 2, 3, 4)
    found, loss = net(volumes)
    assert found.shape == volumes.shape
    assert loss.ndim == 0
    with pytest.raises(ValueError, match="must divide by 4"):
        net.encode(torch.randn(1, 1, 8, 8, 6))


def test_latents_become_the_nearest_codes_and_gradients_pass():
    book = Codebook(8, 3).eval()
    book.codes.normal_()
    latents = torch.randn(2, 3, 2, 2, 2, requires_grad=True)
    found = book(latents)
    vectors = latents.detach().movedim(1, -1).reshape(-1, 3)
    nearest = torch.cdist(vectors, book.codes).argmin(dim=1)
    assert torch.equal(found.indices.flatten(), nearest)
    torch.testing.assert_close(found.codes.detach().movedim(1, -1).reshape(-1, 3), book.codes[nearest])
    torch.testing.assert_close(found.loss, COMMITMENT * (vectors - book.codes[nearest]).square().mean())
    (found.codes * torch.arange(3.0)[:, None, None, None]).sum().backward()
    torch.testing.assert_close(latents.grad, torch.arange(3.0)[:, None, None, None].expand_as(latents))


def test_codebook_is_monais():
    from monai.networks.layers.vector_quantizer import EMAQuantizer

    ours, theirs = Codebook(8, 3), EMAQuantizer(3, 8, 3, commitment_cost=COMMITMENT, decay=FOLLOW)
    codes, counts = torch.randn(8, 3), torch.full((8,), 20.0)
    with torch.no_grad():
        for parameter, other, value in (
            (ours.codes, theirs.embedding.weight, codes),
            (ours.counts, theirs.ema_cluster_size, counts),
            (ours.sums, theirs.ema_w, codes * counts[:, None]),
        ):
            parameter.copy_(value)
            other.copy_(value)
    latents = torch.randn(2, 3, 4, 4, 4)
    found, (wanted, loss, indices) = ours.eval()(latents), theirs.eval()(latents)
    torch.testing.assert_close(found.codes, wanted)
    torch.testing.assert_close(found.loss, loss)
    assert torch.equal(found.indices, indices)
    for book in (ours.train(), theirs.train()):
        book(latents)
    assert (ours.codes - codes).abs().max() > 1e-3
    torch.testing.assert_close(ours.codes, theirs.embedding.weight, atol=1e-5, rtol=1e-5)


def test_codes_come_to_the_centres_of_clusters_and_none_is_left_idle():
    centres = torch.tensor([[3.0, 0], [0, 3], [-3, 0], [0, -3]])
    book = Codebook(8, 2)
    for _ in range(600):
        samples = centres.repeat(50, 1) + 0.1 * torch.randn(200, 2)
        book(samples.T.reshape(1, 2, 200, 1, 1))
    distance = torch.cdist(centres, book.codes)
    assert (distance.min(dim=1).values < 0.2).all()
    assert (distance.min(dim=0).values < 0.5).all()


def test_codes_stay_as_they_are_but_in_training():
    book = Codebook(8, 3)
    latents = torch.randn(1, 3, 4, 4, 4)
    for use in (lambda: book.eval()(latents), lambda: torch.no_grad()(book.train())(latents)):
        use()
        assert not book.codes.any()
    book(latents)
    assert book.codes.any()


def test_it_learns_a_volume_in_a_few_steps():
    net, volume = VQVAE(VQVAESpec(widths=(16,), blocks=1, codes=64, code_width=8)), torch.zeros(1, 1, 16, 16, 8)
    volume[:, :, 4:12, 4:12, 2:6] = 1
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(150):
        found, quantisation = net(volume)
        optimiser.zero_grad()
        ((found - volume).abs().mean() + quantisation).backward()
        optimiser.step()
    assert (net.eval()(volume)[0] - volume).abs().mean() < 0.02


def test_all_parameters_learn():
    net = VQVAE(TINY)
    found, loss = net(torch.randn(1, 1, 8, 8, 8))
    (found.square().mean() + loss).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
