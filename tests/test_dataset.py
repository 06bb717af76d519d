"What is learned from and how it is presented: laws of the windows, labels, splits."
import json, math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from distill.audio import save_audio
from distill.dataset import (DatasetConfig, MelWindows, change_mel, label_files, load_collection, mix_mels, random_change)
from distill.spectrogram import AudioSpectrogram, SpectrogramConfig
from distill.synthesis import synthesise, write_collection

SPECTROGRAM, FLOOR = AudioSpectrogram(), SpectrogramConfig().log_floor
GRID = dict(max_examples=40, deadline=None)
ALL = DatasetConfig(mix_probability=0.5, eq_db=3, tilt_db=2)


@pytest.fixture(scope='module')
def sounds(tmp_path_factory): return write_collection(tmp_path_factory.mktemp('sounds'), n_files=10, seed=3)


@pytest.fixture(scope='module')
def collection(sounds): return load_collection(sounds)


def mels(frames=6): # random log-mels with silent places
    values = st.one_of(st.just(FLOOR), st.floats(FLOOR + 0.01, 5))
    return st.lists(values, min_size=4*frames, max_size=4*frames).map(lambda x: torch.tensor(x).view(4, frames))


# augmentation

def test_augmentation_is_opt_in():
    cfg = DatasetConfig()
    assert (cfg.mix_probability, cfg.eq_db, cfg.tilt_db, cfg.speed_semitones) == (0, 0, 0, 0)


@pytest.mark.parametrize('wrong', [dict(mix_probability=-0.1), dict(mix_probability=1.1), dict(eq_db=-1), dict(tilt_db=-1)])
def test_augmentation_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): DatasetConfig(**wrong)


@given(mels(), mels())
@settings(**GRID)
def test_mixing_laws(a, b):
    mixed, silence = mix_mels(a, b, FLOOR), torch.full_like(a, FLOOR)
    assert torch.equal(mixed, mix_mels(b, a, FLOOR))
    assert torch.allclose(mix_mels(a, silence, FLOOR), a)
    louder = torch.maximum(a, b)
    assert (mixed >= louder - 1e-5).all() and (mixed <= louder + math.log(2)/2 + 1e-5).all()
    assert torch.equal(mix_mels(silence, silence, FLOOR), silence)


def test_mixing_agrees_with_mixed_waveforms():
    a, b = (synthesise(kind, seed=2, seconds=0.5) for kind in ('drums', 'strings'))
    n = min(len(a), len(b))
    A, B, true = map(SPECTROGRAM.waveform_to_mel, (a[:n], b[:n], a[:n] + b[:n]))
    ours = (mix_mels(A, B, SPECTROGRAM.cfg.log_floor) - true).abs().mean()
    assert ours < 0.15 and ours < 0.6*(torch.logaddexp(A, B) - true).abs().mean()


@given(mels(), st.floats(-40, 40))
@settings(**GRID)
def test_silence_stays_silence(mel, nats):
    changed = change_mel(mel, torch.full((4, 1), nats), FLOOR)
    assert (changed[mel == FLOOR] == FLOOR).all() and (changed >= FLOOR).all()


def test_silent_padding_stays_silent_under_everything(collection):
    short = replace(collection, mels=[m[:, :20] for m in collection.mels],
                    cfg=replace(ALL, tile_probability=0, mix_probability=1, gain_db=(6, 6)))
    batch = next(MelWindows(short, 32))
    assert not batch.sound.all() and (batch.mel[:, 0].mT[~batch.sound] == FLOOR).all()
    assert batch.sound.sum(1).max() > 20 # two sounds at different places


def test_mixing_is_as_frequent_as_asked(collection):
    tones = replace(collection, mels=[torch.full((128, 96), float(-i)) for i in range(10)])
    def share(p):
        windows = MelWindows(replace(tones, cfg=DatasetConfig(gain_db=(0, 0), mix_probability=p)), 400)
        return (next(windows).mel[:, 0, 0, 0].frac() != 0).float().mean().item()
    assert share(0) == 0 and share(1) == 1 and abs(share(0.3) - 0.3) < 0.08


def test_equalisation_is_smooth_and_as_strong_as_asked():
    import random
    curves = torch.cat([random_change(128, DatasetConfig(gain_db=(0, 0), eq_db=4), random.Random(i)) for i in range(300)], 1)
    curves = curves*20/math.log(10)
    assert abs(curves.std().item() - 4) < 0.3 and curves.diff(dim=0).abs().max() < 2
    assert abs(curves.mean(0)).max() < 1e-4 # no change of level: that is the gain's


# state

@pytest.mark.parametrize('cfg', [DatasetConfig(), ALL, DatasetConfig(crops='consecutive')])
def test_state_goes_through_json(collection, cfg):
    collection = replace(collection, cfg=cfg)
    windows = MelWindows(collection, 4)
    for _ in range(3): next(windows)
    state = json.loads(json.dumps(windows.state_dict()))
    there = [next(windows) for _ in range(3)]
    fresh = MelWindows(collection, 4, seed=99)
    fresh.load_state_dict(state)
    for ours, theirs in zip([next(fresh) for _ in range(3)], there):
        assert torch.equal(ours.mel, theirs.mel) and torch.equal(ours.sound, theirs.sound)


@pytest.mark.parametrize('state', [{}, {'rng': None}, {'rng': [3, [1, 2], None]}, {'rng': [3, 'abc', None]}, []])
def test_wrong_state_is_refused(collection, state):
    windows = MelWindows(collection, 4)
    before = windows.state_dict()
    with pytest.raises(ValueError, match='not a state of MelWindows'): windows.load_state_dict(state)
    assert windows.state_dict() == before


@pytest.mark.parametrize('cfg', [DatasetConfig(), DatasetConfig(crops='consecutive'), DatasetConfig(speed_semitones=2, speed_copies=2)])
def test_windows_say_which_file(sounds, cfg):
    collection = load_collection(sounds, replace(cfg, gain_db=(0, 0)))
    windows = MelWindows(collection, 64)
    assert len(windows.files) == len(windows.mels) and set(windows.files) == set(collection.split.train)
    next(windows)
    assert len(windows.drawn) == 64 and set(windows.drawn) <= set(collection.split.train)


# labels

names = st.lists(st.sampled_from(['a/x.wav', 'a/b/x.wav', 'b/x.wav', 'x.wav', 'c d/x.wav']), max_size=12)

@given(names)
@settings(**GRID)
def test_labels(names):
    labels = label_files(names)
    folders = {n.split('/')[0] for n in names if '/' in n}
    assert len(labels) == len(names)
    assert labels == [n.split('/')[0] if '/' in n and len(folders) > 1 else '' for n in names]


def test_labels_of_a_folder(tmp_path):
    for i, name in enumerate(['kick/a.wav', 'kick/old/b.wav', 'snare/c.wav', 'd.wav']):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        save_audio(tmp_path/name, synthesise('drums', seed=i, seconds=0.3))
    collection = load_collection(tmp_path)
    assert dict(zip(collection.names, collection.labels)) == {'d.wav': '', 'kick/a.wav': 'kick', 'kick/old/b.wav': 'kick', 'snare/c.wav': 'snare'}
    assert collection.label_names == ['kick', 'snare']
    assert load_collection(tmp_path/'kick').label_names == []
