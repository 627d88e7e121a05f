// The channel group of a layer as a row of boxes: reads → moves together → (what stands in the way) → read by.
// `why` is app/why.py's record. The sentence beneath says the same, so the arrows are for the eye alone.
function whyFigure(why) {
  const list = (box, kind) => el('div', { class: `why-box ${kind}` },
    el('span', { class: 'why-title' }, box.title),
    el('ul', {}, ...box.names.map((name) => el('li', { class: name === why.layer ? 'mine' : '' }, name))));
  const arrow = () => el('span', { class: 'why-arrow', 'aria-hidden': 'true' });
  const flow = [];
  if (why.reads.names.length) flow.push(list(why.reads, 'side'), arrow());
  flow.push(list(why.together, why.obstacle ? 'fixed' : 'free'));
  if (why.obstacle) flow.push(arrow(), el('div', { class: 'why-box stop' }, el('span', { class: 'why-title' }, 'Held by'), el('b', {}, why.obstacle)));
  if (why.readers.names.length) flow.push(arrow(), list(why.readers, 'side'));
  return el('figure', { class: 'why' }, el('div', { class: 'why-flow' }, ...flow), el('figcaption', {}, why.said));
}
