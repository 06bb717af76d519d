"The built-in collection: enough of it, varied, clean at both ends, and the same for the same seed."
import subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch

import distill.synthesis
from distill.audio import AudioError, load_audio, peak_db, scan_folder
from distill.synthesis import FAMILIES, KINDS, _string_loop, make_collection, synthesise, write_collection

ALL = [(family, kind) for family in FAMILIES for kind in KINDS[family]]


@pytest.fixture(scope='module')
def sounds(): return make_collection()


def test_size_and_families(sounds):
    assert len(sounds)==80 and FAMILIES==('strings', 'bells', 'drums', 'textures')
    for family in FAMILIES: assert sum(name.startswith(family + '/') for name in sounds)==20
    assert 1.9 < sum(map(len, sounds.values()))/48_000/60 < 2.8


def test_every_sound_is_clean(sounds):
    for name, wav in sounds.items():
        assert wav.dtype==torch.float32 and wav.ndim==1 and wav.isfinite().all(), name
        assert -12.01 <= peak_db(wav) <= -0.99, name
        assert wav[:3].abs().max() < 0.02 and wav[-48:].abs().max() < 1e-3, name # no click at either end
        assert abs(wav.mean()) < 1e-3, name
        assert wav.square().mean().sqrt() > 0.003, name


def test_no_two_sounds_are_alike(sounds):
    heads = torch.stack([wav[:14_000]/wav[:14_000].norm() for wav in sounds.values()])
    alike = (heads @ heads.T).abs().fill_diagonal_(0)
    assert alike.max() < 0.98


def test_struck_sounds_decay_and_textures_last(sounds):
    for name, wav in sounds.items():
        early, late = (part.square().mean() for part in (wav[:len(wav)//3], wav[-len(wav)//4:-len(wav)//8]))
        assert (late > 0.02*early) if name.startswith('textures') else (late < 0.3*early), name


def test_families_differ_in_brightness_and_length(sounds):
    def centroid(wav):
        power = torch.fft.rfft(wav).abs().square()
        return float((power*torch.linspace(0, 24_000, len(power))).sum()/power.sum())
    c = {name: centroid(wav) for name, wav in sounds.items()}
    assert max(c.values())/min(c.values()) > 50
    assert max(v for k, v in c.items() if 'kick' in k) < min(v for k, v in c.items() if 'hat' in k)/5
    assert all(2 <= len(wav)/48_000 <= 4 for name, wav in sounds.items() if name.startswith('textures'))


def test_smaller_is_the_beginning_of_larger(sounds):
    few = make_collection(9)
    assert list(few)==list(sounds)[:9] and all(torch.equal(few[k], sounds[k]) for k in few)
    other = make_collection(4, seed=1)
    assert not any(len(v)==len(sounds[k]) and torch.equal(v, sounds[k]) for k, v in other.items())


@pytest.mark.parametrize('family, kind', ALL)
def test_one_seed_one_sound(family, kind):
    state = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    a = synthesise(family, 5, kind=kind)
    assert torch.equal(a, synthesise(family, np.random.default_rng(5), kind=kind))
    b = synthesise(family, 6, kind=kind)
    n = min(len(a), len(b))
    assert not torch.allclose(a[:n], b[:n], atol=1e-3)
    assert np.array_equal(state[0], np.random.get_state()[1]) and torch.equal(state[1], torch.random.get_rng_state())


@pytest.mark.parametrize('family, kind', ALL)
@pytest.mark.parametrize('seconds', [0.02, 0.1, 1.0, 7.3])
def test_any_length(family, kind, seconds):
    for seed in range(2 if seconds > 2 else 6):
        wav = synthesise(family, seed, seconds, kind)
        assert len(wav)==round(seconds*48_000) and wav.isfinite().all() and -12.01 <= peak_db(wav) <= -0.99


def test_same_in_another_process():
    code = """import hashlib; from distill.synthesis import synthesise, FAMILIES
print([hashlib.sha256(synthesise(f, 3).numpy().tobytes()).hexdigest() for f in FAMILIES])"""
    runs = {subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                           cwd=Path(distill.synthesis.__file__).parent.parent).stdout for _ in range(2)}
    assert len(runs)==1


@pytest.mark.parametrize('hz', [65.4, 110, 261.63, 440, 880, 1500])
def test_strings_are_in_tune(hz):
    burst = np.zeros(96_000)
    burst[:2] = 1, -1
    x, size = _string_loop(burst, hz, 3.0, 0.1), 1 << 20
    low, high = (round(r*hz*size/48_000) for r in (0.94, 1.06))
    found = (low + np.abs(np.fft.rfft(x*np.hanning(len(x)), size))[low:high].argmax())*48_000/size
    assert abs(1200*np.log2(found/hz)) < 2 # cents


@pytest.mark.parametrize('t60', [0.5, 2.0])
def test_strings_decay_as_asked(t60):
    burst = np.zeros(96_000)
    burst[:50] = np.hanning(50) - 0.5*np.hanning(50).mean()
    x = _string_loop(burst, 220, t60, 0.02)
    def level(at): # of the fundamental
        part = x[round(at*48_000):][:9600]*np.hanning(9600)
        return 20*np.log10(abs(np.sum(part*np.exp(-2j*np.pi*220*np.arange(9600)/48_000))))
    assert (level(0.1) - level(0.4))/0.3==pytest.approx(60/t60, rel=0.1)


def test_write_collection(tmp_path, sounds):
    seen = []
    folder = write_collection(tmp_path/'deep'/'sounds', 12, progress_callback=lambda f, text: seen.append((f, text)))
    collection = scan_folder(folder)
    assert len(collection.used)==12 and not collection.skipped and not any(r.notes for r in collection.used)
    assert seen[0]==(0, 'Making sound 1/12: strings/nylon_00') and seen[-1][0]==1 and len(seen)==13
    for r in collection.used: assert (load_audio(r.path).wav - sounds[r.name[:-5]]).abs().max() < 2e-7
    again = write_collection(tmp_path/'again', 12)
    assert scan_folder(again).fingerprint==collection.fingerprint # the same bytes


@pytest.mark.parametrize('call, says', [
    (lambda: synthesise('flutes'), 'strings, bells'), (lambda: synthesise('drums', kind='gong'), 'kick, snare'),
    (lambda: synthesise('drums', seconds=0), '0.02 to 60'), (lambda: synthesise('drums', seconds=1e9), '0.02 to 60'),
    (lambda: make_collection(0), 'at least one')])
def test_wrong_wishes(call, says):
    with pytest.raises(ValueError, match=says): call()


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(AudioError, match='cannot write'): write_collection(tmp_path/'file'/'sounds', 4)
