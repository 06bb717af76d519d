"Events of a training → what is known → what is shown, in every place that it is shown."
import io, math, re, types

import pytest
import torch
from hypothesis import given, settings, strategies as st

import distill.live as live
from distill.live import (Dashboard, Lines, MOST_POINTS, Stage, Training, add_loss, curves_svg, example_parts, example_sounds, left_words,
                          mel_png, pretended_events, show_in_notebook, show_in_terminal, sparkline, stage_words, terminal_text, time_words,
                          training_html, used_svg)

START = dict(event='start', stage='stage 1', step=0, seconds=0.0, of=dict(minutes=2), device='cpu', processes=1, parameters=9)
LOOK = dict(event='validation', stage='stage 1', step=10, seconds=9.0, fraction=0.2, loss=1.0, score=0.5, best=0.5, ready=True, unit='nats',
            health=[dict(utilisation=0.4), dict(utilisation=0.9)], warnings=['level 0: only 40%'])
TICK = dict(event='progress', stage='stage 1', step=12, seconds=10.0, fraction=0.25, loss=0.9, learning_rate=1e-3)
STOP = dict(event='stop', stage='stage 1', step=40, seconds=40.0, stopped='', best=0.4)


def after(*events, **settings):
    training = Training(**settings)
    for event in events: training.on_event(event)
    return training


# --- what is known
def test_a_stage_from_its_events():
    stage = after(START, TICK, LOOK, dict(LOOK, seconds=20.0, score=0.6), STOP).stage
    assert (stage.name, stage.minutes, stage.steps, stage.best, stage.ended, stage.fraction) == ('stage 1', 2, 40, 0.4, '', 1.0)
    assert stage.scores == [(9.0, 0.5), (20.0, 0.6)] and stage.used == [(9.0, [0.4, 0.9]), (20.0, [0.4, 0.9])]
    assert stage.losses == [(10.0, 0.9)] and stage.seconds_left == 0


def test_scores_that_do_not_count_are_not_drawn():
    stage = after(START, dict(LOOK, ready=False), dict(LOOK, score=math.inf), dict(LOOK, score=math.nan, health=[])).stage
    assert stage.scores == [] and len(stage.used) == 2


def test_what_was_wrong_and_is_not_any_more():
    "Warnings about the codes hold until the next validation; others stay, each once"
    trouble = [dict(event=kind, stage='stage 1', step=3, seconds=3.0, text=text)
               for kind, text in (('warning', 'level 0: only 40%'), ('warning', 'no checkpoint: disk full'), ('rollback', 'the loss exploded'))]
    training = after(START, LOOK, *trouble, *trouble)
    assert (training.health, training.notes) == (['level 0: only 40%'], ['no checkpoint: disk full', 'the loss exploded'])
    training.on_event(dict(LOOK, warnings=[]))
    assert training.health == [] and len(training.notes) == 2


def test_unknown_events_do_no_harm():
    training = after(dict(event='surprise', stage='', step=0, seconds=0.0), START)
    assert len(training.stages) == 1


def doctor(*unused, used=1):
    files = [dict(name=name, used=False, reason='it is silent') for name in unused] + [dict(name='fine.wav', used=True, reason='')] * used
    return dict(event='doctor', stage='', step=0, seconds=0.0, text='ready: few sounds', diagnosis=dict(files=files))


NOT_USED = '4 of 5 files are not used: <b>.wav (it is silent); b.wav (it is silent); c.wav (it is silent) and 1 more'


def test_files_that_are_not_used_are_named_in_every_view():
    "And stay in sight, whatever else there is to say; unless somebody has named them before"
    said, events = [], [doctor('<b>.wav', 'b.wav', 'c.wav', 'd.wav'), START, *[dict(event='warning', stage='stage 1', step=0, seconds=0.0, text=f'trouble {"abcdefgh"[i]}') for i in range(8)]]
    heard = Training()
    Lines(heard, said.append)
    for event in events: heard.on_event(event)
    assert [line for line in said if 'not used' in line] == [f'  0%  note: {NOT_USED}']
    training = after(*events)
    for width in (30, 80, 200): assert re.sub(r'\s', '', NOT_USED) in re.sub(r'\s', '', terminal_text(training, width))
    for page in (training_html(training), shown_by(Dashboard(training))):
        assert NOT_USED.replace('<b>', '&lt;b&gt;') in page and '<b>.wav' not in page
    told_before = after(*events, names_unused=False)
    assert 'not used' not in terminal_text(told_before) + training_html(told_before) and 'ready' in terminal_text(told_before)
    assert after(doctor()).unused == '' and after(doctor('a.wav')).unused == '1 of 2 files is not used: a.wav (it is silent)'


def test_how_many_steps_there_will_be_is_said_once_in_every_view():
    said, words = [], 'one step takes 130 ms: about 900 <b>'
    training = Training()
    Lines(training, said.append)
    for event in (START, TICK, dict(event='pace', stage='stage 1', step=21, seconds=3.0, text=words), TICK, LOOK): training.on_event(event)
    assert [line for line in said if words in line] == [f'  0%  stage 1: {words}']
    assert words in terminal_text(training)
    for page in (training_html(training), shown_by(Dashboard(training))): assert 'about 900 &lt;b&gt;' in page
    training.on_event(dict(START, stage='stage 2'))           # it is of the first stage
    assert words not in terminal_text(training) and 'about 900' not in training_html(training)


def test_stopped_between_two_trainings():
    "What a stage says of its own end is not all: it may be stopped while it is measured, or before the next one has begun"
    training = after(START, STOP, dict(event='stopped', stage='', step=0, seconds=0.0, text='asked to stop'))
    training.finish()
    assert training.ending == 'Stopped' and 'Stopped after' in terminal_text(training) and 'Done' not in training_html(training)


def shown_by(board):
    board.draw()
    return board.head.value + board.notes.value


def test_the_same_stage_again_is_another_sitting():
    assert [s.name for s in after(START, STOP, START, STOP).stages] == ['stage 1', 'stage 1, sitting 2']


@pytest.mark.parametrize('minutes, events, now, left', [
    (5, [START], 60, '4 min 0 s left'), (5, [dict(START, step=500, seconds=120.0)], 60, '2 min 0 s left'),
    (None, [START, TICK], 10, '1 min 30 s left in this stage'), (None, [dict(START, of=dict(steps=100)), TICK], 10, '30 s left in this stage'),
    (None, [dict(START, of=dict(steps=100))], 7, '7 s so far'), (None, [], 7, '7 s so far'), (0.1, [START, TICK], 60, '1 min 30 s left')])
def test_time_left(minutes, events, now, left):
    clock = iter([0.0] + [now] * 99)
    assert left_words(after(*events, minutes=minutes, clock=lambda: next(clock))) == left


@pytest.mark.parametrize('ending, words', [('', 'Done after 1 min 15 s'), ('Failed', 'Failed after 1 min 15 s')])
def test_time_taken(ending, words):
    clock = iter([0.0] + [75.0] * 99)
    training = after(START, TICK, clock=lambda: next(clock))
    training.finish(ending)
    assert left_words(training) == words


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
@settings(max_examples=30, deadline=None)
def test_curves_stay_small(losses):
    stage = Stage('')
    for i, loss in enumerate(losses): add_loss(stage, i, loss)
    assert len(stage.losses) <= MOST_POINTS and min(losses) - 1e-3 <= stage.loss <= max(losses) + 1e-3


# --- what is shown
@given(st.lists(st.floats()), st.integers(2, 50), st.booleans())
@settings(deadline=None)
def test_sparklines(values, width, ascii):
    shown = sparkline(values, width, ascii=ascii)
    assert len(shown) <= min(width, len(values)) and shown.isascii() == (ascii or not shown)


def training_like_any_other(until=None, minutes=5, **more):
    now = [0.0]
    training = Training(minutes, clock=lambda: now[0])
    for event in pretended_events(minutes, **more):
        now[0] = event['seconds'] + (42 * minutes if event['stage'] == 'stage 2' else 0)
        training.on_event(event)
        if event['stage'] == until and event.get('fraction') == 0.5: break
    return training


@pytest.mark.parametrize('width', [20, 40, 80, 120, 200])
@pytest.mark.parametrize('ascii', [False, True])
@pytest.mark.parametrize('until', ['stage 1', 'stage 2', None])
@pytest.mark.parametrize('levels', [1, 4, 8])
def test_a_terminal_of_any_width(width, ascii, until, levels):
    text = terminal_text(training_like_any_other(until, levels=levels), width, ascii)
    assert max(map(len, text.splitlines())) <= width and len(text.splitlines()) < 24
    assert text.isascii() == ascii and 'Stage 1' in text and (until == 'stage 1') == ('Stage 2' not in text)
    if width >= 80: assert all(words in text for words in ('held-out', 'nats', 'Codes used', 'left'))


def test_a_terminal_before_there_is_a_stage():
    training = Training(clock=lambda: 0.0)
    training(0.25, '[bold]Reading[/] 3/12')            # a name that looks like markup is a name
    assert ' 25%' in terminal_text(training) and '[bold]Reading[/] 3/12' in terminal_text(training)


def test_lines_say_what_matters_and_not_much_more():
    said, now = [], [0.0]
    training = Training(5, clock=lambda: now[0])
    Lines(training, said.append)
    for event in pretended_events(5):
        now[0] = event['seconds'] + (210 if event['stage'] == 'stage 2' else 0)
        training(now[0] / 300, f"{event['stage']}: step {event['step']}, loss 1.234")
        training.on_event(event)
    assert len(said) < 110 and sum('note: level 0' in line for line in said) == 1
    for words in ('stage 1: Sounds to codes and back, 3 min 30 s', 'codes used', 'held-out', 'nats (best)', 'stage 2: done', 'left'):
        assert any(words in line for line in said), words


def test_lines_without_events_are_few():
    said, now = [], [0.0]
    training = Training(clock=lambda: now[0])
    Lines(training, said.append)
    for i in range(600):    # a minute of steps
        now[0] += 0.1
        training(i/600, f'stage 1: step {i}, loss {1/(i+1):.3f}')
    assert 10 <= len(said) <= 13
    training(1.0, 'stage 2: step 1')
    assert said[-1].endswith('stage 2: step 1')
    before = len(said)
    for i in range(500): training(i/500, f'Reading {i}/500: file{i}.wav')
    assert len(said) == before + 1


def test_show_in_terminal_or_not(monkeypatch):
    out = io.StringIO()
    with show_in_terminal(stream=out) as tell: tell(0.5, 'Reading 1/2')
    assert out.getvalue() == ' 50%  Reading 1/2\n'
    screen = type('Screen', (io.StringIO,), dict(isatty=lambda self: True, encoding='utf-8'))()
    with show_in_terminal(5, screen) as tell:
        for event in pretended_events(5, looks=2): tell.on_event(event)
    assert 'Stage 1' in screen.getvalue() and screen.getvalue().count('\x1b') > 3
    with pytest.raises(KeyboardInterrupt):
        with show_in_terminal(5, screen): raise KeyboardInterrupt


def test_pictures_are_well_formed_and_small():
    import xml.dom.minidom as dom
    for training in (Training(), after(START), after(START, TICK), after(START, LOOK), training_like_any_other(looks=200, levels=8, ticks=1)):
        for stage in training.stages:
            for picture in filter(None, (curves_svg(stage), used_svg(stage))):
                dom.parseString(picture)
                assert len(picture) < 40_000
        assert 'distill-live' in training_html(training)


def test_nothing_from_outside_becomes_html():
    bad = '<img src=x onerror=alert(1)>'
    training = after(dict(START, stage=bad), dict(event='warning', stage=bad, step=0, seconds=0.0, text=bad),
                     dict(event='example', stage=bad, step=0, seconds=0.0, file=f'/tmp/{bad}', before=torch.zeros(8, 9), after=torch.zeros(8, 9)))
    training(0.1, bad)
    assert '<img src=x' not in training_html(training)


# --- an example, and the widget
@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "The events of a real stage 1, of a few steps"
    from distill.dataset import load_collection
    from distill.synthesis import write_collection
    from distill.training import Budget, TrainingConfig, train_vqvae
    from distill.vqvae import VQVAEConfig
    collection = load_collection(write_collection(tmp_path_factory.mktemp('live')/'sounds', n_files=6, seed=1))
    events = []
    train_vqvae(collection, VQVAEConfig(codebook_size=32, channels=(8, 8, 8, 16), quantizer_warmup=0.0),
                TrainingConfig(batch_size=4, validations=3, patience=1.0), Budget(steps=9), 'cpu', on_event=events.append)
    return events


def test_examples_of_a_real_training(trained, tmp_path):
    from distill.audio import load_audio
    training = after(*trained)
    example = training.examples['stage 1']
    assert training.stage.ended == '' and len(training.stage.scores) == 3 and len(training.stage.used) == 3
    assert not torch.equal(example['first'], example['after']) and example['before'].shape == example['after'].shape
    sounds = example_sounds(example)
    for which, data in sounds.items():
        (tmp_path/f'{which}.mp3').write_bytes(data)
        assert len(load_audio(tmp_path/f'{which}.mp3').wav) / 48_000 == pytest.approx(example['after'].shape[1] * 512 / 48_000, abs=0.2)
        assert len(data) < 60_000
    parts = example_parts(example)
    assert list(parts) == ['before', 'first', 'after'] and all(png[1:4] == b'PNG' for _, png in parts.values())
    gone = dict(example, file='/gone.wav')             # a file that is gone is heard as its spectrogram knows it
    assert example_sounds(gone)['before'] and list(example_sounds({k: v for k, v in example.items() if k != 'before'})) == ['after']


def test_mel_png_of_silence_and_extremes():
    for mel in (torch.full((8, 5), -11.5), torch.randn(8, 1) * 100): assert mel_png(mel)[1:4] == b'PNG'


def test_dashboard_shows_the_examples(trained):
    board = Dashboard(after())
    for event in trained: board.training.on_event(event)
    board.training.finish()
    shown = {which: box.layout.display is None for which, box in board.boxes.items()}
    assert shown == dict(before=True, first=True, after=True, made=False)
    assert '<audio' in board.boxes['after'].value and '<audio' not in board.boxes['first'].value and 'polyline' in board.charts.value and 'Done' in board.head.value


def test_stage_2_shows_what_it_makes_by_now(tmp_path):
    "After each validation a new sound, from the same seed; who listens changes nothing of what is learned"
    from distill.fitting import fit_model
    from distill.synthesis import write_collection
    folder, events = write_collection(tmp_path/'sounds', n_files=6, seed=1), []
    small = dict(epochs=4, device='cpu', from_scratch=True, vqvae=dict(codebook_size=16, channels=(4, 8, 8, 16), search_steps=1, search_sweeps=0),
                 prior=dict(d_model=32, n_heads=2, n_layers=1))
    heard, quiet = fit_model(folder, on_event=events.append, **small), fit_model(folder, **small)
    assert all(torch.equal(x, quiet.prior.state_dict()[name]) for name, x in heard.prior.state_dict().items())
    shown = [e for e in events if e['event'] == 'example' and e['stage'] == 'stage 2']
    assert len(shown) == sum(e['event'] == 'validation' and e['stage'] == 'stage 2' for e in events) > 1
    assert all('before' not in e and e['after'].shape == (128, 192) and e['after'].isfinite().all() for e in shown)
    assert not torch.equal(shown[0]['after'], shown[-1]['after'])
    board = Dashboard(after())
    for event in events: board.training.on_event(event)
    board.training.finish()
    assert all(box.layout.display is None for box in board.boxes.values())
    assert '<audio' in board.boxes['made'].value and 'a new sound, as it is made now' in board.boxes['made'].value
    assert board.training._repr_html_().count('distill-picture-') == 4


def test_drawing_costs_little(monkeypatch, trained):
    "Ten minutes of events, every drawing taking longer than any does: less than two hundredths of the time"
    now = [0.0]
    monkeypatch.setattr(live, 'time', types.SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0]))
    example, draws = next(e for e in trained if e['event'] == 'example'), []
    board = Dashboard(Training(10))
    for name, cost in (('draw', 0.05), ('draw_examples', 0.3)):
        def slow(name=name, cost=cost):
            now[0] += cost
            draws.append(name)
        monkeypatch.setattr(board, name, slow)
    for event in pretended_events(10, looks=12, ticks=40):
        now[0] = max(now[0], event['seconds'] + (420 if event['stage'] == 'stage 2' else 0))
        board.training.on_event(event)
        if event['event'] == 'validation': board.training.on_event(dict(example, stage=event['stage']))
    assert board.share < 0.02 and draws.count('draw') > 60 and draws.count('draw_examples') > 8, (board.share, len(draws))


def test_in_a_notebook_the_page_that_stays_holds_no_sound(monkeypatch, trained):
    import IPython.display
    shown = []
    monkeypatch.setattr(IPython.display, 'display', lambda bundle, **how: types.SimpleNamespace(update=lambda bundle, **how: shown.append(bundle)))
    with show_in_notebook() as training:
        for event in trained: training.on_event(event)
    page = shown[-1]['text/html']
    assert 'data:image/png' in page and not re.search('audio/|<audio|<script', page) and len(page) < 250_000
    assert 'application/vnd.jupyter.widget-view+json' in shown[-1]


def test_words():
    assert [time_words(s) for s in (0, 61, 3600, 86_400)] == ['0 s', '1 min 1 s', '1 h 0 min', '24 h 0 min']
    assert stage_words(after(START, LOOK, dict(STOP, stopped='asked to')).stage).startswith('stopped')
