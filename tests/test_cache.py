"Spectrograms that are kept: found again by content, never wrong, never in the way."
import errno, json, os, shutil, subprocess, sys, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from distill import dataset
from distill.audio import AudioError
from distill.export import save_audio
from distill.dataset import (DatasetConfig, MEL_STEP, MelWindows, SoundCache, StoredMel, cache_folder, examine_folder,
                             load_collection, pack_mel, unpack_mel)
from distill.spectrogram import AudioSpectrogram, SpectrogramConfig
from distill.synthesis import synthesise, write_collection

FLOOR = SpectrogramConfig().log_floor


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DISTILL_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'


@pytest.fixture
def sounds(tmp_path):
    folder = write_collection(tmp_path/'sounds', n_files=6, seed=5)
    for path in folder.rglob('*.*'): os.utime(path, (1e9, 1e9)) # not of this moment
    return folder


@pytest.fixture
def on_disk(monkeypatch): monkeypatch.setattr(dataset, 'IN_MEMORY_BYTES', 0)


def no_decoding(monkeypatch):
    def refuse(path, *args): raise AssertionError(f'{path} was decoded')
    monkeypatch.setattr(dataset, 'report_file', refuse)


def equal(a, b): return len(a)==len(b) and all(torch.equal(torch.as_tensor(x[:, :]), torch.as_tensor(y[:, :])) for x, y in zip(a, b))


# --- sixteen bits
@given(st.lists(st.floats(-11.5, 9), min_size=4, max_size=40).filter(lambda x: len(x) % 4==0))
@settings(max_examples=60, deadline=None)
def test_steps_are_small_and_silence_is_exact(values):
    mel = torch.tensor(values).view(4, -1)
    mel[0, 0] = FLOOR
    back = unpack_mel(pack_mel(mel, FLOOR), FLOOR)
    assert (back - mel).abs().max() <= 0.51*MEL_STEP < 0.001 and back[0, 0]==torch.tensor(FLOOR)
    assert np.array_equal(pack_mel(back, FLOOR), pack_mel(mel, FLOOR))


def test_a_long_file_is_transformed_in_pieces():
    wav, spectrogram = torch.randn(48_000*3), AudioSpectrogram()
    pieces = dataset._mel_in_pieces(spectrogram, wav, 64)
    assert pieces.shape==(128, spectrogram.get_mel_shape(len(wav))[1])
    assert torch.allclose(pieces, spectrogram.waveform_to_mel(wav), atol=1e-4)


# --- warm and cold
def test_second_run_decodes_nothing_and_sees_the_same(cache, sounds, monkeypatch):
    cold = load_collection(sounds)
    no_decoding(monkeypatch)
    warm = load_collection(sounds)
    assert equal(cold.mels, warm.mels) and cold.split==warm.split and cold.groups==warm.groups
    assert cold.files.to_dict()==warm.files.to_dict() and cold.files.fingerprint==warm.files.fingerprint
    assert examine_folder(sounds).to_dict()['used']==6


def test_without_a_cache_the_numbers_are_the_same(cache, sounds, monkeypatch):
    kept = load_collection(sounds)
    monkeypatch.setenv('DISTILL_CACHE', 'off')
    assert cache_folder() is None
    assert equal(kept.mels, load_collection(sounds).mels)


def test_a_moved_folder_is_found_by_content(cache, sounds, tmp_path, monkeypatch):
    cold = load_collection(sounds)
    moved = tmp_path/'elsewhere'
    shutil.move(sounds, moved)
    no_decoding(monkeypatch)
    assert equal(cold.mels, load_collection(moved).mels)


def test_a_changed_file_is_noticed(cache, sounds):
    before = load_collection(sounds)
    path = before.files.used[0].path
    save_audio(path, synthesise('drums', seed=77, seconds=0.5))
    after = load_collection(sounds)
    assert after.files.used[0].digest != before.files.used[0].digest
    assert not equal(before.mels[:1], after.mels[:1]) and equal(before.mels[1:], after.mels[1:])


def test_a_file_of_this_moment_is_not_trusted_by_its_time(cache, sounds):
    path = load_collection(sounds).files.used[0].path
    data = bytearray(path.read_bytes())
    path.write_bytes(data)
    now = path.stat()
    first = load_collection(sounds).files.used[0].digest
    data[-1] ^= 1
    path.write_bytes(data) # as large, and within one tick of a coarse clock
    os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns))
    assert load_collection(sounds).files.used[0].digest != first


def test_unusable_files_keep_their_reasons(cache, sounds):
    save_audio(sounds/'silence.wav', torch.zeros(48_000))
    save_audio(sounds/'hot.wav', (5*synthesise('strings', seed=1, seconds=0.5)).clamp(-1, 1))
    (sounds/'text.wav').write_text('no sound', encoding='utf-8')
    cold, warm = examine_folder(sounds), examine_folder(sounds)
    assert cold.to_dict()==warm.to_dict() and str(cold)==str(warm)
    assert {r.findings for r in warm.files.skipped}=={('silent',), ('unreadable',)}
    assert any(r.findings==('clipped',) for r in warm.files.used)


def test_a_copy_named_differently_is_told_apart(cache, sounds):
    wav = next(p for p in sounds.rglob('*.*') if p.is_file())
    shutil.copy(wav, sounds/'renamed.wav')
    notes = {r.name: r.findings for r in load_collection(sounds).files.used}
    assert ('mislabelled' in notes['renamed.wav'])==(wav.suffix != '.wav')


# --- accidents
@pytest.mark.parametrize('damage', [lambda p: p.write_bytes(b''), lambda p: p.write_bytes(b'nonsense'*99), Path.unlink,
                                    lambda p: p.write_bytes(p.read_bytes()[:-50])])
def test_a_damaged_entry_is_made_again(cache, sounds, damage):
    cold = load_collection(sounds)
    for entry in (cache/'mels').iterdir(): damage(entry)
    for other in ('paths', 'same'):
        for entry in (cache/other).iterdir(): entry.write_bytes(b'{]')
    assert equal(cold.mels, load_collection(sounds).mels)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_or_forbidden_disk_is_one_warning(cache, sounds, monkeypatch, number):
    kept = load_collection(sounds)
    shutil.rmtree(cache)
    def fail(path, data): raise OSError(number, os.strerror(number), str(path))
    monkeypatch.setattr(dataset, 'write_atomically', fail)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        without = load_collection(sounds)
    assert equal(kept.mels, without.mels)
    assert len(told)==1 and 'without keeping spectrograms' in str(told[0].message)


def test_a_cache_folder_that_is_a_file(tmp_path, sounds, monkeypatch):
    (tmp_path/'taken').write_text('mine', encoding='utf-8')
    monkeypatch.setenv('DISTILL_CACHE', str(tmp_path/'taken'))
    with pytest.warns(UserWarning, match='cannot write'): load_collection(sounds)
    assert (tmp_path/'taken').read_text(encoding='utf-8')=='mine'


# --- larger than memory
def test_windows_from_files_are_the_same(cache, sounds, monkeypatch):
    cfg = DatasetConfig(mix_probability=0.3, eq_db=2, speed_semitones=1, speed_copies=1)
    small = load_collection(sounds, cfg)
    monkeypatch.setattr(dataset, 'IN_MEMORY_BYTES', 0)
    for large in (load_collection(sounds, cfg), load_collection(sounds, cfg)):
        assert all(isinstance(m, StoredMel) for m in large.mels + large.copies) and not isinstance(small.mels[0], StoredMel)
        assert equal(small.mels, large.mels) and equal(small.copies, large.copies)
        ours, theirs = MelWindows(small, 8, seed=3), MelWindows(large, 8, seed=3)
        for _ in range(4): assert torch.equal(next(ours).mel, next(theirs).mel)


def test_a_stored_mel_answers_as_a_tensor(cache, sounds, on_disk):
    stored = load_collection(sounds).mels[0]
    mel = stored.load()
    assert stored.shape==mel.shape and stored.numel()==mel.numel() and len(stored)==len(mel)
    assert torch.equal(stored[:, 3:9], mel[:, 3:9]) and torch.equal(stored[5:7, -4:], mel[5:7, -4:])
    assert torch.equal(stored[:, 4:2], mel[:, 4:2]) and torch.equal(stored[:, ::3], mel[:, ::3]) and stored[1, 2]==mel[1, 2]
    assert torch.equal(stored.double().sum(), mel.double().sum()) and torch.equal(torch.exp(stored), mel.exp())
    assert equal(stored.split(30, -1), mel.split(30, -1))
    with pytest.raises(AttributeError): stored.no_such_thing
    with pytest.raises(AttributeError): stored.__no_such_thing__


def test_an_entry_removed_while_learning_is_made_again(cache, sounds, on_disk):
    collection = load_collection(sounds)
    before = collection.mels[0].load()
    shutil.rmtree(cache)
    assert torch.equal(collection.mels[0].load(), before) and torch.equal(collection.mels[0][:, :5], before[:, :5])
    collection.files.used[1].path.unlink()
    with pytest.raises(AudioError, match='changed or removed while it was learned from'): collection.mels[1].load()
    save_audio(collection.files.used[2].path, torch.randn(48_000)*0.1)
    with pytest.raises(AudioError, match='put the file back'): collection.mels[2].load()


def test_a_source_removed_while_learning_is_not_missed(cache, sounds, on_disk):
    collection = load_collection(sounds)
    shutil.rmtree(sounds)
    assert next(MelWindows(collection, 16)).mel.isfinite().all()


# --- size, place, company
def test_the_longest_unused_goes_first(tmp_path):
    cache = SoundCache(tmp_path, limit=250)
    for i, name in enumerate('abcd'):
        cache.write('mels', name, bytes(100))
        os.utime(cache.path('mels', name), (i, i))
    cache.used.add('a')
    cache.prune()
    assert {p.name for p in (tmp_path/'mels').iterdir()}=={'a', 'd'}


def test_the_limit_is_kept_by_loading(cache, sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, 'CACHE_BYTES', 1)
    monkeypatch.setattr(SoundCache.__init__, '__defaults__', (None, 1))
    load_collection(sounds)
    first = {p.name for p in (cache/'mels').iterdir()}
    load_collection(write_collection(tmp_path/'others', n_files=4, seed=9))
    assert len(first)==6 and not first & {p.name for p in (cache/'mels').iterdir()}


@pytest.mark.parametrize('platform, env, place', [('linux', {}, '.cache/distill'), ('linux', {'XDG_CACHE_HOME': '{home}/x'}, 'x/distill'),
                                                  ('linux', {'XDG_CACHE_HOME': 'relative'}, '.cache/distill'),
                                                  ('darwin', {}, 'Library/Caches/distill'),
                                                  ('win32', {'LOCALAPPDATA': '{home}/Local'}, 'Local/distill')])
def test_where_it_is(tmp_path, monkeypatch, platform, env, place):
    for name in ('DISTILL_CACHE', 'XDG_CACHE_HOME', 'LOCALAPPDATA'): monkeypatch.delenv(name, raising=False)
    for name in ('HOME', 'USERPROFILE'): monkeypatch.setenv(name, str(tmp_path))
    for name, value in env.items(): monkeypatch.setenv(name, value.format(home=tmp_path))
    monkeypatch.setattr(sys, 'platform', platform)
    assert cache_folder()==tmp_path/place


def test_three_processes_at_once(cache, sounds):
    code = ('import sys, hashlib; from distill.dataset import load_collection; c = load_collection(sys.argv[1]); '
            'print(hashlib.sha256(b"".join(m.numpy().tobytes() for m in c.mels)).hexdigest(), c.split)')
    env = dict(os.environ, PYTHONPATH=str(Path(dataset.__file__).parent.parent), OMP_NUM_THREADS='1')
    running = [subprocess.Popen([sys.executable, '-c', code, str(sounds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
                                text=True, encoding='utf-8') for _ in range(3)]
    told = [p.communicate(timeout=240) for p in running]
    assert len({out for out, _ in told})==1 and all(p.returncode==0 for p in running), told
    assert not list(cache.rglob('*.part')) and len(list((cache/'mels').iterdir()))==6
    assert all(set(json.loads(p.read_text(encoding='utf-8')))=={'size', 'mtime_ns', 'digest'} for p in (cache/'paths').iterdir())
