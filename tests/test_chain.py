"The laws of the chain, from spectrogram to pipeline: shapes, bijections, exact lengths, seeds; against independent references."
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from distill.dataset import DatasetConfig, MelWindows, cut_window, load_collection, split_files
from distill.pipeline import crossfade_chunks, limit_peak
from distill.prior import (CodePrior, PriorConfig, flatten_codes, get_adaptive_prior_config, grid_context, neighbours,
                           unflatten_codes)
from distill.spectrogram import AudioSpectrogram, SpectrogramConfig
from distill.synthesis import synthesise, write_collection
from distill.training import Budget, TrainingConfig, learning_rate_at, plain_recipe, train_vqvae
from distill.vqvae import (ConvVQVAE, QuantizerWrapper, VQVAEConfig, get_adaptive_vqvae_config, latent_shape, level_health,
                           plain_vqvae_config)

import random
GRID = dict(deadline=None, max_examples=30)
SPECTROGRAM = AudioSpectrogram()


@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp('sounds'), n_files=12, seed=2)


@pytest.fixture(scope='module')
def collection(sounds): return load_collection(sounds)


# spectrogram

def test_mel_against_librosa():
    librosa = pytest.importorskip('librosa')
    wav = synthesise('strings', seed=4, seconds=1.0)
    theirs = librosa.feature.melspectrogram(y=wav.numpy(), sr=48_000, n_fft=2048, hop_length=512, n_mels=128, power=1.0,
                                            htk=True, norm=None, center=True, pad_mode='constant')
    np.testing.assert_allclose(SPECTROGRAM.waveform_to_mel(wav).exp(), np.maximum(theirs, 1e-5), rtol=2e-3, atol=2e-5)


@given(st.integers(1, 60_000))
@settings(**GRID)
def test_mel_shape_is_computed(n):
    mel = SPECTROGRAM.waveform_to_mel(torch.zeros(n))
    assert mel.shape == SPECTROGRAM.get_mel_shape(n) == (128, 1 + n // 512)


@given(st.integers(1, 20_000), st.integers(0, 99))
@settings(**GRID)
def test_waveform_is_exactly_as_long(n, seed):
    wav = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 0.1
    back = SPECTROGRAM.mel_to_waveform(SPECTROGRAM.waveform_to_mel(wav), n)
    assert back.shape == (n,) and back.isfinite().all()


@pytest.mark.parametrize('wrong', [dict(n_mels=100), dict(hop_length=0), dict(hop_length=2000), dict(floor=0), dict(inversion_steps=-1)])
def test_spectrogram_config_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): SpectrogramConfig(**wrong)


# dataset

@given(st.integers(2, 300), st.floats(0.05, 0.9), st.integers(0, 1000))
@settings(**GRID)
def test_split_is_a_partition(n, fraction, seed):
    train, valid = split_files(n, fraction, seed)
    assert sorted(train + valid) == list(range(n)) and train and valid
    assert abs(len(valid) - fraction * n) <= 1 or len(valid) in (1, n - 1)


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40).filter(lambda x: len(set(x)) > 1), st.integers(0, 99))
@settings(**GRID)
def test_copies_stay_on_one_side(digests, seed):
    train, valid = split_files(len(digests), 0.3, seed, digests)
    assert not {digests[i] for i in train} & {digests[i] for i in valid}


@given(st.integers(1, 300), st.integers(16, 200), st.booleans(), st.integers(0, 99))
@settings(**GRID)
def test_window_holds_the_file_and_nothing_else(frames, length, tile, seed):
    mel = torch.arange(1., frames + 1).expand(4, frames)
    window, sound = cut_window(mel, length, tile, random.Random(seed), floor=-1.0)
    assert window.shape == (4, length) and sound.shape == (length,)
    assert (window[:, ~sound] == -1).all() and (window[:, sound] > 0).all()
    assert sound.all() or (not tile and frames < length)
    steps = window[0, sound].diff()
    assert ((steps == 1) | (steps == 1 - frames)).all()


def test_held_out_files_are_not_drawn(collection):
    ours = replace(collection, mels=[torch.full_like(m, float(i)) for i, m in enumerate(collection.mels)],
                   cfg=DatasetConfig(gain_db=(0, 0), tile_probability=1))
    seen = {round(v) for _, batch in zip(range(30), MelWindows(ours, 16)) for v in batch.mel.flatten(1).mean(1).tolist()}
    assert seen == set(collection.split.train)


# vqvae

@given(st.integers(1, 400))
@settings(**GRID)
def test_grid_matches_the_encoder(frames):
    model = ConvVQVAE(VQVAEConfig(codebook_size=4, n_quantizers=1, channels=(2, 2, 2, 2), code_dim=3)).eval()
    z = model.encode(torch.zeros(1, 1, 128, frames))
    assert z.shape[2:] == latent_shape((128, frames)) == (8, math.ceil(frames / 16))
    assert model.decode(z, (128, frames)).shape == (1, 1, 128, frames)


@pytest.mark.parametrize('rotation', [True, False])
@pytest.mark.parametrize('levels', [1, 4, 8])
def test_every_level_pulls_the_encoder(levels, rotation):
    torch.manual_seed(0)
    quantizer = QuantizerWrapper(VQVAEConfig(codebook_size=16, n_quantizers=levels, code_dim=8, rotation_trick=rotation))
    quantizer.set_batch(256)
    for _ in range(3): quantizer(torch.randn(4, 64, 8))
    z = torch.randn(4, 64, 8, requires_grad=True)
    for loss in quantizer(z).commit_loss:
        gradient, = torch.autograd.grad(loss, z, retain_graph=True)
        assert gradient.norm() > 1e-4


def test_codes_and_vectors_are_one_thing():
    torch.manual_seed(0)
    quantizer = QuantizerWrapper(VQVAEConfig(codebook_size=16, n_quantizers=3, code_dim=8))
    quantizer(torch.randn(4, 64, 8))
    out = quantizer.eval()(torch.randn(2, 64, 8))
    nearest = sum(quantizer.codebooks[q][out.indices[..., q]] for q in range(3))
    torch.testing.assert_close(quantizer.embed(out.indices), nearest, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.quantized, nearest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('n, size, levels, width, layers', [(1, 64, 4, 128, 2), (20, 64, 4, 128, 2), (21, 128, 4, 256, 4),
                                                            (100, 128, 4, 256, 4), (101, 256, 8, 512, 6)])
def test_tiers(n, size, levels, width, layers):
    vq, prior = get_adaptive_vqvae_config(n), get_adaptive_prior_config(n)
    assert (vq.codebook_size, vq.n_quantizers, prior.d_model, prior.n_layers) == (size, levels, width, layers)
    assert plain_vqvae_config(n).codebook_size == size


@given(st.lists(st.integers(0, 50), min_size=8, max_size=8).filter(any))
@settings(**GRID)
def test_perplexity_against_its_definition(counts):
    p = np.array(counts) / sum(counts)
    entropy = -sum(x * math.log(x) for x in p if x)
    health, = level_health(torch.tensor([counts]))
    assert math.isclose(health.perplexity, math.exp(entropy), rel_tol=1e-6)
    assert math.isclose(health.utilisation, np.mean(p > 0))


@pytest.mark.parametrize('wrong', [dict(codebook_size=1), dict(n_quantizers=0), dict(channels=(1, 2)), dict(activation='tanh'),
                                   dict(dropout=1.0), dict(edge='mirror'), dict(code_dim=0)])
def test_vqvae_config_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): VQVAEConfig(**wrong)


# training

@given(st.floats(0, 1), st.floats(0, 0.5))
@settings(**GRID)
def test_learning_rate_stays_between_its_bounds(fraction, warmup):
    cfg = TrainingConfig(warmup=warmup)
    assert 0 < learning_rate_at(fraction, cfg) <= cfg.learning_rate


def test_plain_recipe_learns_and_keeps_the_last(sounds):
    recipe = plain_recipe(12)
    usual = load_collection(sounds, recipe.dataset)
    model, result = train_vqvae(usual, replace(recipe.vqvae, channels=(4, 4, 8, 8), code_dim=8), recipe.training, Budget(steps=12), 'cpu')
    assert result.best == result.history[-1]['score'] and model.cfg.dropout == 0.2
    assert result.history[-1]['loss'] < result.history[0]['loss']


# prior

@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 7), st.integers(1, 5))
@settings(**GRID)
def test_flatten_is_a_bijection_in_time_order(b, h, w, q):
    codes = torch.arange(b * h * w * q).view(b, h * w, q)
    flat = flatten_codes(codes, (h, w))
    assert flat.shape == (b, h * w * q)
    assert torch.equal(unflatten_codes(flat, q, h).flatten(1, 2), codes)
    t = random.Random(b * h * w * q).randrange(h * w * q)
    column, band, level = t // (h * q), t // q % h, t % q
    assert flat[0, t] == codes[0, band * w + column, level]


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
@settings(**GRID)
def test_context_against_a_slow_reference(q, bands, columns, seed):
    rng = torch.Generator().manual_seed(seed)
    prior = CodePrior(PriorConfig(codebook_size=6, n_quantizers=q, n_bands=bands, d_model=4, n_layers=1, n_heads=1, code_dim=2))
    prior.vectors.copy_(torch.randn(q, 6, 2, generator=rng))
    n = bands * columns
    codes = torch.randint(6, (1, n, q), generator=rng)
    got = grid_context(prior.sums(codes), bands)[0]
    place = lambda p: sum((prior.vectors[l, codes[0, p, l]] for l in range(q)), torch.zeros(2)) if p >= 0 else torch.zeros(2)
    for p in {0, n // 2, n - 1}:
        torch.testing.assert_close(got[p], torch.cat([place(p - back) for back in neighbours(bands)]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('levels, bands, columns', [(1, 1, 2), (1, 8, 2), (3, 2, 4), (4, 8, 2)])
def test_causal_and_cached_is_uncached(levels, bands, columns):
    torch.manual_seed(0)
    cfg = PriorConfig(codebook_size=10, n_quantizers=levels, n_bands=bands, max_columns=columns, d_model=16, n_layers=2, n_heads=2, code_dim=4)
    prior = CodePrior(cfg).eval()
    prior.set_vectors(torch.randn(levels, 10, 4))
    codes = torch.randint(10, (3, cfg.max_length))
    with torch.no_grad():
        logits, cache = prior(codes), prior.new_cache(3)
        steps = [prior.step(None, cache)] + [prior.step(codes[:, t], cache) for t in range(cfg.max_length - 1)]
        torch.testing.assert_close(torch.stack(steps, 1), logits, rtol=1e-4, atol=1e-5)
        for t in {0, cfg.max_length // 2, cfg.max_length - 1}:
            other = codes.clone()
            other[:, t] = (other[:, t] + 1) % 10
            assert torch.equal(prior(other)[:, :t + 1], logits[:, :t + 1])
            assert t == cfg.max_length - 1 or not torch.equal(prior(other)[:, t + 1], logits[:, t + 1])


@pytest.mark.parametrize('wrong', [dict(d_model=0), dict(d_model=100, n_heads=3), dict(dropout=1.0), dict(max_columns=1)])
def test_prior_config_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): PriorConfig(**wrong)


# pipeline

@given(st.lists(st.integers(40, 90), min_size=1, max_size=6), st.integers(0, 20), st.integers(0, 99))
@settings(**GRID)
def test_crossfade_length_and_partition_of_unity(lengths, overlap, seed):
    total = sum(lengths) - overlap * (len(lengths) - 1)
    ones = crossfade_chunks([torch.ones(n) for n in lengths], overlap)
    assert len(ones) == total and torch.allclose(ones, torch.ones(total), atol=1e-5)
    chunks = [torch.randn(n, generator=torch.Generator().manual_seed(seed + i)) for i, n in enumerate(lengths)]
    out, start = crossfade_chunks(chunks, overlap), 0
    for i, chunk in enumerate(chunks):            # outside of the overlaps nothing is changed
        a, b = overlap * (i > 0), len(chunk) - overlap * (i < len(chunks) - 1)
        torch.testing.assert_close(out[start + a:start + b], chunk[a:b])
        start += len(chunk) - overlap


@given(st.floats(0.001, 20))
@settings(**GRID)
def test_peak_is_limited_and_never_raised(gain):
    wav = torch.tensor([0.5, -1.0, 0.25]) * gain
    out = limit_peak(wav)
    assert out.abs().max() <= 0.95 + 1e-6 and (gain > 0.95 or torch.equal(out, wav))
