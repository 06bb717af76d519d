"The train panel and the dashboard of `Distill.fit` in a real Chromium: every control, both themes, nothing in the console."
import json, re, shutil, time

import pytest

pytest.importorskip('playwright', reason='playwright is not installed: pip install -e ".[dev]"')

from browser import ANSWER, Panel, answers_in_lab, at_once, lab, new_page, run_in_lab, themed, voila, write_notebook    # noqa: E402

PANEL = '''from distill.train_panel import train_panel
panel = train_panel('sounds', '.')
for name, value in dict(codebook_size=32, d_model=64, n_layers=1, epochs=3).items(): panel.settings.rest[name].value = value
panel'''
FIT = '''from distill import Distill
d = Distill.fit('sounds', epochs=2, device='cpu', vqvae=dict(codebook_size=32, channels=(8, 8, 8, 16), search_steps=1, search_sweeps=0), prior=dict(d_model=64, n_heads=1, n_layers=1))'''
LISTEN = '''hook => { const el = document.querySelector(hook); window.said = [];
    new MutationObserver(() => window.said.push([performance.now(), el.innerText.trim()]))
        .observe(el, {subtree: true, childList: true, characterData: true}) }'''
WAIT = 400    # seconds: a machine may be busy


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A few sounds, a folder beside them, and notebooks."
    from distill.synthesis import write_collection
    folder = tmp_path_factory.mktemp('train')
    write_collection(folder/'sounds', n_files=8, seed=1)
    one = next(p for p in (folder/'sounds').rglob('*.*') if p.is_file())
    shutil.copy(one, folder/'sounds'/f'<i>copy{one.suffix}')
    (folder/'empty').mkdir()
    write_notebook(folder/'train.ipynb', PANEL)
    write_notebook(folder/'lab.ipynb', PANEL.replace('epochs=3', 'epochs=500'), ANSWER.format(job='panel.job'))
    write_notebook(folder/'fit.ipynb', FIT)
    return folder


@pytest.fixture(scope='module')
def opened(browser, folder):
    with voila(folder) as address, new_page(browser, viewport={'width': 800, 'height': 1000}) as page:
        page.goto(f'{address}/voila/render/train.ipynb', timeout=1000*WAIT)
        yield Panel(page).wait(WAIT)


def shot(panel, folder, name): panel.page.screenshot(path=folder/f'{name}.png', full_page=True)


def test_opens_calmly(opened, folder):
    opened.until('train-status', 'Check the sounds')
    assert opened.enabled('train-go') and not opened.enabled('train-stop') and not opened.enabled('train-resume') and not opened.enabled('train-save')
    assert opened['train-epochs'].is_hidden()
    shot(opened, folder, 'train_opened')


def test_browsing(opened, folder):
    "Down into a folder, up again, and its name in the field"
    opened['train-browse'].click()
    opened.until('train-here', str(folder/'sounds'))
    select = opened['train-folders'].locator('select')
    select.select_option(index=0)
    opened.until('train-here', re.compile(re.escape(str(folder)) + '$'))
    options = select.locator('option').all_inner_texts()
    assert options[0].startswith('..') and 'empty' in options and any(o.startswith('sounds') for o in options)
    select.select_option(label='empty')
    opened.until('train-here', str(folder/'empty'))
    opened['train-take'].click()
    opened.page.wait_for_function("document.querySelector('.distill-train-folder input').value.endsWith('empty')")
    assert opened['train-folders'].is_hidden()


def test_errors_are_words(opened, folder):
    opened['train-go'].click()
    opened['train-status'].locator('.distill-error').wait_for(timeout=1000*WAIT)
    assert 'sound' in opened['train-status'].inner_text() and opened.enabled('train-go')
    opened.type('train-folder', '/gone/<b>nowhere</b>')
    opened['train-check'].click()
    assert '<b>nowhere</b>' in opened.until('train-status', 'there is no folder'[1:], WAIT)
    opened.type('train-folder', str(folder/'sounds'))
    opened.type('train-name', 'a/b')
    opened['train-go'].click()
    opened.until('train-status', re.compile('cannot hold'))
    opened.type('train-name', 'mine')
    opened.type('train-target', str(folder/'gone'))
    opened['train-go'].click()
    opened.until('train-status', re.compile('here is no folder'))
    opened.type('train-target', str(folder))


def test_check(opened, folder):
    opened['train-check'].click()
    opened.until('train-status', re.compile('Checked'), WAIT)
    words = opened['train-verdict'].inner_text()
    assert 'ready' in words and 'Time: on this machine' in words
    opened['train-verdict'].locator('summary').click()
    assert '<i>copy' in opened['train-verdict'].inner_text()    # a name is text, never part of the page
    shot(opened, folder, 'train_checked')


def test_more_settings(opened, folder):
    opened.page.locator('.distill-train-more').get_by_text('More settings').click()
    opened['train-epochs'].wait_for(state='visible')
    chosen = opened.page.evaluate("[...document.querySelectorAll('.distill-train-more select')].map(o => o.selectedOptions[0]?.innerText.replaceAll('\u00a0', ' '))")
    assert chosen.count('suits the folder') == 5 and 'the best there is' in chosen and None not in chosen    # every list shows what it stands at
    opened.type('train-seed', 5)
    opened['train-scratch'].locator('input').check()
    for hook, label in (('train-codes', '32'), ('train-levels', '2'), ('train-width', '64'), ('train-layers', '1'), ('train-device', 'cpu'),
                        ('train-rate-1', '0.003'), ('train-batch-1', '8'), ('train-rate-2', '0.001'), ('train-batch-2', '8')):
        opened.choose(hook, label)
    for hook, value in (('train-speed', 1), ('train-mix', 0.1), ('train-eq', 2), ('train-valid', 0.3), ('train-minutes', 4)): opened.type(hook, value)
    assert opened.page.evaluate('document.documentElement.scrollWidth <= window.innerWidth')
    cut = '''() => [...document.querySelectorAll('.distill-panel label, .distill-panel button')]
        .filter(o => o.offsetWidth && o.scrollWidth > o.offsetWidth).map(o => o.innerText)'''
    assert opened.page.evaluate(cut) == []
    shot(opened, folder, 'train_more')
    for hook, value in (('train-speed', 0), ('train-mix', 0), ('train-eq', 0), ('train-epochs', 500)): opened.type(hook, value)


def test_start_stop_resume(opened, folder):
    "The live view draws; Stop takes effect within half a second; Resume goes on where it was"
    page = opened.page
    opened['train-go'].click()
    page.wait_for_selector('.distill-live-charts svg polyline', timeout=1000*WAIT)
    page.wait_for_function("document.querySelector('.distill-picture-after')?.naturalWidth > 50", timeout=1000*WAIT)
    assert not opened.enabled('train-go') and opened.enabled('train-stop')
    seconds = page.evaluate("""async () => { const a = document.querySelector('audio.distill-player-after');
        for (let i = 0; i < 200 && !(a.duration > .1); i++) await new Promise(r => setTimeout(r, 50)); return a.error ? a.error.message : a.duration }""")
    assert 0.2 < seconds < 2.5, seconds
    shot(opened, folder, 'train_live')
    page.evaluate(LISTEN, '.distill-train-status')
    page.evaluate("() => document.querySelector('.distill-train-stop').addEventListener('click', () => window.clicked = performance.now(), true)")
    opened['train-stop'].click()
    opened.until('train-status', re.compile('Stopped after'), WAIT)
    clicked, said = page.evaluate('[window.clicked, window.said]')
    stopped = min(at for at, text in said if text.startswith('Stopped')) - clicked
    (folder/'stop.json').write_text(json.dumps(dict(stopped=stopped, ready=said[-1][0] - clicked)), encoding='utf-8')
    page.wait_for_function("!document.querySelector('.distill-train-resume').disabled")
    assert stopped < at_once(), said
    page.evaluate("document.querySelector('.distill-live-charts').dataset.before = 'true'")
    opened['train-resume'].click()
    page.wait_for_selector('.distill-live-charts:not([data-before]) svg polyline', timeout=1000*WAIT)    # the new view
    opened['train-stop'].click()
    opened.until('train-status', re.compile('Stopped after'), WAIT)


def test_a_whole_one_and_save(opened, folder):
    from distill.model import load_model
    opened.type('train-name', 'whole')
    opened.type('train-epochs', 1)
    opened['train-go'].click()
    opened.until('train-status', re.compile('Done'), WAIT)
    opened['train-save'].click()
    opened.until('train-saved', 'Saved as', WAIT)
    loaded = load_model(folder/'whole.distill', 'cpu')
    assert (loaded.vqvae_config.codebook_size, loaded.vqvae_config.n_quantizers, loaded.prior_config.d_model) == (32, 2, 64)
    assert loaded.training_config['seed'] == 5 and not loaded.training_config['base']
    assert [(loaded.training_config[o]['learning_rate'], loaded.training_config[o]['batch_size']) for o in ('stage_1', 'stage_2')] == [(.003, 8), (.001, 8)]
    shot(opened, folder, 'train_done')


def test_lab_in_both_themes(browser, folder):
    "The panel in JupyterLab, and the dashboard of `Distill.fit`, whose saved notebook holds no sound."
    with lab(folder) as (address, token), new_page(browser, viewport={'width': 1200, 'height': 1100}) as page:
        run_in_lab(page, address, token, 'fit.ipynb')
        page.wait_for_function("document.querySelector('.distill-live-head')?.innerText.includes('Done')", timeout=1000*WAIT)
        page.wait_for_function("document.querySelector('.distill-picture-after')?.naturalWidth > 50")
        for theme in ('Light', 'Dark'):
            themed(page, theme)
            page.screenshot(path=folder/f'fit_lab_{theme.lower()}.png')
        page.evaluate("async () => await window.jupyterapp.commands.execute('docmanager:save')")
        time.sleep(1)
        run_in_lab(page, address, token, 'lab.ipynb')
        panel = Panel(page).wait(WAIT)
        panel.until('train-status', 'Check the sounds')
        page.screenshot(path=folder/'train_lab_dark.png')
        panel.type('train-name', 'meanwhile')
        panel['train-go'].click()
        page.wait_for_selector('.distill-train .distill-live-charts svg polyline', timeout=1000*WAIT)
        answers_in_lab(page, 2, 'while it works')
        assert panel.stop('train-stop', 'train-status') < at_once()
        page.locator('.distill-train-resume:enabled').first.wait_for(timeout=60_000)
        answers_in_lab(page, 3, 'at rest')
    text = (folder/'fit.ipynb').read_text(encoding='utf-8')
    saved = json.loads(text)
    outputs = [o for cell in saved['cells'] for o in cell.get('outputs', [])]
    assert any('data:image/png' in ''.join(o.get('data', {}).get('text/html', '')) for o in outputs)    # what a page without widgets shows
    assert not re.search('audio/|<audio', text) and len(text) < 300_000 and 'widgets' not in saved['metadata']
