"""Checks a site that was rendered: every relative link and picture leads somewhere, every page can be found by the search.

    python .ci/site.py [FOLDER]        # _docs by default; exits with 1 and a list when something is wrong
"""
import json, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    "The links of a page and the names that links to it can use."
    def __init__(self, text):
        super().__init__()
        self.links, self.names = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.names |= {attrs[o] for o in ('id', 'name') if attrs.get(o)}
        self.links += [attrs[o] for o in ('href', 'src') if attrs.get(o)]


def wrong(folder):
    "What is wrong with the site in `folder`, in lines."
    pages = {p: Page(p.read_text(encoding='utf-8')) for p in sorted(folder.rglob('*.html')) if 'site_libs' not in p.parts}
    found = [] if folder/'index.html' in pages else ['there is no index.html']
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith(('/', 'javascript:')): continue
            there = (path.parent/unquote(parts.path)).resolve() if parts.path else path.resolve()
            if there.is_dir(): there /= 'index.html'
            name = path.relative_to(folder).as_posix()
            if not there.exists(): found.append(f'{name}: {link} leads nowhere')
            elif parts.fragment and there.suffix=='.html':
                target = next((page for p, page in pages.items() if p.resolve()==there), None)
                if target and unquote(parts.fragment) not in target.names: found.append(f'{name}: {link} names no place on its page')
    try: indexed = {o['href'].partition('#')[0] for o in json.loads((folder/'search.json').read_text(encoding='utf-8'))}
    except (OSError, ValueError, KeyError) as e: return [*found, f'the search has no index: {e}']
    return found + [f'{p.relative_to(folder).as_posix()} cannot be found by the search' for p in pages
                    if p.relative_to(folder).as_posix() not in indexed and p.name!='404.html']


if __name__=='__main__':
    lines = wrong(Path(sys.argv[1] if len(sys.argv) > 1 else '_docs'))
    print(*lines or ['every link leads somewhere, every page can be found'], sep='\n')
    sys.exit(bool(lines))
