// One row per layer with its own slider. Everything repaints here while dragged, from the exact sums in costs.js; Python
// hears about it on release, with the revision of the data the edit was made against.
// User text (layer names, reasons) only ever goes through textContent and attributes.
const TABLES = new WeakMap();
let read = { text: '' }; // what was read of the parts that stay as they are
const LOCK = '<svg viewBox="0 0 16 16" aria-hidden="true"><rect x="3" y="7" width="10" height="7" rx="1.5"/><path d="M5.2 7V5a2.8 2.8 0 0 1 5.6 0v2" fill="none"/></svg>';
const MOST_TICKS = 24; // more would be a line
const KEY_PAUSE_MS = 250; // a held arrow key is one edit, not thirty

const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== false) node.setAttribute(name, value === true ? '' : value);
  node.append(...children);
  return node;
};
const cell = (name, ...children) => el('td', { role: 'cell', class: name }, ...children);
const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };

export default function ({ data: [{ still, ...moving }], parentElement, setStateValue }) {
  if (read.text !== still) read = { text: still, parts: JSON.parse(still) };
  const data = { ...read.parts, ...moving };
  const root = parentElement.querySelector('.lt');
  let table = TABLES.get(parentElement);
  if (!table || table.ident !== data.ident) {
    TABLES.set(parentElement, (table = build(root, data)));
    goOn(table, data);
  }
  globalThis.layerTable = table;
  Object.assign(table, { data, emit: (edit) => setStateValue('edit', edit), emitLocks: (names) => setStateValue('locks', { rev: data.rev, names }) });
  if (table.rev !== data.rev) Object.assign(table, { rev: data.rev, touched: false, value: data.dial?.value, own: { ...data.own }, locked: new Set(data.locked) });
  paint(table);
}

// Python does not send edits back: the same table, put into the page anew, goes on from the one that was there.
function goOn(table, data) {
  const last = globalThis.layerTable; // not of this module, which each place in the page may load for itself
  if (last?.ident !== data.ident || last.rev !== data.rev) return;
  const { rev, touched, value, own, locked } = last;
  Object.assign(table, { rev, touched, value, own, locked });
}

// The slider's position of a value and back: choices sit at 0, 1, 2…
const position = (dial, value) => (dial.choices ? dial.choices.indexOf(value) : value);
const slide = (input, dial, value) => {
  const at = position(dial, value);
  input.value = at;
  input.style.setProperty('--at', `${(100 * (at - input.min)) / (input.max - input.min)}%`);
};
const valueAt = (dial, text) => (dial.choices ? dial.choices[+text] : +(+text).toFixed(4));
const valueOf = (table, row) => dialFor(table.own, row.key, table.value);

function build(root, data) {
  const table = { ident: data.ident, root, rev: null, own: {}, locked: new Set(), timer: 0 };
  table.figures = FIGURES.filter(([key]) => data.original[key] !== null).map(([key, label, format]) => figure(key, label, format));
  table.live = root.querySelector('.live');
  table.all = allRow(table, data, root.querySelector('.all'));
  root.querySelector('.figures').replaceChildren(...table.figures.map((f) => f.node));
  root.classList.toggle('plain', !data.dial);
  root.classList.toggle('switched', Boolean(data.dial) && !hasSlider(data.dial));
  root.classList.toggle('known', Boolean(data.loss?.settings.length));
  table.rows = data.rows.map((row) => layerRow(table, row, data));
  root.querySelector('tbody').replaceChildren(...table.rows.flatMap((row) => [row.node, row.more]));
  watch(table, root.querySelector('.scroll'));
  return table;
}

// Only rows in sight are drawn while a slider moves; the others when they come into sight, or on release.
function watch(table, scroller) {
  const rowOf = new Map(table.rows.map((row) => [row.node, row]));
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const row = rowOf.get(target);
      row.inSight = isIntersecting;
      if (isIntersecting && table.cost) paintRow(table, row);
    }
  }, { root: scroller, rootMargin: '60px' });
  table.rows.forEach((row) => observer.observe(row.node));
}

function figure(key, label, format) {
  const value = el('b'), was = el('span', { class: 'was' }), change = el('span', { class: 'change' });
  const badge = el('span', { class: 'badge', title: BADGES[key] ?? 'Exact: counted from the shapes of the layers. Predicted: a step ranks the whole network, so only a run knows each share.' }, 'exact');
  const node = el('div', { class: 'figure', role: 'group', 'aria-label': label }, el('span', { class: 'label' }, label, badge), value, el('span', { class: 'line' }, change, was));
  return { key, format, label, node, value, was, change, badge };
}

function slider(dial, label) {
  const limits = dial.choices ? { min: 0, max: dial.choices.length - 1, step: 1 } : { min: dial.low, max: dial.high, step: dial.step };
  return el('input', { type: 'range', 'aria-label': label, ...limits });
}

// A dial of two choices needs no slider: its switch says it all.
const hasSlider = (dial) => dial && !(dial.choices && dial.choices.length === 2);

function allRow(table, data, box) {
  box.hidden = !data.dial;
  if (!data.dial) return box.replaceChildren();
  const all = { text: el('output', { class: 'value' }), reset: el('button', { type: 'button', class: 'reset' }, 'All follow') };
  const label = el('span', { class: 'label', title: data.dial.help }, 'All layers');
  all.snap = el('label', { class: 'snap', title: 'Each layer’s slider stops at its marks; between them nothing is gained, by the times measured on this computer.', hidden: !data.paying }, all.snaps = el('input', { type: 'checkbox', checked: true }), 'A layer’s slider stops only at widths that gain time on this computer');
  if (hasSlider(data.dial)) all.input = slider(data.dial, `${data.dial.title}, all layers`);
  else all.input = el('input', { type: 'checkbox', role: 'switch', 'aria-label': `${data.dial.title}, all layers` });
  all.input.oninput = () => { const d = table.data.dial; edit(table, () => { table.value = hasSlider(d) ? valueAt(d, all.input.value) : all.input.checked ? d.on : d.neutral; }); };
  all.reset.onclick = () => { edit(table, () => { table.own = {}; }); commit(table, 0); };
  listen(table, all.input);
  box.replaceChildren(label, all.input, all.text, all.reset, all.snap);
  return all;
}

function layerRow(table, row, data) {
  const { dial } = data, r = { ...row, left: {}, value: el('output', { class: 'value' }), width: cell('width') };
  r.info = el('button', { type: 'button', class: 'info', 'aria-expanded': 'false', 'aria-label': `About ${row.layer}` }, 'i');
  const name = el('th', { scope: 'row', role: 'rowheader', class: 'name' }, el('span', { class: 'text', title: row.layer }, row.layer), r.info);
  if (row.reason) name.append(el('span', { class: 'note' }, row.reason));
  else if (row.tied) name.append(el('span', { class: 'note tied', title: row.tied }, `moves with ${row.tied}`));
  r.more = el('tr', { class: 'more', role: 'row', hidden: true }, cell('', ...row.about.map((line) => el('div', {}, line))));
  r.info.onclick = () => { if (row.why && !r.drawn) r.more.lastChild.append(r.drawn = whyFigure(row.why)); r.more.hidden = !r.more.hidden; r.info.setAttribute('aria-expanded', String(!r.more.hidden)); };
  const bars = ['params', 'macs'].map((key) => { r.left[key] = el('i'); return el('span', { class: `bar ${key}`, style: `width:${100 * row.share[key]}%` }, r.left[key]); });
  r.loss = el('i');
  bars.push(el('span', { class: 'bar loss for-loss' }, r.loss));
  r.node = el('tr', { role: 'row', class: row.reason ? 'kept' : '' }, name, cell('share', ...bars));
  if (!dial) return r.node.append(r.width), r;
  r.input = hasSlider(dial) ? slider(dial, `${dial.title}, ${row.layer}`) : null;
  r.on = el('input', { type: 'checkbox', role: 'switch', 'aria-label': `Change ${row.layer}` });
  r.follow = el('button', { type: 'button', class: 'follow', 'aria-label': `Let ${row.layer} follow all layers`, title: 'Follow all layers' }, '↺');
  r.lock = el('button', { type: 'button', class: 'lock for-loss', 'aria-pressed': 'false', 'aria-label': `Lock ${row.layer}`, title: 'Hold this setting when a budget is spent' });
  r.lock.innerHTML = LOCK;
  for (const control of [r.input, r.on, r.follow, r.lock]) if (control) control.disabled = Boolean(row.reason);
  const set = (value) => edit(table, () => { if (value === undefined) delete table.own[row.key]; else table.own[row.key] = value; });
  if (r.input) { r.input.oninput = () => set(snapped(table, r, valueAt(dial, r.input.value))); listen(table, r.input); }
  const ticks = row.reason ? [] : data.paying?.[row.key] ?? [];
  r.ticks = el('span', { class: 'ticks', 'aria-hidden': 'true' }, ...(ticks.length > MOST_TICKS ? [] : ticks).map((at) => el('i', { style: `--at:${at}` })));
  r.on.oninput = () => { set(!r.on.checked ? dial.neutral : table.value === dial.neutral ? dial.on : undefined); };
  listen(table, r.on);
  r.follow.onclick = () => { set(undefined); commit(table, 0); (r.input || r.on).focus(); };
  r.lock.onclick = () => {
    if (!table.locked.delete(row.key)) table.locked.add(row.key);
    table.rows.forEach((other) => paintRow(table, other));
    table.emitLocks([...table.locked]);
  };
  r.node.append(cell('dial', ...(r.input ? [r.input, r.ticks] : [])), cell('number', r.value, r.follow, r.lock), r.width, cell('on', r.on));
  return r;
}

// A layer's slider stops where this computer gains time: at the nearest such share, or by a key at the next one.
function snapped(table, row, value) {
  const stops = table.all.snaps.checked ? table.data.paying?.[row.key] : null;
  if (!stops) return value;
  const before = valueOf(table, row), next = value > before ? stops.find((x) => x > before) : stops.findLast((x) => x < before);
  if (table.typed && next !== undefined) return next;
  return stops.reduce((best, x) => (Math.abs(x - value) < Math.abs(best - value) ? x : best), stops[0]);
}

// What the layer's setting costs by itself: read between the points that Python sent.
function lossAt(table, row, value, cost) {
  const { loss, dial } = table.data, found = loss?.rows[row.key];
  if (!found || !dial) return null;
  const at = dial.name === 'ratio' && !row.tied ? 1 - cost.widths.at(-1) / row.widths[1] : value, { settings } = loss;
  if (at === dial.neutral) return { bar: 0, points: 0 };
  const right = Math.max(1, settings.findIndex((x) => x >= at)), part = (at - settings[right - 1]) / (settings[right] - settings[right - 1]);
  const read = (values) => values && values[right - 1] + part * (values[right] - values[right - 1]);
  return { bar: read(found.bar), points: read(found.points) };
}

// How much longer the layer takes by itself at this setting, as a share; 0 where that is hardly noticed.
function slowerAt(table, row, value, cost) {
  const { slower } = table.data, found = slower?.rows[row.layer];
  if (!found || value === undefined || cost.kept === 'not split') return 0;
  const nearest = slower.settings.reduce((best, x, at) => (Math.abs(x - value) < Math.abs(slower.settings[best] - value) ? at : best), 0);
  return found[nearest] > 1.05 ? found[nearest] - 1 : 0;
}

function listen(table, input) {
  input.onkeydown = () => { table.typed = true; };
  input.onpointerdown = () => { table.typed = false; };
  input.onchange = () => commit(table, table.typed && input.type === 'range' ? KEY_PAUSE_MS : 0);
}

function edit(table, change) {
  change();
  table.touched = true;
  paint(table, (row) => row.inSight);
}

function commit(table, pause) {
  clearTimeout(table.timer);
  const { rev } = table;
  table.timer = setTimeout(() => {
    if (rev !== table.rev) return; // Python changed the recipe meanwhile
    table.emit({ rev, value: table.value, layers: { ...table.own } });
    table.rows.forEach((row) => paintRow(table, row)); // while Python is at work
    write(table.live, table.figures.map((f) => `${f.label} ${f.value.textContent}`).join(', '));
  }, pause);
}

// The recipe as it is under the sliders: the step being edited replaced, or put in once it was touched.
function stepsNow(table) {
  const { steps, at, present, dial, technique } = table.data;
  if (!dial || (!present && !table.touched)) return steps;
  const old = present ? steps[at] : { technique, options: table.data.options };
  const step = { ...old, enabled: table.touched || old.enabled, options: { ...old.options, [dial.name]: table.value }, layers: table.own };
  return [...steps.slice(0, at), step, ...steps.slice(at + (present ? 1 : 0))];
}

function paint(table, wanted = () => true) {
  const { data } = table;
  table.cost = costs(data.profile, stepsNow(table));
  table.figures.forEach((f) => {
    const now = table.cost[f.key], before = data.original[f.key], exact = f.key === 'peak_bytes' ? table.cost.peak_exact : table.cost.exact;
    const change = before && now !== null ? 100 * (now / before - 1) : 0;
    write(f.value, now === null ? 'after a run' : f.format(now));
    f.value.classList.toggle('later', now === null);
    write(f.was, `of ${f.format(before)}`);
    write(f.badge, exact ? 'exact' : 'predicted');
    f.badge.classList.toggle('predicted', !exact);
    write(f.change, now === null ? '' : `${change > 0.05 ? '+' : change < -0.05 ? '−' : ''}${Math.abs(change).toFixed(1)} %`);
  });
  table.root.classList.toggle('off', Boolean(data.dial) && !(table.touched || data.active));
  if (data.dial) paintAll(table);
  for (const row of table.rows) if (wanted(row)) paintRow(table, row);
}

function paintAll(table) {
  const { all, data: { dial } } = table;
  if (hasSlider(dial)) slide(all.input, dial, table.value); else all.input.checked = table.value !== dial.neutral;
  all.input.setAttribute('aria-valuetext', words(dial, table.value));
  write(all.text, words(dial, table.value));
  const own = Object.keys(table.own).length;
  all.reset.disabled = !own;
  write(all.reset, own ? `All follow (${own} set)` : 'All follow');
}

function paintRow(table, row) {
  const cost = table.cost.layers[row.layer], { dial } = table.data;
  const value = row.reason ? dial?.neutral : dial && valueOf(table, row), slow = row.reason ? 0 : slowerAt(table, row, value, cost);
  const said = slow ? `${Math.round(100 * slow)} % slower: ${result(row, cost)}` : result(row, cost), own = row.key in table.own && !row.reason;
  const loss = lossAt(table, row, value, cost), cause = row.reason ? '' : lossWords(loss), locked = table.locked.has(row.key);
  const shown = [said, value, own, cost.params, cost.macs, dial?.words?.[8], loss?.bar, cause, locked].join('|');
  if (row.shown === shown) return;
  row.shown = shown;
  row.loss.style.transform = `scaleX(${loss?.bar ?? 0})`;
  row.loss.parentNode.title = cause;
  for (const key of ['params', 'macs']) row.left[key].style.transform = `scaleX(${row.before[key] ? Math.min(1, cost[key] / row.before[key]) : 0})`;
  write(row.width, said);
  row.width.classList.toggle('same', said === '=');
  row.width.classList.toggle('slow', slow > 0);
  row.width.title = cost.kept === 'not split' ? `${said}: at this setting its factors would not be smaller and cheaper.` : slow ? `${said} (predicted for this layer alone, at its full width, from times of this computer)` : said;
  if (dial) paintDial(table, row, value, own, cause && value !== dial.neutral ? `${said}, ${cause}` : said);
  row.lock?.setAttribute('aria-pressed', String(locked));
}

function paintDial(table, row, value, own, said) {
  const { dial } = table.data, text = words(dial, value);
  if (row.input) {
    slide(row.input, dial, value);
    row.input.setAttribute('aria-valuetext', `${text}, ${said === '=' ? 'unchanged' : said}`);
  }
  row.on.checked = value !== dial.neutral;
  write(row.value, text);
  row.node.classList.toggle('own', own);
  row.follow.hidden = !own;
}
