"A real Chromium before a real Voila or JupyterLab: what the browser tests of the widgets share."
import os, re, secrets, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
HARMLESS = []    # complaints that mean nothing, as (part of) their text with a reason: there are none so far


def write_notebook(path, *sources):
    "A notebook, mostly of one cell."
    kernel = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
    nbformat.write(new_notebook(cells=[new_code_cell(o) for o in sources], metadata={'kernelspec': kernel}), path)
    return path


def at_once():
    "Milliseconds in which Stop has to take effect: half a second, and up to a second and a half where others share the cores."
    return 500 * min(3.0, max(1.0, os.getloadavg()[0] / os.cpu_count() if hasattr(os, 'getloadavg') else 1.0))


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def serve(command, probe, log, seconds=60):
    "Runs a server until it answers at `probe`, and ends it afterwards, its kernels with it."
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))    # kernels start elsewhere
    with open(log, 'w', encoding='utf-8') as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=dict(os.environ, PYTHONPATH=path))
    try:
        end = time.monotonic() + seconds
        while True:
            try: urllib.request.urlopen(probe, timeout=2).close(); break
            except OSError:
                if process.poll() is None and time.monotonic() < end: time.sleep(.2); continue
                raise RuntimeError(Path(log).read_text(encoding='utf-8', errors='replace')) from None
        yield
    finally:
        process.terminate()
        try: process.wait(20)
        except subprocess.TimeoutExpired: process.kill()


@contextmanager
def voila(folder):
    "Voila over a folder of notebooks: its address."
    address = f'http://127.0.0.1:{(port := free_port())}'
    command = [BIN/'voila', folder, '--no-browser', f'--port={port}', '--Voila.ip=127.0.0.1', '--show_tracebacks=True']
    with serve(command, f'{address}/voila/static/voila.js', folder/'voila.log'): yield address


@contextmanager
def lab(folder):
    "JupyterLab in a folder: its address, and the token that opens it."
    port, token = free_port(), secrets.token_hex(16)
    address = f'http://127.0.0.1:{port}'
    command = [BIN/'jupyter-lab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}',
               '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={folder}',
               '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
               '--LabApp.expose_app_in_browser=True']
    with serve(command, f'{address}/api/status?token={token}', folder/'lab.log'): yield address, token


RUN_ALL = '''async () => { const w = window.jupyterapp.shell.currentWidget, s = w.sessionContext;
  await w.context.ready; await s.ready; await s.session.kernel.info; await s.session.kernel.requestKernelInfo();
  await window.jupyterapp.commands.execute('notebook:run-all-cells'); }'''


def run_in_lab(page, address, token, name):
    "Opens a notebook in JupyterLab and runs its cells by Lab's own command: keys would get lost now and then."
    page.goto(f'{address}/doc/tree/{name}?token={token}&reset')
    page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=60_000)
    idle = "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status==='idle'"
    page.wait_for_function(idle, timeout=60_000)
    page.evaluate(RUN_ALL)


RUN_CELL = '''async n => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = n;
  await window.jupyterapp.commands.execute('notebook:run-cell'); }'''
# a second cell of a notebook: it counts how often it answered
ANSWER = "answers = globals().get('answers', 0) + 1; print('answer', answers, 'while it works' if {job}.running else 'at rest')"


def answers_in_lab(page, n, how):
    "Runs the second cell of a notebook in JupyterLab, while a panel works or is at rest, and waits for its n-th answer."
    page.evaluate(RUN_CELL, 1)
    page.locator('.jp-Cell').nth(1).locator('.jp-OutputArea-output', has_text=f'answer {n} {how}').wait_for(timeout=60_000)


THEME = """async name => { await window.jupyterapp.commands.execute('apputils:change-theme', {theme: `JupyterLab ${name}`}) }"""

def themed(page, name):
    "JupyterLab in its light or dark theme: 'Light', 'Dark'."
    page.evaluate(THEME, name)
    page.wait_for_function("light => document.body.dataset.jpThemeLight==light", arg=str(name=='Light').lower())
    page.wait_for_timeout(300)    # it fades


@contextmanager
def new_page(browser, **settings):
    "A page, and at the end the assertion that nothing was complained about in its console."
    page, complaints = browser.new_page(**settings), []
    elsewhere = re.compile(r'https?://(?!127\.0\.0\.1)')
    page.route(elsewhere, lambda route: route.fulfill(status=200, body=''))    # Voila asks a CDN for its icons, too
    page.on('pageerror', lambda e: complaints.append(str(e)))
    page.on('console', lambda m: m.type=='error' and complaints.append(f'{m.text} {m.location.get("url", "")}'))
    yield page
    page.close()
    complaints = [o for o in complaints if not any(h in o for h in HARMLESS)]
    if complaints: raise AssertionError('in the console of the browser:\n' + '\n'.join(complaints))


STOPPING = '''([button, status]) => { const el = document.querySelector(status); window.stopped = window.clicked = 0;
    document.querySelector(button).addEventListener('click', () => window.clicked = performance.now(), {capture: true, once: true});
    new MutationObserver((_, o) => { if (window.clicked && el.innerText.trim().startsWith('Stopped')) { window.stopped = performance.now(); o.disconnect(); } })
        .observe(el, {subtree: true, childList: true, characterData: true}) }'''


class Panel:
    "A panel in a page, through its `distill-…` hooks."
    def __init__(self, page, within=''): self.page, self.within = page, within

    def at(self, hook):
        "What finds `hook`; where there are cards, in the newest."
        return f'{self.within} .distill-{hook}:not(.distill-card ~ .distill-card *)'

    def __getitem__(self, hook): return self.page.locator(self.at(hook)).first

    def wait(self, seconds=60):
        "Waits for the panel, or for an error in its place."
        self.page.locator(f'{self.within}.distill-panel, .jp-RenderedText').first.wait_for(timeout=1000*seconds)
        assert self.page.locator(f'{self.within}.distill-panel').count(), self.page.inner_text('body')[-2000:]
        return self

    def type(self, hook, text, selector='input'):
        "Types into a field, or into the number beside a slider."
        self[hook].locator(selector).first.click()
        self.page.keyboard.press('Control+A')
        self.page.keyboard.type(str(text))
        self.page.keyboard.press('Enter')

    def slide(self, hook, text): self.type(hook, text, '.widget-readout')

    def shown(self, hook): return self[hook].locator('.widget-readout').inner_text()

    def choose(self, hook, label): self[hook].locator('select').select_option(label=label)

    def enabled(self, hook): return self[hook].is_enabled()

    def until(self, hook, text, seconds=60):
        "Waits until the words in `hook` contain `text`; all of them."
        found = self.page.locator(self.at(hook), has_text=text).first
        found.wait_for(timeout=1000*seconds)
        return found.inner_text()

    def upload(self, hook, path):
        "Gives a file to an upload button, as somebody does who clicks it."
        with self.page.expect_file_chooser() as chooser: self[hook].click()
        chooser.value.set_files(path)

    def stop(self, hook='stop', status='status'):
        "Presses Stop, and waits until it says that it has stopped: how many milliseconds after the click, in the page."
        self.page.evaluate(STOPPING, [self.at(hook), self.at(status)])
        self[hook].click()
        self.page.wait_for_function('window.stopped', timeout=60_000)
        return self.page.evaluate('window.stopped - window.clicked')

    def audio_seconds(self):
        "How long the browser takes the sound in the player to be; waits until it knows."
        return self['player'].evaluate('''async el => { const a = el.tagName=='AUDIO' ? el : el.querySelector('audio');
            for (let i = 0; i < 100 && !(a.duration > .1); i++) await new Promise(r => setTimeout(r, 50));
            return a.error ? a.error.message : a.duration }''')

    def picture_width(self):
        "Pixels of the spectrogram as decoded by the browser; waits until it is."
        return self['spectrogram'].evaluate('''async el => { const i = el.tagName=='IMG' ? el : el.querySelector('img');
            for (let n = 0; n < 100 && !i.naturalWidth; n++) await new Promise(r => setTimeout(r, 50));
            return i.naturalWidth }''')
