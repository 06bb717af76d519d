"The editor without a browser: what is decoded again, what is undone, what the lines say, what goes wrong in words."
import random, threading, time
from dataclasses import replace

import pytest
import torch

from distill import Distill, editor as module
from distill.audio import load_audio
from distill.codes import CodeGrid, CodesError, Region, decode, encode
from distill.codes_panel import CodesPanel
from distill.editor import OPERATIONS, CodeEditor, History, IncrementalDecoder, Version, changed_spans, mend_waveform, region_text
from distill.export import save_audio
from distill.model import LoadedVQModel, load_model
from distill.pipeline import Clip, decode_codes, decode_to_mel
from distill.prior import CodePrior, PriorConfig
from distill.sampling import Stopped
from distill.spectrogram import AudioSpectrogram, SpectrogramConfig
from distill.synthesis import synthesise
from distill.vqvae import ConvVQVAE, VQVAEConfig


@pytest.fixture(scope='module')
def loaded():
    "A model that has learned nothing: it makes noise, quickly."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vqvae = VQVAEConfig(codebook_size=32, n_quantizers=3, channels=(8, 8, 16, 16))
        prior = PriorConfig(codebook_size=32, n_quantizers=3, d_model=16, n_heads=1, n_layers=1)
        model = ConvVQVAE(vqvae)
        model(torch.randn(4, 1, 128, 96))    # fills the codebooks
        return LoadedVQModel(model.eval(), CodePrior(prior).eval(), AudioSpectrogram(), torch.device('cpu'), SpectrogramConfig(),
                             vqvae, prior, metadata=dict(name='noise'))


@pytest.fixture(scope='module')
def make(loaded):
    rng = torch.Generator().manual_seed(0)
    def grid(columns=12, spare=700): return CodeGrid(torch.randint(0, 32, (8, columns, 3), generator=rng), columns*8192 - spare, 48_000, loaded.fingerprint)
    return grid


@pytest.fixture
def opened(loaded, make):
    editor = CodeEditor(loaded, make(12), make(9))
    editor.sent = []
    editor.send = lambda content, buffers=None: editor.sent.append((content, buffers))
    yield editor
    editor.stop()
    assert editor.wait(20)


def press(editor, name, **settings):
    editor.do(name, **settings)
    assert editor.wait(60)
    assert not editor.error, editor.exception
    return editor.status


def select(editor, *boxes, **more): editor.selection = dict(editor.selection, boxes=[list(b) for b in boxes], **more)


def distance(loaded, wav, mel):
    heard = loaded.spectrogram.waveform_to_mel(wav)
    n = min(heard.shape[1], mel.shape[1])
    return (heard[:, :n] - mel[:, :n]).abs().mean(0)


# --- only what changed
EDITS = {'one cell': lambda g, r: replace(g, codes=g.codes.index_put((torch.tensor(3), torch.tensor(6), torch.tensor(1)), g.codes[3, 6, 1] ^ 1)),
         'first': lambda g, r: g.randomise(g.select(seconds=(0, .1)), seed=1), 'last': lambda g, r: g.randomise(g.select(seconds=(g.seconds - .05, None)), seed=1),
         'two places': lambda g, r: g.randomise(g.select(seconds=(0, .1)) | g.select(seconds=(1.9, 2)), seed=1), 'all': lambda g, r: g.randomise(),
         'repeat': lambda g, r: g.repeat(3, r), 'repeat all': lambda g, r: g.repeat(2), 'stretch': lambda g, r: g.stretch(1.7, r), 'shrink': lambda g, r: g.stretch(.3),
         'remove': lambda g, r: g.remove(r), 'remove first': lambda g, r: g.remove(g.select(seconds=(0, .4))), 'remove last': lambda g, r: g.remove(g.select(seconds=(g.seconds - .4, None))),
         'crop': lambda g, r: g.crop(r), 'append': lambda g, r: g.concatenate(g), 'shorter': lambda g, r: replace(g, n_samples=g.n_samples - 3000),
         'longer': lambda g, r: replace(g, n_samples=min(g.n_samples + 600, g.columns*8192)), 'the same': lambda g, r: replace(g)}

@pytest.mark.parametrize('name', EDITS)
@pytest.mark.parametrize('spare', [0, 700, 8000])
def test_it_is_what_decoding_everything_gives(loaded, make, name, spare):
    "The spectrogram to a ten-thousandth; the sound as near to it; untouched away from the edit; back to the last bit."
    grid = make(12, spare)
    decoder = IncrementalDecoder(loaded, grid)
    mel, wav = decoder.mel, decoder.wav
    new = EDITS[name](grid, grid.select(seconds=(.6, 1)))
    change = decoder.update(new)
    assert decoder.grid==new and len(decoder.wav)==new.n_samples and decoder.wav.isfinite().all()
    torch.testing.assert_close(decoder.mel, decode_to_mel(loaded, new.codes), atol=1e-4, rtol=0)
    full = decode_codes(loaded, new.codes, new.n_samples)
    assert distance(loaded, decoder.wav, decoder.mel).mean() < 1.15*distance(loaded, full, decoder.mel).mean() + .01
    if change.wav:
        start = min(p.start for p in change.wav)
        assert torch.equal(decoder.wav[:start], wav[:start])
    else: assert torch.equal(decoder.wav, wav)
    back = change.reversed()
    decoder.take(back)
    assert decoder.grid==grid and torch.equal(decoder.mel, mel) and torch.equal(decoder.wav, wav)
    decoder.take(back.reversed())
    assert decoder.grid==new and len(decoder.wav)==new.n_samples


def test_a_small_edit_is_small_work(loaded, make):
    "In a long sound, what is decoded and what is sent are about as long as what changed."
    grid = make(176)
    decoder = IncrementalDecoder(loaded, grid)
    change = decoder.update(grid.randomise(grid.select(seconds=(15.1, 15.15)), seed=1))
    assert sum(p.new.shape[1] for p in change.mel) <= 16*(1 + 2*loaded.vqvae_config.reach)
    assert sum(len(p.new) for p in change.wav) < 1.6*48_000


@pytest.mark.parametrize('margin', [2, 4])
def test_it_follows_the_decoder_that_sees_further(loaded, make, margin, monkeypatch):
    monkeypatch.setattr(VQVAEConfig, 'reach', margin)
    grid = make(30)
    spans, moved = changed_spans(grid, grid.randomise(grid.select(seconds=(1.1, 1.15)) | grid.select(seconds=(2.2, 2.21)), seed=1), margin)
    assert len(spans)==(2 if margin==2 else 1) and moved==0
    decoder = IncrementalDecoder(loaded, grid)
    change = decoder.update(grid.randomise(grid.select(seconds=(1.1, 1.15)), seed=1))
    assert change.mel[0].new.shape[1]==16*(1 + 2*margin)
    torch.testing.assert_close(decoder.mel, decode_to_mel(loaded, decoder.grid.codes), atol=1e-4, rtol=0)


def test_mended_waves_are_in_step():
    "A tone with a hole in it: filled, it is as loud in the middle and at the rims as before."
    spectrogram, t = AudioSpectrogram(), torch.arange(60_000)/48_000
    tone = .5*torch.sin(2*torch.pi*441.3*t)
    hole = tone.clone()
    hole[51*512:68*512] = 0
    piece, where = mend_waveform(spectrogram, hole, spectrogram.waveform_to_mel(tone), 50, 70)
    hole[where] = piece
    loudness = hole.unfold(0, 2048, 512).square().mean(1).sqrt()[4:-4]
    assert loudness.min() > .8*loudness.median() and loudness.max() < 1.2*loudness.median()


# --- lines
def test_any_selection_has_a_line(make):
    grid, rng = make(40), random.Random(0)
    for _ in range(200):
        boxes = [[*sorted(rng.sample(range(41), 2)), *sorted(rng.sample(range(9), 2))] for _ in range(rng.randint(1, 3))]
        levels = sorted(rng.sample(range(3), rng.randint(1, 3)))
        mask = torch.zeros(8, 40, 3, dtype=torch.bool)
        for a, b, c, d in boxes: mask[c:d, a:b, levels] = True
        assert eval(region_text('grid', grid, boxes, levels))==Region(mask)
    assert region_text('grid', grid, [], [0, 1, 2])=='' and region_text('grid', grid, [], [1])=='grid.select(levels=[1])'
    with pytest.raises(CodesError, match='behind the end'): region_text('grid', grid, [[50, 60, 0, 8]], [0])


@pytest.mark.parametrize('seed', range(4))
def test_lines_say_what_was_done(opened, loaded, seed):
    "Whatever is pressed, in whatever order, undone and pasted from what is no more: the lines give the same two grids."
    rng, start = random.Random(seed), dict(loaded=loaded, original=opened.grid, second=opened.other)
    names = [o.name for o in OPERATIONS.values() if o.line and o.name != 'crop'] + ['copy', 'undo', 'redo', 'undo']
    for _ in range(25):
        columns = opened.grid.columns
        a = rng.randrange(columns)
        box = [a, min(columns, a + rng.randint(1, 4)), *sorted(rng.sample(range(9), 2))]
        select(opened, *([box] if rng.random() < .9 else []), levels=sorted(rng.sample(range(3), rng.randint(1, 3))),
               other=[[2, 4, 0, 8]] if rng.random() < .3 else [], focus=rng.choice(['own', 'other']))
        name = rng.choice([o for o in names if columns < 30 or o not in ('repeat', 'stretch')])
        opened.do(name)
        assert opened.wait(60)
        if opened.error: assert any(o in opened.error for o in ('select something', 'copy something', 'nothing to', 'behind the end', 'would be left', 'outside the grid', 'to_s=', 'would stay as they are'))    # words
    there = dict(start)
    exec('\n'.join(opened.lines), there)
    assert there['grid']==opened.grid and there['other']==opened.other
    torch.testing.assert_close(opened.decoders['own'].mel, decode_to_mel(loaded, opened.grid.codes), atol=1e-4, rtol=0)


def test_what_was_taken_back_is_not_in_the_lines(opened, loaded):
    first = opened.grid
    select(opened, [2, 5, 0, 8])
    press(opened, 'reverse')
    press(opened, 'copy')
    press(opened, 'undo')
    press(opened, 'randomise', seed=3)
    assert [o for o in opened.lines if 'reverse' in o]==[]
    select(opened, [8, 9, 0, 8])
    press(opened, 'paste')    # from a version that is no more: the lines go there first
    assert opened.lines.index('copied = grid') < len(opened.lines) - 3
    there = dict(loaded=loaded, original=first, second=opened.history.first.other)
    exec('\n'.join(opened.lines), there)
    assert there['grid']==opened.grid


@pytest.fixture(scope='module')
def kept(loaded, tmp_path_factory):
    "The model, a bell and the codes of another one, each in a file."
    folder = tmp_path_factory.mktemp('kept')
    model = load_model(loaded.save(folder/"it's.distill"))
    for i, name in enumerate(("bell's.wav", 'gong.wav')): save_audio(folder/name, synthesise('bells', seed=i, seconds=.6), 48_000)
    return model, folder/"bell's.wav", encode(model, load_audio(folder/'gong.wav', 48_000).wav).save(folder/'gong.npz')


def by_panel(model, sound):
    "An editor of the codes panel: by path, of codes, or of a take."
    panel = CodesPanel(model)
    if isinstance(sound, Clip): panel.workspace.add('take 1\nraise SystemExit', sound)
    elif sound.suffix=='.npz': panel.path.value = str(sound)
    else: panel.picker.path.value = str(sound)
    panel.open_codes() if panel.path.value else panel.encode()
    assert panel.wait(60) and panel.error is None, panel.error
    return panel.editor


def by_name(model, sound, other=None): return Distill(model).edit(sound, other)


@pytest.mark.parametrize('opened_by', [by_panel, by_name])
@pytest.mark.parametrize('what', ['sound', 'codes', 'take'])
@pytest.mark.parametrize('in_file', [True, False])
def test_the_lines_run_as_they_are_shown(kept, opened_by, what, in_file):
    "From nothing where everything is in files; what is in none is named, and to be put there."
    model, bell, codes = kept
    sound = dict(sound=bell, codes=codes, take=Clip(load_audio(bell, 48_000).wav))[what]
    editor = opened_by(model if in_file else replace(model, path=None), sound)
    press(editor, 'reverse')
    missing = ['loaded']*(not in_file) + ['original']*(what=='take')
    there = {name: dict(loaded=model, original=editor.history.first.grid)[name] for name in missing}
    exec('\n'.join(editor.lines), there)
    assert there['grid']==editor.grid
    assert [o.split()[1] for o in editor.lines if o.startswith('#')]==missing


def test_the_lines_of_two_sounds_run(kept):
    model, bell, codes = kept
    editor, there = by_name(model, str(codes), bell), {}
    press(editor, 'swap')
    exec('\n'.join(editor.lines), there)
    assert there['grid']==editor.grid and there['other']==editor.other


def test_undo_has_an_end(loaded, make):
    history = History(make(3), limit=5)
    change = IncrementalDecoder(loaded, history.now.grid).update(make(3))
    for i in range(20): history.add(Version(history.now.grid, None, f'line {i}', history.now, own=change))
    back = 0
    while history.can_undo: history.undo(); back += 1
    assert back==4 or back==5
    assert len(history.lines)==1 + 20 - back    # what cannot be taken back is still told


def test_thousands_of_edits(opened):
    "An edit after thousands is an edit like any other; so is one that pastes from thousands of versions that are no more."
    history, grid, other = opened.history, opened.grid, opened.other
    for i in range(3000): history.add(Version(grid, other, f'# {i}', history.now))
    press(opened, 'reverse')
    assert len(opened.lines)==3002 and opened.lines[-1]=='grid = grid.reverse()' and '3001 changes' in repr(opened) and repr(history.now)
    press(opened, 'undo')
    version = history.first
    for i in range(2000):
        version = Version(grid, other, f'# {i} from {i - 1}', history.first, {f'copied_{i - 1}': (version, 'grid')} if i else {})
    history.add(Version(grid, other, '# now', history.now, {'copied_1999': (version, 'other')}))
    lines = history.lines
    at = {line: i for i, line in enumerate(lines)}
    assert lines[-1]=='# now' and at['copied_1999 = other'] < at['# 0']
    assert all(at[f'# {i - 1} from {i - 2}'] < at[f'copied_{i - 1} = grid'] < at[f'# {i} from {i - 1}'] for i in range(1, 2000))


# --- the kernel's side of the talk
def test_a_page_gets_everything_and_then_what_is_new(opened):
    opened._receive(None, {'do': 'hello'}, None)
    (everything, buffers), = opened.sent
    own = everything['sides']['own']
    assert own['columns']==12 and len(buffers[own['buffers']['wav']])==4*opened.grid.n_samples and len(buffers[own['buffers']['mel']])==128*12*16
    selection = dict(opened.selection, boxes=[[3, 4, 0, 2]])
    opened._receive(None, dict(do='randomise', settings={}, selection=selection), None)
    assert opened.wait(30)
    (change, buffers), = opened.sent[1:]
    assert change['from']==everything['at'] and change['at']==change['from'] + 1 and list(change['sides'])==['own']
    wav = bytearray(opened.sent[0][1][own['buffers']['wav']])
    for start, removed, i in change['sides']['own']['wav']: wav[4*start:4*(start + removed)] = buffers[i]
    assert torch.equal(torch.frombuffer(wav, dtype=torch.float32), opened.decoders['own'].wav)


def test_what_is_pressed_meanwhile_waits(opened):
    for _ in range(5): opened.do('shift_right')
    opened.do('reverse')
    assert opened.wait(60)
    assert [o.split('(')[0] for o in opened.lines[1:]]==['grid = grid.shift']*5 + ['grid = grid.reverse']


class Heard:
    "What a page has after these messages: grids as bytes, sounds. Each message has to go on from the one before."
    def __init__(self): self.at, self.codes, self.wavs = None, {}, {}

    def take(self, messages):
        for content, buffers in messages:
            if content['kind']=='all': self.codes, self.wavs = {}, {}
            else: assert content['from']==self.at
            self.at = content['at']
            for side, parts in content['sides'].items():
                if content['kind']=='all': self.codes[side], self.wavs[side] = (buffers[parts['buffers'][o]] for o in ('codes', 'wav'))
                else:
                    self.codes[side], wav = buffers[parts['codes']], bytearray(self.wavs[side])
                    for start, removed, i in parts['wav']: wav[4*start:4*(start + removed)] = buffers[i]
                    self.wavs[side] = bytes(wav)
        return self

    def __eq__(self, other): return (self.at, self.codes, self.wavs)==(other.at, other.codes, other.wavs)


def said_hello(editor):
    "What a page has that opens now."
    editor.sent.clear()
    editor._receive(None, {'do': 'hello'}, None)
    return Heard().take([editor.sent.pop()])


@pytest.fixture
def slowly(monkeypatch):
    "Decoding the first sound, or the second, takes five seconds from now on, and asks nobody: an event that says when it begins."
    def slowed(editor, side):
        update, columns, begun = IncrementalDecoder.update, editor.decoders[side].grid.columns, threading.Event()
        def slow(decoder, grid):
            if decoder.grid.columns==columns: begun.set(); time.sleep(5)
            return update(decoder, grid)
        monkeypatch.setattr(IncrementalDecoder, 'update', slow)
        return begun
    return slowed


@pytest.mark.parametrize('name, side', [('reverse', 'own'), ('swap', 'own'), ('swap', 'other')])
def test_a_long_decoding_blocks_nothing(opened, slowly, monkeypatch, name, side):
    "What is pressed meanwhile waits, a page that opens gets what is there, and Stop takes effect within half a second."
    before, known = (opened.grid, opened.other, opened.lines), said_hello(opened)
    begun = slowly(opened, side)
    opened.do(name)
    assert begun.wait(20)
    started = time.monotonic()
    opened.do('randomise')
    meanwhile = said_hello(opened)
    assert time.monotonic() - started < .3 and opened.running
    assert (meanwhile.codes==known.codes)==(side=='own') and meanwhile.codes['other']==known.codes['other']
    stops_at_once(opened, .1)
    assert opened.status=='Stopped' and (opened.grid, opened.other, opened.lines)==before
    after = meanwhile.take(opened.sent)
    assert after.codes==known.codes and after.wavs==known.wavs and after==said_hello(opened)
    monkeypatch.undo()
    press(opened, name)
    assert after.take(opened.sent)==said_hello(opened) and after.codes!=known.codes


def test_a_page_that_opens_at_any_time(opened):
    "It gets the same as one that was there before, whatever is done meanwhile."
    page = said_hello(opened)
    for name in ('swap', 'repeat', 'mix', 'undo', 'swap', 'reverse', 'undo', 'redo'): opened.do(name)
    while not opened.wait(.01): opened._receive(None, {'do': 'hello'}, None)
    messages = opened.sent
    late = [i for i, (content, _) in enumerate(messages) if content['kind']=='all']
    page.take(messages)
    for i in late[:3] + late[-3:]: assert Heard().take(messages[i:])==page
    assert page==said_hello(opened)


def stops_at_once(editor, after=.3):
    "Stop, while something is going on, takes effect within half a second."
    time.sleep(after)
    assert editor.running
    started = time.monotonic()
    editor.stop()
    assert editor.wait(5) and time.monotonic() - started < .5


def test_stop(opened, monkeypatch):
    "At once, also when the work does not ask; what waited is not begun; then it goes on."
    monkeypatch.setattr(module, 'load_audio', lambda *args: time.sleep(5))
    opened.do('open', path='kick.wav')
    opened.do('reverse')
    stops_at_once(opened)
    assert opened.status=='Stopped' and not opened.error and opened.exception is None and len(opened.lines)==1
    press(opened, 'reverse')


def test_stop_while_a_second_sound_is_opened_again(loaded, make, tmp_path, monkeypatch):
    "To decode it takes a while: given up, everything is as it was, and it can be asked for again."
    path = save_audio(tmp_path/'second.wav', .1*torch.randn(20_000), 48_000)
    editor, decoder = CodeEditor(loaded, make(5)), IncrementalDecoder
    press(editor, 'open', path=str(path))
    second = editor.other
    press(editor, 'undo')
    assert editor.other is None and 'other' not in editor.decoders
    with monkeypatch.context() as slow:
        slow.setattr(module, 'IncrementalDecoder', lambda *args: (time.sleep(5), decoder(*args))[1])
        editor.do('redo')
        stops_at_once(editor)
    assert editor.status=='Stopped' and not editor.error and editor.other is None and editor.state['redo']
    press(editor, 'redo')
    assert editor.other==second and editor.decoders['other'].grid==second


@pytest.mark.parametrize('name, settings, words', [
    ('crop', {}, 'Keep only: select something first'), ('paste', {}, 'Paste: copy something first'), ('copy', {}, 'select something first'),
    ('undo', {}, 'nothing to undo'), ('redo', {}, 'nothing to redo'), ('open', dict(path='gone.wav'), 'gone.wav'), ('play', {}, 'for the page'),
    ('stretch', dict(factor=0), 'factor=0'), ('repeat', dict(times=0), 'times=0'), ('mix', dict(amount=3), 'amount=3'), ('mix', dict(colour=3), 'colour')])
def test_errors_are_words(opened, name, settings, words):
    before = opened.grid, opened.lines
    opened._receive(None, dict(do=name, settings=settings), None)
    assert opened.wait(20)
    assert words.lower() in opened.error.lower() and isinstance(opened.exception, Exception)
    assert (opened.grid, opened.lines)==before
    press(opened, 'reverse')


def test_without_a_second_sound(loaded, make):
    editor = CodeEditor(loaded, make(5))
    for name in ('mix', 'swap'):
        editor.do(name)
        assert editor.wait(20) and 'open a second sound first' in editor.error
    with pytest.raises(ValueError, match='expected one of'): editor.do('explode')
    with pytest.raises(CodesError, match='another model'): CodeEditor(loaded, replace(make(5), model_fingerprint='other'))


def test_opening_a_second_sound(loaded, make, tmp_path):
    path = save_audio(tmp_path/"it's.wav", .1*torch.randn(20_000), 48_000)
    editor, first = CodeEditor(loaded, make(5)), None
    press(editor, 'open', path=str(path))
    first = editor.other
    assert first.n_samples==20_000 and 'other' in editor.decoders
    press(editor, 'swap')
    there = dict(loaded=loaded, original=editor.history.first.grid)
    exec('\n'.join(editor.lines), there)
    assert there['grid']==editor.grid and there['other']==editor.other
    press(editor, 'undo')
    assert editor.other==first
    editor.selection = dict(editor.selection, other=[[0, 1, 0, 8]], focus='other')
    press(editor, 'undo')
    assert editor.other is None and 'other' not in editor.decoders and (editor.selection['other'], editor.selection['focus'])==([], 'own')
    press(editor, 'redo')
    assert editor.other==first


def test_the_model_rewrites(opened, loaded):
    "Only what is selected, and only fine levels with Vary; without a prior, it says what is missing."
    select(opened, [3, 6, 2, 4])
    press(opened, 'rewrite', temperature=1.5, seed=4)
    assert 'SamplingConfig(temperature=1.5' in opened.lines[-1] and 'from distill.sampling import SamplingConfig' in opened.lines
    changed = opened.grid.diff(opened.history.first.grid)
    assert len(changed) and not len(changed - opened.region)
    before = opened.grid
    press(opened, 'vary', keep=2)
    changed = opened.grid.diff(before)
    assert not len(changed - before.select(levels=[2]))
    opened.do('vary', keep=9)
    assert opened.wait(20) and 'would stay as they are' in opened.error
    mute = CodeEditor(replace(loaded, prior=None, prior_config=None), opened.grid)
    mute.do('rewrite')
    assert mute.wait(20) and 'no prior' in mute.error


def test_nothing_different_is_nothing_done(opened):
    select(opened, [2, 5, 0, 8])
    assert press(opened, 'restore')=='Nothing is different' and len(opened.lines)==1 and not opened.state['undo']


def test_the_clip_is_the_sound(opened, loaded):
    press(opened, 'reverse')
    clip, made = opened.clip(), decode(loaded, opened.grid)
    assert len(clip.wav)==len(made) and float(clip.wav.abs().max()) <= .9501
    assert distance(loaded, clip.wav, loaded.spectrogram.waveform_to_mel(made)).mean() < .5


def test_given_up_work_raises_what_it_raised():
    with pytest.raises(KeyError): module._unless_stopped(lambda: {}['a'], lambda: False)
    with pytest.raises(Stopped): module._unless_stopped(lambda: None, lambda: True)
