"Files for other programs: what ffmpeg and sox read back, loudness as ffmpeg measures it, stereo that is mono in mono, and what the check finds."
import io, json, math, re, shutil, subprocess

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.audio import AudioError, find_audio_files, load_audio, read_audio
from distill.export import (FORMATS, LOSSY, TAGS, ExportConfig, check_sound, decorrelate, encode_sound, export_sound, find_clicks, loudness,
                            mono_sum_loss, save_audio, set_level, true_peak, widen)
from distill.pipeline import Clip
from distill.synthesis import FAMILIES, synthesise

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RATE = 48_000
WORDS = dict(title='Größe 春', artist='Ärtist & Co', album='Tüten', genre='Other', date='2026', copyright='me', comment='Distill 0.1.0, model drums, seed 7')


@pytest.fixture(scope='session')
def ffmpeg():
    if not shutil.which('ffmpeg') or not shutil.which('ffprobe'): pytest.skip('no ffmpeg on this machine')


def tool(*args, stderr=False):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, encoding='utf-8', errors='replace')
    assert done.returncode==0, done.stderr
    return done.stderr if stderr else done.stdout


def probe(path):
    "What ffprobe says: the stream, the tags of file and stream with small names."
    about = json.loads(tool('ffprobe', '-v', 'error', '-print_format', 'json', '-show_format', '-show_streams', path))
    stream, = about['streams']
    tags = {**about['format'].get('tags', {}), **stream.get('tags', {})}
    return stream, {k.lower(): v for k, v in tags.items()}


def decoded(path, channels):
    "The samples as ffmpeg decodes them: (t, c)."
    raw = subprocess.run(['ffmpeg', '-v', 'error', '-i', str(path), '-f', 'f32le', '-'], capture_output=True, check=True).stdout
    return np.frombuffer(raw, '<f4').reshape(-1, channels)


def ebur128(path):
    "Integrated loudness and true peak as ffmpeg measures them."
    text = tool('ffmpeg', '-nostats', '-i', path, '-af', 'ebur128=peak=true', '-f', 'null', '-', stderr=True)
    summary = text[text.rindex('Summary:'):]
    return float(re.search(r'I:\s+(\S+) LUFS', summary)[1]), float(re.search(r'Peak:\s+(\S+) dBFS', summary)[1])


def pink(seconds=3.0, seed=0, channels=1, rate=RATE):
    "Noise with a spectrum like that of music, in bursts."
    rng, n = np.random.default_rng(seed), round(seconds*rate)
    hz = np.fft.rfftfreq(n, 1/rate)
    spectrum = np.fft.rfft(rng.standard_normal((channels, n)))*(hz > 30)/np.sqrt(np.maximum(hz, 30))
    x = np.fft.irfft(spectrum, n)*(0.3 + np.abs(np.sin(np.arange(n)/rate*2)))*np.minimum(1, np.arange(n)[::-1]/n*40)
    x = torch.from_numpy((0.3*x/np.abs(x).max()).astype(np.float32))
    return x[0] if channels==1 else x


# --- formats, read by another decoder
KINDS = [(suffix, depth) for suffix, depths in FORMATS.items() if suffix!='.aif' for depth in depths or [16]]


@pytest.mark.parametrize('suffix, depth', KINDS)
@pytest.mark.parametrize('rate, channels', [(48_000, 1), (44_100, 2), (22_050, 2)])
def test_ffmpeg_reads_it_back(ffmpeg, tmp_path, suffix, depth, rate, channels):
    wav = pink(1, channels=channels, rate=rate)
    path = save_audio(tmp_path/f'x{suffix}', wav, rate, depth, WORDS)
    stream, tags = probe(path)
    assert (int(stream['sample_rate']), stream['channels'])==(rate, channels)
    assert stream['codec_name']=={('.flac', 16): 'flac', ('.flac', 24): 'flac', ('.ogg', 16): 'vorbis', ('.mp3', 16): 'mp3'}.get(
        (suffix, depth), {16: 'pcm_s16', 24: 'pcm_s24', 32: 'pcm_f32'}[depth] + ('be' if suffix=='.aiff' else 'le'))
    samples = decoded(path, channels)
    want = wav.numpy().reshape(channels, -1).T
    # ffmpeg leaves the padding of an mp3 in; all others are exactly as long
    assert len(samples)==rate if suffix!='.mp3' else rate <= len(samples) <= rate + 4000
    if suffix not in LOSSY: assert np.abs(samples - want).max() <= {16: 2**-15, 24: 2**-23, 32: 0}[depth]
    elif suffix=='.ogg': assert np.corrcoef(samples[:, 0], want[:, 0])[0, 1] > 0.85
    else: assert abs(samples.std()/want.std() - 1) < 0.1


@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.aiff', '.ogg', '.mp3'])
def test_ffmpeg_reads_the_tags(ffmpeg, tmp_path, suffix):
    _, tags = probe(save_audio(tmp_path/f'x{suffix}', pink(0.5), tags=WORDS))
    names = dict(artist='author') if suffix=='.aiff' else {}
    kept = {'.aiff': ('title', 'artist', 'copyright', 'comment')}.get(suffix, TAGS)
    assert {k: tags.get(names.get(k, k)) for k in kept}=={k: WORDS[k] for k in kept}
    assert len(load_audio(tmp_path/f'x{suffix}').wav)==24_000 and not load_audio(tmp_path/f'x{suffix}').notes


@pytest.mark.skipif(not shutil.which('sox'), reason='no sox on this machine')
@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.aiff', '.ogg', '.mp3'])
def test_sox_reads_it_back(tmp_path, suffix):
    path = save_audio(tmp_path/f'x{suffix}', pink(1, channels=2), tags=dict(title='A title', artist='Somebody'))
    assert tool('sox', '--i', '-r', path).strip()=='48000' and tool('sox', '--i', '-c', path).strip()=='2'
    seconds = float(tool('sox', '--i', '-D', path))
    assert seconds==1 if suffix!='.mp3' else 1 <= seconds < 1.1
    if suffix in ('.flac', '.ogg', '.mp3'):    # sox reads tags of these
        comments = tool('sox', '--i', '-a', path).lower()
        assert 'title=a title' in comments and 'artist=somebody' in comments


def test_tags_are_words(tmp_path):
    a = encode_sound(pink(0.1), '.flac', tags=dict(title='  two\nlines\0 ', artist=None, album='', date=2026))
    assert sf.SoundFile(save_audio(tmp_path/'a.flac', pink(0.1), tags=dict(title='two lines', date='2026'))).title=='two lines'
    assert a==(tmp_path/'a.flac').read_bytes()
    with pytest.raises(AudioError, match='no such tag: singer'): encode_sound(pink(0.1), tags=dict(singer='me'))
    assert len(encode_sound(pink(0.1), tags=dict(comment='x'*5000))) < len(encode_sound(pink(0.1))) + 1100


@pytest.mark.parametrize('suffix, depth', KINDS)
def test_same_bytes_with_tags(suffix, depth):
    assert encode_sound(pink(0.5), suffix, bit_depth=depth, tags=WORDS)==encode_sound(pink(0.5), suffix, bit_depth=depth, tags=WORDS)


def test_dither():
    x = torch.full((48_000,), 0.3*2**-15)    # a third of a step: rounding loses it
    back = lambda **kw: torch.from_numpy(sf.read(io.BytesIO(encode_sound(x, **kw)), dtype='int16')[0]).double()
    assert back().abs().max()==0
    dithered = back(dither=True)
    assert abs(dithered.mean() - 0.3) < 0.02 and abs(dithered.var() - 0.25) < 0.02 and dithered.abs().max()<=2    # the variance is that of any level
    for suffix, depth in (('.wav', 24), ('.mp3', 16), ('.wav', 32)):
        with pytest.raises(AudioError, match='dither is for 16 bits'): encode_sound(x, suffix, bit_depth=depth, dither=True)


# --- loudness
@pytest.mark.parametrize('rate', [22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize('channels', [1, 2])
def test_loudness_is_that_of_ffmpeg(ffmpeg, tmp_path, rate, channels):
    wav = pink(4, seed=rate, channels=channels, rate=rate)
    path = save_audio(tmp_path/'x.wav', wav, rate, 32)
    lufs, peak = ebur128(path)
    assert abs(loudness(wav, rate) - lufs) < 0.15 and abs(true_peak(wav, rate) - peak) < 0.4


def test_gating_is_that_of_ffmpeg(ffmpeg, tmp_path):
    "Loud, then 30 dB below, then silence: the quiet parts must not count."
    wav = torch.cat([pink(3), 0.03*pink(4, 1), torch.zeros(3*RATE)])
    lufs, _ = ebur128(save_audio(tmp_path/'x.wav', wav, bit_depth=32))
    assert abs(loudness(wav) - lufs) < 0.15 and abs(loudness(wav) - loudness(wav[:3*RATE])) < 0.6


@pytest.mark.parametrize('target', [-30, -20])
@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.aiff', '.ogg', '.mp3'])
@pytest.mark.parametrize('width', [0, 0.6])
def test_files_are_as_loud_as_was_asked(ffmpeg, tmp_path, target, suffix, width):
    done = export_sound(tmp_path/f'x{suffix}', pink(4, seed=1), cfg=ExportConfig(44_100, lufs=target, width=width))
    lufs, peak = ebur128(done.path)
    assert abs(lufs - target) < 0.5 and abs(done.lufs - target) < 0.05 and peak < (-0.9 if suffix not in LOSSY else 0)


def test_peaks_come_first(tmp_path):
    clicks = torch.zeros(2*RATE)
    clicks[::9000] = 0.9
    done = export_sound(tmp_path/'x.wav', clicks, cfg=ExportConfig(lufs=-10, bit_depth=24))
    assert true_peak(load_audio(done.path).wav) <= -0.99 and done.lufs < -20
    assert [n.kind for n in done.notes if n.kind=='held-back'] and 'dB below -10 LUFS' in done.notes[0]


@QUICK
@given(seconds=st.floats(0.001, 1.0), level=st.floats(0.01, 1.0), target=st.floats(-40, -12), channels=st.integers(1, 2))
def test_levels_of_short_sounds(seconds, level, target, channels):
    wav = level*3*pink(1, channels=channels)[..., :max(1, round(RATE*seconds))]
    got = set_level(wav, lufs=target)
    assert torch.isfinite(got.wav).all() and got.held_back_db >= 0
    if got.gain_db==0 and got.held_back_db==0: return
    now = loudness(got.wav)
    assert abs(now - (target - got.held_back_db)) < 0.1 or now==-math.inf or loudness(wav)==-math.inf or abs(now - target) < 1
    assert true_peak(got.wav) <= -0.99


@pytest.mark.parametrize('name, bits, clipped', [('a.wav', 16, True), ('a.FLAC', 24, True), ('a.aiff', 16, True), ('a.wav', 32, False), ('a.ogg', 16, False)])
def test_what_is_clipped_on_the_way_is_said(tmp_path, name, bits, clipped):
    loud = 1.5*torch.sin(math.tau*440*torch.arange(RATE)/RATE)*torch.linspace(1, 0, RATE)
    done = export_sound(tmp_path/name, loud, cfg=ExportConfig(bit_depth=bits))
    assert ('clipped' in [n.kind for n in done.notes])==clipped
    if bits==32: assert np.abs(sf.read(done.path)[0]).max()>1.4    # float keeps it
    if clipped: assert done.lufs<loudness(loud)-0.1                # of what is in the file



def test_silence_is_left_alone(tmp_path):
    done = export_sound(tmp_path/'x.wav', torch.zeros(RATE), cfg=ExportConfig(lufs=-14, width=0.5))
    assert done.gain_db==0 and done.lufs is None and [n.kind for n in done.notes]==['silent']


# --- stereo
@QUICK
@given(width=st.floats(0, 1), seed=st.integers(0, 99), n=st.integers(1, 30_000), rate=st.sampled_from([8000, 44_100, 48_000, 96_000]))
def test_in_mono_it_is_the_same_sound(width, seed, n, rate):
    mono = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, n).astype(np.float32))
    wide = widen(mono, width, rate)
    assert wide.shape==(2, n) and (wide.mean(0) - mono).abs().max() < 1e-6
    assert torch.equal(wide, widen(mono, width, rate))


@QUICK
@given(seed=st.integers(0, 99), rate=st.sampled_from([22_050, 48_000]))
def test_the_side_has_the_same_spectrum_and_nothing_in_common(seed, rate):
    mono = torch.nn.functional.pad(torch.randn(rate, generator=torch.Generator().manual_seed(seed)), (0, rate))
    side = decorrelate(mono, rate)
    one, two = (torch.fft.rfft(x.double()).abs() for x in (mono, side))
    assert (one - two).norm()/one.norm() < 2e-3    # every frequency as it was
    assert abs(torch.corrcoef(torch.stack([mono, side]))[0, 1]) < 0.25


def test_width_is_heard_in_the_treble_and_not_in_the_bass():
    for hz, low, high in ((40, 0.98, 1.01), (3000, -0.35, 0.35)):
        narrow = torch.from_numpy(np.random.default_rng(0).standard_normal(RATE*2).astype(np.float32))
        spectrum = torch.fft.rfft(narrow)
        f = torch.fft.rfftfreq(len(narrow), 1/RATE)
        band = torch.fft.irfft(spectrum*((f > hz/1.4) & (f < hz*1.4)), len(narrow))
        assert low < torch.corrcoef(widen(band, 1.0))[0, 1] < high


def test_mono_sum_loss():
    x = pink(1)
    assert mono_sum_loss(torch.stack([x, x])) < 0.01 and mono_sum_loss(torch.stack([x, -x]))==math.inf
    assert abs(mono_sum_loss(torch.stack([x, pink(1, 5)])) - 3) < 0.3 and mono_sum_loss(torch.zeros(2, 9))==0


# --- the check
@pytest.mark.parametrize('family', FAMILIES)
def test_nothing_to_find_in_sounds_that_are_fine(family):
    for seed in range(6):
        wav = synthesise(family, seed=seed, seconds=1.5)
        wav = torch.cat([wav[:-240], wav[-240:]*torch.linspace(1, 0, 240)])
        assert not [n for n in check_sound(wav) if n.kind not in ('quiet', 'mostly-silent')], (family, seed)


def test_recordings_have_no_clicks(audio_dir):
    found = {}
    for folder in 'drums', 'tones', 'textures', 'speech':
        files = find_audio_files(audio_dir/folder)[::8]
        found[folder] = sum(bool(find_clicks(load_audio(f).wav[:5*RATE])) for f in files)/len(files)
    assert max(found.values()) < 0.15, found


@pytest.mark.parametrize('make, kind', [
    (lambda x: x*0, 'silent'), (lambda x: x*1e-4, 'silent'), (lambda x: x*0.02, 'quiet'), (lambda x: (8*x).clamp(-0.9, 0.9), 'clipped'),
    (lambda x: x + 0.05, 'dc'), (lambda x: torch.stack([x, -x]), 'mono'), (lambda x: torch.cat([x, torch.zeros(20*RATE)]), 'mostly-silent'),
    (lambda x: torch.cat([x[:30_000]*0 + 0.3, x[:0]]), 'breaks-off'), (lambda x: x*float('nan'), 'broken'), (lambda x: x[:0], 'broken')])
def test_what_is_wrong_is_named(make, kind):
    wav = pink(2)*torch.linspace(1, 0, 2*RATE)
    assert not check_sound(wav)
    found = check_sound(make(wav))
    assert kind in [n.kind for n in found], found
    assert all(str(n) and n.kind for n in found)


@QUICK
@given(at=st.integers(2000, 90_000), size=st.floats(0.15, 0.8), step=st.booleans())
def test_clicks_are_found_where_they_are(at, size, step):
    t = torch.arange(2*RATE)/RATE
    wav = 0.2*torch.sin(2*math.pi*220*t)
    if step: wav[at:] = 0.2*torch.sin(2*math.pi*220*t[at:] + 2) + 0    # the phase jumps
    else: wav[at] += size
    jump = (wav[at] - wav[at - 1]).abs()
    found = find_clicks(wav)
    if jump > 0.05: assert len(found)==1 and abs(found[0] - at/RATE) < 0.001
    assert find_clicks(0.2*torch.sin(2*math.pi*220*t))==[]


# --- the whole, and its sidecar
@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.aiff', '.ogg', '.mp3'])
def test_a_sidecar_says_enough_to_make_the_file_again(tmp_path, suffix):
    clip = Clip(pink(2), settings=dict(made_by='prior', model='drums', sampling=dict(seed=7)))
    clip.save(tmp_path/f'a{suffix}', 44_100, 16, lufs=-20, width=0.4, dither=suffix not in LOSSY, title='One', artist='Me')
    about = json.loads((tmp_path/f'a{suffix}.json').read_text(encoding='utf-8'))
    clip.export(tmp_path/f'b{suffix}', ExportConfig.from_dict(about['export']))
    assert (tmp_path/f'a{suffix}').read_bytes()==(tmp_path/f'b{suffix}').read_bytes()
    assert abs(about['lufs'] + 20) < 0.1 and about['channels']==2 and about['findings']==[] and about['export']['artist']=='Me'


def test_model_and_seed_are_in_the_file(ffmpeg, tmp_path):
    clip = Clip(pink(0.5), settings=dict(made_by='prior', model='drums', sampling=dict(seed=7)))
    _, tags = probe(clip.save(tmp_path/'a.flac', title='One'))
    assert re.fullmatch(r'Distill \S+, model drums, seed 7', tags['comment']) and tags['title']=='One'
    _, tags = probe(clip.save(tmp_path/'b.flac', comment='mine'))
    assert tags['comment']=='mine'


def test_stereo_clips(tmp_path):
    clip = Clip(pink(1, channels=2))
    assert clip.seconds==1 and '<audio' in clip._repr_html_()
    raw = read_audio(clip.save(tmp_path/'a.wav', 22_050, 24))
    assert raw.samples.shape==(22_050, 2)
    with pytest.raises(AudioError, match='stereo already'): clip.save(tmp_path/'b.wav', width=0.5)
    assert not (tmp_path/'b.wav').exists()


@pytest.mark.parametrize('change, words', [(dict(lufs=1), '-60 to 0'), (dict(lufs=float('nan')), '-60 to 0'), (dict(lufs='loud'), '-60 to 0'), (dict(width=-1), '0 \\(mono\\) to 1'),
                                           (dict(width=True), '0 \\(mono\\)'), (dict(bit_depth=8), '16, 24 or 32'), (dict(ceiling_db=3), '-30 to 0'), (dict(colour=1), 'no such setting')])
def test_settings_that_cannot_be(change, words):
    with pytest.raises(AudioError, match=words): ExportConfig.from_dict(change)
