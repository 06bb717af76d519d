"The panels as people meet them: in a real Chromium, through Voila and once in JupyterLab, with real mouse and keyboard."
import json, re, sys, urllib.request

import pytest
import torch

pytest.importorskip('playwright', reason='playwright is not installed: pip install -e ".[dev]"')

from browser import ANSWER, Panel, answers_in_lab, at_once, free_port, new_page, run_in_lab, serve, themed, voila, write_notebook    # noqa: E402

PANEL = '''from distill.model import load_model
from distill.generate_panel import GeneratePanel
GeneratePanel(load_model('tiny.distill', 'cpu'), folder='takes')'''
# a model as slow as a large one on a small machine, one that is broken, and one without a prior
TROUBLE = '''import time
from dataclasses import replace
import ipywidgets as widgets
from distill.model import load_model
from distill.generate_panel import GeneratePanel
slow, good = load_model('tiny.distill', 'cpu'), load_model('tiny.distill', 'cpu')
step = slow.prior.step
slow.prior.step = lambda *args: (time.sleep(0.02), step(*args))[1]
models = dict(slow=slow, broken=replace(good, prior_config=None), mute=replace(good, prior=None))
widgets.VBox([GeneratePanel(o).add_class(name) for name, o in models.items()])'''
BENCH = '''import os
os.environ['DISTILL_HOME'] = {home!r}
from distill.library import Library
_ = Library().add('tiny.distill', 'tiny')
from distill.panels import workbench
workbench(folder='takes')'''
LISTEN = '''hook => { const el = document.querySelector(hook); window.said = [];
    new MutationObserver(() => window.said.push([performance.now(), el.innerText.trim()]))
        .observe(el, {subtree: true, childList: true, characterData: true}) }'''


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A small model that has learned some synthesised sound, a sound to go on from, and notebooks with panels."
    from distill.export import save_audio
    from distill.fitting import fit_model
    from distill.synthesis import write_collection
    folder = tmp_path_factory.mktemp('panels')
    write_collection(folder/'sounds', n_files=24, seed=1)
    loaded = fit_model(folder/'sounds', minutes=.1, seed=3, device='cpu',
                       vqvae=dict(codebook_size=32, channels=(8, 16, 32, 64), search_steps=1, search_sweeps=0), prior=dict(d_model=64, n_heads=2, n_layers=2))
    loaded.metadata['name'] = 'my <b>sounds</b>'
    loaded.save(folder/'tiny.distill')
    save_audio(folder/'hum <b>.wav', .3*torch.sin(torch.arange(48_000)/20), 48_000)
    (folder/'takes').mkdir()
    write_notebook(folder/'panel.ipynb', PANEL)
    write_notebook(folder/'lab.ipynb', PANEL.replace('GeneratePanel(', 'panel = GeneratePanel(') + '\npanel', ANSWER.format(job='panel.job'))
    write_notebook(folder/'trouble.ipynb', TROUBLE)
    return folder


@pytest.fixture(scope='module')
def server(folder):
    with voila(folder) as address: yield address


@pytest.fixture(scope='module')
def opened(browser, server):
    "One panel in a page as wide as half a screen, for the tests that follow one another on it."
    with new_page(browser, viewport={'width': 700, 'height': 900}) as page:
        page.goto(f'{server}/voila/render/panel.ipynb', timeout=120_000)
        yield Panel(page).wait()


def test_opens_with_the_defaults(opened):
    shown = {o: opened.shown(o) for o in ('temperature', 'top-p', 'top-k', 'penalty', 'duration', 'crossfade')}
    assert shown=={'temperature': '1.00', 'top-p': '0.90', 'top-k': '0', 'penalty': '1.00', 'duration': '10.00', 'crossfade': '50'}
    assert opened.until('status', 'Ready') and opened.enabled('go') and not opened.enabled('stop')
    assert 'my <b>sounds</b>' in opened['title'].inner_text()    # a name is text, never part of the page
    assert not opened.page.locator('.distill-take').count()    # nothing to save yet
    for hook in ('temperature', 'seed', 'duration'):
        assert opened[hook].locator('[title]').first.get_attribute('title'), 'a tooltip says what it does'


@pytest.mark.parametrize('more', ['hidden', 'shown'])
def test_fits_its_page(opened, folder, more):
    "Nothing sticks out of it or is cut, and every label can be read whole."
    page = opened.page
    assert opened['min-p'].is_hidden()==(more=='hidden') or more=='shown'    # the panel is calm until somebody asks for more
    if more=='shown':
        opened.page.locator('.distill-more').get_by_text('More controls').click()
        opened['levels'].wait_for(state='visible')
    page.screenshot(path=folder/f'controls_{more}.png', full_page=True)
    assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth')
    cut = '''() => [...document.querySelectorAll('.distill-panel label, .distill-panel .widget-readout, .distill-panel button')]
        .filter(o => o.offsetWidth && o.scrollWidth > o.offsetWidth).map(o => o.innerText)'''
    assert page.evaluate(cut)==[]


def test_presets_set_the_sliders(opened):
    opened['preset'].locator('select').select_option(index=3)
    opened.page.wait_for_function("document.querySelector('.distill-temperature .widget-readout').innerText=='1.20'")
    assert opened.shown('penalty')=='1.05'
    assert '128 codes' in opened.until('note', 'looks back')
    opened.slide('temperature', .8)
    opened.page.wait_for_function("document.querySelector('.distill-preset select').selectedIndex==4")    # one's own


def test_dice_and_typed_seed(opened):
    number, fresh = opened['seed'].locator('input'), opened['fresh'].locator('input')
    before = number.input_value()
    assert fresh.is_checked()
    opened['dice'].click()
    opened.page.wait_for_function(f"document.querySelector('.distill-seed input').value!='{before}'")
    assert not fresh.is_checked()
    fresh.check()
    opened.type('seed', 1234)
    opened.page.wait_for_function("!document.querySelector('.distill-fresh input').checked")


def test_take(opened, folder):
    "Every control set by hand; the take plays, is seen, is as long as asked, and the saved settings are those."
    opened.choose('stitch', 'independent pieces')
    opened.page.wait_for_function("document.querySelector('.distill-loop input').disabled")
    for hook, value in (('temperature', 1.3), ('top-p', .8), ('top-k', 20), ('penalty', 1.2), ('duration', 3), ('crossfade', 120), ('min-p', .02),
                        ('typical', .95)):
        opened.slide(hook, value)
    opened.choose('draw', 'with Gumbel noise')
    opened.type('context', 30)
    opened.type('levels', 'top-k 20, 30')
    opened.until('note', 'top_k 20, 30')
    opened.choose('label', 'bells')
    opened.type('seed', 99)
    opened.page.evaluate(LISTEN, '.distill-status')
    opened['go'].click()
    assert opened.until('status', 'Done')=='Done: 3 s, seed 99'
    said = [text for _, text in opened.page.evaluate('window.said')]
    assert any(o.startswith('Generating chunk 2/') for o in said), said
    assert opened.audio_seconds()==pytest.approx(3, abs=.01)
    assert opened.picture_width() > 400
    opened['save'].click()
    opened.until('saved', 'Saved as')
    about = json.loads((folder/'takes'/'my-b-sounds-b-99.wav.json').read_text(encoding='utf-8'))
    assert about['sampling']==dict(temperature=1.3, top_p=.8, top_k=[20, 30], repetition_penalty=1.2, seed=99, min_p=.02, typical_p=.95,
                                   penalty_context=30, gumbel=True, argmax=False)
    assert (about['seconds'], about['overlap_ms'], about['stitch'], about['label'])==(3, 120, 'crossfade', 'bells')


def test_until_it_ends_and_loop(opened):
    "The sound that ends by itself, and the loop, which the player plays as one."
    opened.choose('stitch', 'in one go')
    opened.page.wait_for_function("!document.querySelector('.distill-loop input').disabled")
    opened['until-end'].locator('input').check()
    opened.page.wait_for_function("document.querySelector('.distill-loop input').disabled")
    opened['go'].click()
    opened.until('status', 'Done')
    assert 0 < opened.audio_seconds() < 61
    opened['until-end'].locator('input').uncheck()
    opened.page.wait_for_function("!document.querySelector('.distill-loop input').disabled")
    opened['loop'].locator('input').check()
    opened.slide('duration', 3)
    opened['go'].click()
    opened.until('status', 'Done: 3 s')
    assert opened.audio_seconds()==pytest.approx(3, abs=.01)
    opened.page.wait_for_function("document.querySelector('.distill-take:not(.distill-take ~ *) audio').loop")
    opened['loop'].locator('input').uncheck()


def test_heard_while_it_is_made(opened):
    "The page plays before the take is done; Quiet ends that and not the take."
    opened.slide('duration', 3)
    opened['go'].click()
    opened.page.wait_for_function("document.querySelector('.distill-live').dataset.state=='playing'")
    opened['mute'].click()
    opened.page.wait_for_function("document.querySelector('.distill-live').dataset.state=='silent'")
    opened.until('status', 'Done: 3 s')


def test_keep_discard_undo(opened):
    page, count = opened.page, lambda: opened.page.locator('.distill-take').count()
    n = count()
    assert n > 1
    opened['keep'].click()
    opened.until('takes-title', '1 kept')
    opened['clear'].click()
    page.wait_for_function("document.querySelectorAll('.distill-take').length==1")
    opened['undo'].click()
    page.wait_for_function(f"document.querySelectorAll('.distill-take').length=={n}")
    opened['discard'].click()
    page.wait_for_function(f"document.querySelectorAll('.distill-take').length=={n - 1}")
    opened['undo'].click()
    page.wait_for_function(f"document.querySelectorAll('.distill-take').length=={n}")
    opened['restore'].click()
    opened.until('status', 'Set as for take')
    opened['go-on'].click()
    opened.until('status', 'goes on from take')
    opened.choose('prompt', 'nothing')
    opened['save-kept'].click()
    opened.until('takes-status', 'Saved 1 of 1')


def waits(page, script, arg=None, seconds=60): page.wait_for_function(script, arg=arg, timeout=1000*seconds)


def more(opened, title, hook):
    "Opens a part of the panel that is shut"
    if not opened[hook].is_visible(): opened.page.locator('.distill-more').get_by_text(title).click()
    opened[hook].wait_for(state='visible')


def test_presets_of_ones_own(opened):
    "Kept under a name, chosen from the list, forgotten"
    more(opened, 'More controls', 'preset-name')
    opened.slide('temperature', .7)
    opened.type('preset-name', 'mine')
    opened['preset-keep'].click()
    opened.until('preset-said', 'Kept as mine')
    opened['preset'].locator('select').select_option(index=0)
    waits(opened.page, "document.querySelector('.distill-temperature .widget-readout').innerText=='1.00'")
    opened.choose('preset', 'mine: saved by you')
    waits(opened.page, "document.querySelector('.distill-temperature .widget-readout').innerText=='0.70'")
    opened['preset-forget'].click()
    opened.until('preset-said', 'mine is forgotten')
    waits(opened.page, "![...document.querySelectorAll('.distill-preset option')].some(o => o.innerText.startsWith('mine'))")


@pytest.mark.parametrize('suffix, rate, bits', [('wav', 96000, '32 bit float'), ('flac', 44100, '24 bit'),
                                                ('ogg', 32000, None), ('mp3', 44100, None)])
def test_save(opened, folder, suffix, rate, bits):
    from distill.audio import load_audio, read_audio
    name = f'Snäre & ☂ {suffix}'
    if not opened['format'].is_visible(): opened.page.locator('.distill-more').get_by_text('Where takes are saved').click()
    opened['format'].wait_for(state='visible')
    opened.type('name', name)
    opened.choose('format', suffix)
    if bits: opened.choose('bits', bits)
    else: opened.page.wait_for_function("document.querySelector('.distill-bits select').disabled")
    opened.choose('rate', f'{rate} Hz')
    opened['save'].click()
    path = folder/'takes'/f'{name}.{suffix}'
    assert str(path) in opened.until('saved', f'Saved as {path}')
    assert read_audio(path).sample_rate==rate
    assert len(load_audio(path).wav)==pytest.approx(3*48_000, abs=2500)
    assert json.loads((path.parent/f'{path.name}.json').read_text(encoding='utf-8'))['sample_rate']==rate
    opened['save'].click()    # and never over another file
    assert f'Snäre & ☂ {suffix}-2.{suffix}' in opened.until('saved', 'already')


def test_save_as_it_should_sound(opened, folder):
    "Loudness, width and tags; what there is to say about the file is said."
    import soundfile
    opened.type('name', 'wide')
    opened.choose('format', 'flac')
    opened.choose('lufs', '-23 LUFS: broadcasting')
    opened.slide('width', .5)
    opened.type('tag-title', 'Wide <i>one</i>')
    opened.type('tag-artist', 'me')
    opened.page.screenshot(path=folder/'saving.png', full_page=True)
    opened['save'].click()
    said = opened.until('saved', f"Saved as {folder/'takes'/'wide.flac'}")
    about = json.loads((folder/'takes'/'wide.flac.json').read_text(encoding='utf-8'))
    level = 'silent' if about['lufs'] is None else f'{about["lufs"]:.1f} LUFS'    # a model that has hardly learned can be very quiet
    assert level in said and about['export']['lufs']==-23 and about['export']['width']==.5
    with soundfile.SoundFile(folder/'takes'/'wide.flac') as f: assert (f.channels, f.title, f.artist)==(2, 'Wide <i>one</i>', 'me')
    opened.choose('lufs', 'as it is')
    opened.slide('width', 0)


def made(opened, more=1):
    "Presses Generate, and waits until there are so many takes more: the words about the newest."
    newest = '() => +(document.querySelector(".distill-take:not(.distill-take ~ *) .distill-card-title")?.innerText.split(" ")[1] ?? 0)'
    want = opened.page.evaluate(newest) + more
    opened['go'].click()
    try: opened.page.wait_for_function(f'want => ({newest})() === want', arg=want, timeout=60_000)
    except Exception: raise AssertionError(f'no take {want}: {opened["status"].inner_text()}') from None
    return opened['card-title'].inner_text()


def saved(opened, folder, name):
    "Saves the newest take: its settings"
    opened.type('name', name)
    opened['save'].click()
    path = folder/'takes'/f"{name}.{opened['format'].locator('select').input_value()}"
    opened.until('saved', f'Saved as {path}')
    return json.loads(path.with_name(f'{path.name}.json').read_text(encoding='utf-8'))


def test_takes_at_once(opened):
    opened.slide('duration', 1)
    opened.type('count', 3)
    opened['fresh'].locator('input').check()
    opened.page.evaluate("for (const o of document.querySelectorAll('.distill-take audio')) o.dataset.before = 'yes'")
    before = opened.page.locator('.distill-take').count()
    made(opened, 3)
    assert opened.page.locator('.distill-take audio[data-before]').count()==before > 0    # one that plays goes on playing
    assert opened.until('status', 'Done').startswith('Done: 3 takes, seed ')
    titles = opened.page.locator('.distill-take .distill-card-title').all_inner_texts()
    numbers = [int(o.split()[1]) for o in titles]
    assert numbers==sorted(numbers, reverse=True)    # the newest first, for the Tab key and screen readers too
    titles = titles[:3]
    assert all(' · 1 s · seed ' in o for o in titles) and len({o.split('seed ')[1].split(' ')[0] for o in titles})==3
    opened.type('count', 1)


def test_guidance(opened, folder):
    "It is for a kind of sound; without one, it is off."
    more(opened, 'More controls', 'guidance')
    disabled = "want => document.querySelector('.distill-guidance .ui-slider, .distill-guidance .noUi-target').hasAttribute('disabled')===want"
    opened.choose('label', 'any')
    waits(opened.page, disabled, True)
    opened.choose('label', 'bells')
    waits(opened.page, disabled, False)
    opened.slide('guidance', 3)
    assert '· bells' in made(opened)
    more(opened, 'Where takes are saved', 'folder')
    about = saved(opened, folder, 'guided')
    assert (about['guidance'], about['label'])==(3, 'bells')
    opened.choose('label', 'any')


def test_go_on_from_a_file(opened, folder):
    "By its path, some of it; what is no sound is told in words."
    opened.choose('prompt', 'a file…')
    opened['prompt-path'].wait_for(state='visible')
    opened['go'].click()
    opened.until('status', 'Choose a sound first')
    opened.type('prompt-path', folder/'gone <b>.wav')
    opened['go'].click()
    assert 'gone <b>.wav' in opened.until('status', 'gone')
    opened.type('prompt-path', folder/'hum <b>.wav')
    opened.slide('prompt-seconds', .1)
    opened['go'].click()
    opened.until('status', 'one column of codes: give more of it')
    opened.slide('prompt-seconds', .4)
    opened.slide('duration', 2)
    assert '· goes on' in made(opened) and opened.audio_seconds()==pytest.approx(2, abs=.01)
    about = saved(opened, folder, 'goes on')
    assert about['prompt_s']==.4 and about['prompt_samples'] > .4*48_000


def test_go_on_from_an_upload(opened, folder):
    "All of it; a take made so gets everything back by Settings."
    opened.upload('prompt-upload', folder/'hum <b>.wav')
    chosen = "want => document.querySelector('.distill-prompt select').selectedOptions[0].innerText.replaceAll('\u00a0', ' ')===want"
    waits(opened.page, chosen, 'hum <b>.wav (uploaded)')
    opened['prompt-path'].wait_for(state='hidden')
    opened.slide('prompt-seconds', 0)
    opened.slide('duration', 1.5)
    title = made(opened)
    assert '· 1.5 s' in title and '· goes on' in title
    opened.choose('prompt', 'nothing')
    opened['restore'].click()
    waits(opened.page, chosen, 'hum <b>.wav (uploaded)')
    opened.choose('prompt', 'nothing')
    opened.slide('duration', 1)
    assert 'goes on' not in made(opened)


def test_not_heard_while_it_is_made(opened):
    "With `play while it is made` switched off, the page is quiet; the take is there all the same."
    watch = """() => { const el = document.querySelector('.distill-live'); window.states = [];
        new MutationObserver(() => el.dataset.state=='playing' && window.states.push(el.dataset.at)).observe(el, {attributes: true}) }"""
    opened.page.evaluate(watch)
    made(opened)
    waits(opened.page, "window.states.length && document.querySelector('.distill-live').hidden")
    opened['listen'].locator('input').uncheck()
    opened.page.evaluate('window.states.length = 0')
    made(opened)
    assert opened.page.evaluate('window.states')==[] and opened['live'].is_hidden() and opened.audio_seconds()==pytest.approx(1, abs=.01)
    opened['listen'].locator('input').check()


def test_save_in_vain(opened, folder):
    opened.page.on('dialog', lambda o: pytest.fail('a file name ran in the page'))
    before = sorted(folder.rglob('*'))
    for name, words in (('<img src=x onerror=alert(1)>', 'cannot hold'), ('../../kick', 'cannot hold'), ('NUL', 'Windows')):
        opened.type('name', name)
        opened['save'].click()
        assert opened.until('saved', words)
    opened.type('name', 'kick')
    opened.type('folder', folder/'gone')
    opened['save'].click()
    assert opened.until('saved', 'there is no folder')
    assert opened['saved'].locator('.distill-error').count()==1
    assert sorted(folder.rglob('*'))==before


def test_it_looks_right(opened, folder):
    opened.page.screenshot(path=folder/'voila.png', full_page=True)


@pytest.fixture(scope='module')
def trouble(browser, server):
    with new_page(browser, viewport={'width': 900, 'height': 900}) as page:
        page.goto(f'{server}/voila/render/trouble.ipynb?theme=dark', timeout=120_000)
        Panel(page, '.mute').wait()
        yield page


def test_stop(trouble):
    "Stop takes effect within half a second; while a take is made, the panel answers."
    panel = Panel(trouble, '.slow')
    panel.slide('duration', 30)
    panel['go'].click()
    panel.until('status', 'Generating')
    assert not panel.enabled('go') and panel.enabled('stop')
    panel['preset'].locator('select').select_option(index=3)    # the kernel is free
    trouble.wait_for_function("document.querySelector('.slow .distill-temperature .widget-readout').innerText=='1.20'", timeout=2000)
    assert panel.stop() < 500
    trouble.wait_for_function("!document.querySelector('.slow .distill-go').disabled")
    assert panel['save'].is_hidden()
    panel.slide('duration', 1)
    panel['go'].click()    # and it starts again
    panel.until('status', 'Done')
    assert panel.audio_seconds()==pytest.approx(1, abs=.01)


def test_errors_are_words(trouble):
    panel = Panel(trouble, '.broken')
    panel['go'].click()
    assert 'nobody expected' in panel.until('status', 'AttributeError')
    assert panel['status'].locator('.distill-error').count()==1 and panel.enabled('go')


def test_without_a_prior(trouble, folder):
    panel = Panel(trouble, '.mute')
    assert 'train-prior' in panel.until('status', 'no prior yet') and not panel.enabled('go')
    assert trouble.evaluate("document.body.dataset.jpThemeLight")=='false'
    trouble.screenshot(path=folder/'dark.png', full_page=True)


def test_workbench(browser, server, folder):
    "A model is loaded in one tab, makes a sound in another, and that is taken apart in a third."
    write_notebook(folder/'bench.ipynb', BENCH.format(home=str(folder/'home')))
    with new_page(browser, viewport={'width': 900, 'height': 1000}) as page:
        page.goto(f'{server}/voila/render/bench.ipynb', timeout=120_000)
        page.locator('.distill-library.distill-panel').wait_for(timeout=120_000)    # the first tab is hidden
        panel = Panel(page)
        tab = lambda name: page.get_by_role('tab', name=name).click()
        tab('Library')
        panel['load'].click()
        Panel(page, '.distill-library').until('status', 'is loaded')
        library = Panel(page, '.distill-library')
        library['delete'].click()
        library.until('question', 'Delete')
        library['cancel'].click()
        library['question'].wait_for(state='hidden')
        page.screenshot(path=folder/'library.png', full_page=True)
        tab('Generate')
        generate = Panel(page, '.distill-generate')
        generate.slide('duration', 1)
        generate['go'].click()
        generate.until('status', 'Done')
        tab('Codes')
        codes = Panel(page, '.distill-codes')
        codes['encode'].click()
        codes.until('status', '8 bands')
        codes['codes-save'].click()
        codes.until('status', 'Saved as')
        codes['codes-render'].click()
        codes.until('status', 'below the editor')
        assert list((folder/'takes').glob('*.npz'))
        page.screenshot(path=folder/'codes.png', full_page=True)


@pytest.fixture(scope='module')
def jupyter(folder):
    "JupyterLab as `distill lab` starts it: its address and the token; it ends with the command"
    port, log, config = free_port(), folder/'distill-lab.log', folder/'config'
    config.mkdir()    # where Jupyter looks for settings: those of `lab` in browser.py
    settings = dict(expose_app_in_browser=True, news_url=None, check_for_updates_class='jupyterlab.NeverCheckForUpdate')
    (config/'jupyter_lab_config.json').write_text(json.dumps(dict(LabApp=settings)))
    command = [sys.executable, '-m', 'distill', 'lab', folder, '--model', folder/'tiny.distill', '--no-browser', '--port', str(port)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JUPYTER_CONFIG_DIR', str(config))
        with serve(command, f'http://127.0.0.1:{port}/api', log):
            yield f'http://127.0.0.1:{port}', re.search(r'token=(\w+)', log.read_text(encoding='utf-8', errors='replace')).group(1)
    with pytest.raises(OSError): urllib.request.urlopen(f'http://127.0.0.1:{port}/api', timeout=5)


def test_lab(browser, folder, jupyter):
    "The same in JupyterLab, in both themes; while a take is made, another cell gets its answer."
    with new_page(browser, viewport={'width': 1200, 'height': 1000}) as page:
        run_in_lab(page, *jupyter, 'lab.ipynb')
        panel = Panel(page).wait()
        panel.slide('duration', 2)
        panel['go'].click()
        panel.until('status', 'Done: 2 s')
        assert panel.audio_seconds()==pytest.approx(2, abs=.01) and panel.picture_width() > 400
        for theme in ('Light', 'Dark'):
            themed(page, theme)
            page.screenshot(path=folder/f'lab_{theme.lower()}.png')
        panel.slide('duration', 30)
        panel['go'].click()
        panel.until('status', 'Generating')
        answers_in_lab(page, 2, 'while it works')
        assert panel.stop() < at_once()
        page.locator('.distill-go:enabled').first.wait_for(timeout=60_000)
        answers_in_lab(page, 3, 'at rest')


def test_the_ready_notebook(browser, folder, jupyter):
    "The workbench, all its tabs, and the model that was asked for"
    with new_page(browser, viewport={'width': 1100, 'height': 1000}) as page:
        run_in_lab(page, *jupyter, 'distill-workbench.ipynb')
        page.locator('.distill-panel').first.wait_for(timeout=120_000, state='attached')
        assert [o.strip() for o in page.get_by_role('tab').all_inner_texts() if o.strip() in ('Train', 'Generate', 'Codes', 'Library')]==['Train', 'Generate', 'Codes', 'Library']
        page.get_by_role('tab', name='Generate').click()
        generate = Panel(page, '.distill-generate')
        generate.slide('duration', 1)
        generate['go'].click()
        generate.until('status', 'Done')
        page.screenshot(path=folder/'distill_lab.png')
