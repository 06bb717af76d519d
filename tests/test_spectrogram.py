"From a mel back to a waveform: against Griffin-Lim, piece by piece, silent, short, and with other settings."
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torchaudio.functional import melscale_fbanks

from distill import spectrogram
from distill.model import config_from_dict
from distill.spectrogram import (AudioSpectrogram, MelBands, SpectrogramConfig, WaveformStream, log_mel_l1, measure_waveform,
                                 mel_to_magnitudes, multi_resolution_stft, overlap_add, stream_waveform)
from distill.synthesis import synthesise

SPECTROGRAM = AudioSpectrogram()
FEW = dict(deadline=None, max_examples=20)


def sound(family, seed, seconds): return synthesise(family, seed=seed, seconds=seconds)
def pieces(mel, sizes): return mel.split(sizes, -1)


def streamed(mel, n, sizes, lookahead=4):
    stream = WaveformStream(SPECTROGRAM, lookahead=lookahead)
    parts = [stream.push(piece) for piece in pieces(mel, sizes)]
    return torch.cat([*parts, stream.finish(n)]), [len(p) for p in parts]


def test_better_than_griffin_lim():
    sounds = [sound(family, seed, 1.0) for family in ('strings', 'bells', 'drums', 'textures') for seed in (11, 12)]
    ours, peer = measure_waveform(sounds, repeats=1)
    assert ours.log_mel_l1 <= 0.75 * peer.log_mel_l1
    assert ours.multi_resolution_stft <= peer.multi_resolution_stft
    assert ours.seconds > 0 and peer.seconds > 0


def test_nothing_to_measure():
    with pytest.raises(ValueError, match='at least one waveform'): measure_waveform([])


def test_the_peer_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure_waveform([sound('drums', 1, 0.1)], repeats=1)
    assert torch.rand(1) == expected


def test_more_rounds_are_closer():
    wav = sound('strings', 5, 1.0)
    mel = SPECTROGRAM.waveform_to_mel(wav)
    losses = []
    for rounds in (0, 2, 8, 32):
        back = AudioSpectrogram(SpectrogramConfig(phase_iterations=rounds)).mel_to_waveform(mel, len(wav))
        losses.append(log_mel_l1(SPECTROGRAM.waveform_to_mel(back), mel))
    assert losses == sorted(losses, reverse=True)


def test_holding_on_to_bands_pays(monkeypatch):
    wav = sound('strings', 5, 1.0)
    mel = SPECTROGRAM.waveform_to_mel(wav)
    loss = lambda: log_mel_l1(SPECTROGRAM.waveform_to_mel(SPECTROGRAM.mel_to_waveform(mel, len(wav))), mel)
    ours, rounds = loss(), spectrogram.mel_griffin_lim
    monkeypatch.setattr(spectrogram, 'mel_griffin_lim', lambda *args: rounds(*args[:-1], (sum(args[-1]), 0)))
    assert ours < 0.85 * loss()


def test_one_mel_gives_one_waveform():
    mel = SPECTROGRAM.waveform_to_mel(sound('textures', 2, 1.5))
    torch.manual_seed(1)
    first = SPECTROGRAM.mel_to_waveform(mel)
    torch.manual_seed(2)
    batch = SPECTROGRAM.mel_to_waveform(torch.stack([mel.flip(-1), mel])[None])
    assert batch.shape == (1, 2, len(first)) and torch.equal(batch[0, 1], first)


def test_a_gap_of_silence_is_silent():
    wav = torch.cat([sound('strings', 1, 0.5), torch.zeros(24_000), sound('strings', 2, 0.5)])
    mel = SPECTROGRAM.waveform_to_mel(wav)
    back = SPECTROGRAM.mel_to_waveform(mel, len(wav))
    assert back[26_000:46_000].abs().max() < 1e-6
    assert SPECTROGRAM.mel_to_waveform(torch.full((128, 300), math.log(1e-5))).abs().max() == 0


def test_level_is_kept():
    mel = SPECTROGRAM.waveform_to_mel(sound('bells', 4, 1.0) * 0.3)
    back = SPECTROGRAM.waveform_to_mel(SPECTROGRAM.mel_to_waveform(mel, 48_000))
    loud = mel > mel.max() - 3
    assert abs((back - mel)[loud].mean()) < 0.05


def test_a_single_click_stays_where_it_was():
    wav = torch.zeros(48_000)
    wav[20_000] = 0.9
    back = SPECTROGRAM.mel_to_waveform(SPECTROGRAM.waveform_to_mel(wav), 48_000)
    energy = back.square()
    assert energy[18_500:21_500].sum() > 0.95 * energy.sum()


@given(st.integers(1, 90), st.integers(0, 511), st.integers(1, 140), st.integers(1, 8))
@settings(**FEW)
def test_stream_is_exactly_as_long(frames, more, size, lookahead):
    n = (frames - 1) * 512 + more or 1
    mel = torch.linspace(-6, 0, 128)[:, None].expand(128, frames)
    wav, _ = streamed(mel, n, size, lookahead)
    assert wav.shape == (n,) and wav.isfinite().all()


@pytest.mark.parametrize('family', ['strings', 'textures', 'drums'])
@pytest.mark.parametrize('size', [1, 16, 48])
def test_pieces_are_as_good_as_the_whole(family, size):
    whole, pieces = torch.zeros(2), torch.zeros(2)
    for seed in range(7, 12):
        wav = sound(family, seed, 2.0)
        mel = SPECTROGRAM.waveform_to_mel(wav)
        loss = lambda back: torch.tensor([log_mel_l1(SPECTROGRAM.waveform_to_mel(back), mel), multi_resolution_stft(back, wav)])
        whole += loss(SPECTROGRAM.mel_to_waveform(mel, len(wav)))
        pieces += loss(streamed(mel, len(wav), size)[0])
    assert (pieces < 1.08 * whole).all(), (pieces, whole)


def spectral_flux(wav, places):
    sides = torch.stack([torch.stack([wav[i - 512:i], wav[i:i + 512]]) for i in places])
    return (torch.fft.rfft(sides * torch.hann_window(512)).abs() + 1e-3).log().diff(dim=1).abs().mean()


def test_no_seams():
    at_joins, between, steps, steps_at_joins = [], [], [], []
    for seed in range(10):
        wav = sound('textures', 20 + seed, 3.0)
        joined, sizes = streamed(SPECTROGRAM.waveform_to_mel(wav), len(wav), 16)
        joins = [sum(sizes[:i + 1]) for i in range(len(sizes) - 2)]
        at_joins.append(spectral_flux(joined, joins))
        between.append(spectral_flux(joined, [j + 4096 for j in joins]))
        step = joined.diff().abs() / joined.diff().abs().mean()
        steps.append(step.mean())
        steps_at_joins += [step[j - 9:j + 8].mean() for j in joins]
    assert 0.9 < torch.stack(at_joins).mean() / torch.stack(between).mean() < 1.1
    assert 0.9 < torch.stack(steps_at_joins).mean() / torch.stack(steps).mean() < 1.1


def test_first_sound_after_one_column_and_memory_does_not_grow():
    stream, mel = WaveformStream(SPECTROGRAM), SPECTROGRAM.waveform_to_mel(sound('bells', 1, 2.0))
    assert len(stream.push(mel[:, :16])) > 4000
    size = lambda: sum(x.numel() for x in vars(stream.frames).values() if isinstance(x, torch.Tensor))
    before = size()
    for piece in pieces(mel[:, 16:176], 16): assert len(stream.push(piece)) == 16 * 512
    assert size() == before


def test_generator_of_pieces():
    mel = SPECTROGRAM.waveform_to_mel(sound('bells', 1, 1.0))
    parts = list(stream_waveform(SPECTROGRAM, pieces(mel, 16), 48_000))
    assert sum(map(len, parts)) == 48_000 and all(map(len, parts[:-1]))
    assert torch.equal(torch.cat(parts), streamed(mel, 48_000, 16)[0])


def test_stream_refuses():
    stream = WaveformStream(SPECTROGRAM)
    with pytest.raises(ValueError, match='0 frames hold 1 to 0'): stream.finish()
    with pytest.raises(ValueError, match=r'expected \(128, frames\)'): stream.push(torch.zeros(64, 20))
    given = len(stream.push(torch.zeros(128, 40)))
    with pytest.raises(ValueError, match=f'{given} are already given'): stream.finish(given - 1)
    with pytest.raises(ValueError, match='lookahead=0'): WaveformStream(SPECTROGRAM, lookahead=0)


@pytest.mark.parametrize('give', [lambda stream, mel: stream.push(mel), lambda stream, mel: stream.finish(mel=mel)])
def test_every_piece_goes_to_where_it_is_computed(give):
    def add(mel): raise RuntimeError(f'given on {mel.device}')
    stream = WaveformStream(SPECTROGRAM)
    stream.frames = SimpleNamespace(window=torch.zeros(1, device='meta'), add=add)
    with pytest.raises(RuntimeError, match='given on meta'): give(stream, torch.zeros(128, 8))


@pytest.mark.parametrize('cfg', [SpectrogramConfig(sample_rate=22_050, n_fft=1024, hop_length=256, n_mels=64),
                                 SpectrogramConfig(n_fft=1024, hop_length=512), SpectrogramConfig(n_fft=2048, hop_length=256),
                                 SpectrogramConfig(inversion_steps=0, phase_iterations=1)])
def test_other_settings(cfg):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        other = AudioSpectrogram(cfg)
    wav = sound('strings', 3, 1.0)[:24_000]
    mel = other.waveform_to_mel(wav)
    back = other.mel_to_waveform(mel, 24_000)
    assert back.shape == wav.shape
    assert log_mel_l1(other.waveform_to_mel(back), mel) < 0.5


@pytest.mark.parametrize('hop', [500, 513, 1025, 2048])
def test_frames_must_overlap_evenly(hop):
    with pytest.raises(ValueError, match='such as 512'): SpectrogramConfig(hop_length=hop)


def test_the_settings_of_older_models_still_work():
    old = dict(sample_rate=48_000, n_fft=2048, hop_length=512, n_mels=128, floor=1e-5, inversion_steps=10, phase_iterations=10)
    older = AudioSpectrogram(config_from_dict(SpectrogramConfig, old))
    wav = sound('bells', 6, 0.5)
    mel = older.waveform_to_mel(wav)
    assert log_mel_l1(older.waveform_to_mel(older.mel_to_waveform(mel, len(wav))), mel) < 0.25


@given(st.integers(1, 24).map(lambda x: 16 * x), st.sampled_from([256, 512, 1024]), st.integers(1, 80))
@settings(**FEW)
def test_blocks_are_the_whole_matrix(n_mels, n_bins, per_block):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                        # with many bands, some filters are empty
        fbank = melscale_fbanks(n_bins + 1, 0, 24_000, n_mels, 48_000)
    bands, mags, factors = MelBands(fbank, per_block), torch.rand(3, n_bins + 1), torch.rand(3, n_mels)
    torch.testing.assert_close(bands.to_mel(mags), mags @ fbank, rtol=1e-4, atol=1e-5)
    share = fbank / fbank.sum(1, keepdim=True).clamp(min=1e-8)
    share[[0, -1]] = share[[1, -2]]                            # the outermost frequencies go with their neighbours
    torch.testing.assert_close(bands.to_bins(factors), factors @ share.mT, rtol=1e-4, atol=1e-5)


def test_inversion_settles():
    fbank = SPECTROGRAM.mel.mel_scale.fb
    true = torch.stft(sound('strings', 8, 0.5), 2048, 512, window=torch.hann_window(2048), return_complex=True).abs().mT
    bands, mel = MelBands(fbank), true @ fbank
    off = [(bands.to_mel(mel_to_magnitudes(mel, bands, steps))[mel > 1e-4] / mel[mel > 1e-4]).log().abs().mean() for steps in (0, 4, 16)]
    assert off[2] < off[1] / 3 < off[0] / 9


@pytest.mark.parametrize('n, hop', [(1, 4), (3, 2), (5, 1), (4, 8)])
def test_overlapping_frames_add_up(n, hop):
    "Against a loop; what came before is in the first samples"
    frames, before = torch.randn(n, 8), torch.randn(8 - hop)
    wanted = torch.zeros(8 + (n - 1)*hop)
    wanted[:8 - hop] = before
    for i, frame in enumerate(frames): wanted[i*hop:i*hop + 8] += frame
    assert torch.allclose(overlap_add(frames, hop, before), wanted, atol=1e-5)
