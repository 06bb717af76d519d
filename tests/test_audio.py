"Reading any sound file and writing one: the accidents of real folders, and laws that hold for every input."
import errno, io, json, math, os, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill import audio
from distill.audio import (AudioError, MIN_SECONDS, RawAudio, count_clipped, find_audio_files,
                           find_bandwidth, load_audio, mix_to_mono, prepare_audio, read_audio, remove_dc,
                           scan_folder, write_atomically)
from distill.export import FORMATS, encode_sound, save_audio

# what has to become of each file of the folder `weird`: None = used without a note, else a part of its note or reason
USED = {'12ch_7_1_4_guitar.wav': None, '192k_mono.flac': None, '24bit_wavex_stereo.wav': None, '24k_stereo.ogg': 'nothing above 12.0 kHz',
        '44k_stereo.mp3': None, '6ch_5_1.wav': None, '8k_mono_speech.wav': 'nothing above 4.0 kHz', '96k_mono.flac': None,
        'Snäre – take 1 (ünïcode) ☂.WAV': None, 'aiff_24bit.aiff': None, 'clipping_real.flac': 'clipped: 1 flat top',
        'corrupt_middle.flac': 'damaged', 'dc_offset_speech.wav': 'constant offset', 'float32_stereo.wav': None,
        'float_nan_inf.wav': '11 values', 'float_over_0dbfs.wav': '6 times full scale',
        'mislabelled_flac.wav': 'holds FLAC',
        'mislabelled_mp3.wav': 'cut short: 39%', 'near_silent_speech.wav': 'very quiet', 'pcm_u8.wav': None,
        'stereo_one_side_empty.wav': '1 of 2 channels', 'stereo_out_of_phase.wav': 'cancel', 'ulaw_8k.wav': 'nothing above 4.0 kHz',
        'streamed_size_unknown.wav': 'does not say how long', 'truncated.flac': 'cut short', 'truncated.wav': 'cut short: 60%'}
SKIPPED = {'75264hz_single_cycle.wav': 'too short: 13.6 ms', 'all_zero_1s.wav': 'silent', 'one_sample.wav': 'too short',
           'header_only_no_samples.wav': 'no samples', 'text_renamed.wav': 'not a sound file', 'zero_bytes.wav': '0 bytes',
           'truncated_header.wav': 'damaged', 'very_short_12ms.wav': 'too short: 11.6 ms'}
SECONDS = {'44k_stereo.mp3': 43.967, 'mislabelled_mp3.wav': 17.215, '24k_stereo.ogg': 7.2397, 'truncated.wav': 1.429,
           'streamed_size_unknown.wav': 2.382, '192k_mono.flac': 0.0994, '12ch_7_1_4_guitar.wav': 0.5}


def tone(seconds=0.5, hz=440, rate=48_000, level=0.5):
    t = torch.arange(round(seconds*rate))/rate
    return level*torch.sin(2*torch.pi*hz*t)


# --- real accidents
@pytest.fixture(scope='module')
def weird(audio_dir): return scan_folder(audio_dir/'weird')


def test_every_weird_file_is_expected(weird):
    assert {r.name for r in weird.used}==set(USED)
    assert {r.name for r in weird.skipped}==set(SKIPPED)
    assert weird.aside=={'._kick.wav': 'side file of macOS, no sound'}


@pytest.mark.parametrize('name', USED)
def test_weird_file_alone_is_used(name, audio_dir, tmp_path):
    shutil.copy(audio_dir/'weird'/name, tmp_path)
    collection = scan_folder(tmp_path, keep=True)
    report, = collection.used
    if USED[name] is None: assert report.notes==()
    else: assert USED[name] in '; '.join(report.notes)
    wav = report.load()
    assert wav.dtype==torch.float32 and wav.ndim==1 and wav.isfinite().all() and 0 < wav.abs().max() <= 1
    assert abs(len(wav)/48_000 - report.seconds) < 1e-4
    if name in SECONDS: assert report.seconds==pytest.approx(SECONDS[name], abs=1e-3)
    assert torch.equal(load_audio(tmp_path/name).wav, wav)


@pytest.mark.parametrize('name', SKIPPED)
def test_weird_file_alone_is_named(name, audio_dir, tmp_path):
    shutil.copy(audio_dir/'weird'/name, tmp_path)
    collection = scan_folder(tmp_path)
    report, = collection.skipped
    assert SKIPPED[name] in report.reason and f'{name}: {report.reason}' in str(collection)
    with pytest.raises(AudioError, match=name): collection.require()


def test_side_file_of_macos(audio_dir, tmp_path):
    with pytest.raises(AudioError, match='the sound is in kick.wav'): load_audio(audio_dir/'weird'/'._kick.wav')
    shutil.copy(audio_dir/'weird'/'._kick.wav', tmp_path)
    with pytest.raises(AudioError, match='no sound files found'): scan_folder(tmp_path).require()


@pytest.mark.parametrize('name, least', [('corrupt_middle.flac', 65_536), ('truncated.flac', 77_824)])
def test_damaged_flac_gives_all_that_comes_before(name, least, audio_dir):
    raw = read_audio(audio_dir/'weird'/name)
    assert len(raw.samples)>=least # seeking after each block would lose the last one


@pytest.mark.parametrize('folder, n', [('drums', 93), ('tones', 77), ('textures', 33), ('speech', 99)])
def test_real_collections_are_used_entirely(folder, n, audio_dir):
    collection = scan_folder(audio_dir/folder)
    assert len(collection.used)==len(collection.reports)==n
    if folder == 'drums': assert min(r.seconds for r in collection.used) < 0.0195 # short ones are welcome


# --- faults of a sound that can be read
QUIETLY = settings(max_examples=30, deadline=None)

@QUIETLY
@given(hz=st.floats(15, 12_000), level=st.floats(0.2, 1), seed=st.integers(0, 9))
def test_full_scale_is_not_clipping(hz, level, seed):
    t = np.arange(24_000)/48_000
    wave = level*np.sin(2*np.pi*hz*t + seed)
    assert count_clipped((np.round(wave*32767)/32768)[:, None])==(0, 0)
    assert count_clipped(np.random.default_rng(seed).uniform(-level, level, (5000, 2)))[0]==0


@QUIETLY
@given(hz=st.floats(60, 2000), over=st.floats(1.2, 4), level=st.floats(0.5, 1))
def test_clipping_is_counted(hz, over, level):
    t = np.arange(48_000)/48_000
    wave = np.clip(over*np.sin(2*np.pi*hz*t + 0.3), -1, 1)
    runs, share = count_clipped(np.round(level*wave*32767)[:, None]/32768)
    at_top = (np.abs(wave)==1).mean()
    if 48_000/hz*math.acos(1/over)/math.pi > 4: # flat for more than four samples
        assert abs(runs - 2*hz) < 3 + 0.2*hz and abs(share - at_top) < 0.02 + 0.1*at_top


def test_one_clipped_channel_counts():
    clean, hot = tone(1).numpy(), np.clip(4*tone(1).numpy(), -1, 1)
    assert count_clipped(np.stack([clean, hot], 1))[1]==pytest.approx(count_clipped(hot[:, None])[1]/2)
    assert count_clipped(np.stack([clean, clean], 1))==(0, 0)


@pytest.mark.parametrize('rate', [16_000, 22_050, 32_000])
def test_an_upsampled_file_is_found_out(rate, tmp_path):
    noise = np.random.default_rng(0).standard_normal(48_000).astype(np.float32)*0.1
    dull = soxr.resample(soxr.resample(noise, 48_000, rate), rate, 48_000)
    save_audio(tmp_path/'dull.wav', torch.from_numpy(dull)), save_audio(tmp_path/'whole.wav', torch.from_numpy(noise))
    dull, whole = scan_folder(tmp_path).used
    assert dull.findings==('band-limited',) and abs(dull.bandwidth - rate/2) < 400 and 'resampled' in dull.notes[0]
    assert whole.findings==() and whole.bandwidth==24_000


def test_dark_sounds_are_not_band_limited():
    rng = np.random.default_rng(0)
    brown = np.cumsum(rng.standard_normal(96_000)).astype(np.float32)
    assert find_bandwidth(brown/np.abs(brown).max(), 48_000)==24_000
    assert find_bandwidth(tone(1, hz=8000).numpy(), 48_000)==24_000 # a pure tone has no floor to fall from
    assert find_bandwidth(np.zeros(48_000, np.float32), 48_000)==24_000


@pytest.mark.parametrize('db, found', [(-15, 24_000), (-50, 10_000)])
def test_a_step_down_is_not_a_cliff(db, found):
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(96_000))
    spectrum[20_000:] *= 10**(db/20) # from 10 kHz on
    assert abs(find_bandwidth(np.fft.irfft(spectrum).astype(np.float32), 48_000) - found) < 400


def test_every_finding_has_its_kind(tmp_path):
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32))
    files = {'fine': noise, 'hot': (3*tone(1)).clamp(-1, 1), 'quiet': 0.005*noise, 'dc': 0.2 + 0.2*noise,
             'gaps': torch.cat([noise, torch.zeros(5*48_000)]), 'off': torch.zeros(4800), 'click': noise[:500]}
    for name, wav in files.items(): save_audio(tmp_path/f'{name}.wav', wav)
    bad = noise.numpy().copy()
    bad[5] = np.nan
    sf.write(tmp_path/'nan.wav', bad, 48_000, subtype='FLOAT')
    (tmp_path/'half.wav').write_bytes((tmp_path/'fine.wav').read_bytes()[:60_000])
    (tmp_path/'text.wav').write_text('no sound', encoding='utf-8')
    shutil.copy(tmp_path/'fine.wav', tmp_path/'fine2.wav')
    found = scan_folder(tmp_path)
    kinds = {r.name: r.findings for r in found.reports}
    assert kinds=={'click.wav': ('too-short',), 'dc.wav': ('dc',), 'fine.wav': (), 'fine2.wav': ('copy',),
                   'gaps.wav': ('mostly-silent',), 'half.wav': ('truncated',), 'hot.wav': ('clipped',),
                   'nan.wav': ('not-a-number',), 'off.wav': ('silent',), 'quiet.wav': ('quiet',), 'text.wav': ('unreadable',)}
    heard = {r.name: r.heard for r in found.used}
    assert heard['gaps.wav']==pytest.approx(1, abs=0.06) and heard['fine.wav']==pytest.approx(1)
    assert {f['name']: tuple(f['findings']) for f in found.to_dict()['files']}==kinds


def test_a_note_that_many_share_is_one_line(tmp_path):
    for i in range(5): save_audio(tmp_path/f'{i}.wav', tone(hz=200 + i, rate=16_000), 16_000)
    text = str(scan_folder(tmp_path))
    assert text.count('nothing above 8.0 kHz')==1 and '5 files (0.wav, 1.wav, …)' in text


# --- finding
def test_nothing_on_the_way_stops_the_search(tmp_path):
    (tmp_path/'a').mkdir()
    (tmp_path/'.git').mkdir()
    for o in ('a/x.wav', '.git/y.wav', 'z.AIFF', 'song.m4a'): save_audio(tmp_path/'t.wav', tone()).rename(tmp_path/o)
    names = {'a/x.wav', 'song.m4a', 'z.AIFF'}
    if os.name == 'posix':
        os.symlink(tmp_path, tmp_path/'a'/'loop')
        os.symlink(tmp_path/'gone', tmp_path/'broken.wav')
        os.mkfifo(tmp_path/'pipe.wav')
        names |= {'broken.wav', 'pipe.wav'}
    collection = scan_folder(tmp_path)
    assert {r.name for r in collection.reports}==names
    reasons = {r.name: r.reason for r in collection.skipped}
    if os.name == 'posix':
        assert 'file that is gone' in reasons['broken.wav'] and 'not an ordinary file' in reasons['pipe.wav']


def test_foreign_formats_are_named(tmp_path):
    (tmp_path/'song.m4a').write_bytes(b'\0\0\0\x20ftypM4A ' + bytes(100))
    assert 'convert it to wav or flac' in scan_folder(tmp_path).skipped[0].reason


@pytest.mark.skipif(os.name != 'posix', reason='names are text on Windows')
def test_names_that_are_not_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9.wav'))
    try: save_audio(path, tone())
    except AudioError: pytest.skip('this file system wants text')
    collection = scan_folder(tmp_path)
    assert collection.used[0].name=='caf\ufffd.wav'
    str(collection).encode('utf-8')
    json.dumps(collection.to_dict()).encode('utf-8')


def test_a_subfolder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    (tmp_path/'locked').mkdir()
    real = os.scandir
    def scandir(path):
        if Path(path).name == 'locked': raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return real(path)
    monkeypatch.setattr(os, 'scandir', scandir)
    assert 'cannot be opened' in scan_folder(tmp_path).skipped[0].reason


@pytest.mark.parametrize('make, error', [(lambda p: p/'nowhere', FileNotFoundError),
                                         (lambda p: p/'x.wav', NotADirectoryError)])
def test_no_folder(make, error, tmp_path):
    save_audio(tmp_path/'x.wav', tone())
    with pytest.raises(error): find_audio_files(make(tmp_path))


# --- the collection
def test_progress_and_report(tmp_path):
    for i in range(3): save_audio(tmp_path/f'{i}.wav', tone(hz=200 + i))
    shutil.copy(tmp_path/'1.wav', tmp_path/'copy.wav')
    seen = []
    collection = scan_folder(tmp_path, progress_callback=lambda fraction, text: seen.append((fraction, text)))
    assert [f for f, _ in seen]==sorted(f for f, _ in seen) and seen[0][0]==0 and seen[-1][0]==1
    assert seen[1][1]=='Reading 2/4: 1.wav'
    assert collection.used[3].notes==('same content as 1.wav',) and len(collection.used)==4
    assert all(r.wav is None for r in collection.reports) # nothing is held in memory unless asked for
    assert json.loads(json.dumps(collection.to_dict(), allow_nan=False))['used']==4
    assert str(collection).startswith('4 of 4 files used, 2.0 s of sound')


def test_fingerprint_is_of_the_content(tmp_path):
    a, b = tmp_path/'a', tmp_path/'b'
    a.mkdir(), (b/'deep').mkdir(parents=True)
    save_audio(a/'1.wav', tone(hz=300)), save_audio(a/'2.wav', tone(hz=500))
    shutil.copy(a/'1.wav', b/'zz.wav'), shutil.copy(a/'2.wav', b/'deep'/'0.wav')
    (b/'broken.wav').write_text('no sound')
    assert scan_folder(a).fingerprint==scan_folder(b).fingerprint!=''
    save_audio(b/'zz.wav', tone(hz=301))
    assert scan_folder(a).fingerprint!=scan_folder(b).fingerprint
    (tmp_path/'c').mkdir()
    assert scan_folder(tmp_path/'c').fingerprint==''


@pytest.mark.parametrize('samples, used', [(719, False), (720, True)])
def test_shortest_sound(samples, used, tmp_path):
    save_audio(tmp_path/'x.wav', tone(1)[100:100+samples])
    assert scan_folder(tmp_path).reports[0].used is used and 720/48_000==MIN_SECONDS


@pytest.mark.parametrize('db, used', [(-60.5, False), (-59.5, True)])
def test_softest_sound(db, used, tmp_path):
    save_audio(tmp_path/'x.wav', tone(level=10**(db/20)), bit_depth=24)
    assert scan_folder(tmp_path).reports[0].used is used


def test_offset_alone_is_silence(tmp_path):
    save_audio(tmp_path/'x.wav', torch.full((48_000,), 0.3))
    assert 'silent' in scan_folder(tmp_path).reports[0].reason


# --- laws
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(rate=st.integers(8000, 192_000), channels=st.integers(1, 12), n=st.integers(200, 30_000), seed=st.integers(0, 99))
def test_any_rate_and_channel_count(rate, channels, n, seed):
    samples = np.random.default_rng(seed).uniform(-1, 1, (n, channels)).astype(np.float32)
    wav = prepare_audio(RawAudio(samples, rate, ())).wav
    assert wav.ndim==1 and abs(len(wav) - n*48_000/rate) <= 1
    assert wav.isfinite().all() and wav.abs().max() <= 1


@QUICK
@given(rate=st.integers(8000, 192_000), channels=st.integers(1, 12))
def test_resampling_keeps_the_sound(rate, channels):
    samples = np.repeat(tone(0.3, 440, rate).numpy()[:, None], channels, 1)
    wav = prepare_audio(RawAudio(samples, rate, ())).wav
    want = tone(0.3, 440)
    n = min(len(wav), len(want)) - 1000
    assert (wav[1000:n] - want[1000:n]).abs().max() < 2e-3 # ends aside, where the filter rings


@QUICK
@given(n=st.integers(1, 5000), channels=st.integers(1, 8), seed=st.integers(0, 99), depth=st.sampled_from([16, 24, 32]),
       rate=st.sampled_from([8000, 22_050, 44_100, 48_000, 96_000, 192_000]), suffix=st.sampled_from(['.wav', '.flac']))
def test_lossless_round_trip(n, channels, seed, depth, rate, suffix, tmp_path):
    if depth not in FORMATS[suffix]: return
    wav = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (channels, n)).astype(np.float32))
    path = save_audio(tmp_path/f'x{suffix}', wav, rate, depth)
    raw = read_audio(path)
    assert raw.samples.shape==(n, channels) and raw.sample_rate==rate and raw.notes==()
    assert np.abs(raw.samples.T - wav.numpy()).max() <= {16: 1.01*2**-15, 24: 2**-22, 32: 0}[depth]
    assert encode_sound(raw.samples.T, suffix, rate, depth)==path.read_bytes() # a second time nothing changes


@QUICK
@given(n=st.integers(1, 50_000), suffix=st.sampled_from(['.ogg', '.mp3']), channels=st.integers(1, 2))
def test_lossy_round_trip(n, suffix, channels, tmp_path):
    wav = tone(2)[:n].repeat(channels, 1)
    raw = read_audio(save_audio(tmp_path/f'x{suffix}', wav))
    assert raw.samples.shape[1]==channels
    assert len(raw.samples)==n
    assert suffix == '.mp3' or not raw.notes


@pytest.mark.parametrize('kind, subtype', [('WAV', 'PCM_16'), ('WAV', 'FLOAT'), ('FLAC', 'PCM_16'), ('OGG', 'VORBIS'),
                                           ('MP3', 'MPEG_LAYER_III'), ('AIFF', 'PCM_24')])
def test_any_damage_gives_sound_or_a_clear_error(kind, subtype, tmp_path):
    rng, whole = np.random.default_rng(0), io.BytesIO()
    sf.write(whole, rng.uniform(-0.1, 0.1, (12_000, 2)), 48_000, subtype, format=kind)
    path, outcomes = tmp_path/f'x.{kind.lower()}', set()
    for i in range(120):
        data = bytearray(whole.getvalue())
        places = rng.integers(0, len(data) if i % 2 else 200, min(i, rng.integers(1, 20))) # none in the first one
        for at in places: data[at] = rng.integers(256)
        path.write_bytes(data[:rng.integers(len(data))] if i % 3 == 2 else data)
        try:
            wav = load_audio(path).wav
            assert wav.ndim==1 and len(wav) and wav.isfinite().all() and wav.abs().max() <= 1
            outcomes.add('sound')
        except AudioError as e:
            assert path.name in str(e)
            outcomes.add('error')
    assert outcomes=={'sound', 'error'}


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 3e38, -3e38])
@pytest.mark.parametrize('channels', [1, 2])
def test_wild_values(value, channels):
    samples = np.tile(tone().numpy()[:, None], channels)
    samples[77] = value
    sound = prepare_audio(RawAudio(samples, 44_100, ()))
    assert sound.wav.isfinite().all() and sound.wav.abs().max() <= 1 and len(sound.notes)==1
    if not np.isfinite(value): assert sound.wav.abs().max() < 0.7 # zero, not full scale


# --- files of odd lengths
def test_length_that_was_never_written(tmp_path):
    whole = encode_sound(tone())
    (tmp_path/'x.wav').write_bytes(whole[:4] + bytes(4) + whole[8:40] + bytes(4) + whole[44:])
    assert len(load_audio(tmp_path/'x.wav').wav)==24_000
    (tmp_path/'y.wav').write_bytes(whole[:40] + bytes(4) + b'LIST' + (26).to_bytes(4, 'little') + bytes(26))
    with pytest.raises(AudioError, match='no samples'): load_audio(tmp_path/'y.wav') # text is not taken for sound


def test_flac_of_unknown_length(tmp_path):
    data = bytearray(encode_sound(tone(), '.flac'))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path/'x.flac').write_bytes(data)
    raw = read_audio(tmp_path/'x.flac')
    assert len(raw.samples)==24_000 and 'does not say how long' in raw.notes[0]


def test_short_low_sounds_keep_their_shape():
    t = np.arange(4800)/48_000
    kick = (np.sin(2*np.pi*45*t)*np.exp(-40*t)).astype(np.float32)
    assert abs(kick.mean()) > 0.02*kick.max()
    mono, notes = remove_dc(kick, 48_000)
    assert notes==() and np.array_equal(mono, kick)


def test_mix_leaves_unrelated_channels_alone():
    x = np.random.default_rng(0).standard_normal((999, 12)).astype(np.float32)
    mono, notes = mix_to_mono(x)
    assert notes==() and np.allclose(mono, x.mean(1), atol=1e-6)


# --- saving
def test_same_sound_same_bytes_in_another_process():
    code = """import hashlib, torch; from distill.export import FORMATS, encode_sound
wav = 0.3*torch.sin(torch.arange(90_000)/9)
for suffix, depths in FORMATS.items():
    for depth in depths or [16]: print(suffix, depth, hashlib.sha256(encode_sound(wav, suffix, bit_depth=depth)).hexdigest())"""
    runs = [subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                           cwd=Path(audio.__file__).parent.parent).stdout for _ in range(2)]
    assert runs[0]==runs[1] and len(runs[0].splitlines())==13


def test_ogg_checksums_are_right():
    data = encode_sound(tone(3), '.ogg')
    x, rate = sf.read(io.BytesIO(data)) # libogg drops pages whose checksum is wrong
    assert len(x)==144_000 and np.abs(x - tone(3).numpy()).max() < 0.05


@pytest.mark.parametrize('error, says', [(errno.ENOSPC, 'disk is full'), (errno.EACCES, 'not allowed'),
                                         (errno.EROFS, 'not allowed'), (errno.EIO, 'cannot write')])
@pytest.mark.parametrize('where', ['fsync', 'replace'])
def test_old_file_survives_a_failed_write(error, says, where, tmp_path, monkeypatch):
    path = save_audio(tmp_path/'x.wav', tone(hz=300))
    before = path.read_bytes()
    def fail(*args): raise OSError(error, os.strerror(error))
    monkeypatch.setattr(os, where, fail)
    with pytest.raises(AudioError, match=says): save_audio(path, tone(hz=500))
    assert path.read_bytes()==before and [p.name for p in tmp_path.iterdir()]==['x.wav']


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args): raise KeyboardInterrupt
    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(KeyboardInterrupt): write_atomically(tmp_path/'x', b'1')
    assert list(tmp_path.iterdir())==[]


@pytest.mark.skipif(not Path('/dev/full').exists() or sys.platform != 'linux', reason='needs Linux')
def test_really_full_disk(tmp_path):
    "A file size limit stands in for the full disk: the system itself refuses to write."
    save_audio(tmp_path/'x.wav', tone(0.01))
    code = f"""import signal, resource; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import torch
from distill.audio import AudioError
from distill.export import save_audio
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try: save_audio({str(tmp_path/'x.wav')!r}, torch.zeros(48_000))
except AudioError as e: print(e)"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                         cwd=Path(audio.__file__).parent.parent).stdout
    assert 'disk is full' in out and len(load_audio(tmp_path/'x.wav').wav)==480
    assert [p.name for p in tmp_path.iterdir()]==['x.wav']


def test_missing_folder_and_file_in_the_way(tmp_path):
    with pytest.raises(AudioError, match='create it first'): save_audio(tmp_path/'a'/'b.wav', tone())
    (tmp_path/'f').write_text('')
    with pytest.raises(AudioError, match='is not a folder|no folder'): save_audio(tmp_path/'f'/'b.wav', tone())
    (tmp_path/'d.wav').mkdir()
    with pytest.raises(AudioError, match='in the way'): save_audio(tmp_path/'d.wav', tone())


@pytest.mark.parametrize('name, options, says', [
    ('x', {}, 'no ending'), ('x.aac', {}, '.wav, .flac'), ('x.flac', dict(bit_depth=32), '16 or 24'),
    ('x.wav', dict(bit_depth=8), '16, 24 or 32'), ('x.mp3', dict(sample_rate=96_000), '48000'),
    ('x.wav', dict(sample_rate=0), '48000'), ('x.mp3', dict(wav=torch.zeros(3, 100)), 'at most 2'),
    ('x.wav', dict(wav=torch.zeros(0)), 'no samples'), ('x.wav', dict(wav=torch.zeros(1, 1, 9)), 'expected'),
    ('x.wav', dict(wav=torch.tensor([0., float('nan')])), 'not numbers')])
def test_what_cannot_be_saved(name, options, says, tmp_path):
    with pytest.raises(AudioError, match=says): save_audio(tmp_path/name, **{'wav': tone(), **options})
    assert list(tmp_path.iterdir())==[]


def test_too_loud_is_clipped_not_wrapped(tmp_path):
    for depth in (16, 24):
        raw = read_audio(save_audio(tmp_path/'x.wav', torch.tensor([-3., -1, 1, 3]), bit_depth=depth))
        assert np.allclose(raw.samples[:, 0], [-1, -1, 1, 1], atol=1e-4)


@pytest.mark.skipif(os.name != 'posix', reason='links and modes of POSIX')
def test_links_and_permissions(tmp_path):
    save_audio(tmp_path/'real.wav', tone(hz=300))
    os.symlink(tmp_path/'real.wav', tmp_path/'link.wav')
    save_audio(tmp_path/'link.wav', tone(hz=500))
    assert (tmp_path/'link.wav').is_symlink() and (tmp_path/'real.wav').read_bytes()==encode_sound(tone(hz=500))
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path/'real.wav').stat().st_mode & 0o777==0o666 & ~mask
