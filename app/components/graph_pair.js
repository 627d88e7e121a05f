// Two Netron viewers on the studio's own origin, kept in step: selecting a node in one selects it in the other, and
// scrolling goes along. Netron has no public interface for this, so what it keeps on `window.__view__` is looked for
// and, where a later release has moved it, the two graphs are simply shown side by side.
const PAIRS = new WeakMap();
const SETTLE_MS = 40; // Netron tells of one click several times

export default function ({ data, parentElement, setStateValue }) {
  let pair = PAIRS.get(parentElement);
  if (!pair) PAIRS.set(parentElement, (pair = { frames: [...parentElement.querySelectorAll('iframe')], quiet: 0, node: null, timer: 0 }));
  pair.sync = data.sync;
  pair.emit = (node) => setStateValue('node', node);
  [data.left, data.right].forEach((address, i) => {
    const frame = pair.frames[i];
    if (frame.dataset.address === address) return;
    Object.assign(frame.dataset, { address, ready: '' });
    frame.src = address;
    attach(pair, frame, pair.frames[1 - i], address);
  });
  if (pair.focus !== data.focus) {
    pair.focus = data.focus;
    pair.frames.forEach((frame) => select(pair, frame, data.focus));
  }
}

const graphOf = (frame) => { try { const view = frame.contentWindow.__view__; return view?._target ?? view?.target ?? null; } catch { return null; } };
const scrollerOf = (frame) => frame.contentDocument?.getElementById('target') ?? null;
const nodesOf = (graph) => [...(graph?._table?.keys() ?? [])].filter((key) => key?.type && key.name !== undefined && !key.nodes);
const selectedIn = (graph) => { for (const [key, shown] of graph._table) if (graph._selection.has(shown)) return key.name || null; return null; };

// The exporter's last step may append to a layer's name ("conv1_quant"), so the nearest name that starts alike will do.
const find = (nodes, name) => nodes.find((n) => n.name === name) ?? nodes.find((n) => n.name.startsWith(`${name}_`) || n.name.startsWith(`${name}.`) || n.name.startsWith(`${name}/`));

function select(pair, frame, name) {
  const graph = graphOf(frame);
  if (!graph?._table || !graph.select) return;
  pair.quiet += 1;
  try {
    const node = name && find(nodesOf(graph), name);
    if (node) graph.scrollTo(graph.select([node], 'sidebar')); else graph.select(null, 'sidebar');
  } finally {
    setTimeout(() => { pair.quiet -= 1; }, SETTLE_MS + 10);
  }
}

function attach(pair, frame, other, address) {
  const wait = () => {
    if (!frame.isConnected || frame.dataset.address !== address) return;
    const graph = graphOf(frame), box = scrollerOf(frame);
    if (!graph?._table?.size || !box || !graph.on) { setTimeout(wait, 120); return; }
    frame.dataset.ready = '1';
    graph.on('selectionchange', () => {
      clearTimeout(pair.timer);
      pair.timer = setTimeout(() => {
        const node = selectedIn(graph);
        if (node === pair.node) return;
        pair.node = node;
        if (pair.sync) select(pair, other, node);
        pair.emit(node);
      }, SETTLE_MS);
    });
    box.addEventListener('scroll', () => follow(pair, box, scrollerOf(other)), { passive: true });
    if (pair.focus) select(pair, frame, pair.focus);
  };
  wait();
}

// Both scroll by the same share of their own height: the graphs differ in length.
function follow(pair, box, target) {
  if (!pair.sync || pair.quiet || !target) return;
  pair.quiet += 1;
  target.scrollTop = (box.scrollTop / Math.max(1, box.scrollHeight - box.clientHeight)) * (target.scrollHeight - target.clientHeight);
  requestAnimationFrame(() => { pair.quiet -= 1; });
}
