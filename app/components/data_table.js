// A table that sorts by its headings. Text only ever goes through textContent and attributes.
const STATES = new WeakMap(); // element → what is shown and how it is sorted

const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== false) node.setAttribute(name, value === true ? '' : value);
  node.append(...children);
  return node;
};

export default function ({ data: [data], parentElement, setTriggerValue }) {
  const root = parentElement.querySelector('.dt');
  const state = STATES.get(parentElement) ?? { by: null, down: false };
  STATES.set(parentElement, state);
  state.emit = (id) => setTriggerValue('pick', id);
  const shown = JSON.stringify(data);
  if (state.shown === shown) return;
  Object.assign(state, { shown, data });
  if (state.by >= data.columns.length) state.by = null;
  const scroll = root.querySelector('.scroll');
  scroll.setAttribute('aria-label', data.alt);
  scroll.style.maxHeight = `${data.height}px`;
  root.querySelector('thead tr').replaceChildren(...data.columns.map((column, at) => heading(root, state, column, at)));
  const save = root.querySelector('.save');
  save.setAttribute('download', 'table.csv');
  save.href = `data:text/csv;charset=utf-8,${encodeURIComponent(csv(data))}`;
  draw(root, state);
}

function heading(root, state, column, at) {
  const button = el('button', { type: 'button', title: column.help || false }, column.title);
  button.addEventListener('click', () => {
    // a number's largest come first, a text's first in the alphabet
    Object.assign(state, state.by === at ? { down: !state.down } : { by: at, down: column.number });
    draw(root, state);
  });
  return el('th', { scope: 'col', class: column.number ? 'number' : '' }, button);
}

function draw(root, state) {
  const { data, by, down } = state;
  root.querySelectorAll('th').forEach((th, at) => {
    if (at === by) th.setAttribute('aria-sort', down ? 'descending' : 'ascending'); else th.removeAttribute('aria-sort');
  });
  const largest = data.columns.map((column, at) => column.bar && Math.max(...data.rows.map((row) => row.cells[at][1] ?? 0)));
  const rows = by === null ? data.rows : [...data.rows].sort((a, b) => (down ? -1 : 1) * order(a.cells[by][1], b.cells[by][1]));
  root.querySelector('tbody').replaceChildren(...rows.map((row) => line(state, row, largest)));
}

// Numbers by size, text by the alphabet with its numbers by size; what is missing counts as least.
function order(a, b) {
  if (a === null || b === null) return (a !== null) - (b !== null);
  return typeof a === 'number' ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
}

function line(state, row, largest) {
  const { columns, pick } = state.data;
  const cells = row.cells.map(([text, value], at) => {
    const inside = pick && at === 0 ? el('button', { type: 'button', class: 'pick' }, text) : el('span', {}, text);
    const cell = el(at === 0 ? 'th' : 'td', { class: columns[at].number ? 'number' : '', ...(at === 0 && { scope: 'row' }) }, inside);
    if (columns[at].bar) {
      const bar = el('i', { 'aria-hidden': 'true' });
      bar.style.width = `${largest[at] ? (100 * (value ?? 0)) / largest[at] : 0}%`;
      cell.prepend(el('span', { class: 'bar' }, bar));
      cell.classList.add('barred');
    }
    return cell;
  });
  const node = el('tr', {}, ...cells);
  if (pick) node.addEventListener('click', () => state.emit(row.id));
  node.classList.toggle('pickable', pick);
  return node;
}

function csv({ columns, rows }) {
  const quote = (value) => `"${String(value ?? '').replaceAll('"', '""')}"`;
  return [columns.map((c) => c.title), ...rows.map((row) => row.cells.map(([, value]) => value))].map((cells) => cells.map(quote).join(',')).join('\r\n');
}
