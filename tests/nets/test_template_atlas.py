"""What is learnt of directions at each place of the template."""

import torch
from torch.nn import functional as F

from bids_dmrigen.dwi.harmonics import harmonics
from bids_dmrigen.nets.template_atlas import LOW_MM, SCALE, SPACING_MM, TemplateAtlas, _read, _ReadInOrder


def places_of(points):
    return torch.tensor(points).T[None, :, :, None]  # (1, 3, P, 1)


def test_it_interpolates_the_harmonics_at_a_position_and_grows_with_b():
    net = TemplateAtlas()
    shape = net.maps.shape[1:]
    index = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in shape), indexing="ij"))
    with torch.no_grad():
        net.maps[1] = (index[0] + 2 * index[1] - 3 * index[2]) / SCALE  # of degree 2
        net.maps[9] = index[2] / SCALE  # of degree 4
        net.growth.copy_(torch.tensor([[0.5, 0.1], [0.0, 0.4]]))
    points = [[0.0, 10.0, 20.0], [-31.0, 5.5, -12.0]]
    g = F.normalize(torch.tensor([[0.3, -0.5, 0.8]]), dim=1)
    image, strength = net(places_of(points), g, torch.tensor([2000.0])).unbind(1)
    at = (torch.tensor(points) - torch.tensor(LOW_MM)) / SPACING_MM
    basis = harmonics(g, 4)[0, 1:]
    second = (0.5 * 2 + 0.1 * 4) * (at[:, 0] + 2 * at[:, 1] - 3 * at[:, 2])
    fourth = 0.4 * 4 * at[:, 2]
    torch.testing.assert_close(image[0, :, 0], second * basis[1] + fourth * basis[9], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(strength[0, :, 0], (second**2 + fourth**2).sqrt(), rtol=1e-4, atol=1e-3)


def test_each_image_is_interpolated_at_its_positions_and_is_zero_outside():
    torch.manual_seed(0)
    net = TemplateAtlas()
    torch.nn.init.normal_(net.maps)
    places = 40 * torch.randn(3, 3, 5, 4)
    places[2] = 500.0
    g, b = F.normalize(torch.randn(3, 3), dim=1), torch.tensor([700.0, 1000, 3000])
    whole = net(places, g, b)
    for k in range(3):
        torch.testing.assert_close(whole[k : k + 1], net(places[k : k + 1], g[k : k + 1], b[k : k + 1]))
    assert not whole[2, 0].any()
    torch.testing.assert_close(whole, net(places, -g, b))


def test_it_is_zero_at_the_start_and_can_learn():
    net = TemplateAtlas()
    places, g, b = 30 * torch.randn(2, 3, 4, 4), F.normalize(torch.randn(2, 3), dim=1), torch.tensor([1000.0, 2000])
    image = net(places, g, b)[:, 0]
    assert not image.any()
    (image - 1).square().sum().backward()
    assert net.maps.grad.abs().sum() > 0


def test_the_way_back_in_order_is_that_of_grid_sample():
    """Points within, between the outermost voxels and outside, and outside altogether."""
    torch.manual_seed(0)
    grid = 2 * (2 * torch.rand(5, 40, 3, dtype=torch.float64) - 1)
    upstream = torch.randn(3, 5, 40, dtype=torch.float64)
    gradients = []
    for read in (_read, _ReadInOrder.apply):
        maps = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        images = read(maps.requires_grad_(), grid)
        images.backward(upstream)
        gradients.append((images.detach(), maps.grad))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert (gradients[0][0] == 0).all(dim=0).any(), "some points are outside"
