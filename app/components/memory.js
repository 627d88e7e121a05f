// Peak activation memory of a recipe while its sliders move: core/memory.py and core/liveness.py in the browser, in the
// same order and with the same words. `net` is what the steps left (costs.js).
const IN_PLACE = new Set(['Relu', 'Clip', 'LeakyRelu', 'PRelu', 'Sigmoid', 'HardSigmoid', 'HardSwish', 'Tanh', 'Elu', 'Gelu', 'Mish', 'Identity', 'Dropout', 'Reshape', 'Flatten', 'Squeeze', 'Unsqueeze', 'Add', 'Mul', 'Sub', 'Div']);
const WEIGHTED = ['Conv', 'ConvTranspose', 'Gemm', 'MatMul'];
const QUANTIZED = new Set([...WEIGHTED, 'Add', 'AveragePool', 'BatchNormalization', 'Clip', 'Concat', 'Flatten', 'GlobalAveragePool', 'LeakyRelu', 'MaxPool', 'Mul', 'Pad', 'ReduceMean', 'Relu', 'Reshape', 'Resize', 'Sigmoid', 'Slice', 'Softmax', 'Split', 'Squeeze', 'Transpose', 'Unsqueeze']);

function peakBytes(operators) {
  const readers = operators.map(() => []), home = operators.map((_, at) => at), ends = operators.map(() => 0);
  operators.forEach((x, at) => x.reads.forEach((r) => readers[r].push(at)));
  operators.forEach((x, at) => {
    if (IN_PLACE.has(x.kind) && !x.integer) {
      const free = x.reads.filter((r) => readers[r].length === 1 && readers[r][0] === at && !operators[r].answer);
      home[at] = free.map((r) => home[r]).find((place) => operators[place].size === x.size) ?? at;
    }
    ends[home[at]] = Math.max(ends[home[at]], x.answer ? operators.length : Math.max(at, ...readers[at]));
  });
  let peak = 0, now = [];
  home.forEach((place, at) => {
    now = now.filter((x) => ends[x] >= at);
    if (place === at) now.push(at);
    peak = Math.max(peak, sum(now, (x) => operators[x].size));
  });
  return peak;
}

function peakAfter(packed, net) {
  if (!packed.length || !net.peakKnown) return null;
  const operators = packed.map(([kind, reads, size, layer, channels, answer]) => ({ kind, reads, size, layer, channels, answer }));
  return peakBytes(operatorsAfter(operators, net));
}

function operatorsAfter(operators, net) {
  const left = [], now = [];
  operators.forEach((x, at) => {
    let there = x.reads.map((r) => now[r]).filter((r) => r !== null);
    const parts = net.parts.get(x.layer) ?? [], empty = x.reads.length && !there.length;
    if (empty || (parts.length && parts.every((part) => net.gone.has(part.name)))) { now.push(null); return; }
    if (passes(operators, at, now, left)) { now.push(there[0]); return; }
    for (const part of parts.slice(0, -1)) there = [left.push({ kind: x.kind, reads: there, size: sizeOf(part, net), layer: part.name }) - 1];
    const size = x.size + sum(x.channels, ([group, each]) => each * (net.width[group] - net.groups.get(group).channels));
    now.push(left.push({ ...x, reads: there, size, layer: parts.at(-1)?.name ?? '' }) - 1);
  });
  return inBytes(needed(left), net);
}

function passes(operators, at, now, left) {
  const { kind, reads } = operators[at], alone = (x) => x.kind === 'Add' && x.reads.some((r) => now[r] === null);
  if (kind === 'Add') return alone(operators[at]);
  const source = kind === 'Relu' ? now[reads[0]] : null;
  if (source === null || left[source].kind !== 'Relu' || operators.filter((x) => x.reads.includes(reads[0])).length > 1) return false;
  return alone(operators[reads[0]]);
}

const sizeOf = (part, net) => part.output_shape.slice(1).reduce((size, side) => size * side, 4 * channelsOf(net, part)[1]);

function needed(operators) {
  const wanted = operators.map((x) => x.answer || x.kind === 'Image');
  for (let at = operators.length - 1; at >= 0; at--) if (wanted[at]) operators[at].reads.forEach((r) => { wanted[r] = true; });
  let count = 0;
  const place = wanted.map((yes) => (yes ? count++ : null));
  return operators.filter((_, at) => wanted[at]).map((x) => ({ ...x, reads: x.reads.map((r) => place[r]) }));
}

function inBytes(operators, net) {
  if (!operators.some((x) => net.integer.has(x.layer))) return operators;
  const inside = [], left = [], now = [], uses = operators.flatMap((x) => x.reads);
  const follows = (x) => !WEIGHTED.includes(x.kind) || (net.parts.get(x.layer) ?? []).some((part) => part.kind === 'shortcut');
  operators.forEach((x) => inside.push(net.integer.has(x.layer) || (follows(x) && x.reads.some((r) => inside[r]))));
  const touched = operators.map((x, at) => inside[at] && QUANTIZED.has(x.kind)), read = new Set(operators.flatMap((x, at) => (touched[at] ? x.reads : [])));
  operators.forEach((x, at) => {
    const reads = x.reads.map((r) => now[r]), once = uses.filter((r) => r === x.reads[0]).length === 1;
    if (touched[at] && ['Relu', 'Clip'].includes(x.kind) && once && left[reads[0]].reads.length) { now.push(reads[0]); return; }
    const integer = x.kind !== 'Image' && (touched[at] || read.has(at));
    left.push({ ...x, reads, size: integer ? Math.floor(x.size / 4) : x.size, integer });
    if (x.kind === 'Image' && read.has(at)) left.push({ kind: 'QuantizeLinear', reads: [left.length - 1], size: Math.floor(x.size / 4), layer: '', integer: true });
    now.push(left.length - 1);
  });
  return left;
}
