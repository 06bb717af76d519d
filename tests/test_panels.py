"Panels without a browser: widgets are objects whose values can be set and whose handlers can be called."
import itertools, json, re, threading, time
from datetime import datetime, timezone
from dataclasses import replace

import ipywidgets as widgets
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st

from distill import generate_panel as generating
from distill.audio import load_audio, read_audio
from distill.export import FORMATS
from distill.library import Library
from distill.live import Training
from distill.model import LoadedVQModel
from distill.controls import (STYLE, Job, SaveSettings, SoundCard, SoundPicker, Workspace, as_html, bits_for, checked_name, free_path,
                              in_words, rates_for, save_take)
from distill.generate_panel import (GeneratePanel, PresetRow, SamplingControls, SeedRow, SoundControls, TakeHistory, describe_take, levels_text,
                                    parse_levels)
from distill.panels import Workbench
from distill.pipeline import Clip, ClipConfig, regenerate
from distill.prior import CodePrior, PriorConfig
from distill.sampling import PER_LEVEL, PRESETS, SamplingConfig, Stopped, save_preset
from distill.spectrogram import AudioSpectrogram, SpectrogramConfig
from distill.vqvae import ConvVQVAE, VQVAEConfig


@pytest.fixture(scope='module')
def loaded():
    "A model that has learned nothing: it makes noise, quickly."
    torch.manual_seed(0)
    vqvae, prior = (VQVAEConfig(codebook_size=32, n_quantizers=2, channels=(8, 8, 16, 16)),
                    PriorConfig(codebook_size=32, n_quantizers=2, d_model=16, n_heads=1, n_layers=1))
    model = ConvVQVAE(vqvae).eval()
    for name, x in model.named_buffers():
        if name.endswith('embed'): x.normal_()
        if name.endswith('initted'): x.fill_(True)
    return LoadedVQModel(model, CodePrior(prior).eval(), AudioSpectrogram(), torch.device('cpu'), SpectrogramConfig(),
                         vqvae, prior, metadata=dict(name='noise'))


@pytest.fixture
def panel(loaded, tmp_path):
    panel = GeneratePanel(loaded, tmp_path)
    panel.sound.duration.value = 1
    yield panel
    panel.stop()
    assert panel.wait(10)


@pytest.fixture(scope='module')
def clip(): return Clip(torch.rand(4800) - .5, settings=dict(ClipConfig().to_dict(), seed=1))


class Row(SoundCard):
    "A card with save settings of its own."
    def __init__(self, folder, clip, name='hat'): super().__init__(clip, name, SaveSettings(folder), parts=(b'RIFF', b''))


def take(panel):
    panel.go.click()
    assert panel.wait(60) and panel.error is None, panel.status.value
    return panel.clip.wav


def everything(widget):
    yield widget
    for child in getattr(widget, 'children', ()): yield from everything(child)


# --- words
@given(st.text())
def test_nothing_typed_becomes_html(text):
    inside = as_html(text)[len('<div role="status">'):-len('</div>')].replace('<br>', '')
    assert not re.search('[<>"\']', inside)
    assert re.fullmatch(r'([^&]|&(amp|lt|gt|quot|#x27);)*', inside, re.S)


@pytest.mark.parametrize('error, words', [
    (ValueError('no prior yet'), 'No prior yet'), (FileNotFoundError(2, 'gone', 'a.wav'), 'gone'), (ValueError(), 'ValueError'),
    (MemoryError(), 'shorter duration'), (torch.OutOfMemoryError('CUDA'), 'shorter duration'), (KeyError('x'), 'KeyError'),
    (RuntimeError('CUDA error'), 'CUDA error')])
def test_errors_in_words(error, words): assert words in in_words(error)


def test_no_colour_of_our_own():
    values = re.findall(r': ([^;}]+)', STYLE)
    assert len(values) > 10 and not [o for o in values if re.search('#|rgb|hsl|white$|black|grey|gray', o)]


# --- work in the background
def test_job_runs_one_at_a_time():
    go, done = threading.Event(), []
    job = Job()
    assert job.start(lambda should_stop: go.wait(10), lambda *o: done.append(o))
    assert job.running and not job.start(lambda should_stop: 1, lambda *o: done.append(o))
    assert not job.wait(.01)
    go.set()
    assert job.wait(5) and done==[(True, None)]


def test_stop_of_one_take_does_not_stop_the_next():
    job, seen = Job(), []
    job.stop()
    for _ in range(2):
        assert job.start(lambda should_stop: should_stop(), lambda result, error: seen.append(result))
        assert job.wait(5)
        job.stop()
    assert seen==[False, False]


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_job_is_over_whatever_happens():
    changes = []
    job = Job(changes.append)
    def fail(*_): raise RuntimeError('in finish')
    job.start(lambda should_stop: 1/0, fail)
    assert job.wait(5) and changes==[True, False]


# --- controls
def test_ranges_and_defaults(panel):
    "As the contract has them."
    knobs = dict(panel.sampling.knobs, duration=panel.sound.duration, crossfade=panel.sound.crossfade)
    assert {name: (k.min, k.max, k.value) for name, k in knobs.items() if name!='duration'}==dict(
        temperature=(.1, 2., 1.), top_p=(0., 1., .9), top_k=(0, 32, 0), repetition_penalty=(1., 2., 1.), min_p=(0., 1., 0.),
        typical_p=(0., 1., 0.), penalty_context=(1, 65_536, 64), crossfade=(0, 200, 50))
    assert (panel.sound.duration.min, panel.sound.duration.max, panel.sound.crossfade.step)==(1, 30, 10)
    assert GeneratePanel(panel.loaded).sound.duration.value==10


@pytest.mark.parametrize('codes, most', [(2, 2), (128, 128), (512, 512), (4096, 512)])
def test_top_k_ends_at_the_codebook(codes, most): assert SamplingControls(codes).knobs['top_k'].max==most


@pytest.mark.parametrize('first, second', list(itertools.permutations(['panel', *PRESETS], 2)))
def test_presets(first, second):
    "A preset sets everything, whatever was set before."
    want = SamplingConfig(top_p=.9) if second=='panel' else PRESETS[second]()
    controls = SamplingControls(512)
    controls.preset.value = first
    controls.preset.value = second
    got = controls.config()
    assert replace(got, seed=None)==replace(want, seed=None)
    assert want.seed in (None, got.seed) and controls.seed.fresh.value==(want.seed is None)
    assert all(k.disabled==want.argmax for k in controls.knobs.values())


@pytest.mark.parametrize('knob, value', [('temperature', .5), ('top_p', .3), ('top_k', 7), ('repetition_penalty', 1.3), ('min_p', .1), ('typical_p', .8),
                                         ('penalty_context', 9)])
def test_a_turned_knob_makes_it_ones_own(knob, value):
    controls = SamplingControls(512)
    controls.choose('creative')
    controls.knobs[knob].value = value
    assert controls.preset.value=='own'
    assert replace(controls.config(), seed=None)==replace(SamplingConfig.creative(), **{knob: value})


@pytest.mark.parametrize('draw, want', [('chance', {}), ('gumbel', dict(gumbel=True)), ('argmax', dict(argmax=True))])
def test_ways_to_draw(draw, want):
    controls = SamplingControls(512)
    controls.choose('creative')
    controls.draw.value = draw
    assert replace(controls.config(), seed=None)==replace(SamplingConfig.creative(), **want)
    assert controls.preset.value==('creative' if draw=='chance' else 'own') and controls.knobs['top_p'].disabled==(draw=='argmax')


@given(st.fixed_dictionaries({}, optional=dict(
    temperature=st.lists(st.sampled_from([.1, .7, 1., 2.]), min_size=1), top_k=st.lists(st.integers(0, 512), min_size=1),
    min_p=st.lists(st.sampled_from([0., .05, 1.]), min_size=1), argmax=st.lists(st.booleans(), min_size=1))))
def test_what_is_written_per_level_is_read_again(values):
    values = {name: tuple(o) for name, o in values.items()}
    assert parse_levels(levels_text(SamplingConfig(**values)))==values and set(values) <= set(PER_LEVEL)


@pytest.mark.parametrize('text', ['seed 1, 2', 'gumbel yes', 'top_k 1.5', 'temperature', 'temperature 1,', 'argmax 1', 'min_p -1, 0', 'x'])
def test_levels_that_make_no_sense(panel, text):
    "Said at once, and again instead of a take."
    panel.sampling.levels.value = text
    assert 'distill-error' in panel.sampling.note.value
    panel.go.click()
    assert not panel.job.running and isinstance(panel.error, ValueError) and 'distill-error' in panel.status.value and not panel.go.disabled
    panel.sampling.levels.value = ''
    assert 'distill-error' not in panel.sampling.note.value
    take(panel)


def test_more_levels_than_the_model_has(panel):
    panel.sampling.levels.value = 'temperature 1, 1, 1'
    panel.go.click()
    assert panel.wait(20) and 'leave out the last 1' in panel.status.value


def test_presets_of_ones_own(monkeypatch, tmp_path):
    "All of a preset is shown, what differs from level to level, too."
    monkeypatch.setenv('DISTILL_HOME', str(tmp_path))
    mine = SamplingConfig(temperature=(.7, 1.), min_p=.05, typical_p=.8, repetition_penalty=1.7, penalty_context=9, gumbel=True, seed=5)
    save_preset('own', mine)    # a name that means something else here
    (tmp_path/'presets'/'bad.json').write_text('{', encoding='utf-8')
    controls = SamplingControls(512)
    controls.preset.value = 'saved own'
    assert controls.config()==mine and controls.preset.value=='saved own' and not controls.seed.fresh.value
    controls.preset.value = 'saved bad'
    assert 'mend or delete' in controls.note.value and controls.config()==mine
    controls.preset.value = 'panel'
    assert replace(controls.config(), seed=None)==SamplingConfig(top_p=.9)


# --- what sound is asked for
def test_what_does_not_go_together_is_off():
    "Whatever is clicked, what is asked for is possible."
    controls = SoundControls(['a', 'b'])
    fields = [(controls.until_end, (True, False)), (controls.loop, (True, False)), (controls.stitch, ('crossfade', 'continue'))]
    for order in itertools.product([(f, v) for f, values in fields for v in values], repeat=4):
        for field, value in order:
            if not field.disabled: field.value = value
            cfg = controls.config(SamplingConfig())    # raises what cannot be
            assert controls.crossfade.disabled==(cfg.stitch=='continue') and controls.duration.disabled==(cfg.duration_s is None)


def test_kinds_of_sound(loaded):
    assert GeneratePanel(loaded).sound.label.layout.display=='none'    # none to choose from
    cfg = replace(loaded.prior_config, labels=('bells', 'drums'))
    panel = GeneratePanel(replace(loaded, prior=CodePrior(cfg).eval(), prior_config=cfg))
    panel.sound.label.value, panel.sound.duration.value = 'drums', 1
    take(panel)
    assert panel.clip.settings['label']=='drums' and panel.sound.label.layout.display is None


def test_until_it_ends_and_loops(panel):
    panel.sound.until_end.value = True
    assert len(take(panel))==round(48_000*panel.clip.seconds) and panel.clip.settings['duration_s'] is None and not panel.takes.cards[0].player.loop
    panel.sound.until_end.value, panel.sound.loop.value = False, True
    assert len(take(panel))==48_000 and panel.clip.settings['loop'] and panel.takes.cards[0].player.loop


def test_seed():
    row = SeedRow()
    assert len({row.next() for _ in range(5)})==5 and row.fresh.value
    row.number.value = 2**53 - 1
    assert not row.fresh.value and row.next()==2**53 - 1
    row.fresh.value = True
    row.dice.click()
    assert not row.fresh.value and row.next()==row.next()!=2**53 - 1


def test_every_control_is_explained(panel):
    take(panel)
    for o in everything(panel):
        if not isinstance(o, (widgets.ValueWidget, widgets.Button)): continue
        if isinstance(o, (widgets.HTML, widgets.FloatProgress)): continue
        if isinstance(o, (widgets.Audio, widgets.Image)): assert o.tooltip; continue
        if o in [c.name for c in panel.takes.cards]: assert o.tooltip; continue    # what it is stands beside it
        assert o.tooltip and o.description and any(c.startswith('distill-') for c in o._dom_classes), o


# --- saving
@pytest.mark.parametrize('suffix', FORMATS)
def test_whatever_is_on_offer_can_be_saved(suffix, clip, tmp_path):
    row = Row(tmp_path, clip)
    to = row.settings
    to.format.value = suffix
    assert [o for _, o in to.rate.options]==list(rates_for(suffix)) and to.bits.options==bits_for(suffix)
    for (_, rate), (_, bits) in itertools.product(to.rate.options, to.bits.options):
        to.rate.value, to.bits.value = rate, bits
        path = row.save()
        assert path and read_audio(path).sample_rate==rate, row.status.value
        about = json.loads(path.with_name(f'{path.name}.json').read_text(encoding='utf-8'))
        assert (about['sample_rate'], about['bit_depth'], about['file'])==(rate, bits, path.name)
        assert str(path) in row.status.value


def test_choices_survive_where_they_can(tmp_path):
    row = SaveSettings(tmp_path)
    row.bits.value, row.rate.value = 24, 44_100
    for suffix, bits, rate in (('.flac', 24, 44_100), ('.mp3', 16, 44_100), ('.wav', 16, 44_100)):
        row.format.value = suffix
        assert (row.bits.value, row.rate.value)==(bits, rate)


def test_nothing_is_overwritten(clip, tmp_path):
    (tmp_path/'hat.wav').write_bytes(b'mine')
    (tmp_path/'hat-2.wav.json').write_bytes(b'mine too')
    path, said = save_take(clip, str(tmp_path), 'hat.wav', '.wav')
    assert path.name=='hat-3.wav' and 'already' in said
    assert (tmp_path/'hat.wav').read_bytes()==b'mine' and (tmp_path/'hat-2.wav.json').read_bytes()==b'mine too'
    assert 'already' not in save_take(clip, str(tmp_path), 'snare', '.wav')[1]


def test_what_is_done_to_a_sound_that_is_saved(clip, tmp_path):
    "Loudness, width and tags go into the file and its settings; a sound with a fault is saved, and the fault is told"
    import soundfile
    row = Row(tmp_path, clip)
    to = row.settings
    to.lufs.value, to.width.value, to.title.value, to.artist.value = -23.0, .5, ' Regen ', 'me'
    path = row.save()
    about = json.loads(path.with_name(f'{path.name}.json').read_text(encoding='utf-8'))
    assert about['export']==dict(sample_rate=48_000, lufs=-23.0, width=.5, title='Regen', artist='me') and about['channels']==2
    with soundfile.SoundFile(path) as f: assert (f.channels, f.title, f.artist)==(2, 'Regen', 'me')
    assert f'{about["lufs"]:.1f} LUFS' in row.status.value
    row = Row(tmp_path, Clip(torch.zeros(48_000), 48_000, {}), 'nothing')
    assert row.save() and 'Listen once more' in row.status.value and 'silent' in row.status.value


@hypothesis_settings(deadline=None)
@given(st.text(max_size=300))
def test_a_name_that_passes_makes_a_file(tmp_path_factory, name):
    try: good = checked_name(name)
    except ValueError as e:
        str(e).encode()    # the complaint can be printed
        return
    folder = tmp_path_factory.mktemp('names')
    path = free_path(folder/f'{good}.wav')
    path.touch()
    assert [o.name for o in folder.iterdir()]==[f'{good}.wav']    # in this folder, under this name


@pytest.mark.parametrize('name', ['', '  ', '.', '..', '.hidden', 'a/b', 'a\\b', '../x', 'a:b', 'a\0', 'a\nb', '<b>', 'con', 'LPT1.x',
                                  'x'*201, 'ä'*101, 'x.', '\ud800'])
def test_names_that_no_system_should_see(name, clip, tmp_path):
    row = Row(tmp_path, clip, name)
    assert row.save() is None and 'distill-error' in row.status.value and isinstance(row.error, ValueError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('folder, words', [('gone', 'there is no folder'), ('file', 'not a folder'), ('a\0', '')])
def test_folders_that_do_not_work(folder, words, clip, tmp_path):
    (tmp_path/'file').touch()
    row = Row(tmp_path, clip)
    row.settings.folder.value = str(tmp_path/folder)
    assert row.save() is None and words in row.status.value and 'distill-error' in row.status.value


def test_a_full_disk(clip, tmp_path, monkeypatch):
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.replace', full)
    row = Row(tmp_path, clip)
    assert row.save() is None and 'the disk is full' in row.status.value and not list(tmp_path.iterdir())


# --- the panel
def test_take(panel, tmp_path):
    panel.sampling.knobs['temperature'].value, panel.sound.crossfade.value, panel.sound.duration.value = .7, 120, 2.5
    panel.sampling.levels.value = 'min-p 0.1, 0'
    said = []
    panel.status.observe(lambda change: said.append(change.new), 'value')
    wav = take(panel)
    assert wav.shape==(120_000,)
    assert any('Generating chunk 2/3…' in o for o in said) and 'Done' in said[-1]
    card = panel.takes.cards[0]
    assert card.player.value[:4]==b'RIFF' and card.picture.value[1:4]==b'PNG'
    path = card.save()
    about = json.loads(path.with_name(f'{path.name}.json').read_text(encoding='utf-8'))
    assert about['sampling']['temperature']==.7 and (about['duration_s'], about['overlap_ms'])==(2.5, 120)
    assert about['sampling']['min_p']==[.1, 0]
    again = regenerate(panel.loaded, path.with_name(f'{path.name}.json'))
    assert torch.equal(again.wav, wav)    # the sidecar is enough to make it again
    assert (load_audio(path).wav - wav).abs().max() < 1e-4


def test_seed_decides(panel):
    first = take(panel)
    assert not torch.equal(take(panel), first)
    panel.sampling.seed.fresh.value = False
    second = panel.clip.wav
    assert torch.equal(take(panel), second)
    assert str(panel.sampling.seed.number.value) in panel.status.value


def test_buttons_follow_the_work(panel, monkeypatch):
    go, takes = threading.Event(), []
    def slow(*args): takes.append(args); go.wait(10); raise Stopped('enough')
    monkeypatch.setattr(generating, 'make_takes', slow)
    started = time.perf_counter()
    panel.go.click()
    assert time.perf_counter() - started < .5    # the click itself does no work
    assert panel.go.disabled and not panel.halt.disabled
    panel.generate()
    panel.generate()
    go.set()
    assert panel.wait(5) and len(takes)==1
    assert not panel.go.disabled and panel.halt.disabled and 'Stopped' in panel.status.value


def test_stop(panel):
    "Within half a second, wherever it is; the last take stays."
    take(panel)
    last, panel.sound.duration.value = panel.clip, 30
    for fraction in (0, .3, .75):
        panel.go.click()
        while panel.progress.value < fraction and panel.job.running: time.sleep(.005)
        started = time.perf_counter()
        panel.halt.click()
        assert panel.wait(10) and time.perf_counter() - started < .5
        assert panel.clip is last and panel.progress.value==0 and panel.error is None and 'Stopped' in panel.status.value


def test_progress_after_stop_is_not_shown(panel, monkeypatch):
    "What was on its way when Stop was clicked does not cover up that it was heard."
    go = threading.Event()
    def slow(loaded, cfg, count, prompt, progress_callback, should_stop, on_sound):
        go.wait(10)
        progress_callback(.5, 'Generating chunk 2/4…')
        raise Stopped('enough')
    monkeypatch.setattr(generating, 'make_takes', slow)
    said = []
    panel.go.click()
    panel.halt.click()
    panel.status.observe(lambda change: said.append(change.new), 'value')
    assert 'Stopping' in panel.status.value
    go.set()
    assert panel.wait(5) and said==[as_html('Stopped')]


def test_failure_leaves_the_last_take(panel, monkeypatch):
    take(panel)
    last = panel.clip
    monkeypatch.setattr(generating, 'card_parts', lambda clip: 1/0)
    panel.go.click()
    assert panel.wait(10) and isinstance(panel.error, ZeroDivisionError)
    assert 'distill-error' in panel.status.value and panel.clip is last and not panel.go.disabled


def test_without_a_prior(loaded):
    panel = GeneratePanel(replace(loaded, prior=None))
    panel.go.click()
    panel.generate()
    assert panel.go.disabled and not panel.job.running and 'no prior yet' in panel.status.value


@pytest.mark.parametrize('name', [None, '', '<script>alert(1)</script>', '../../x', 'ä'*300, 7])
def test_names_of_models(loaded, name, tmp_path):
    panel = GeneratePanel(replace(loaded, metadata={} if name is None else dict(name=name)), tmp_path)
    panel.sound.duration.value = 1
    take(panel)
    assert panel.takes.cards[0].save().parent==tmp_path
    assert all('<script' not in o.value for o in everything(panel) if isinstance(o, widgets.HTML))


# --- a model that comes later, or goes
def test_a_panel_meets_its_model(loaded, tmp_path):
    workspace = Workspace()
    panel = GeneratePanel(workspace, tmp_path)
    panel.generate()
    assert panel.go.disabled and 'no model yet' in panel.status.value and not panel.job.running
    panel.sampling.knobs['top_k'].value = 100
    workspace.loaded = loaded
    assert not panel.go.disabled and panel.sampling.knobs['top_k'].value==32 and 'noise' in panel.title.value
    workspace.loaded = replace(loaded, prior=None)
    assert panel.go.disabled and 'train-prior' in panel.status.value


def test_a_take_remembers_the_model_that_made_it(panel, loaded):
    take(panel)
    panel.workspace.loaded = replace(loaded, metadata=dict(name='another'))
    take(panel)
    assert [c.name.value.split('-')[0] for c in panel.takes.cards]==['another', 'noise']


# --- what is heard
def test_what_is_heard_is_the_take(panel):
    sent = []
    panel.listener.send = lambda message, buffers=(): sent.append((message, buffers))
    wav = take(panel)
    heard = torch.frombuffer(bytearray(b''.join(b for _, buffers in sent for b in buffers)), dtype=torch.float32)
    assert [m['kind'] for m, _ in sent][:2]==['silence', 'begin'] and sent[-1][0]['kind']=='end' and len(heard)==len(wav)
    panel.listen.value, panel.listener.sent = False, 0
    take(panel)
    assert panel.listener.sent==0


@pytest.mark.parametrize('what', ['loop', 'kit', 'pieces'])
def test_what_cannot_be_heard_before_it_is_done(panel, what):
    if what=='loop': panel.sound.loop.value = True
    if what=='kit': panel.sound.count.value = 2
    if what=='pieces': panel.sound.stitch.value = 'crossfade'
    take(panel)
    assert panel.listener.number==0 and len(panel.takes.cards)==1 + (what=='kit')


def test_nothing_is_heard_after_stop(panel, monkeypatch):
    "Work that does not notice is given up, and what it still has to say nobody hears."
    go, late = threading.Event(), threading.Event()
    def deaf(loaded, cfg, count, prompt, progress_callback, should_stop, on_sound):
        go.wait(10)
        progress_callback(.9, 'too late')
        on_sound(torch.zeros(10))
        late.set()
    monkeypatch.setattr(generating, 'make_takes', deaf)
    panel.go.click()
    started = time.perf_counter()
    panel.halt.click()
    assert panel.wait(5) and time.perf_counter() - started < 1 and 'Stopped' in panel.status.value and not panel.go.disabled
    go.set()
    assert late.wait(5) and 'Stopped' in panel.status.value and panel.listener.sent==0


# --- takes
def test_kit(panel):
    panel.sound.count.value = 3
    panel.sampling.seed.set(5)
    take(panel)
    assert [c.clip.settings['sampling']['seed'] for c in panel.takes.cards]==[2005, 1005, 5] and '3 takes' in panel.status.value


def test_old_takes_make_room(loaded, clip, tmp_path):
    history = TakeHistory(Workspace(), SaveSettings(tmp_path))
    first = history.add(clip, (b'', b''))
    first.keep.value = True
    def add(n):
        for _ in range(n): history.add(replace(clip), (b'', b''))
        return history.make_room(n)
    assert [add(1) for _ in range(history.most + 3)]==[0]*history.most + [1]*3
    assert len(history.cards)==history.most + 1 and history.cards[-1] is first and len(history.workspace.sounds)==len(history.cards)
    assert add(32)==history.most and len(history.cards)==33    # all of what came at once
    history.undo.click()
    assert len(history.cards)==33 + history.most and history.cards[-1] is first
    for _ in range(history.back + 1): add(1), history.clear.click()
    assert len(history.gone)==history.back and history.cards==[first]    # and no more than can be undone is held


def test_discard_and_undo(clip, tmp_path):
    "In any order, nothing is lost and the order stays."
    history = TakeHistory(Workspace(), SaveSettings(tmp_path))
    cards = [history.add(replace(clip), (b'', b'')) for _ in range(4)]
    assert history.undo.disabled and history.save_kept.disabled
    cards[2].keep.value = True
    cards[1].discard.click()
    history.clear.click()
    assert history.cards==[cards[2]] and [c for _, c in history.workspace.sounds]==[cards[2].clip]
    history.undo.click()
    history.undo.click()
    assert history.cards==cards[::-1] and history.undo.disabled
    history.bring_back()
    history.save_kept.click()
    assert 'Saved 1 of 1' in history.status.value and len(list(tmp_path.glob('*.wav')))==1
    history.settings.folder.value = str(tmp_path/'gone')
    history.save_kept.click()
    assert 'Saved 0 of 1' in history.status.value and 'distill-error' in history.status.value


def test_settings_of_a_take_come_back(panel):
    panel.sampling.choose('creative')
    panel.sampling.levels.value = 'top-k 5, 6'
    panel.sound.duration.value = 2.5
    first = take(panel)
    panel.sampling.choose('greedy')
    panel.sound.until_end.value = True
    panel.takes.cards[0].restore.click()
    assert torch.equal(take(panel), first)


def test_go_on(panel):
    first = take(panel)
    panel.takes.cards[0].go_on.click()
    panel.prompt.seconds.value = .5
    wav = take(panel)
    assert len(wav)>len(first) and panel.clip.settings['prompt_s']==.5
    panel.takes.cards[1].discard.click()    # the take it goes on from
    assert panel.prompt.picker.source.value=='nothing'
    panel.takes.cards[0].restore.click()
    assert 'is gone' in panel.status.value


def test_a_prompt_that_is_no_sound(panel, tmp_path):
    panel.prompt.picker.source.value = 'file'
    panel.go.click()
    assert 'choose a sound' in panel.status.value.lower() and not panel.job.running
    panel.prompt.picker.path.value = str(tmp_path/'gone.wav')
    panel.go.click()
    assert 'gone.wav' in panel.status.value and 'distill-error' in panel.status.value and not panel.go.disabled


def test_an_upload(tmp_path, clip):
    clip.save(tmp_path/'a.wav')
    picker = SoundPicker(Workspace(), 'Sound', 'x', 'tip')
    picker.upload.set_trait('value', ({'name': '../<b>.wav', 'type': 'audio/wav', 'size': 1, 'content': memoryview((tmp_path/'a.wav').read_bytes()),
                                       'last_modified': datetime.now(timezone.utc)},))
    name, wav = picker.sound()
    assert picker.source.value=='upload' and name=='<b>' and len(wav)==4800


def test_describe_take(clip):
    assert describe_take(replace(clip, settings=ClipConfig(sampling=SamplingConfig(seed=3, top_k=(5, 6))).to_dict()))=='0.1 s · seed 3 · top-k 5, 6'


def test_preset_row(monkeypatch, tmp_path):
    monkeypatch.setenv('DISTILL_HOME', str(tmp_path))
    controls = SamplingControls(512)
    row = PresetRow(controls)
    controls.knobs['temperature'].value = .3
    row.name.value = 'calm'
    row.keep.click()
    assert controls.preset.value=='saved calm' and 'Kept' in row.said.value
    controls.choose('panel')
    controls.choose('saved calm')
    assert controls.config().temperature==.3
    row.forget.click()
    assert controls.preset.value=='own' and 'forgotten' in row.said.value
    for name, do in (('calm', row.forget), ('greedy', row.keep), ('', row.keep)):
        row.name.value = name
        do.click()
        assert 'distill-error' in row.said.value, name


# --- training
def test_stop_before_anything_is_learned(monkeypatch, tmp_path):
    "Reading that does not notice is left to itself, says nothing more, and does not disturb the training after it"
    from distill import train_panel as module
    seen, going = [], threading.Event()
    def fit(folder, progress_callback, should_stop, **rest):
        seen.append('began')
        going.wait(30)
        progress_callback(.5, 'Reading 1/2')
        seen.append('not heard')
    monkeypatch.setattr(module, 'fit_model', fit)
    panel = module.TrainPanel(tmp_path, tmp_path)
    panel.settings.front['name'].value = 'x'
    panel.go.click()
    while not seen: time.sleep(.01)
    panel.halt.click()
    assert panel.wait(10) and 'Stopped before anything was learned' in panel.status.value and not panel.go.disabled and panel.error is None
    monkeypatch.setattr(module, 'fit_model', lambda *args, **rest: (going.set(), time.sleep(.3), 1/0))
    panel.go.click()
    assert panel.wait(10) and seen==['began'] and 'ZeroDivisionError' in panel.status.value


@pytest.fixture
def trains(monkeypatch, loaded, tmp_path):
    "A train panel whose trainings end at once, as `outcome` says: an error to raise, or a model"
    from distill import train_panel as module
    made, outcome = [], {}
    done = replace(loaded, metadata=dict(loaded.metadata, scores=dict(log_mel_l1=.3), minutes=.1, stopped=['', '']))
    def fit(folder, checkpoints, on_event, **rest):
        on_event(dict(event='start', stage='stage 1', of=dict(minutes=1), parameters=1, device='cpu', processes=1, step=0, seconds=0.))
        if isinstance(outcome.get('is'), Exception): raise outcome['is']
        return outcome.get('is') or done
    monkeypatch.setattr(module, 'fit_model', fit)
    monkeypatch.setattr(module, 'register_model', lambda path: None)
    for name in ('kicks', 'snares'): (tmp_path/name).mkdir()
    panel = module.TrainPanel(tmp_path/'kicks', tmp_path, made.append)
    def press(button, **how):
        outcome.update(how)
        button.click()
        assert panel.wait(10)
        return panel.status.value
    return panel, press, made, done


def test_a_model_is_saved_under_its_own_name_and_over_nothing(trains, tmp_path):
    panel, press, *_ = trains
    (tmp_path/'kicks.distill').write_text('somebody made this')
    press(panel.go)
    panel.chooser.text.value = str(tmp_path/'snares')
    press(panel.save)
    assert sorted(p.name for p in tmp_path.glob('*.distill'))==['kicks-2.distill', 'kicks.distill'] and 'has a number' in panel.saved.value
    press(panel.save)                                         # once more: the same file
    assert sorted(p.name for p in tmp_path.glob('*.distill'))==['kicks-2.distill', 'kicks.distill']
    assert (tmp_path/'kicks.distill').read_text()=='somebody made this'
    panel.settings.front['name'].value = 'mine'               # typed afterwards
    assert panel.keep().name=='mine.distill'


def test_what_goes_wrong_takes_no_model_away(trains, tmp_path):
    panel, press, made, done = trains
    press(panel.go)
    checkpoint = tmp_path/'kicks.distill.checkpoints'/'stage-1'/'step-0000005.safetensors'
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    panel._offer()
    assert 'not finished' not in panel.status.value and not panel.resume.disabled    # they are of the model that waits for Save
    said = press(panel.resume, **{'is': ValueError('these checkpoints are of another fit')})
    assert 'checkpoints are of another fit' in said and 'distill-error' in said and panel.loaded is done and not panel.save.disabled and len(made)==1
    said = press(panel.check)                                 # an empty folder
    assert 'not enough' in said and 'distill-error' in said   # and not what can be gone on with
    assert 'Failed' in panel.live.children[0].children[1].value
    press(panel.go)                                           # says that it is not saved
    press(panel.go, **{'is': ValueError('no room')})
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.touch()
    assert 'No room' in panel.status.value
    panel._offer()
    assert 'not finished' in panel.status.value
    press(panel.save)
    assert checkpoint.exists() and (tmp_path/'kicks.distill').exists()    # those of the run that failed are left alone


def test_start_asks_before_a_model_is_lost(trains, loaded):
    panel, press, made, done = trains
    press(panel.go)
    assert 'not saved yet' in press(panel.go) and len(made)==1 and panel.loaded is done
    assert 'Done' in press(panel.go) and len(made)==2
    press(panel.save)
    assert 'Done' in press(panel.go) and len(made)==3        # that one is in its file
    press(panel.save)
    half = replace(loaded, metadata=dict(done.metadata, stopped=['asked to']))
    press(panel.go, **{'is': half})
    press(panel.save)
    assert press(panel.resume, **{'is': done}) and panel.of.aim.name=='kicks.distill' and 'not saved yet' in press(panel.go)    # what is in the file is not finished
    press(panel.save)
    assert panel.saved.value.endswith('kicks-3.distill</div>')                              # over its own beginning
    panel.go.click(), panel.wait(10)
    press(panel.save)
    assert 'kicks-4.distill' in panel.saved.value                                           # but another run is another model
    press(panel.go, **{'is': replace(loaded, metadata=dict(scores=dict(log_mel_l1=None), minutes=.1, stopped=['asked to']))})
    assert 'before anything could be measured' in panel.status.value
    assert 'Done' in press(panel.go, **{'is': None})         # there was nothing to lose


def test_a_view_that_fails_ends_no_training():
    training, heard = Training(1), []
    def fail(kind): raise ValueError('no mp3 here')
    training.listeners += [fail, heard.append]
    with pytest.warns(UserWarning, match='no mp3 here'): training(.1, 'Reading')
    training(.2, 'Reading')
    assert heard==['text', 'text'] and fail not in training.listeners
    training.finish()
    assert training.ending=='Done'


def test_the_workbench_keeps_a_model_that_makes_sound(loaded, tmp_path):
    bench, mute = Workbench(loaded, tmp_path, Library(tmp_path/'library.db')), replace(loaded, prior=None, prior_config=None)
    bench.train.on_model(mute)
    assert bench.workspace.loaded is loaded
    again = replace(loaded)
    bench.train.on_model(again)
    assert bench.workspace.loaded is again
    bench.use(None)
    bench.train.on_model(mute)
    assert bench.workspace.loaded is mute


def test_with_a_prompt_whatever_can_be_clicked_is_possible(panel):
    panel.sound.loop.value = True
    first = take(panel)
    panel.takes.cards[0].go_on.click()
    assert panel.sound.loop.disabled and panel.sound.stitch.disabled and not panel.sound.loop.value
    assert len(take(panel)) > len(first)
    panel.takes.cards[1].restore.click()                      # a loop, that went on from nothing
    assert panel.sound.loop.value and not panel.sound.loop.disabled and not panel.sound.stitch.disabled


def test_go_on_from_the_longest(panel, clip):
    card = panel.takes.add(replace(clip, wav=torch.zeros(30*48_000)), (b'', b''))
    panel.go_on(card)
    assert (panel.prompt.seconds.value, panel.sound.duration.value)==(10, 15) and 'first 10 s' in panel.status.value
    panel.go_on(panel.takes.add(replace(clip, wav=torch.zeros(20*48_000)), (b'', b'')))
    assert (panel.prompt.seconds.value, panel.sound.duration.value)==(0, 25)


def test_a_folder_that_cannot_be_read(monkeypatch, tmp_path):
    from distill import train_panel as module
    chooser = module.FolderChooser(tmp_path)
    def closed(folder): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(module, 'sub_folders', closed)
    chooser.browse.click()
    assert chooser.browser.layout.display is None and 'Permission denied' in chooser.here.value and chooser.take.disabled
