"What is learned from and how it is presented: laws of the windows, labels, splits."
import json, math, shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import soxr
import torch
from hypothesis import given, settings, strategies as st

from distill.audio import AudioError, load_audio, scan_folder
from distill.export import save_audio
from distill.dataset import (DatasetConfig, MelWindows, change_mel, examine_folder, group_files, label_files, load_collection,
                             mix_mels, near_duplicates, pick_tier, random_change, split_files, take_print)
from distill.spectrogram import AudioSpectrogram, SpectrogramConfig
from distill.synthesis import synthesise, write_collection
from distill.vqvae import ConvVQVAE, get_adaptive_vqvae_config

SPECTROGRAM, FLOOR = AudioSpectrogram(), SpectrogramConfig().log_floor
GRID = dict(max_examples=40, deadline=None)
ALL = DatasetConfig(mix_probability=0.5, eq_db=3, tilt_db=2)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch): monkeypatch.setenv('DISTILL_CACHE', 'off')


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


def test_a_label_with_one_file_is_learned(tmp_path):
    for i, name in enumerate(['bell/a.wav', *(f'kick/{i}.wav' for i in range(5))]):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        save_audio(tmp_path/name, synthesise('drums', seed=i, seconds=0.3))
    for seed in range(6):
        collection = load_collection(tmp_path, DatasetConfig(split_seed=seed))
        assert collection.split.valid[0] > 0 and collection.label_names == ['bell', 'kick']
    held_out = load_collection(tmp_path, valid_names=['bell/a.wav'])    # asked for: then it is not learned, and not offered
    assert held_out.labels == collection.labels and held_out.label_names == ['kick']


@given(st.lists(st.sampled_from('abcd '), min_size=2, max_size=30), st.integers(0, 99), st.floats(0.1, 0.6))
@settings(**GRID)
def test_labels_do_not_change_the_share(labels, seed, fraction):
    labels = [o.strip() for o in labels]
    plain, split = (split_files(len(labels), fraction, seed, labels=o) for o in (None, labels))
    assert len(split.valid) == len(plain.valid) and sorted(split.train + split.valid) == [*range(len(labels))]
    lost = lambda split: {*labels} - {labels[i] for i in split.train} - {''}
    if not lost(plain): assert split == plain
    named = [o for o in labels if o]
    if len(labels) - len(set(named)) >= len(split.valid): assert not lost(split)    # there is enough else to hold out


@pytest.mark.parametrize('read', [load_collection, examine_folder])
def test_a_spectrogram_at_another_rate_is_refused(sounds, read):
    with pytest.raises(ValueError, match='sample_rate=22050.*at 48000'):
        read(sounds, spectrogram=AudioSpectrogram(SpectrogramConfig(sample_rate=22_050, n_mels=64)))


# near-duplicates

def versions(wav, folder):  # what people do to a sound
    resampled = soxr.resample(soxr.resample(wav.numpy(), 48_000, 22_050), 22_050, 48_000)
    noise = torch.randn(len(wav), generator=torch.Generator().manual_seed(3))*wav.abs().max()*1e-3
    through = lambda suffix: load_audio(save_audio(folder/f'version{suffix}', wav)).wav
    return {'gain': 0.5*wav, 'trim': wav[960:], 'trim by a fraction': wav[257:], 'late': torch.cat([torch.zeros(2400), wav]),
            'tail cut': wav[:-len(wav)//6], 'padded': torch.cat([wav, torch.zeros(24_000)]), 'ogg': through('.ogg'), 'mp3': through('.mp3'),
            '22 kHz': torch.from_numpy(resampled), 'noise': wav + noise, 'upside down': -wav}


def groups_of(wavs):
    mels = [SPECTROGRAM.waveform_to_mel(w) for w in wavs]
    prints = [take_print(w, m, SPECTROGRAM.cfg) for w, m in zip(wavs, mels)]
    return group_files(len(wavs), near_duplicates(mels, prints.__getitem__, SPECTROGRAM.cfg))


@pytest.mark.parametrize('kind', ['drums', 'strings', 'bells', 'textures'])
def test_versions_of_a_sound_are_one_group(kind, tmp_path):
    wavs = [synthesise(kind, seed=i, seconds=0.8) for i in range(4)]
    names, more = zip(*versions(wavs[0], tmp_path).items())
    groups = groups_of([*wavs, *more])
    assert groups[:4]==[0, 1, 2, 3]
    assert not [name for name, group in zip(names, groups[4:]) if group != 0]


def test_noise_is_not_its_neighbour():
    noise = torch.randn(6, 48_000, generator=torch.Generator().manual_seed(0))*0.1
    assert groups_of([*noise, noise[0]*0.3])==[0, 1, 2, 3, 4, 5, 0]


def test_silence_and_clicks_do_no_harm():
    wavs = [torch.zeros(800), torch.zeros(48_000), torch.ones(720), torch.eye(1, 900)[0], synthesise('drums', seed=1, seconds=0.3)]
    assert len(groups_of(wavs))==5 and groups_of(wavs[:1])==[0] and groups_of([])==[]


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
@settings(**GRID)
def test_groups_are_components(n, pairs):
    pairs = [(i % n, j % n) for i, j in pairs]
    first = group_files(n, pairs)
    assert all(first[i]==first[j] for i, j in pairs)
    assert all(first[f]==f<=i for i, f in enumerate(first)) # named after the first member
    assert len(set(first)) >= n - len({tuple(sorted(p)) for p in pairs if p[0] != p[1]})


SAME = {'drums': [{'drum_cymbal_hard.flac', 'drum_cymbal_soft.flac'}], # one recording, 9.3 dB apart in every octave
        'tones': [{'pizzcato/A2_1.flac', 'pizzcato/A2_3.flac'}, {'pizzcato/A3_1.flac', 'pizzcato/A3_3.flac'}],
        'textures': [], 'speech': []}

@pytest.mark.parametrize('name', SAME)
def test_real_collections_hold_hardly_any(name, audio_dir):
    assert [set(group) for group in examine_folder(audio_dir/name).groups]==SAME[name]


def test_real_drums_are_recognised(audio_dir, tmp_path):
    paths = sorted((audio_dir/'drums').glob('*.flac'))[::9]
    wavs = [wav for p in paths if len(wav := load_audio(p).wav) > 4800]
    found = total = 0
    for wav in wavs:
        more = list(versions(wav, tmp_path).values())
        groups = groups_of([*wavs, *more])
        found, total = found + sum(g==groups.index(groups[[w is wav for w in wavs].index(True)]) for g in groups[len(wavs):]), total + len(more)
    assert found/total > 0.9


# the held-out part stays out

def with_versions(sounds, tmp_path):
    folder = shutil.copytree(sounds, tmp_path/'doubled')
    for i, report in enumerate(scan_folder(sounds).used):
        save_audio(folder/f'bounce{i}.wav', 0.4*report.load()[480:])
        if i < 3: shutil.copy(report.path, folder/f'copy{i}{report.path.suffix}')
    return folder


@pytest.mark.parametrize('seed', range(4))
def test_no_sound_is_on_both_sides(sounds, tmp_path, seed):
    collection = load_collection(with_versions(sounds, tmp_path), DatasetConfig(split_seed=seed, speed_semitones=2, speed_copies=1))
    assert len(collection.names)==23 and len(set(collection.groups))==10
    sides = [{collection.groups[i] for i in side} for side in collection.split]
    assert not sides[0] & sides[1] and len(sides[1])==2
    windows = MelWindows(collection, 32)
    assert not set(windows.files) & set(collection.split.valid) and len(collection.copies)==len(collection.split.train)


def test_versions_get_a_note(sounds, tmp_path):
    found = examine_folder(with_versions(sounds, tmp_path))
    assert sorted(len(g) for g in found.groups)==[2]*7 + [3]*3
    kinds = [f.findings for f in found.files.used]
    assert sum('near-duplicate' in k for k in kinds)==10 and sum('copy' in k for k in kinds)==3
    assert found.n_sounds==10 and abs(found.seconds - examine_folder(sounds).seconds) < 1


def test_two_versions_of_one_sound_are_not_enough(tmp_path):
    wav = synthesise('strings', seed=1, seconds=1.0)
    save_audio(tmp_path/'a.wav', wav), save_audio(tmp_path/'b.wav', 0.5*wav)
    with pytest.raises(AudioError, match='all the same'): load_collection(tmp_path)
    found = examine_folder(tmp_path)
    assert not found.ready and 'one usable sound is not enough' in found.verdict


# the doctor

@pytest.mark.parametrize('seconds', [.3, 1.5, 1.6, 60])
@pytest.mark.parametrize('n', [1, 20, 21, 100, 101, 500])
def test_tier_is_what_the_model_gets(n, seconds):
    ours, theirs = pick_tier(n, seconds), get_adaptive_vqvae_config(n, seconds)
    assert (ours.codebook_size, ours.n_quantizers)==(theirs.codebook_size, theirs.n_quantizers)


@pytest.mark.parametrize('lengths, levels', [((.4, .5, .6, 8), 6), ((.4, 2, 2, 8), 4)], ids=['one-shots', 'longer'])
def test_one_shots_get_more_levels(tmp_path, lengths, levels):
    "The median decides, in the doctor's words as in the model; who asks for a number of levels gets it."
    from distill.fitting import stage_1_settings
    for i, seconds in enumerate(lengths): save_audio(tmp_path/f'{i}.wav', .1*torch.randn(round(seconds*48_000), generator=torch.Generator().manual_seed(i)), 48_000)
    collection = load_collection(tmp_path)
    assert examine_folder(tmp_path).tier.n_quantizers==stage_1_settings(collection).cfg.n_quantizers==levels
    assert stage_1_settings(collection, dict(n_quantizers=3)).cfg.n_quantizers==3
    for start in stage_1_settings(collection), stage_1_settings(collection, dict(n_quantizers=3)):
        start.start(model := ConvVQVAE(start.cfg))
        assert (model.quantizer.codebooks==start.base.tensors['codebooks.64'][:start.cfg.n_quantizers].float()).all()


def test_verdicts(tmp_path):
    assert examine_folder(tmp_path).verdict=='there are no sound files here'
    (tmp_path/'text.wav').write_text('no sound', encoding='utf-8')
    assert 'no usable sound' in examine_folder(tmp_path).verdict
    for i in range(3): save_audio(tmp_path/f'{i}.wav', synthesise('drums', seed=i, seconds=0.5))
    found = replace(examine_folder(tmp_path), estimate=SimpleNamespace(minutes=7, lines=['Time: long'], to_dict=lambda: dict(device='abacus')))
    assert found.ready and 'little sound' in found.verdict and found.tier.name=='small'
    assert found.advice==['1 file is unreadable: each says why']
    about = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (about['used'], about['found'], about['ready'], about['training']['device'], about['minutes'], about['tier']['codebook_size'])==(3, 4, True, 'abacus', 7, 64)
    for words in 'text.wav', 'not a sound file', 'Verdict: ready', 'for 7 minutes', 'Time: long': assert words in str(found)
    for i in range(3, 26): save_audio(tmp_path/f'{i}.wav', synthesise('strings', seed=i, seconds=3.0))
    assert 'for 5 minutes or more. A small collection' in examine_folder(tmp_path).verdict


@pytest.mark.parametrize('files', [0, 1, 3])
def test_picture(files, tmp_path):
    for i in range(files): save_audio(tmp_path/f'{i}.wav', synthesise('drums', seed=i, seconds=0.3))
    if files==3: save_audio(tmp_path/'off.wav', torch.zeros(9000))
    axes = examine_folder(tmp_path).show()
    assert len(axes)==2 and axes[0].get_xlabel()=='seconds'
    axes[0].figure.canvas.draw()
