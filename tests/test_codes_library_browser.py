"The codes panel and the library panel in a real Chromium, through Voila and once in JupyterLab: every button and field."
import shutil

import pytest
import torch

pytest.importorskip('playwright', reason='playwright is not installed: pip install -e ".[dev]"')

from browser import ANSWER, Panel, answers_in_lab, at_once, lab, new_page, run_in_lab, themed, voila, write_notebook    # noqa: E402

# where there is a file `hold-NAME`, that work takes as long as it is there, and asks nobody whether to stop; then it makes a file `over-NAME`
PANELS = '''import os, time
from pathlib import Path
os.environ['DISTILL_HOME'] = {home!r}
import ipywidgets as widgets
import distill.codes_panel as module
from distill.controls import Workspace
from distill.library_panel import LibraryPanel
from distill.model import load_model
def held(name, work):
    def wait(*args, **named):
        found = work(*args, **named)
        if Path(f'hold-{{name}}').exists():
            Path(f'held-{{name}}').touch()
            while Path(f'hold-{{name}}').exists(): time.sleep(.02)
            Path(f'over-{{name}}').touch()
        return found
    return wait
for name in ('encode', 'CodeEditor', 'card_parts', 'check_codes'): setattr(module, name, held(name, getattr(module, name)))
work = Workspace(load_model('small.distill', 'cpu'))
codes, library = module.CodesPanel(work, 'made'), LibraryPanel(work)
widgets.VBox([codes, library])'''


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A model that has a prior which has learned nothing, others in a library, sounds, and notebooks with both panels."
    from distill.base import load_base, start_from_base
    from distill.export import save_audio
    from distill.library import Library
    from distill.model import save_model
    from distill.prior import CodePrior, PriorConfig
    from distill.vqvae import ConvVQVAE, VQVAEConfig
    folder = tmp_path_factory.mktemp('codes')
    model = ConvVQVAE(VQVAEConfig(codebook_size=128, n_quantizers=4, search_steps=0))
    start_from_base(model, load_base())
    prior = CodePrior(PriorConfig(codebook_size=128, n_quantizers=4, d_model=16, n_heads=1, n_layers=1, labels=('bells', 'horns')))
    library = Library(folder/'home'/'library.db')
    about = dict(created='2026-01-02T03:04:05', files=dict(train=['a', 'b']), seconds=90.0, minutes=5.0, scores=dict(log_mel_l1=.5, bits_per_code=3.2, codes_used=[.9, .8]))
    for name, given in (('small', prior), ('bare', None), ('spare', None)):
        save_model(folder/f'{name}.distill', model.eval(), given and given.eval(), metadata=dict(about, name=f'{name} <b>sounds</b>'))
        if name != 'spare': library.add(folder/f'{name}.distill')
    with torch.no_grad(): next(model.parameters()).add_(.1)
    save_model(folder/'other.distill', model, metadata=dict(about, name='other'))
    for name, hz in (('bell', 20), ('horn <b>', 40)): save_audio(folder/f'{name}.wav', .3*torch.sin(torch.arange(40_000)/hz), 48_000)
    (folder/'no sound.wav').write_bytes(b'not a sound')
    (folder/'made').mkdir()
    write_notebook(folder/'panels.ipynb', PANELS.format(home=str(folder/'home')))
    write_notebook(folder/'lab.ipynb', PANELS.format(home=str(folder/'home')), ANSWER.format(job='codes.job'))
    return folder


@pytest.fixture(scope='module')
def page(browser, folder):
    "Both panels in one page, for the tests that follow one another on it."
    with voila(folder) as address, new_page(browser, viewport={'width': 900, 'height': 1000}) as page:
        page.goto(f'{address}/voila/render/panels.ipynb', timeout=120_000)
        yield page


@pytest.fixture(scope='module')
def codes(page): return Panel(page, '.distill-codes').wait(120)


@pytest.fixture(scope='module')
def library(page): return Panel(page, '.distill-library').wait(120)


def waits(panel, script, arg=None): panel.page.wait_for_function(script, arg=arg, timeout=60_000)


def appears(panel, path, seconds=60):
    "Waits for a file"
    for _ in range(50*seconds):
        if path.exists(): return
        panel.page.wait_for_timeout(20)
    raise AssertionError(f'there is no {path.name} after {seconds} s')


def chosen(panel, hook): return panel[hook].locator('select').evaluate("o => o.selectedOptions[0]?.innerText.replaceAll('\u00a0', ' ')")


def options(panel, hook): return [o.replace('\u00a0', ' ') for o in panel[hook].locator('option').all_inner_texts()]


def fill(panel, hook, text):
    "Types into a field that may be empty afterwards, and leaves it"
    field = panel[hook].locator('input').first
    field.fill(str(text))
    field.press('Enter')
    field.press('Tab')


def opened(codes, words):
    "Waits until codes are open in an editor: what the panel says of them"
    said = codes.until('status', words)
    codes.page.locator('.distill-codes .distill-editor[data-ready]').wait_for(timeout=60_000)
    return said


def cut(page):
    "Labels and buttons of the panels that cannot be read whole, and whether anything sticks out of the page"
    found = page.evaluate("""() => [...document.querySelectorAll('.distill-panel :is(label, .widget-readout, button)')]
        .filter(o => o.offsetWidth && o.scrollWidth > o.offsetWidth).map(o => o.innerText)""")
    return found + ['the page']*page.evaluate('document.documentElement.scrollWidth > window.innerWidth')


# --- codes
def test_a_sound_by_path(codes, folder):
    assert codes.enabled('encode') and not codes.enabled('stop') and codes['codes-save'].is_hidden()
    codes['encode'].click()
    codes.until('status', 'Choose a sound first')
    fill(codes, 'codes-sound-path', 'gone <b>.wav')
    codes['encode'].click()
    assert 'one <b>.wav' in codes.until('status', 'no such file') and codes['status'].locator('.distill-error').count()==1
    fill(codes, 'codes-sound-path', 'bell.wav')
    codes['encode'].click()
    assert opened(codes, 'bell:')=='bell: 0.8333 s, 8 bands × 5 columns × 4 levels of codes'
    assert codes['codes-name'].locator('input').input_value()=='bell' and "load_audio('bell.wav', 48000)" in codes['lines'].inner_text()
    assert 'small <b>sounds</b>' in codes['title'].inner_text() and not cut(codes.page)
    codes.page.screenshot(path=folder/'codes.png', full_page=True)


def test_a_sound_by_upload(codes, folder):
    "What is no sound is told in words; a name is text, never part of the page."
    codes.upload('codes-sound-upload', folder/'no sound.wav')
    waits(codes, "document.querySelector('.distill-codes-sound select').selectedOptions[0].innerText.includes('uploaded')")
    codes['encode'].click()
    codes['status'].locator('.distill-error').wait_for(timeout=60_000)
    codes.choose('codes-sound', 'a file…')
    codes.upload('codes-sound-upload', folder/'horn <b>.wav')
    waits(codes, "document.querySelector('.distill-codes-sound select').selectedOptions[0].innerText.includes('horn')")
    assert chosen(codes, 'codes-sound')=='horn <b>.wav (uploaded)' and codes['codes-sound-path'].is_hidden()
    codes['encode'].click()
    assert opened(codes, 'horn <b>:').startswith('horn <b>: 0.8333 s')
    assert 'horn <b>' in codes['editor'].get_attribute('aria-label')


def test_save_and_open_codes(codes, folder):
    "Under the name in the field, never over another file; opened again, and what is not of this model is refused."
    from distill.codes import CodeGrid
    from dataclasses import replace
    for name, words in (('no/slash', 'cannot hold'), ('my codes', 'Saved as'), ('my codes', 'my codes-2.npz')):
        fill(codes, 'codes-name', name)
        codes['codes-save'].click()
        codes.until('status', words)
    grid = CodeGrid.load(folder/'made'/'my codes.npz')
    assert grid.columns==5 and sorted(o.name for o in (folder/'made').iterdir())==['my codes-2.npz', 'my codes.npz']
    replace(grid, model_fingerprint='another').save(folder/'made'/'foreign.npz')
    for path, words in (('', 'Give the path'), ('gone.npz', 'gone.npz'), ('bell.wav', 'bell.wav'), (folder/'made'/'foreign.npz', 'another model')):
        fill(codes, 'codes-path', path)
        codes['codes-open'].click()
        assert codes.until('status', words) and codes['status'].locator('.distill-error').count()==1
    fill(codes, 'codes-path', folder/'made'/'my codes-2.npz')
    codes['codes-open'].click()
    opened(codes, 'my codes-2: 0.8333 s')
    assert 'CodeGrid.load(' in codes['lines'].inner_text() and codes['codes-name'].locator('input').input_value()=='my codes-2'


def test_back_to_what_was_edited(codes, folder):
    "Another sound in its place loses no change."
    assert codes['codes-back'].is_hidden()
    codes['reverse'].click()
    waits(codes, "document.querySelector('.distill-codes .distill-lines').innerText.includes('grid.reverse(')")
    fill(codes, 'codes-path', folder/'made'/'my codes.npz')
    codes['codes-open'].click()
    assert opened(codes, 'my codes:').endswith('Back returns to my codes-2, with its changes')
    assert 'reverse' not in codes['lines'].inner_text()
    codes.page.screenshot(path=folder/'codes_back.png', full_page=True)
    codes['codes-back'].click()
    opened(codes, 'my codes-2: 0.8333 s')
    waits(codes, "document.querySelector('.distill-codes .distill-lines').innerText.includes('grid.reverse(')")
    assert codes['codes-back'].is_hidden() and not cut(codes.page)
    codes['undo'].click()
    waits(codes, "!document.querySelector('.distill-codes .distill-lines').innerText.includes('grid.reverse(')")


def test_keep_the_sound(codes, folder):
    "A card to hear, see, name, save and discard; meanwhile it can be encoded, too."
    from distill.audio import load_audio
    cards = codes.page.locator('.distill-codes .distill-card')
    fill(codes, 'codes-name', 'ding')
    for n in (1, 2):
        codes['codes-render'].click()
        waits(codes, "n => document.querySelectorAll('.distill-codes .distill-card').length===n", n)
    codes.until('status', 'below the editor')
    assert cards.first.inner_text().startswith('ding, version 2 · 0.8333 s')
    card = Panel(codes.page, '.distill-codes .distill-card')
    assert card.audio_seconds()==pytest.approx(.833, abs=.01) and card.picture_width() > 400
    card.type('name', 'ding <dong>')
    card['save'].click()
    card.until('saved', 'cannot hold')
    card.type('name', 'ding dong')
    card['save'].click()
    card.until('saved', f"Saved as {folder/'made'/'ding dong.wav'}")
    assert len(load_audio(folder/'made'/'ding dong.wav').wav)==40_000
    codes.choose('codes-sound', 'ding, version 1')
    codes['encode'].click()
    opened(codes, 'ding, version 1: 0.8333 s')
    card['discard'].click()
    waits(codes, "document.querySelectorAll('.distill-codes .distill-card').length===1")
    waits(codes, "document.querySelector('.distill-codes-sound select').options.length===3")
    assert cards.first.inner_text().startswith('ding, version 1') and options(codes, 'codes-sound')==['ding, version 1', 'horn <b>.wav (uploaded)', 'a file…']
    card['discard'].click()
    waits(codes, "document.querySelectorAll('.distill-codes .distill-card').length===0")
    waits(codes, "document.querySelector('.distill-codes-sound select').options.length===2")


def test_where_files_go(codes, folder):
    codes.page.locator('.distill-codes .distill-more').get_by_text('Where sounds and codes').click()
    codes['folder'].wait_for(state='visible')
    fill(codes, 'folder', folder/'nowhere')
    codes['codes-save'].click()
    assert 'nowhere' in codes.until('status', 'here is no folder')
    fill(codes, 'folder', folder/'made')
    assert not cut(codes.page)


STOPS = [('encode', 'encode'), ('encode', 'CodeEditor'), ('codes-render', 'card_parts'), ('codes-open', 'check_codes'), ('codes-open', 'CodeEditor')]

@pytest.mark.parametrize('button, work', STOPS)
def test_stop(codes, folder, button, work):
    "Within half a second, also where the work asks nobody; what it makes afterwards is never shown, what was open stays."
    codes.choose('codes-sound', 'a file…')
    lines = codes['lines'].inner_text()
    fill(codes, 'codes-name', before := f'before {button} {work}')
    hold, held, over = (folder/f'{when}-{work}' for when in ('hold', 'held', 'over'))
    for path in (held, over): path.unlink(missing_ok=True)
    hold.touch()
    codes[button].click()
    codes.page.locator('.distill-codes .distill-stop:enabled').first.wait_for(timeout=60_000)
    appears(codes, held)
    assert not codes.enabled('encode') and not codes.enabled('codes-open') and not codes.enabled('codes-render')
    assert codes.stop() < at_once()
    waits(codes, "!document.querySelector('.distill-codes .distill-encode').disabled")
    hold.unlink()
    appears(codes, over)
    fill(codes, 'codes-name', '')
    codes['codes-save'].click()    # a word to the kernel and back: by then, it would have shown what it made
    codes.until('status', 'Give the file a name')
    assert codes['lines'].inner_text()==lines and not codes.page.locator('.distill-codes .distill-card').count(), before
    codes['encode'].click()    # and it goes on
    opened(codes, 'bell: 0.8333 s')


# --- library
def test_library_opens(library, folder):
    "Names from files are text, never part of the page."
    assert sorted(o.split(' · ')[:3] for o in options(library, 'library-list'))==[['bare', '2 sounds', '0.50 nats'], ['small', '2 sounds', '0.50 nats']]
    pick(library, 'small')
    words = library.until('library-details', 'small <b>sounds</b>')
    assert 'bells, horns' in words and '2 sounds, 1.5 minutes of them; learned for 5.0 minutes' in words and 'coarse to fine: 90%, 80%' in words
    library.page.screenshot(path=folder/'library.png', full_page=True)
    assert not cut(library.page)


def pick(library, name):
    "Chooses a model of the list, and waits until its details are there"
    at = next(i for i, o in enumerate(options(library, 'library-list')) if o.split(' · ')[0]==name)
    library['library-list'].locator('select').select_option(index=at)
    waits(library, "name => document.querySelector('.distill-library-name input').value===name", name)


def lists(library, *names):
    "Waits until these are the models of the list"
    waits(library, """names => [...document.querySelectorAll('.distill-library-list option')]
        .map(o => o.innerText.replaceAll('\\u00a0', ' ').split(' · ')[0]).sort().join('|')===names""", '|'.join(sorted(names)))


def test_find(library):
    for words, names in (('HORNS', ['small']), ('sounds bare', ['bare']), ('<b>sounds', ['bare', 'small'])):
        fill(library, 'library-search', words)
        lists(library, *names)
    fill(library, 'library-search', 'nowhere <i>')
    library.until('status', 'No model has these words')
    lists(library)
    assert not any(library.enabled(o) for o in ('load', 'rename', 'delete')) and library['library-details'].inner_text()==''
    fill(library, 'library-search', '')
    lists(library, 'bare', 'small')
    library['status'].wait_for(state='hidden', timeout=10_000)    # the list may come first


def test_refresh(library, folder):
    "What another program added is there; a model whose file is gone says so, and cannot be loaded."
    from distill.library import Library
    shutil.copy(folder/'bare.distill', folder/'late.distill')
    Library(folder/'home'/'library.db').add(folder/'late.distill')
    assert len(options(library, 'library-list'))==2
    library['library-refresh'].click()
    lists(library, 'bare', 'late', 'small')
    (folder/'late.distill').unlink()
    library['library-refresh'].click()
    waits(library, "[...document.querySelectorAll('.distill-library-list option')].some(o => o.innerText.endsWith('gone'))")
    pick(library, 'late')
    library.until('library-details', 'the file is gone: put it back')
    assert not library.enabled('load')
    library['delete'].click()
    library.until('question', 'Delete late?')
    assert not library.enabled('erase') and library.enabled('forget')
    library['forget'].click()
    library.until('status', 'late is off the list')
    lists(library, 'bare', 'small')


def test_rename(library):
    "What it is called now is chosen afterwards; a name that is taken, or none, is refused in words."
    pick(library, 'bare')
    fill(library, 'library-name', 'Fresh & <i>new')
    library['rename'].click()
    library.until('status', 'bare is called Fresh & <i>new now')
    lists(library, 'Fresh & <i>new', 'small')
    assert chosen(library, 'library-list').startswith('Fresh & <i>new')
    for name, words in (('SMALL', 'is the name of'), ('a/b', 'is no name'), ('', 'is no name')):
        fill(library, 'library-name', name)
        library['rename'].click()
        library.until('status', words)
    lists(library, 'Fresh & <i>new', 'small')
    fill(library, 'library-name', 'bare')
    library['rename'].click()
    lists(library, 'bare', 'small')


def test_add(library, folder):
    for path, words in (('', 'Give the path'), ('gone.distill', 'gone.distill'), ('bell.wav', 'bell.wav')):
        fill(library, 'library-path', path)
        library['library-add'].click()
        assert library.until('status', words) and library['status'].locator('.distill-error').count()==1
    fill(library, 'library-search', 'bare')
    lists(library, 'bare')
    fill(library, 'library-path', 'spare.distill')
    library['library-add'].click()
    library.until('status', 'spare is on the list')
    lists(library, 'bare', 'small', 'spare')    # all are shown again
    assert chosen(library, 'library-list').startswith('spare') and not library['library-path'].locator('input').input_value()


def test_delete(library, folder):
    "It asks, and does what is answered: nothing, off the list, or the file, too."
    pick(library, 'spare')
    library['delete'].click()
    library.until('question', 'Delete spare?')
    assert not cut(library.page)
    library.page.screenshot(path=folder/'question.png', full_page=True)
    library['cancel'].click()
    library['question'].wait_for(state='hidden')
    library['delete'].click()
    library.until('question', 'Delete spare?')
    pick(library, 'bare')    # another one is chosen: the question is gone
    library['question'].wait_for(state='hidden')
    pick(library, 'spare')
    library['delete'].click()
    library['forget'].click()
    assert str(folder/'spare.distill') in library.until('status', 'spare is off the list; its file stays at')
    lists(library, 'bare', 'small')
    assert (folder/'spare.distill').exists()
    fill(library, 'library-path', folder/'spare.distill')
    library['library-add'].click()
    lists(library, 'bare', 'small', 'spare')
    library['delete'].click()
    library['erase'].click()
    library.until('status', 'spare is deleted')
    lists(library, 'bare', 'small')
    assert not (folder/'spare.distill').exists() and (folder/'bare.distill').exists()


def test_load(library, codes, folder):
    "All panels use it then; where its file has become something else, that is told, and the one before stays."
    pick(library, 'bare')
    library['load'].click()
    library.until('status', 'bare is loaded: all panels here use it now')
    assert 'bare' in library.until('title', 'In use: bare') and codes.until('title', 'Sound as codes of bare')
    shutil.copy(folder/'bell.wav', folder/'small.distill')
    pick(library, 'small')
    library['load'].click()
    assert 'small.distill' in library.until('status', 'small.distill') and library['status'].locator('.distill-error').count()==1
    assert 'In use: bare' in library['title'].inner_text() and library.enabled('load')
    shutil.copy(folder/'other.distill', folder/'small.distill')


def test_lab(browser, folder):
    "In JupyterLab, in both themes; while codes are made, another cell gets its answer, and Stop takes effect."
    with lab(folder) as (address, token), new_page(browser, viewport={'width': 1200, 'height': 1300}) as page:
        run_in_lab(page, address, token, 'lab.ipynb')
        codes, library = Panel(page, '.distill-codes').wait(), Panel(page, '.distill-library')
        fill(codes, 'codes-sound-path', 'bell.wav')
        codes['encode'].click()
        opened(codes, 'bell: 0.8333 s')
        codes['codes-render'].click()
        codes.until('status', 'below the editor')
        for theme in ('Light', 'Dark'):
            themed(page, theme)
            page.wait_for_function("scheme => document.querySelector('.distill-editor').style.colorScheme==scheme", arg=theme.lower())
            codes['encode'].scroll_into_view_if_needed()
            page.screenshot(path=folder/f'codes_lab_{theme.lower()}.png')
            library['delete'].scroll_into_view_if_needed()
            page.screenshot(path=folder/f'library_lab_{theme.lower()}.png')
        (folder/'hold-encode').touch()
        codes.choose('codes-sound', 'a file…')
        codes['encode'].click()
        codes.until('status', 'Encoding')
        answers_in_lab(page, 2, 'while it works')
        assert codes.stop() < at_once()
        page.locator('.distill-encode:enabled').first.wait_for(timeout=60_000)
        answers_in_lab(page, 3, 'at rest')
        (folder/'hold-encode').unlink()
