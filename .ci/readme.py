"""Writes README.md from nbs/index.ipynb, without Quarto: nbdev's own filters, then nbconvert's markdown.

    python .ci/readme.py [DESTINATION]
"""
import os, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.chdir(ROOT); os.environ['IN_TEST'] = '1'    # nbdev reads settings.ini from here; a notebook's export cell stays quiet

import nbformat, yaml
from execnb.nbio import nb2str, read_nb
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.processors import FilterDefaults, add_links

# fenced code and code spans are passed over; the link in front of its text, which may be a code span, comes first
LINK = re.compile(r'^```.*?^```|(!?\[[^\]\n]*\]\(|\b(?:src|href)=")([^)"\s]+)|`[^`\n]+`', re.M|re.S)


class Filters(FilterDefaults):
    "nbdev's filters without links to the documentation, which would depend on what else is installed."
    def base_procs(self): return [o for o in super().base_procs() if o is not add_links]


def from_root(text, nbs):
    "`text` with its relative links, which start in the notebooks' folder, made to start at the root."
    def move(match):
        head, target = match.groups()
        if not target or re.match(r'[a-z][a-z0-9+.-]*:|#|/', target): return match[0]
        path, _, anchor = target.partition('#')
        path = Path(os.path.abspath(nbs/path))
        if not path.exists(): raise SystemExit(f'{nbs.name}/index.ipynb refers to {target}, which is not there')
        return head + path.relative_to(ROOT).as_posix() + ('#' + anchor if anchor else '')
    return LINK.sub(move, text)


def readme():
    "The text of README.md."
    cfg = get_config()
    nb = read_nb(cfg.nbs_path/cfg.readme_nb); Filters()(nb)
    nb = nbformat.reads(nb2str(nb), 4); nb.metadata['language_info'] = {'name': 'python'}
    front = next(c for c in nb.cells if c.cell_type=='raw')
    nb.cells.remove(front)
    meta = next(yaml.safe_load_all(front.source))
    body, resources = MarkdownExporter().from_notebook_node(nb)
    if resources.get('outputs'): raise SystemExit('README.md cannot hold a plot that a cell of index.ipynb draws: '
                                                  'save it in nbs/images and refer to it')
    text = f"# {meta['title']}\n\n> {meta['description']}\n\n{from_root(body, cfg.nbs_path)}"
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


if __name__=='__main__':
    dest = Path(sys.argv[1]) if len(sys.argv)>1 else ROOT/'README.md'
    with dest.open('w', encoding='utf-8', newline='\n') as f: f.write(readme())
