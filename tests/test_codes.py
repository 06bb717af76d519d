"A sound as a grid of codes: what goes in comes out, what is no codes file is refused with a reason, a model reads only its own."
import errno, os, subprocess, sys, zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from distill import audio, codes
from distill.codes import (CodeGrid, CodesError, Region, band_edges, check_codes, column_edges, count_grids, decode, encode, load_codes,
                           reconstruct, save_codes, show_codes)
from distill.model import LoadedVQModel, load_model
from distill.pipeline import decode_to_mel, encode_waveform
from distill.spectrogram import AudioSpectrogram, SpectrogramConfig
from distill.vqvae import ConvVQVAE, VQVAEConfig


def make_model(seed=0, sound=SpectrogramConfig(), **changes):
    "An untrained model whose codebooks were filled by one batch of noise"
    cfg = VQVAEConfig(**{**dict(codebook_size=16, n_quantizers=3, channels=(8, 8, 8, 8)), **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ConvVQVAE(cfg)
        model(torch.randn(4, 1, sound.n_mels, 96))
    return LoadedVQModel(model.eval(), None, AudioSpectrogram(sound), torch.device('cpu'), sound, cfg, None)


@pytest.fixture(scope='module')
def loaded(): return make_model()


@pytest.fixture
def grid(loaded): return encode(loaded, noise(30_000))


def noise(n, seed=0): return 0.3*torch.randn(n, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)


def grids(max_code=4095):
    "Any grid of codes"
    shape = st.tuples(st.integers(1, 8), st.integers(1, 5), st.integers(1, 4))
    codes = shape.flatmap(lambda s: st.lists(st.integers(0, max_code), min_size=s[0]*s[1]*s[2], max_size=s[0]*s[1]*s[2])
                          .map(lambda x: torch.tensor(x).reshape(s)))
    return st.builds(CodeGrid, codes, st.integers(1, 2**40), st.integers(1, 400_000), st.text('0123456789abcdef', max_size=16))


# --- a value
@given(grids())
@settings(max_examples=40, deadline=None)
def test_a_grid_is_a_value(grid):
    same = replace(grid)
    assert same == grid and hash(same) == hash(grid) and same is not grid
    assert replace(grid, n_samples=grid.n_samples + 1) != grid
    assert replace(grid, model_fingerprint='other') != grid
    changed = grid.codes.clone()
    changed[-1, -1, -1] += 1
    assert replace(grid, codes=changed) != grid
    assert grid != 'something else'


def test_a_grid_shares_no_memory(grid):
    given = grid.codes.clone()
    made, before = replace(grid, codes=given), grid.codes.clone()
    given += 1
    assert torch.equal(made.codes, before)


@pytest.mark.parametrize('kind', [np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.int64, 'list', torch.int16])
def test_any_whole_numbers_will_do(grid, kind):
    codes = grid.codes.tolist() if kind == 'list' else grid.codes.to(kind) if isinstance(kind, torch.dtype) else \
        grid.codes.numpy().astype(kind)
    made = replace(grid, codes=codes)
    assert made == grid and made.codes.dtype == torch.long


@pytest.mark.parametrize('change, words', [
    (dict(codes=torch.zeros(2, 2)), 'bands, columns, levels'), (dict(codes=torch.zeros(1, 2, 2, 2).long()), 'bands, columns'),
    (dict(codes=torch.zeros(0, 2, 2).long()), 'none of them 0'), (dict(codes=torch.zeros(2, 2, 2)), 'whole numbers'),
    (dict(codes=torch.zeros(2, 2, 2, dtype=torch.bool)), 'whole numbers'), (dict(codes=[[['a']]]), 'no codes'),
    (dict(codes=None), 'no codes'), (dict(codes=torch.full((2, 2, 2), -1)), 'code -1'), (dict(n_samples=0), 'n_samples=0'),
    (dict(n_samples=1.5), 'n_samples=1.5'), (dict(hop_length=0), 'hop_length=0'), (dict(n_samples=True), 'n_samples=True'), (dict(sample_rate=-1), 'sample_rate=-1')])
def test_what_is_no_grid_is_refused(grid, change, words):
    with pytest.raises(CodesError, match=words): replace(grid, **change)


def test_the_words_for_its_size(grid):
    assert (grid.bands, grid.columns, grid.levels) == (8, 4, 3)
    assert grid.seconds == 30_000/48_000
    assert grid.model_fingerprint in repr(grid) and '4 columns' in repr(grid) and len(repr(grid)) < 120


# --- sound to codes and back
@pytest.mark.parametrize('n', [1, 2, 511, 512, 513, 8_191, 8_192, 8_193, 16_384, 48_000, 100_001])
def test_the_length_is_exact(loaded, n):
    grid = encode(loaded, noise(n))
    assert grid.n_samples == n and grid.codes.shape == (8, -(-(1 + n//512)//16), 3)
    assert reconstruct(loaded, noise(n)).shape == (n,)


def test_reconstruct_is_encode_then_decode(loaded):
    wav = noise(20_000)
    assert torch.equal(reconstruct(loaded, wav), decode(loaded, encode(loaded, wav)))
    assert torch.equal(encode(loaded, wav.double()).codes, encode(loaded, wav.numpy()).codes)


def test_codes_are_at_least_as_good_as_the_nearest(loaded):
    "`encode` listens: what it gives decodes to a spectrogram no further away than the nearest codes do"
    wav = noise(20_000)
    mel = loaded.spectrogram.waveform_to_mel(wav)
    out = loaded.model(mel[None, None])
    error = lambda codes: (decode_to_mel(loaded, codes, mel.shape[1]) - mel).abs().mean()
    nearest = out.indices[0].unflatten(0, loaded.model.latent_shape(mel.shape))
    assert torch.equal(encode_waveform(loaded, wav, steps=0), nearest)
    assert error(encode(loaded, wav).codes) < error(nearest)


def test_decoded_sound_never_clips(loaded, grid, monkeypatch):
    "Too loud is turned down as a whole; anything else is left as it is"
    loud, quiet = 4*noise(30_000), 0.1*noise(30_000)
    monkeypatch.setattr(codes, 'decode_codes', lambda loaded, codes, n_samples: loud)
    wav = decode(loaded, grid)
    assert 0.94 < wav.abs().max() <= 0.951 and torch.allclose(wav/wav.abs().max(), loud/loud.abs().max())
    monkeypatch.setattr(codes, 'decode_codes', lambda loaded, codes, n_samples: quiet)
    assert torch.equal(decode(loaded, grid), quiet)


def test_a_grid_of_whole_columns_decodes(loaded, grid):
    "As edits make them: all of the columns' samples"
    longest = grid.columns*16*512
    assert len(decode(loaded, replace(grid, n_samples=longest))) == longest
    with pytest.raises(CodesError, match='at most'): decode(loaded, replace(grid, n_samples=longest + 1))


@pytest.mark.parametrize('wav, words', [
    (torch.zeros(2, 100), r'\(2, 100\)'), (torch.zeros(0), r'\(0,\)'), (torch.zeros(100).short(), 'int16'),
    (torch.tensor(0.5), r'\(\)'), (torch.tensor([0., float('nan')]), 'not numbers'), (torch.tensor([0., float('inf')]), 'not numbers')])
def test_what_is_no_waveform_is_refused(loaded, wav, words):
    for f in encode, reconstruct:
        with pytest.raises(CodesError, match=words): f(loaded, wav)


def test_another_models_codes_are_refused(loaded, grid, tmp_path):
    other = make_model(seed=1)
    with pytest.raises(CodesError, match=f'another model.*{loaded.fingerprint}.*{other.fingerprint}'): decode(other, grid)
    again = load_model(loaded.save(tmp_path/'a.distill'), 'cpu')        # the same model from a file is the same model
    assert torch.equal(decode(again, grid), decode(loaded, grid))


@pytest.mark.parametrize('change, words', [
    (lambda g: dict(codes=g.codes[..., :2]), '2 levels of codes: this model has 3'),
    (lambda g: dict(codes=g.codes[:7]), '7 bands of codes: this model has 8'),
    (lambda g: dict(codes=torch.full_like(g.codes, 16)), 'code 16 is out of range: this model has 0 to 15'),
    (lambda g: dict(sample_rate=44_100), '44100 samples per second: this model makes 48000'),
    (lambda g: dict(hop_length=256), '256 samples per frame: this model has 512'),
    (lambda g: dict(codes=g.codes[:, :3]), '3 columns hold at most 24576'),
    (lambda g: dict(model_fingerprint=''), 'another model')])
def test_codes_that_do_not_fit_the_model_are_refused(loaded, grid, change, words):
    check_codes(loaded, grid)
    with pytest.raises(CodesError, match=words): decode(loaded, replace(grid, **change(grid)))


def test_other_spectrograms():
    loaded = make_model(sound=SpectrogramConfig(sample_rate=22_050, n_fft=1024, hop_length=256, n_mels=64))
    grid = encode(loaded, noise(9_000))
    assert grid.codes.shape == (4, 3, 3) and grid.sample_rate == 22_050 and len(decode(loaded, grid)) == 9_000


@pytest.mark.parametrize('given, words', [(torch.zeros(8, 3, 1).long(), 'expected (8, 4)'), (torch.zeros(8, 4, 4).long(), 'at most 3 levels'), (torch.zeros(32, 1).long(), 'expected (8, 4)'),
                                          (torch.full((8, 4, 1), 16), '16 to 16')])
def test_given_codes_that_cannot_be(loaded, given, words):
    with pytest.raises(CodesError, match=words.replace('(', r'\(').replace(')', r'\)')): encode(loaded, noise(30_000), given)


# --- cells by name
@st.composite
def edits(draw, sounds=1):
    "Grids of one model, of different lengths, a region of the first and a seed"
    h, q, k = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    made = []
    for _ in range(sounds):
        w = draw(st.integers(1, 9))
        made.append(CodeGrid(torch.randint(k, (h, w, q), generator=rng), w*8192 - draw(st.integers(0, 8191)), 48_000, 'f'))
    region = Region(torch.rand(made[0].codes.shape, generator=rng) < draw(st.sampled_from([0., 0.2, 0.7, 1.])))
    return (*made, region, draw(st.integers(0, 99)))


def only(before, after, region):
    "Nothing but cells of the region has changed, nor has anything else about the grid"
    assert replace(after, codes=before.codes) == before
    assert not ((before.codes != after.codes) & ~region.mask).any()


@given(edits())
@settings(max_examples=60, deadline=None)
def test_sets_of_cells(edit):
    grid, a, seed = edit
    b = Region(torch.rand(grid.codes.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)
    everything = grid.select()
    assert ~~a == a and a | ~a == everything and len(a & ~a) == 0 and a - b == a & ~b and ~(a | b) == ~a & ~b
    assert len(a | b) == len(a) + len(b) - len(a & b) and hash(Region(a.mask)) == hash(a)
    assert a.mask.any(2).any(0).nonzero().flatten().tolist() == [w for w in a.columns if a.mask[:, w].any()]
    assert grid.select(mask=a.mask) == a and a != grid


@given(st.integers(1, 40), st.sampled_from([(48_000, 512), (22_050, 256), (44_100, 1024)]), st.data())
@settings(max_examples=60, deadline=None)
def test_a_range_selects_what_it_touches(w, rate, data):
    grid = CodeGrid(torch.zeros(8, w, 2).long(), 1, rate[0], 'f', rate[1])
    edges, bands = column_edges(grid), band_edges(grid)
    assert len(edges) == w + 1 and bands[0] == 0 and abs(bands[-1] - rate[0]/2) < 1e-6*rate[0] and sorted(bands) == bands
    first, last = sorted(data.draw(st.tuples(st.integers(0, w - 1), st.integers(0, w - 1))))
    low, high = sorted(data.draw(st.tuples(st.integers(0, 7), st.integers(0, 7))))
    exact = grid.select(seconds=(edges[first], edges[last + 1]), hz=(bands[low], bands[high + 1]), levels=1)
    found = exact.mask.nonzero()
    assert found.amin(0).tolist() == [low, first, 1] and found.amax(0).tolist() == [high, last, 1]
    assert len(exact) == (last - first + 1)*(high - low + 1) and exact.columns == range(first, last + 1)
    inside = (edges[first] + edges[first + 1])/2
    assert grid.select(seconds=(inside, inside + 1e-3)).columns == range(first, first + 1)
    assert grid.select(seconds=(None, inside)).columns == range(0, first + 1)


@given(edits(sounds=2))
@settings(max_examples=80, deadline=None)
def test_edits_change_the_cells_they_name(edit):
    grid, other, region, seed = edit
    changed = [grid.randomise(region, other, seed), grid.shift(seed - 50, region), grid.reverse(region), grid.interpolate(other, 0.5, region, seed),
               grid.interpolate(other, [level % 2 for level in range(grid.levels)], region, seed)]
    for after in changed: only(grid, after, region)
    for after in changed[1:3]:                              # places change, codes do not
        for band, level in region.mask.any(1).nonzero().tolist():
            at = region.mask[band, :, level]
            assert sorted(after.codes[band, at, level].tolist()) == sorted(grid.codes[band, at, level].tolist())
    assert grid.shift(3, region).shift(-3, region) == grid == grid.reverse(region).reverse(region)
    seen = count_grids([other])
    h, q = torch.meshgrid(torch.arange(grid.bands), torch.arange(grid.levels), indexing='ij')
    drawn = changed[0].codes.transpose(1, 2)[region.mask.transpose(1, 2)]
    h, q = (x[..., None].expand(-1, -1, grid.columns)[region.mask.transpose(1, 2)] for x in (h, q))
    assert (seen[h, q, drawn] > 0).all()
    assert changed[0] == grid.randomise(region, [other], seed)


@given(edits(sounds=2), st.integers(0, 8))
@settings(max_examples=80, deadline=None)
def test_copies_land_where_they_should(edit, column):
    source, grid, region, _ = edit
    column = min(column, grid.columns - 1)
    for to_s, by in ((None, 0), (column_edges(grid)[column], column - region.columns.start)):
        after, given_back = grid.copy_from(source, region, to_s), source.swap(grid, region, to_s)
        expected, mine = grid.codes.clone(), source.codes.clone()
        for h, w, q in region.mask.nonzero().tolist():
            if 0 <= w + by < grid.columns: expected[h, w + by, q], mine[h, w, q] = source.codes[h, w, q], grid.codes[h, w + by, q]
        assert after == replace(grid, codes=expected)
        assert given_back == (replace(source, codes=mine), after)
    assert len(after.diff(grid)) == int((expected != grid.codes).sum())
    assert len(grid.diff(grid)) == 0 and source.copy_from(source, region) == source


@given(edits(sounds=2), st.integers(1, 4), st.floats(0.1, 4))
@settings(max_examples=80, deadline=None)
def test_longer_and_shorter(edit, times, factor):
    grid, other, region, _ = edit
    joined = grid.concatenate(other)
    assert joined.columns == grid.columns + other.columns and joined.n_samples == grid.columns*8192 + other.n_samples
    assert torch.equal(joined.codes[:, grid.columns:], other.codes) and grid.concatenate() == grid
    if not len(region): return
    first, last = region.columns.start, region.columns.stop
    for after, middle in ((grid.repeat(times, region), grid.codes[:, first:last].repeat(1, times, 1)), (grid.stretch(factor, region), None)):
        n = after.columns - grid.columns + last - first
        assert torch.equal(after.codes[:, :first], grid.codes[:, :first]) and torch.equal(after.codes[:, first + n:], grid.codes[:, last:])
        if middle is not None: assert torch.equal(after.codes[:, first:first + n], middle)
        else: assert n == max(1, round((last - first)*factor))
        assert after.n_samples - grid.n_samples == 8192*(after.columns - grid.columns)
    part = grid.crop(region)
    assert torch.equal(part.codes, grid.codes[:, first:last]) and 0 <= part.columns*8192 - part.n_samples < 8192
    if len(region.columns) < grid.columns:
        rest = grid.remove(region)
        assert torch.equal(rest.codes, torch.cat([grid.codes[:, :first], grid.codes[:, last:]], 1))
        assert 0 <= rest.columns*8192 - rest.n_samples < 8192


@given(edits(sounds=2), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_cells_go_over_one_after_the_other(edit, a, b):
    grid, other, region, seed = edit
    a, b = sorted((a, b))
    few, many = (grid.interpolate(other, x, region, seed).diff(grid) for x in (a, b))
    assert len(few - many) == 0
    assert grid.interpolate(other, 0, region, seed) == grid
    assert grid.interpolate(other, 1, None, seed) == grid.copy_from(other)


def test_through_the_vectors(loaded):
    a, b = encode(loaded, noise(30_000)), encode(loaded, 0.01*noise(30_000, 1))
    assert loaded.model.cfg.n_quantizers == 3
    towards = [a.interpolate(b, x, loaded=loaded) for x in (0., 0.5, 1.)]
    vectors = lambda g: loaded.model.codes_to_embeddings(g.codes.flatten(0, 1)[None], g.codes.shape[:2])
    distance = lambda g, h: (vectors(g) - vectors(h)).square().mean()
    assert distance(towards[0], a) <= distance(towards[1], a) <= distance(towards[2], a) and distance(towards[2], b) < distance(a, b)
    region = a.select(levels=1, hz=(1000, 5000))
    only(a, a.interpolate(b, 0.5, region, loaded=loaded), region)
    with pytest.raises(CodesError, match='another model'): replace(a, model_fingerprint='x').interpolate(replace(b, model_fingerprint='x'), loaded=loaded)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_the_vectors_of_named_cells_alone(loaded, data):
    "Any two sounds, any cells, any share: nothing but these cells changes, and none that the other sound has not got"
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    a, b = (CodeGrid(torch.randint(16, (8, w, 3), generator=rng), 8192*w, 48_000, loaded.fingerprint) for w in data.draw(st.tuples(*[st.integers(1, 7)]*2)))
    region = Region(torch.rand(a.codes.shape, generator=rng) < data.draw(st.sampled_from([0., 0.2, 0.7, 1.])))
    amount = data.draw(st.floats(0, 1))
    made = a.interpolate(b, amount, region, loaded=loaded)
    only(a, made, region)
    assert torch.equal(made.codes[:, b.columns:], a.codes[:, b.columns:]) and made == a.interpolate(b, amount, region, loaded=loaded)
    assert 0 <= int(made.codes.min()) <= int(made.codes.max()) < 16


@pytest.mark.parametrize('use, words', [
    (lambda g: g.select(seconds=(0, 1, 2)), 'from, to'), (lambda g: g.select(seconds='ab'), 'from, to'), (lambda g: g.select(seconds=(float('nan'), 1)), 'from, to'),
    (lambda g: g.select(seconds=(-2, -1)), 'outside the grid'), (lambda g: g.select(hz=(24_000, 25_000)), 'outside'), (lambda g: g.select(levels=-1), 'some of 0 to 2'),
    (lambda g: g.select(levels=[0, 3]), 'some of 0 to 2'), (lambda g: g.select(mask=np.zeros((8, 3), bool)), 'expected bool'),
    (lambda g: Region(torch.zeros(2, 2, 2)), 'expected bool'), (lambda g: g.select() | g.crop(g.select(seconds=(0, 0.1))).select(), 'the same size'),
    (lambda g: g.shift(1, 'all'), 'no region'), (lambda g: g.shift(True), 'columns=True'), (lambda g: g.repeat(1.5), 'times=1.5'), (lambda g: g.stretch(0), 'factor=0'),
    (lambda g: g.stretch('2'), "factor='2'"), (lambda g: g.crop(g.select() - g.select()), 'is empty'), (lambda g: g.remove(None), 'nothing would be left'),
    (lambda g: g.copy_from(g, to_s=-1), 'to_s=-1'), (lambda g: g.copy_from(replace(g, codes=g.codes[..., :2])), 'one model'), (lambda g: g.diff('x'), 'no grid'),
    (lambda g: g.randomise(source=[]), 'expected a model'), (lambda g: g.randomise(source=replace(g, codes=g.codes[..., :2])), '2 levels'),
    (lambda g: g.interpolate(g, -0.1), 'amount=-0.1'), (lambda g: g.interpolate(g, [0, 1]), 'each of 3 levels')])
def test_what_cannot_be_done_is_refused(grid, use, words):
    with pytest.raises(CodesError, match=words): use(grid)


def test_picture_of_a_region(grid):
    import matplotlib.pyplot as plt
    region = grid.select(levels=1, hz=(None, 500))
    veil = grid.show(region=region).images[1].get_array()[..., 3]
    assert veil.shape == (3*9 - 1, 4) and (veil == 0).sum() == len(region) + 2*4       # and the two blank rows
    plt.close('all')


# --- files
@given(grids())
@settings(max_examples=30, deadline=None)
def test_there_and_back(tmp_path_factory, grid):
    path = tmp_path_factory.mktemp('codes')/'ä b.npz'
    assert grid.save(path) == path
    assert CodeGrid.load(path) == grid == load_codes(str(path))
    assert save_codes(path.with_name('2.npz'), grid).read_bytes() == path.read_bytes()
    assert sorted(p.name for p in path.parent.iterdir()) == ['2.npz', 'ä b.npz']


def test_any_numpy_can_read_it(grid, tmp_path):
    with np.load(grid.save(tmp_path/'a.npz'), allow_pickle=False) as arrays:
        assert str(arrays['format']) == 'distill_codes' and int(arrays['version']) == 1
        assert np.array_equal(arrays['codes'], grid.codes.numpy()) and arrays['codes'].dtype == np.uint8


def test_a_file_from_before_hops_were_written(grid, tmp_path):
    assert load_codes(rewritten(grid.save(tmp_path/'a.npz'), drop=['hop_length'])) == grid


def rewritten(path, drop=(), **changes):
    with np.load(path) as arrays: kept = {k: v for k, v in {**arrays, **changes}.items() if k not in drop}
    np.savez(path, **kept)
    return path


@pytest.mark.parametrize('change, words', [
    (dict(version=2), 'format version 2.*update'), (dict(version='x'), 'names no version'), (dict(drop=['version']), 'names no version'),
    (dict(format='distill_model'), 'a zip of something else'), (dict(drop=['format']), 'a zip of something else'),
    (dict(codes=np.zeros((8, 4, 3))), 'damaged.*whole numbers'), (dict(codes=np.zeros((8, 4), int)), 'damaged.*shape'),
    (dict(codes=np.array('no')), 'damaged'), (dict(drop=['codes']), 'damaged'), (dict(n_samples=0), 'damaged.*n_samples'),
    (dict(drop=['n_samples']), 'damaged'), (dict(n_samples=[1, 2]), 'damaged'), (dict(drop=['sample_rate']), 'damaged'),
    (dict(drop=['model_fingerprint']), 'damaged'), (dict(n_samples=np.nan), 'damaged')])
def test_files_with_something_wrong(grid, tmp_path, change, words):
    path = rewritten(grid.save(tmp_path/'a.npz'), **change)
    with pytest.raises(CodesError, match=words) as e: load_codes(path)
    assert str(path) in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('content, words', [
    (b'', 'empty'), (b'RIFF' + bytes(99), 'not a codes file'), (b'{}', 'not a codes file'), (b'\x93NUMPY' + bytes(99), 'not a codes file'),
    (b'PK\x03\x04', 'damaged'), (b'PK\x03\x04' + bytes(999), 'damaged'), (b'\x80\x04', 'not a codes file')])
def test_files_of_something_else(tmp_path, content, words):
    (tmp_path/'a.npz').write_bytes(content)
    with pytest.raises(CodesError, match=words): load_codes(tmp_path/'a.npz')


def test_places_without_a_file(loaded, tmp_path):
    with pytest.raises(CodesError, match='there is no file'): load_codes(tmp_path/'a.npz')
    with pytest.raises(CodesError, match='is a folder'): load_codes(tmp_path)
    with pytest.raises(CodesError, match='is a model'): load_codes(loaded.save(tmp_path/'a.distill'))
    with zipfile.ZipFile(tmp_path/'b.npz', 'w'): pass
    with pytest.raises(CodesError, match='something else'): load_codes(tmp_path/'b.npz')


def test_a_file_that_may_not_be_read(grid, tmp_path, monkeypatch):
    path = grid.save(tmp_path/'a.npz')
    def refuse(self): raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(type(path), 'read_bytes', refuse)
    with pytest.raises(CodesError, match='cannot be read'): load_codes(path)


class Evil:
    def __reduce__(self): return os.mkdir, ('evil',)


def test_nothing_in_a_file_is_run(grid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = rewritten(grid.save(tmp_path/'a.npz'), codes=np.array([Evil()], dtype=object))
    with pytest.raises(CodesError, match='damaged'): load_codes(path)
    assert not (tmp_path/'evil').exists()


def test_any_damage_is_a_clear_error_or_none(grid, tmp_path):
    "One changed byte, at every place; and every length of a file that breaks off"
    data, path = grid.save(tmp_path/'a.npz').read_bytes(), tmp_path/'b.npz'
    outcomes = dict(same=0, refused=0)
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1:])
        try:
            assert load_codes(path) == grid         # a byte that nothing depends on, such as a date
            outcomes['same'] += 1
        except CodesError: outcomes['refused'] += 1
    assert outcomes['refused'] > outcomes['same'] > 0
    for n in range(0, len(data), 7):
        path.write_bytes(data[:n])
        with pytest.raises(CodesError): load_codes(path)


def test_saving_where_nothing_can_be_saved(grid, tmp_path, monkeypatch):
    with pytest.raises(CodesError, match='there is no folder'): grid.save(tmp_path/'gone'/'a.npz')
    with pytest.raises(CodesError, match='a folder of that name'): grid.save(tmp_path)
    old = grid.save(tmp_path/'a.npz').read_bytes()
    def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(audio.os, 'fsync', full)
    with pytest.raises(CodesError, match='disk is full'): replace(grid, n_samples=9).save(tmp_path/'a.npz')
    assert (tmp_path/'a.npz').read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ['a.npz']


# --- around it
def test_picture(grid):
    import matplotlib.pyplot as plt
    ax = plt.figure().gca()
    assert grid.show(ax) is ax
    picture = ax.images[0].get_array()
    assert picture.shape == (3*9 - 1, 4)                                    # 3 blocks of 8 bands, a row between
    assert picture.mask[[8, 17]].all() and not picture.mask[:8].any()
    first = picture[:8][::-1].filled()
    for code in grid.codes[..., 0].unique(): assert len(np.unique(first[grid.codes[..., 0] == code])) == 1
    assert len(np.unique(first)) == len(grid.codes[..., 0].unique())
    show_codes(grid)
    plt.close('all')


def test_importing_does_not_import_matplotlib():
    code = 'import sys, distill.codes; print("matplotlib" in sys.modules, "IPython" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.split() == ['False', 'False']
