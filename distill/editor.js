// The editor's side in the browser: two grids of codes on canvases, their selections, the transport and the buttons.
// The kernel owns the sound. It sends everything once ("all") and then only what changed ("change"); see 13a_editor.ipynb.

const GOLDEN = 0.6180339887;                       // neighbouring codes get hues far apart
const hook = name => `distill-${name.replaceAll('_', '-')}`;
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// JupyterLab's own shortcuts keep away from an element with an attribute, which the focused element itself has to have
const FOCUSED = new Set(['button', 'input', 'audio', 'summary']);

function make(tag, attributes = {}, ...children) {
  const el = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'on') for (const [event, handler] of Object.entries(value)) el.addEventListener(event, handler);
    else if (value === true) el.setAttribute(key, '');
    else if (value !== false && value != null) el.setAttribute(key, value);
  }
  if ('tabindex' in attributes || FOCUSED.has(tag)) el.setAttribute('data-lm-suppress-shortcuts', 'true');
  el.append(...children);
  return el;
}

const button = (name, label, title, click, more = {}) =>
  make('button', { type: 'button', class: `de-button ${hook(name)}`, title, on: { click }, ...more }, label);

function rgb(hue, saturation, light) {             // 0…1 each -> three bytes
  const a = saturation * Math.min(light, 1 - light), k = n => (n + hue * 12) % 12;
  return [0, 8, 4].map(n => 255 * (light - a * Math.max(-1, Math.min(k(n) - 3, 9 - k(n), 1))));
}
const colour = code => rgb((code * GOLDEN) % 1, 0.62, 0.42 + 0.2 * ((code * 0.381966) % 1));

function splice(array, start, removed, added) {    // a typed array with a part exchanged; in place where the length stays
  if (removed === added.length) { array.set(added, start); return array; }
  const out = new array.constructor(array.length - removed + added.length);
  out.set(array.subarray(0, start));
  out.set(added, start);
  out.set(array.subarray(start + removed), start + added.length);
  return out;
}

// --- sound
function wavBlob(samples, rate, gain) {            // Float32Array -> 16 bit wav
  const data = new DataView(new ArrayBuffer(44 + 2 * samples.length)), text = (at, s) => [...s].forEach((c, i) => data.setUint8(at + i, c.charCodeAt(0)));
  text(0, 'RIFF'); data.setUint32(4, 36 + 2 * samples.length, true); text(8, 'WAVEfmt '); data.setUint32(16, 16, true);
  data.setUint16(20, 1, true); data.setUint16(22, 1, true); data.setUint32(24, rate, true); data.setUint32(28, 2 * rate, true);
  data.setUint16(32, 2, true); data.setUint16(34, 16, true); text(36, 'data'); data.setUint32(40, 2 * samples.length, true);
  const pcm = new Int16Array(data.buffer, 44);
  for (let i = 0; i < samples.length; i++) pcm[i] = 32767 * clamp(gain * samples[i], -1, 1);
  return new Blob([data.buffer], { type: 'audio/wav' });
}

function gainOf(samples, most = 0.95) {            // turned down as a whole where it would clip
  let peak = 0;
  for (let i = 0; i < samples.length; i++) { const x = Math.abs(samples[i]); if (x > peak) peak = x; }
  return Math.min(1, most / Math.max(peak, 1e-9));
}

const fade = gain => { const now = gain.context.currentTime; gain.gain.cancelScheduledValues(now); gain.gain.setValueAtTime(1, now); gain.gain.linearRampToValueAtTime(0, now + 0.004); };

class Transport {                                  // plays samples as they are: an edit is heard at once, nothing is packed into a file
  constructor(rate, changed, sounds) {             // sounds: name -> Float32Array
    Object.assign(this, { rate, changed, sounds, now: null, gains: new WeakMap(), volume: 1 });
    this.others = e => { if (e.detail !== this && this.now) this.stop(); };   // another player has begun
    for (const kind of ['play', 'distill-play']) document.addEventListener(kind, this.others, true);
  }
  wake() {                                         // sound needs a click or a key in most browsers, and gets here with one
    this.context ??= new AudioContext();
    if (this.context.state === 'suspended') this.context.resume();
    return this.context;
  }
  gain(samples) { if (!this.gains.has(samples)) this.gains.set(samples, gainOf(samples)); return this.gains.get(samples); }
  play(now) {                                      // { what, sound, view, from, to, loop, at }: samples from … to of a sound, beginning at `at`
    this.halt();
    const samples = this.sounds[now.sound], context = this.wake(), low = clamp(now.from, 0, samples.length), high = Math.min(now.to, samples.length);
    if (high <= low) return this.stop();
    for (const audio of document.querySelectorAll('audio')) audio.pause();
    document.dispatchEvent(new CustomEvent('distill-play', { detail: this }));
    const part = samples.slice(low, high), rim = Math.min(Math.round(0.004 * this.rate), part.length >> 1);
    for (let i = 0; i < rim; i++) { part[i] *= i / rim; part[part.length - 1 - i] *= i / rim; }
    const buffer = context.createBuffer(1, part.length, this.rate), source = context.createBufferSource(), fader = context.createGain(), level = context.createGain();
    buffer.copyToChannel(part, 0);
    Object.assign(source, { buffer, loop: now.loop }); level.gain.value = this.volume * this.gain(samples);
    source.connect(fader).connect(level).connect(context.destination);
    source.onended = () => { if (this.now?.source === source) { this.now = null; this.changed(); } };
    const begin = context.currentTime + 0.005, at = clamp(now.at ?? low, low, high - 1);
    source.start(begin, (at - low) / this.rate);
    this.now = { ...now, source, fader, level, from: low, to: high, began: begin - (at - low) / this.rate, started: begin, context };
    this.changed();
  }
  halt() {                                         // with 4 ms of fading
    if (!this.now) return;
    const { source, fader, context } = this.now;
    source.onended = null; fade(fader); source.stop(context.currentTime + 0.005); this.now = null;
  }
  stop() { this.halt(); this.changed(); }
  follow(sound) {                                  // the sound has changed: what plays goes on with the new one, where it is
    if (this.now?.sound !== sound) return;
    const whole = this.now.what === 'play';
    this.play({ ...this.now, to: whole ? this.sounds[sound].length : this.now.to, at: Math.round(this.time * this.rate) });
  }
  setVolume(volume) { this.volume = volume; if (this.now) this.now.level.gain.value = volume * this.gain(this.sounds[this.now.sound]); }
  get time() {                                     // seconds from the beginning of the sound
    const { from, to, began, started, context } = this.now, length = (to - from) / this.rate;
    return from / this.rate + Math.min(length, (Math.max(started, context.currentTime) - began) % (this.now.loop ? length : Infinity));
  }
  close() {
    this.stop(); this.context?.close();
    for (const kind of ['play', 'distill-play']) document.removeEventListener(kind, this.others, true);
  }
}

// --- a grid on a canvas
const RULER = 18, BAND = 34;                       // pixels: the seconds above; one band

class GridView {
  constructor(name, label, about, on) {            // on: select(), hover(cell), listen()
    Object.assign(this, { name, label, about, on, columns: 0, cell: 0, overlay: 0.6, levels: [], cursor: [0, 0], anchor: [0, 0], even: false });
    this.height = RULER + BAND * about.bands;
    this.picture = make('canvas'); this.marks = make('canvas', { class: 'de-marks' }); this.head = make('div', { class: 'de-playhead', hidden: true });
    this.spectrum = make('canvas'); this.codesPicture = make('canvas'); this.changes = null;
    this.active = [0, 1].map(i => make('div', { role: 'gridcell', id: `de-${name}-${Math.random().toString(36).slice(2)}-${i}` }));
    this.row = make('div', { role: 'row', class: 'de-hidden' });
    this.space = make('div', { class: 'de-space', style: `height:${this.height}px` }, this.row, make('div', { class: 'de-layers' }, this.picture, this.marks, this.head));
    this.scroll = make('div', { class: `de-scroll ${hook(`grid-${name}`)}`, tabindex: 0, role: 'grid', 'aria-label': label, 'aria-rowcount': about.bands,
      'aria-multiselectable': 'true', style: `height:${this.height + 12}px` }, this.space);
    const names = about.band_names.map((text, b) => button('band', text, `Select the band ${text}`, e => this.selectRows(b, e), { tabindex: -1 })).reverse();
    this.el = make('div', { class: 'de-view' }, make('div', { class: 'de-bands', 'aria-hidden': 'true' }, ...names), this.scroll);
    this.resize = new ResizeObserver(() => this.fit()); this.resize.observe(this.scroll);
    this.scroll.addEventListener('scroll', () => this.draw());
    this.scroll.addEventListener('wheel', e => { if (e.ctrlKey) { e.preventDefault(); this.zoom(Math.exp(-e.deltaY / 300), e.offsetX); } }, { passive: false });
    this.scroll.addEventListener('focus', () => this.say());
    this.listenToPointer();
  }
  close() { this.resize.disconnect(); cancelAnimationFrame(this.frame); cancelAnimationFrame(this.markFrame); }

  // what it shows
  clear() { Object.assign(this, { codes: null, mel: null, mask: null, columns: 0, cursor: [0, 0], anchor: [0, 0] }); this.mark(); }
  take(codes, mel, columns) {
    const same = columns === this.columns;
    Object.assign(this, { codes, mel, columns });
    if (!same) {
      const kept = this.mask; this.mask = new Uint8Array(columns * this.about.bands);
      if (kept) this.mask.set(kept.subarray(0, this.mask.length));
      this.cursor[0] = clamp(this.cursor[0], 0, columns - 1); this.anchor[0] = clamp(this.anchor[0], 0, columns - 1);
      this.scroll.setAttribute('aria-colcount', columns);
      this.cell = 0; this.fit();
    }
  }
  paint(from = 0, to = Infinity) {                 // the spectrogram of these frames, and all codes
    const { n_mels } = this.about, frames = this.mel.length / n_mels, dark = this.dark = isDark(this.el);
    to = Math.min(to, frames);
    if (this.spectrum.width !== frames) { Object.assign(this.spectrum, { width: frames, height: n_mels }); [from, to] = [0, frames]; }
    if (to > from) {
      const image = new ImageData(to - from, n_mels), pixels = new Uint32Array(image.data.buffer);
      for (let f = from; f < to; f++) for (let m = 0; m < n_mels; m++) {
        const v = this.mel[f * n_mels + m], grey = dark ? v : 255 - v;
        pixels[(n_mels - 1 - m) * (to - from) + f - from] = 0xff000000 | grey << 16 | grey << 8 | grey;
      }
      this.spectrum.getContext('2d').putImageData(image, from, 0);
    }
    this.paintCodes(); this.draw();
  }
  paintCodes() {
    const { bands, levels } = this.about, shown = this.levels, n = shown.length;
    Object.assign(this.codesPicture, { width: this.columns, height: bands * n });
    const image = new ImageData(this.columns, bands * n), pixels = new Uint32Array(image.data.buffer);
    for (let c = 0; c < this.columns; c++) for (let b = 0; b < bands; b++) for (let i = 0; i < n; i++)
      pixels[((bands - 1 - b) * n + i) * this.columns + c] = this.palette[this.codes[(c * bands + b) * levels + shown[i]]];
    this.codesPicture.getContext('2d').putImageData(image, 0, 0);
  }

  // where it shows it
  get width() { return this.scroll.clientWidth; }
  fit() {
    if (!this.columns || !this.width) return;
    const least = Math.min(this.width / this.columns, 14), whole = this.width / this.columns;
    if (!this.cell || this.fitted) { this.cell = Math.max(least, whole, 7); this.fitted = true; }
    this.space.style.width = `${Math.ceil(this.cell * this.columns)}px`;
    const ratio = this.ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.picture, this.marks]) {
      Object.assign(canvas, { width: Math.round(this.width * ratio), height: Math.round(this.height * ratio) });
      Object.assign(canvas.style, { width: `${this.width}px`, height: `${this.height}px` });
    }
    if (this.mel) this.draw();
  }
  zoom(factor, x = this.width / 2) {
    const column = (this.scroll.scrollLeft + x) / this.cell;
    this.cell = clamp(this.cell * factor, Math.min(7, this.width / this.columns), 80); this.fitted = false;
    this.fit(); this.scroll.scrollLeft = column * this.cell - x; this.draw();
  }
  zoomToFit() { this.cell = 0; this.fit(); }
  reveal(column) {
    const x = column * this.cell, left = this.scroll.scrollLeft;
    if (x < left) this.scroll.scrollLeft = x - this.cell; else if (x + this.cell > left + this.width) this.scroll.scrollLeft = x + 2 * this.cell - this.width;
  }

  // drawing: the picture when sound or view change, the marks when selection or cursor do
  draw() { this.frame ??= requestAnimationFrame(() => { this.frame = null; this.drawPicture(); this.drawMarks(); }); }
  mark() { this.scroll.dataset.selected = this.count(); this.markFrame ??= requestAnimationFrame(() => { this.markFrame = null; this.drawMarks(); }); }
  drawPicture() {
    if (!this.mel || !this.width) return;
    if (this.dark !== isDark(this.el)) return this.paint();
    const g = this.picture.getContext('2d'), w = this.width, first = this.scroll.scrollLeft / this.cell, count = w / this.cell, h = BAND * this.about.bands;
    const style = getComputedStyle(this.el), ink = style.getPropertyValue('--de-ink'), frames = this.about.frames_per_column;
    g.setTransform(this.ratio, 0, 0, this.ratio, 0, 0); g.clearRect(0, 0, w, this.height);
    g.imageSmoothingEnabled = true; g.drawImage(this.spectrum, first * frames, 0, count * frames, this.about.n_mels, 0, RULER, w, h);
    g.imageSmoothingEnabled = false; g.globalAlpha = this.overlay;
    g.drawImage(this.codesPicture, first, 0, count, this.codesPicture.height, 0, RULER, w, h);
    g.globalAlpha = 1; g.fillStyle = g.strokeStyle = ink; g.font = '11px sans-serif'; g.textBaseline = 'middle';
    const seconds = this.cell / this.about.column_s, step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30].find(s => s * seconds >= 56) ?? 60;
    for (let s = Math.ceil(first * this.about.column_s / step) * step; s <= (first + count) * this.about.column_s; s += step) {
      const x = s * seconds - first * this.cell;
      g.fillRect(x, RULER - 5, 1, 5); g.fillText(`${+s.toFixed(1)} s`, x + 3, RULER / 2);
    }
    g.globalAlpha = this.cell >= 12 ? 0.22 : 0.1; g.beginPath();
    for (let b = 0; b <= this.about.bands; b++) { g.moveTo(0, RULER + b * BAND + .5); g.lineTo(w, RULER + b * BAND + .5); }
    if (this.cell >= 5) for (let c = Math.ceil(first); c <= first + count; c++) { const x = Math.round((c - first) * this.cell) + .5; g.moveTo(x, RULER); g.lineTo(x, RULER + h); }
    g.stroke(); g.globalAlpha = 1;
    if (this.changes) this.drawChanges(g, first, count, ink);
  }
  drawChanges(g, first, count, ink) {              // a corner on every cell that is not as it was opened
    g.fillStyle = ink; g.beginPath();
    for (let c = Math.max(0, Math.floor(first)); c < Math.min(this.columns, first + count); c++) for (let b = 0; b < this.about.bands; b++) {
      if (!this.changes[c * this.about.bands + b]) continue;
      const [x, y, size] = [(c - first) * this.cell, this.top(b), Math.min(9, this.cell)];
      g.moveTo(x, y); g.lineTo(x + size, y); g.lineTo(x, y + size);
    }
    g.fill();
  }
  top(b) { return RULER + (this.about.bands - 1 - b) * BAND; }
  drawMarks() {
    if (!this.mask || !this.width) return;
    const g = this.marks.getContext('2d'), first = this.scroll.scrollLeft / this.cell, count = this.width / this.cell, bands = this.about.bands;
    const style = getComputedStyle(this.el), [mark, ink, paper] = ['mark', 'ink', 'paper'].map(o => style.getPropertyValue(`--de-${o}`));
    const x = c => (c - first) * this.cell, on = (c, b) =>
      c >= 0 && c < this.columns && b >= 0 && b < bands && this.mask[c * bands + b];
    g.setTransform(this.ratio, 0, 0, this.ratio, 0, 0); g.clearRect(0, 0, this.width, this.height);
    g.fillStyle = g.strokeStyle = mark; g.globalAlpha = 0.28; g.beginPath();
    const low = Math.max(0, Math.floor(first)), high = Math.min(this.columns, Math.ceil(first + count)), edges = new Path2D();
    for (let c = low; c < high; c++) for (let b = 0; b < bands; b++) {
      if (!on(c, b)) continue;
      const [l, r, t, d] = [x(c), x(c + 1), this.top(b), this.top(b) + BAND];
      g.rect(l, t, r - l, d - t);
      if (!on(c - 1, b)) { edges.moveTo(l, t); edges.lineTo(l, d); }
      if (!on(c + 1, b)) { edges.moveTo(r, t); edges.lineTo(r, d); }
      if (!on(c, b + 1)) { edges.moveTo(l, t); edges.lineTo(r, t); }
      if (!on(c, b - 1)) { edges.moveTo(l, d); edges.lineTo(r, d); }
    }
    g.fill(); g.globalAlpha = 1; g.lineWidth = 4; g.strokeStyle = paper; g.stroke(edges);
    g.lineWidth = 2; g.strokeStyle = ink; g.stroke(edges);
    const [c, b] = this.cursor, box = [x(c) + 1.5, this.top(b) + 1.5, this.cell - 3, BAND - 3];
    g.strokeStyle = paper; g.strokeRect(...box); g.setLineDash([3, 3]); g.strokeStyle = ink; g.strokeRect(...box); g.setLineDash([]);
    this.moveHead();
  }
  moveHead() {                                     // moved sixty times a second while it plays: nothing may be drawn for that
    const x = (this.playhead ?? -1) * this.cell / this.about.column_s - this.scroll.scrollLeft;
    this.head.hidden = this.playhead == null || x < 0 || x > this.width;
    this.head.style.transform = `translateX(${x - 1}px)`;
  }

  // selection
  at(e) {
    const box = this.picture.getBoundingClientRect(), x = e.clientX - box.left, y = e.clientY - box.top;
    return { column: clamp(Math.floor((x + this.scroll.scrollLeft) / this.cell), 0, this.columns - 1),
      band: clamp(this.about.bands - 1 - Math.floor((y - RULER) / BAND), 0, this.about.bands - 1), ruler: y < RULER, x };
  }
  rectangle([c0, b0], [c1, b1], value, base) {     // cells between two corners set to value, the others as in base
    const mask = base ? base.slice() : new Uint8Array(this.mask.length), bands = this.about.bands;
    for (let c = Math.min(c0, c1); c <= Math.max(c0, c1); c++) for (let b = Math.min(b0, b1); b <= Math.max(b0, b1); b++) mask[c * bands + b] = value;
    return mask;
  }
  selectRows(b, e) {
    const base = e.shiftKey || e.altKey ? this.mask : null;
    this.choose(this.rectangle([0, b], [this.columns - 1, b], e.altKey ? 0 : 1, base));
    this.cursor[1] = this.anchor[1] = b;
  }
  choose(mask, done = true) { this.mask = mask; this.mark(); if (done) this.on.select(this); }
  count() { return this.mask ? this.mask.reduce((a, b) => a + b, 0) : 0; }
  listenToPointer() {
    const layer = this.scroll;
    layer.addEventListener('pointerdown', e => {
      if (e.button !== 0 || !this.mask || e.offsetY > this.height && e.target === layer) return;
      e.preventDefault(); window.getSelection()?.removeAllRanges(); layer.focus({ preventScroll: true }); layer.setPointerCapture(e.pointerId);
      const from = this.at(e), top = this.about.bands - 1, value = e.altKey ? 0 : 1, base = e.shiftKey || e.altKey ? this.mask : null;
      const drag = e => {
        const to = this.at(e), rows = from.ruler ? [0, top] : [from.band, to.band];
        if (to.x < 0) layer.scrollLeft -= this.cell; else if (to.x > this.width) layer.scrollLeft += this.cell;
        this.anchor = [from.column, rows[0]]; this.cursor = [to.column, rows[1]];
        this.choose(this.rectangle(this.anchor, this.cursor, value, base), false);
      };
      const end = () => { layer.removeEventListener('pointermove', drag); this.on.select(this); this.say(); };
      drag(e); layer.addEventListener('pointermove', drag);
      layer.addEventListener('lostpointercapture', end, { once: true });
    });
    layer.addEventListener('dblclick', () => this.on.listen(this));
  }
  move(dc, db, extend) {                           // with the arrows
    const [c, b] = this.cursor;
    this.cursor = [clamp(c + dc, 0, this.columns - 1), clamp(b + db, 0, this.about.bands - 1)];
    if (!extend) this.anchor = this.cursor;
    this.choose(this.rectangle(this.anchor, this.cursor, 1)); this.reveal(this.cursor[0]); this.say();
  }
  toggle() { const mask = this.mask.slice(), i = this.cursor[0] * this.about.bands + this.cursor[1]; mask[i] = 1 - mask[i]; this.choose(mask); this.say(); }
  all() { this.choose(new Uint8Array(this.mask.length).fill(1)); this.say(); }
  none() { this.choose(new Uint8Array(this.mask.length)); this.say(); }
  boxes() {                                        // the selection as few rectangles: [first column, end, first band, end]
    const bands = this.about.bands, done = [];
    let open = new Map();
    for (let c = 0; c <= this.columns; c++) {
      const runs = new Map();
      for (let b = 0; c < this.columns && b < bands; b++) {
        if (!this.mask[c * bands + b]) continue;
        const first = b; while (b < bands && this.mask[c * bands + b]) b++;
        runs.set(`${first}-${b}`, open.get(`${first}-${b}`) ?? [c, c, first, b]);
      }
      for (const [key, box] of open) if (!runs.has(key)) { box[1] = c; done.push(box); }
      open = runs;
    }
    return done.sort((a, b) => a[0] - b[0] || a[2] - b[2]);
  }
  setBoxes(boxes) {
    this.mask = new Uint8Array(this.columns * this.about.bands);
    for (const [c0, c1, b0, b1] of boxes) this.mask = this.rectangle([c0, b0], [Math.min(c1, this.columns) - 1, b1 - 1], 1, this.mask);
    if (boxes.length) { this.cursor = [Math.min(boxes[0][0], this.columns - 1), boxes[0][2]]; this.anchor = [...this.cursor]; }
    this.mark();
  }
  describe() {
    const [c, b] = this.cursor, { bands, levels, column_s, band_names } = this.about, at = (c * bands + b) * levels;
    const codes = this.levels.map(l => this.codes[at + l]).join(' ');
    return `column ${c + 1} of ${this.columns}, ${(c * column_s).toFixed(2)} s, ${band_names[b]}, code ${codes}${this.mask[c * bands + b] ? ', selected' : ''}`;
  }
  say() {                                          // the cell under the cursor, for a screen reader and in the line below
    if (!this.codes) return;
    const [c, b] = this.cursor, cell = this.active[+(this.even = !this.even)], text = this.describe();
    cell.textContent = text; cell.setAttribute('aria-colindex', c + 1); cell.setAttribute('aria-selected', !!this.mask[c * this.about.bands + b]);
    this.row.setAttribute('aria-rowindex', this.about.bands - b); this.row.replaceChildren(cell);
    this.scroll.setAttribute('aria-activedescendant', cell.id); this.on.hover(this, text);
  }
}

function isDark(el) {                              // whether the page around is, whatever the theme is called
  const [r, g, b, a = 1] = (getComputedStyle(el).color.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
  return a > 0 && 0.3 * r + 0.6 * g + 0.1 * b > 128;
}

// --- everything together
const HELD = /^(Shift\+)?(Arrow(Left|Right|Up|Down)|Page(Up|Down)|Home|End|[-+=])$|^Ctrl\+(Shift\+)?[ZY]$/;    // keys that go on while they are held down
const GROUPS = { play: 'Listen', history: 'History', paste: 'Between sounds', edit: 'Change', model: 'With the model' };

class Editor {
  constructor(model, root) {
    Object.assign(this, { model, root, at: null, sounds: {}, views: {}, loop: false, stop: [] });
    this.about = model.get('about');
    this.palette = Uint32Array.from({ length: this.about.codes }, (_, code) => { const [r, g, b] = colour(code); return 0xff000000 | b << 16 | g << 8 | r; });
    this.transport = new Transport(this.about.rate, () => this.playing(), this.sounds);
    this.levels = [...Array(this.about.levels).keys()];
    this.build();
    this.on('msg:custom', (message, buffers) => this.receive(message, buffers));
    for (const [event, handler] of Object.entries({ lines: this.showLines, status: this.showStatus, error: this.showStatus, running: this.showRunning,
      progress: this.showRunning, state: this.enable, selection: this.followSelection })) this.on(`change:${event}`, () => handler.call(this));
    this.showLines(); this.showStatus(); this.showRunning(); requestAnimationFrame(() => this.redraw());
    model.send({ do: 'hello' });
  }
  on(event, handler) { this.model.on(event, handler); this.stop.push(() => this.model.off(event, handler)); }
  close() { this.stop.forEach(off => off()); this.transport.close(); Object.values(this.views).forEach(v => v.close()); cancelAnimationFrame(this.tick); this.themes.disconnect(); }

  // what there is to see
  build() {
    const { root, about } = this, operations = this.model.get('operations');
    root.classList.add('distill-editor'); root.setAttribute('role', 'group'); root.setAttribute('aria-label', `Editor of ${about.title}`);
    this.buttons = {}; this.settings = {};
    const groups = Object.fromEntries(Object.keys(GROUPS).map(g => [g, []]));
    for (const o of operations) {
      this.buttons[o.name] = button(o.name, o.label, o.key ? `${o.tooltip} (${o.key})` : o.tooltip, () => this.act(o.name));
      if (o.key) this.buttons[o.name].setAttribute('aria-keyshortcuts', o.key.replaceAll('Ctrl', 'Control'));
      const fields = o.settings.map(s => this.settings[`${o.name}.${s.name}`] = make('input', { type: 'number', class: `de-number ${hook(`${o.name}-${s.name}`)}`,
        min: s.low, max: s.high, step: s.step, value: s.value, title: s.tooltip, 'aria-label': `${o.label}: ${s.tooltip}` }));
      groups[o.group].push(fields.length ? make('span', { class: 'de-with' }, this.buttons[o.name], ...fields) : this.buttons[o.name]);
    }
    const bars = Object.entries(GROUPS).filter(([g]) => groups[g].length).map(([g, label]) =>
      make('div', { role: 'toolbar', class: 'de-bar', 'aria-label': label }, make('span', { class: 'de-group', 'aria-hidden': 'true' }, label), ...groups[g]));
    bars[0].append(this.checkbox('loop', 'Loop', 'Again and again', on => { this.loop = on; }),
      this.checkbox('listen', 'Play on select', 'Play what is selected as soon as it is', on => { this.auto = on; }));
    const saver = button('download', 'Save', 'Save the sound as a wav file', () => this.download());
    const halt = this.halt = button('stop', 'Stop', 'Give up what is being worked on', () => this.model.send({ do: 'stop' }));
    this.progress = make('progress', { class: 'distill-progress', max: 1, value: 0, 'aria-label': 'Progress' });
    this.status = make('div', { class: 'distill-status', role: 'status', 'aria-live': 'polite' });
    this.cellLine = make('div', { class: 'distill-cell' });
    this.lines = make('pre', { class: 'distill-lines', tabindex: 0, 'aria-label': 'The same in Python' });
    const copy = button('copy-lines', 'Copy', 'Copy these lines', () => this.copyLines());
    const own = this.view('own', about.title), second = this.view('other', 'The second sound');
    const source = make('input', { type: 'text', class: 'de-path distill-path', placeholder: 'a sound file to take from', 'aria-label': 'File of the second sound' });
    const open = () => source.value.trim() && this.send('open', { path: source.value.trim() });
    source.addEventListener('keydown', e => { if (e.key === 'Enter' && !e.repeat) open(); });
    this.second = second.el; second.el.hidden = true;
    root.append(this.viewBar(), own.el, this.cellLine, ...bars,
      this.player(saver),
      make('div', { class: 'de-bar de-work' }, this.status, this.progress, halt), make('div', { class: 'de-bar' }, make('span', { class: 'de-group' }, 'Second sound'), source,
        button('open', 'Open', 'Open a second sound to take from', open), this.buttonPlayOther = button('play-other', 'Play it', 'Play the second sound, or what is selected of it', () => this.play('other'))),
      second.el, make('details', { class: 'de-script', open: true }, make('summary', {}, 'The same in Python'), copy, this.lines));
    root.addEventListener('keydown', e => this.key(e));
    this.themes = new MutationObserver(() => this.redraw()); this.themes.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-light', 'data-jp-theme-name', 'class'] });
  }
  player(saver) {                                  // where it is, and where Play begins
    const range = (name, label, title, more, input) => make('input', { type: 'range', class: `distill-${name}`, 'aria-label': label, title, on: { input }, ...more });
    this.place = range('place', 'Place in the sound', 'Where Play begins', { min: 0, max: 1, step: 0.01, value: 0 }, () => this.seek());
    this.clock = make('span', { class: 'distill-clock' });
    const volume = range('volume', 'Volume', 'Volume', { min: 0, max: 1, step: 0.05, value: 1 }, () => this.transport.setVolume(+volume.value));
    return this.bar = make('div', { class: 'de-bar distill-player', role: 'group', 'aria-label': 'The sound as it is now' }, this.place, this.clock, make('label', { class: 'de-check' }, 'Volume', volume), saver);
  }
  seek() {
    this.start = +this.place.value;
    if (this.transport.now?.what === 'play') this.transport.play({ ...this.transport.now, at: this.start * this.about.rate });
    this.showPlace();
  }
  showPlace() {
    const { now } = this.transport, length = this.sounds.own ? this.sounds.own.length / this.about.rate : 0, own = now?.view === 'own';
    this.start = Math.min(this.start ?? 0, length);
    const at = own ? Math.min(this.transport.time, length) : this.start;
    if (+this.place.max !== length) { this.place.max = length; this.bar.dataset.seconds = length; }
    const text = `${at.toFixed(1)} s of ${length.toFixed(1)} s`;
    if (!now) this.place.value = at;
    if (this.clock.textContent !== text) { this.place.value = at; this.clock.textContent = text; this.place.setAttribute('aria-valuetext', text); }
  }
  checkbox(name, label, title, changed) {
    const box = make('input', { type: 'checkbox', on: { change: () => changed(box.checked) } });
    return make('label', { class: `de-check ${hook(name)}`, title }, box, label);
  }
  view(name, label) {
    return this.views[name] = Object.assign(new GridView(name, label, this.about, { select: v => this.selected(v), hover: (v, text) => { this.cellLine.textContent = text; },
      listen: v => this.play(v.name === 'own' ? 'selection' : 'other') }), { levels: this.levels, palette: this.palette });
  }
  viewBar() {
    const chips = this.about.levels > 1 ? this.levels.map(l => button(`level-${l}`, `${l}`, `Level ${l}${l ? '' : ', the coarsest'}: show and change it alone; with Shift, it as well (${l + 1})`,
      e => this.chooseLevel(l, e.shiftKey), { 'aria-label': `Level ${l}` })) : [];
    this.chips = chips;
    const slider = make('input', { type: 'range', min: 0, max: 1, step: 0.05, value: 0.6, class: 'distill-overlay', 'aria-label': 'Codes over the spectrogram',
      title: 'From the spectrogram alone to the codes alone', on: { input: () => this.redraw(v => { v.overlay = +slider.value; }) } });
    return make('div', { role: 'toolbar', class: 'de-bar', 'aria-label': 'View' }, make('span', { class: 'de-group' }, 'Levels'),
      this.allChip = button('level-all', 'All', 'Show and change all levels (0)', () => this.setLevels([...Array(this.about.levels).keys()]), { 'aria-label': 'All levels' }), ...chips,
      make('label', { class: 'de-check' }, 'Codes', slider),
      this.checkbox('changes', 'Changes', 'Mark every cell that is not as it was opened', on => { this.marking = on; this.markChanges(); }),
      button('zoom-out', '−', 'Zoom out (-)', () => this.zoom(0.7)), button('zoom-in', '+', 'Zoom in (+)', () => this.zoom(1.4)),
      button('zoom-fit', 'Fit', 'Show the whole sound, if there is room', () => Object.values(this.views).forEach(v => v.zoomToFit())));
  }
  zoom(factor) { Object.values(this.views).forEach(v => v.columns && v.zoom(factor)); }
  redraw(change = () => {}) { this.root.style.colorScheme = isDark(this.root) ? 'dark' : 'light'; for (const v of Object.values(this.views)) { change(v); v.draw(); } }
  chooseLevel(level, add) {
    if (!add) return this.setLevels([level]);
    const has = this.levels.includes(level), next = has ? this.levels.filter(l => l !== level) : [...this.levels, level];
    this.setLevels(next.length ? next.sort() : this.levels);
  }
  setLevels(levels, tell = true) {
    this.levels = levels;
    const all = levels.length === this.about.levels;
    this.chips.forEach((chip, l) => chip.setAttribute('aria-pressed', !all && levels.includes(l)));
    this.allChip.setAttribute('aria-pressed', all);
    for (const v of Object.values(this.views)) { v.levels = levels; if (v.codes) { v.paintCodes(); v.draw(); } }
    this.markChanges();
    if (tell) this.keep();
  }

  // from the kernel
  receive(message, buffers) {
    const bytes = i => buffers[i].buffer.slice(buffers[i].byteOffset, buffers[i].byteOffset + buffers[i].byteLength);
    const types = { codes: Uint16Array, mel: Uint8Array, wav: Float32Array };
    const get = (kind, i) => new types[kind](bytes(i));
    if (message.kind === 'all') {
      this.at = message.at;
      for (const [side, parts] of Object.entries(message.sides)) {
        const v = this.views[side], taken = Object.fromEntries(Object.entries(parts.buffers).map(([kind, i]) => [kind, get(kind.replace('original_', ''), i)]));
        this.sounds[side] = taken.wav; v.take(taken.codes, taken.mel, parts.columns); v.paint();
        if (side === 'own') { this.original = taken.original_codes ?? taken.codes.slice(); this.sounds.before ??= null; }
      }
      if (!message.sides.other) this.forgetSecond();
      this.second.hidden = !message.sides.other;
      this.setLevels(this.levels, false); this.followSelection(); this.enable(); this.heard('own');
      this.root.dataset.ready = 'true'; this.root.dataset.at = this.at;
    } else if (message.kind === 'change') {
      if (message.from !== this.at) return this.model.send({ do: 'hello' });
      this.at = message.at;
      for (const [side, parts] of Object.entries(message.sides)) this.change(side, parts, get);
      this.markChanges(); this.root.dataset.at = this.at; this.enable();
    }
  }
  forgetSecond() {                                 // it has been taken back: nothing plays it or takes from it any more
    if (this.transport.now?.sound === 'other') this.transport.stop();
    if (this.second.contains(document.activeElement)) this.views.own.scroll.focus({ preventScroll: true });   // keys are still meant for us
    delete this.sounds.other; this.views.other.clear(); this.focus = 'own';
  }
  change(side, { columns, codes, mel, wav }, get) {
    const v = this.views[side], n = this.about.n_mels;
    if (side === 'own') this.sounds.before = this.sounds.own;
    let sound = this.sounds[side].slice();
    for (const [start, removed, i] of wav) sound = splice(sound, start, removed, get('wav', i));
    this.sounds[side] = sound; this.heard(side);   // first the sound, then the picture
    let bytes = v.mel, first = Infinity, last = 0;
    for (const [start, removed, i] of mel) {
      const added = get('mel', i), end = removed * n === added.length ? start + removed : Infinity;
      bytes = splice(bytes, start * n, removed * n, added); first = Math.min(first, start); last = Math.max(last, end);
    }
    v.take(get('codes', codes), bytes, columns);
    if (first < last) v.paint(first, last); else { v.paintCodes(); v.draw(); }
    v.say();
  }
  heard(side) {                                    // there is a new sound
    this.transport.follow(side); this.showPlace();
    if (side === 'own') this.root.dispatchEvent(new CustomEvent('distill-sound', { detail: this.transport.now }));
  }
  markChanges() {
    const v = this.views.own, { bands, levels } = this.about;
    v.changes = null;
    if (this.marking && v.codes) {
      v.changes = new Uint8Array(v.columns * bands);
      for (let i = 0; i < v.changes.length; i++) v.changes[i] = this.levels.some(l => v.codes[i * levels + l] !== this.original[i * levels + l]);
    }
    v.draw();
  }
  followSelection() {                              // when the kernel says so: not when it repeats what we said
    const { boxes, levels, other } = this.model.get('selection'), same = (a, b) => JSON.stringify(a) === JSON.stringify(b), { own, other: second } = this.views;
    if (own.mask && !same(boxes, own.boxes())) { own.setBoxes(boxes); if (boxes.length) own.reveal(own.cursor[0]); }
    if (second.mask && !same(other, second.boxes())) second.setBoxes(other);
    if (!same(levels, this.levels)) this.setLevels(levels, false);
  }

  // to the kernel
  get selection() {
    const { own, other } = this.views;
    return { boxes: own.mask ? own.boxes() : [], levels: this.levels, other: other.mask ? other.boxes() : [], cursor: own.cursor, focus: this.focus ?? 'own' };
  }
  keep() { this.model.set('selection', this.selection); this.model.save_changes(); this.enable(); }
  send(name, settings = {}) { this.sent = this.at; this.model.send({ do: name, settings, selection: this.selection }); }
  selected(view) {
    this.focus = view.name; this.keep();
    const n = view.count();
    if (this.auto && n) this.play(view.name === 'own' ? 'selection' : 'other');
  }
  act(name, held = false) {                        // a key that is held down: another step back only when the one before is there
    if (this.buttons[name].disabled || held && (this.sent === this.at || this.model.get('running'))) return;
    if (['play', 'selection', 'before', 'after', 'halt'].includes(name)) return this.play(name);
    const settings = {};
    for (const [key, input] of Object.entries(this.settings)) if (key.startsWith(`${name}.`)) {
      if (!input.checkValidity()) return input.reportValidity();
      settings[key.split('.')[1]] = +input.value;
    }
    this.send(name, settings);
  }

  // listening
  extent(view) {                                   // samples of the selected columns, or of everything
    const samples = this.sounds[view.name], columns = view.mask ? view.boxes().flatMap(([a, b]) => [a, b - 1]) : [];
    if (!columns.length) return [0, samples.length, true];
    const size = this.about.column_samples, low = Math.min(...columns) * size;
    return low < samples.length ? [low, Math.min(samples.length, (Math.max(...columns) + 1) * size), false] : [0, samples.length, true];
  }
  play(what) {
    if (this.transport.now?.what === what) return this.transport.stop();
    const sound = { before: 'before', other: 'other' }[what] ?? 'own', view = this.views[what === 'other' ? 'other' : 'own'];
    if (!this.sounds[sound]) return;
    let [from, to] = this.extent(view);
    if (what === 'play' || this.extent(view)[2]) [from, to] = [0, this.sounds[sound].length];
    const start = Math.round((this.start ?? 0) * this.about.rate), at = what === 'play' && start < to - 1 ? start : from;
    this.transport.play({ what, sound, view: view.name, from, to, loop: this.loop, at });
  }
  playing() {                                      // the transport has begun or ended something
    const now = this.transport.now;
    for (const name of ['play', 'selection', 'before', 'after']) this.buttons?.[name]?.setAttribute('aria-pressed', now?.what === name);
    if (this.root) { this.root.dataset.playing = now?.what ?? ''; this.root.dataset.length = now ? (now.to - now.from) / this.about.rate : ''; }
    cancelAnimationFrame(this.tick);
    const step = () => {
      const now = this.transport.now;
      for (const v of Object.values(this.views)) {
        const at = now?.view === v.name ? this.transport.time : null;
        if (v.playhead !== at) { v.playhead = at; v.moveHead(); }
        if (at != null && !v.fitted) v.reveal(Math.floor(at / this.about.column_s));
      }
      this.showPlace();
      if (now) this.tick = requestAnimationFrame(() => { this.tick = requestAnimationFrame(step); });   // every second frame: the kernel may need the processor
    };
    step();
  }
  download() {
    const link = make('a', { href: URL.createObjectURL(wavBlob(this.sounds.own, this.about.rate, gainOf(this.sounds.own))), download: `${this.about.title.replace(/[^\p{L}\p{N}-]+/gu, '-')}.wav` });
    link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // keys
  key(e) {
    if (e.repeat && e.key === 'Enter' && e.target.matches('button')) e.preventDefault();    // it would be clicked again and again
    if (e.defaultPrevented || e.target.matches('input[type=text], input[type=number], audio, summary') && e.key !== 'Escape') return;
    const view = Object.values(this.views).find(v => v.scroll === e.target), { shiftKey: shift, altKey: alt } = e, ctrl = e.ctrlKey || e.metaKey;
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1], PageUp: [-8, 0], PageDown: [8, 0], Home: [-1e6, 0], End: [1e6, 0] };
    const text = window.getSelection()?.toString(), press = (ctrl ? 'Ctrl+' : '') + (shift ? 'Shift+' : '') + (alt ? 'Alt+' : '') + (e.key === ' ' ? 'Space' : e.key.length === 1 ? e.key.toUpperCase() : e.key);
    const grid = view ?? this.views.own, others = { 'Ctrl+A': () => grid.all(), Escape: () => { this.transport.stop(); grid.none(); },
      'Ctrl+Shift+Z': () => this.act('redo', e.repeat), '+': () => this.zoom(1.4), 'Shift++': () => this.zoom(1.4), '=': () => this.zoom(1.4), '-': () => this.zoom(0.7), 0: () => this.allChip.click() };
    let run = others[press];
    if (view && steps[e.key] && !ctrl && !alt) run = () => { this.focus = view.name; view.move(...steps[e.key], shift); };
    else if (view && press === 'Ctrl+Space') run = () => { this.focus = view.name; view.toggle(); };
    else if (press === 'Space' && e.target.matches('button, input:not([type=range])')) return;
    else if (press === 'Space') run = () => this.play(view?.name === 'other' ? 'other' : grid.count() ? 'selection' : 'play');
    else if (/^[1-9]$/.test(press) && +press <= this.chips.length) run = () => this.chooseLevel(+press - 1);
    else if (press === 'Ctrl+C' && text && !view) return;             // text that is selected is copied, unless one is in a grid
    else if (!run) { const o = this.model.get('operations').find(o => o.key === press); if (o) run = () => this.act(o.name, e.repeat); }
    if (!run) return;
    e.preventDefault(); e.stopPropagation();
    if (!e.repeat || HELD.test(press)) run();
  }

  // what is said
  enable() {
    const state = this.model.get('state'), has = { selection: this.views.own.count() > 0, other: !!this.sounds.other, before: !!this.sounds.before,
      undo: state.undo, redo: state.redo, copied: state.copied, prior: this.about.prior, any: this.views.own.count() > 0 || this.focus === 'other' && this.views.other.count() > 0 };
    for (const o of this.model.get('operations')) this.buttons[o.name].disabled = !o.needs.every(need => has[need]);
    this.buttonPlayOther.disabled = !has.other;
  }
  showLines() { this.lines.textContent = this.model.get('lines').join('\n'); this.lines.scrollTop = this.lines.scrollHeight; }
  showStatus() {
    const error = this.model.get('error');
    this.status.classList.toggle('distill-error', !!error); this.status.setAttribute('role', error ? 'alert' : 'status');
    this.status.textContent = error || this.model.get('status');
  }
  showRunning() {
    const running = this.model.get('running');
    this.root.setAttribute('aria-busy', running); this.halt.disabled = !running;
    this.progress.value = this.model.get('progress'); this.progress.classList.toggle('de-idle', !running);
  }
  async copyLines() {
    const text = this.model.get('lines').join('\n');
    try { await navigator.clipboard.writeText(text); } catch {   // not in a page without https
      const area = make('textarea', { class: 'de-hidden' }); area.value = text; this.root.append(area); area.select(); document.execCommand('copy'); area.remove();
    }
    this.status.textContent = 'Copied the lines';
  }
}

function render({ model, el }) {
  const root = make('div'); el.append(root);
  const editor = new Editor(model, root);
  return () => editor.close();
}
export default { render };
