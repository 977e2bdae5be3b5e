import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sarface_env.partitions import make_partition
from sarface_env.region_dropout import RegionDropout
from tests.toys import toy_faces

NAMES = ["sarface24", "celeba19", "grid3x4", "sarface24xgrid4x5", "celeba19xgrid2x3"]

label_maps = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9),
    # Few classes at a time make faces without skin and one-pixel regions common.
    elements=st.sampled_from([0, 1, 2, 11, 12, 13, 14, 17, 18]) | st.integers(0, 18),
)


def sarface24_by_hand(labels: np.ndarray) -> np.ndarray:
    """The 24 regions, one pixel at a time, from the written definition."""
    simple = {2: 0, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5, 8: 6, 9: 7, 10: 8, 11: 8, 12: 8}
    simple |= {14: 9, 15: 10, 16: 11, 17: 12, 18: 13}
    out = np.zeros_like(labels)
    for i, face in enumerate(labels):
        height, width = face.shape
        skin = [(y, x) for y in range(height) for x in range(width) if face[y, x] == 1]
        # Twice the sums over twice the counts: exact for the centre of an empty face as well.
        if skin:
            cy = sum(y for y, _ in skin), len(skin)
            cx = sum(x for _, x in skin), len(skin)
        else:
            cy, cx = (height - 1, 2), (width - 1, 2)
        for y in range(height):
            for x in range(width):
                low, right = y * cy[1] >= cy[0], x * cx[1] >= cx[0]
                c = int(face[y, x])
                if c == 0:
                    out[i, y, x] = 14 + 2 * low + right
                elif c == 1:
                    out[i, y, x] = 18 + 2 * low + right
                elif c == 13:
                    out[i, y, x] = 22 + right
                else:
                    out[i, y, x] = simple[c]
    return out


@settings(max_examples=200, deadline=None)
@given(label_maps)
def test_sarface24_equals_the_written_definition(labels):
    regions = make_partition("sarface24")(torch.from_numpy(labels)).numpy()
    np.testing.assert_array_equal(regions, sarface24_by_hand(labels))


@settings(max_examples=50, deadline=None)
@given(label_maps, st.sampled_from(NAMES))
def test_regions_tile_the_image(labels, name):
    partition = make_partition(name)
    regions = partition(torch.from_numpy(labels))
    pixels = partition.presence(regions)
    assert regions.shape == labels.shape
    assert regions.dtype == torch.uint8
    assert pixels.sum(1).tolist() == [labels[0].size] * len(labels)
    for face, counts in zip(regions, pixels, strict=True):
        for region in range(len(partition.names)):
            assert counts[region] == (face == region).sum()


def test_the_pixel_on_the_cut_belongs_below_and_right():
    # A 3x3 face of skin: its centroid is the middle pixel, which the published code loses.
    regions = make_partition("sarface24")(torch.ones((1, 3, 3), dtype=torch.uint8))[0]
    assert regions.tolist() == [[18, 19, 19], [20, 21, 21], [20, 21, 21]]


def test_grid_cells_have_almost_equal_sizes_and_ignore_labels():
    grid = make_partition("grid2x3")
    a = grid(torch.zeros((1, 4, 7), dtype=torch.uint8))
    b = grid(torch.full((1, 4, 7), 18, dtype=torch.uint8))
    assert torch.equal(a, b)
    assert a[0, 0].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert a[0, :, 0].tolist() == [0, 0, 3, 3]


@settings(max_examples=50, deadline=None)
@given(label_maps, st.sampled_from([("sarface24", "grid4x5"), ("celeba19", "grid2x3")]))
def test_a_crossed_partition_is_the_intersection(labels, pair):
    """Pixel by pixel: two pixels share a region when they share part and, if selectable, cell."""
    labels = torch.from_numpy(labels)
    parts, grid = map(make_partition, pair)
    crossed = make_partition("x".join(pair))
    found = zip(
        *(p(labels).flatten().tolist() for p in (parts, grid, crossed)),
        strict=True,
    )
    for part, cell, region in found:
        name = parts.names[part]
        assert (region in crossed.selectable) == (part in parts.selectable)
        if part in parts.selectable:
            name += "_" + grid.names[cell]
        assert crossed.names[region] == name


@pytest.mark.parametrize("name", NAMES)
def test_every_region_has_a_name_and_bits_map_to_regions(name):
    partition = make_partition(name)
    assert len(set(partition.names)) == len(partition.names)
    assert make_partition(partition.name).names == partition.names
    masks = torch.zeros((1, len(partition.selectable)))
    masks[0, 1] = 1
    kept = partition.region_bits(masks)[0]
    selectable = set(partition.selectable)
    for region in range(len(partition.names)):
        assert kept[region] == (region not in selectable or region == partition.selectable[1])


@pytest.mark.parametrize("name", ["sarface24", "celeba19", "grid4x8", "grid3x11", "grid16x16"])
def test_pixels_kept_are_those_of_kept_regions(name):
    partition = make_partition(name)
    regions = partition(toy_faces(n=6, size=33).parsing)
    masks = torch.rand(6, len(partition.selectable), generator=torch.Generator().manual_seed(1))
    kept = partition.keep_pixels(regions, masks < 0.5)
    bits = partition.region_bits(masks < 0.5)
    for face in range(6):
        expected = bits[face].numpy()[regions[face].numpy()]
        np.testing.assert_array_equal(kept[face].numpy(), expected)
    keep = partition.keep_bytes(regions, masks.numpy() < 0.5)
    assert torch.equal(keep, kept * torch.tensor(255).byte())


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match=r"unknown partition 'nope'.*sarface24, celeba19.*grid"):
        make_partition("nope")
    with pytest.raises(ValueError, match="1 to 256 cells"):
        make_partition("grid20x20")
    with pytest.raises(ValueError, match=r"312 regions, 256 are possible: .* at most 20 cells"):
        make_partition("sarface24xgrid5x5")
    partition = make_partition("sarface24")
    with pytest.raises(ValueError, match=r"uint8 \(N, H, W\).*float32 \(3, 3\)"):
        partition(torch.zeros((3, 3)))
    with pytest.raises(ValueError, match="classes 0 to 18, found 19"):
        partition(torch.full((1, 2, 2), 19, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"no selectable region nose.*there are neck, cloth"):
        partition.bits_by_name(["nose", "neck"])


def test_region_dropout_drops_whole_selectable_regions_of_the_chosen_faces():
    faces = toy_faces(n=2000)
    partition = make_partition("sarface24")
    dropout = RegionDropout(partition, probability=0.6, mean_colour=(1, 2, 3), most=0.5)
    uniform = torch.rand(2000, dropout.columns, generator=torch.Generator().manual_seed(0))
    out = dropout(faces.images, faces.parsing, uniform)
    dropped = (out != faces.images).any(1)
    filled = out.permute(0, 2, 3, 1)[dropped]
    assert (filled == torch.tensor([1, 2, 3])).all()
    regions = partition(faces.parsing)
    present = partition.presence(regions) > 0
    gone = torch.stack([(dropped & (regions == r)).flatten(1).any(1) for r in range(24)], 1)
    assert not gone[:, :12].any()
    # A region of a chosen face goes with probability 1/4 on average: 0.6 / 4 of all.
    rate = gone[:, 12:][present[:, 12:]].float().mean().item()
    assert rate == pytest.approx(0.15, abs=0.01)
    # Of a face's regions, all pixels go or none. (A filled pixel may equal the colour by chance.)
    for r in range(12, 24):
        share = (dropped & (regions == r)).flatten(1).sum(1) / partition.presence(regions)[:, r]
        assert ((share == 0) | (share > 0.9))[present[:, r]].all()
